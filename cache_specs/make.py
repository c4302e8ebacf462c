"""What `make` was given on its command line, checked before anything starts: `python -m cache_specs.make extract VIEW DATA`. And the way back:
the command of make that this process is, for messages."""

import os
import re
import shlex
import sys

from cache_specs.errors import UsageError, did_you_mean, run_cli

COMMON = ("DATA", "DEVICE", "GPUS", "CACHE", "ARGS")
CACHED = ("VIEW", "DATA", "CACHE", "ARGS")
TARGETS = {"extract": (("VIEW", "WEIGHTS", *COMMON), "make extract VIEW=clip DATA=photos/"),
           "views": (("DATA", "CACHE", "ARGS"), "make views"),
           "weights": (("VIEW", "FROM", "ARGS"), "make weights VIEW=swav"),
           "train": (("VIEWS", "LABELS", "METHOD", "SEEDS", "RUN", *COMMON), "make train VIEWS=clip,dinov2 DATA=photos/"),
           "predict": (("RUN", "MODEL", "IMAGES", "TO", "METHOD", "WEIGHTS", "DEVICE", "CACHE", "ARGS"), "make predict RUN=demo IMAGES=photos/"),
           "export-model": (("RUN", "TO", "METHOD", "CACHE", "ARGS"), "make export-model RUN=demo TO=model"),
           "sweep": (("VIEWS", "LABELS", "METHOD", "SEEDS", "GRID", "RUN", *COMMON), "make sweep VIEWS=clip,dinov2 DATA=photos/ GRID='lr=1e-4,3e-4'"),
           "report": (("RUN", "CACHE", "DEVICE", "ARGS"), "make report RUN=demo"),
           "compare": (("RUNS", "TO", "ARGS"), "make compare RUNS=demo,demo-2"),
           "verify": ((*CACHED, "WEIGHTS", "DEVICE"), "make verify   or   make verify VIEW=clip DATA=photos/"),
           "repair": ((*CACHED, "WEIGHTS", "DEVICE", "GPUS"), "make repair VIEW=clip DATA=photos/"),
           "import": ((*CACHED, "FROM"), "make import VIEW=mine FROM=embeddings.npz DATA=photos/"),
           "export": ((*CACHED, "TO"), "make export VIEW=clip DATA=photos/ TO=clip.h5"),
           "status": (("CACHE", "ARGS"), "make status"),
           "gc": (("CACHE", "ARGS"), "make gc"),
           "inspect": (("VIEWS", "LABELS", "TO", "DATA", "CACHE", "ARGS"), "make inspect VIEWS=clip,dinov2 DATA=photos/"),
           "doctor": (("CACHE", "ARGS"), "make doctor")}
MODULES = {"extract": "extract", "train": "train", "train.sweep": "sweep", "cache_specs.status": "status", "cache_specs.views": "views",
           "cache_specs.gc": "gc", "cache_specs.export": "export", "extract.verify": "verify", "extract.repair": "repair", "extract.importer": "import",
           "extract.convert": "weights", "predict": "predict", "predict.export": "export-model", "report": "report", "report.compare": "compare",
           "report.inspect": "inspect", "report.doctor": "doctor"}


def check(target: str, given: list[str], goals: str = "") -> None:
    """Raise UsageError for a name that the target does not take, with the nearest one and the right command; and for `goals` that are no commands: of
    DATA=x-{0..9}.tar or DATA=photos/* without quotes the shell makes DATA=x-0.tar and nine further words."""
    names, example = TARGETS[target]
    if twice := repeated():
        raise UsageError(f"{twice} was given several times. If the shell made that of {{0..9}} or {{a,b}}, quote it: make {target} {twice}='x-{{000..012}}'")
    if stray := [goal for goal in goals.split() if not re.fullmatch(r"[a-z-]+", goal) or (goal not in TARGETS and os.path.exists(goal))]:
        raise UsageError(f"make {target} was given a word that is no command: {stray[0]!r}. If it belongs to DATA (the shell expands {{0..9}} and *), quote "
                         f"it: make {target} DATA='x-{{000..012}}.tar'")
    for name in given:
        if name not in names:
            raise UsageError(f"make {target} takes no {name}{did_you_mean(name, names)}. Type: {example}   (names: {', '.join(names)})")


def repeated() -> str:
    """The name that stands twice on the command line of the make that started this process; of several, make itself takes the last without a word."""
    pid = os.getpid()
    for _ in range(4):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
                pid = int(stat.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as line:
                words = line.read().split("\0")
        except (OSError, ValueError, IndexError):
            break
        if os.path.basename(words[0]) in ("make", "gmake"):
            given = [word.partition("=")[0] for word in words if re.match(r"[A-Z0-9]+=", word)]
            return next((name for name in given if given.count(name) > 1), "")
    return ""


def typed(without: str = "") -> str:
    """The command of make that this process is: `make extract VIEW=clip DATA=photos/ ARGS='--batch 8'`; '' for a process that is none."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    target = MODULES.get(spec.name.removesuffix(".__main__"), "") if spec else ""
    if not target:
        return ""
    flags = {"--source" if name == "FROM" else f"--{name.lower()}": name for name in TARGETS[target][0] if name != "ARGS"}
    words, rest, given = {}, [], list(sys.argv[1:])
    while given:
        flag, equals, value = given.pop(0).partition("=")
        if flag in flags and (equals or given):
            words[flags[flag]] = value if equals else given.pop(0)
        elif flag != without:
            rest.append(flag + equals + value)
    if rest:
        words["ARGS"] = shlex.join(rest)
    return " ".join([f"make {target}", *(f"{name}={shlex.quote(value)}" for name, value in words.items())])


if __name__ == "__main__":
    sys.exit(run_cli(lambda: check(sys.argv[1], sys.argv[2:], os.environ.get("GOALS", ""))))
