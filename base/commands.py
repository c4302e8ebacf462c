"""What `make` was given on its command line, checked before anything starts: `python -m base.commands extract VIEW DATA`. And the way back:
the command of make that this process is, for messages."""

import errno
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping

from base import interrupt
from base.errors import (
    CoviewError,
    PreemptedError,
    RankDiedError,
    StoppedError,
    StorageError,
    UsageError,
    did_you_mean,
    nearest,
)

COMMON = ("DATA", "DEVICE", "GPUS", "CACHE", "ARGS")
CACHED = ("VIEW", "DATA", "CACHE", "ARGS")
TARGETS = {
    "extract": (("VIEW", "WEIGHTS", *COMMON), "make extract VIEW=clip DATA=photos/"),
    "views": (("DATA", "CACHE", "ARGS"), "make views"),
    "weights": (("VIEW", "FROM", "ARGS"), "make weights VIEW=swav"),
    "train": (
        ("VIEWS", "LABELS", "METHOD", "SEEDS", "RUN", *COMMON),
        "make train VIEWS=clip,dinov2 DATA=photos/",
    ),
    "predict": (
        ("RUN", "MODEL", "IMAGES", "TO", "METHOD", "WEIGHTS", "DEVICE", "CACHE", "ARGS"),
        "make predict RUN=demo IMAGES=photos/",
    ),
    "export-model": (
        ("RUN", "TO", "METHOD", "CACHE", "ARGS"),
        "make export-model RUN=demo TO=model",
    ),
    "sweep": (
        ("VIEWS", "LABELS", "METHOD", "SEEDS", "GRID", "RUN", *COMMON),
        "make sweep VIEWS=clip,dinov2 DATA=photos/ GRID='lr=1e-4,3e-4'",
    ),
    "report": (("RUN", "CACHE", "DEVICE", "ARGS"), "make report RUN=demo"),
    "compare": (("RUNS", "TO", "ARGS"), "make compare RUNS=demo,demo-2"),
    "verify": (
        (*CACHED, "WEIGHTS", "DEVICE"),
        "make verify   or   make verify VIEW=clip DATA=photos/",
    ),
    "repair": ((*CACHED, "WEIGHTS", "DEVICE", "GPUS"), "make repair VIEW=clip DATA=photos/"),
    "import": ((*CACHED, "FROM"), "make import VIEW=mine FROM=embeddings.npz DATA=photos/"),
    "export": ((*CACHED, "TO"), "make export VIEW=clip DATA=photos/ TO=clip.h5"),
    "status": (("CACHE", "ARGS"), "make status"),
    "gc": (("CACHE", "ARGS"), "make gc"),
    "inspect": (
        ("VIEWS", "LABELS", "TO", "DATA", "CACHE", "ARGS"),
        "make inspect VIEWS=clip,dinov2 DATA=photos/",
    ),
    "doctor": (("CACHE", "ARGS"), "make doctor"),
}
MODULES = {
    "extract": "extract",
    "train": "train",
    "train.sweep": "sweep",
    "upkeep.status": "status",
    "upkeep.list_views": "views",
    "upkeep.gc": "gc",
    "exchange.export": "export",
    "upkeep.verify": "verify",
    "upkeep.repair": "repair",
    "exchange.importer": "import",
    "extract.models.convert": "weights",
    "predict": "predict",
    "predict.bundle.export": "export-model",
    "report": "report",
    "report.compare": "compare",
    "report.inspect": "inspect",
    "upkeep.doctor": "doctor",
}
OF_THE_DISK = (
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
)  # no bug, wherever it happens
NAMED = re.compile(r"\w+(?=[:+?!]?=)", re.ASCII)


def check(target: str, given: list[str], goals: str = "", known: str = "") -> None:
    """Raise UsageError, with the command as it was meant, for a name that the target does not take; for a name that stands there twice; and for `goals` that
    are no commands, of those `known`: a typing error, VIEWS=clip, dinov2, and of DATA=x-{0..9}.tar or DATA=photos/* without quotes the shell makes
    DATA=x-0.tar and nine further words."""
    commands = known.split() or [*TARGETS]
    words = on_the_line(goals.split())
    if stray := next((goal for goal in goals.split() if goal not in commands), ""):
        if (joined := join_lists(words, commands)) != words:
            raise UsageError(
                f"{stray!r} stands behind a blank, where make begins a new word; leave no blank in a list. Type: {as_typed(joined)}"
            )
        if stray == target:
            near = nearest(stray, commands)
            again = as_typed([near if word == stray else word for word in words])
            raise UsageError(
                f"make has no command {stray!r}"
                + (
                    f"; did you mean {near!r}. Type: {again}"
                    if near
                    else ". All commands: make help"
                )
            )
        raise UsageError(
            f"make {target} was given a word that is no command: {stray!r}. If it belongs to DATA (the shell expands {{0..9}} and *), quote "
            f"it: make {target} DATA='x-{{000..012}}.tar'"
        )
    names, example = TARGETS[target]
    heads = [match[0] for word in words if (match := NAMED.match(word))]
    if twice := next((name for name in heads if heads.count(name) > 1), ""):
        raise UsageError(
            f"{twice} was given several times. If the shell made that of {{0..9}} or {{a,b}}, quote it: make {target} {twice}='x-{{000..012}}'"
        )
    meant = {name: nearest(name, names) for name in given if name not in names}
    for name in meant:
        whole = [*meant.values(), *(head for head in heads if head not in meant)]
        again = as_typed(
            [
                meant.get(word.partition("=")[0], word.partition("=")[0])
                + "".join(word.partition("=")[1:])
                for word in words
            ]
        )
        raise UsageError(
            f"make {target} takes no {name}{did_you_mean(name, names)}. Type: {again if all(whole) and len({*whole}) == len(heads) else example}"
            f"   (names: {', '.join(names)})"
        )


def on_the_line(goals: list[str]) -> list[str]:
    """The names and goals that stand on the command line of the make that started this process, in order; [] where the system does not tell. Of a name that
    stands there twice make itself takes the last without a word."""
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
            return [
                word
                for word in words[1:]
                if word in goals
                or (NAMED.match(word) and not word.startswith(("VENV=", "PYTHON3=")))
            ]
    return []


def join_lists(words: list[str], commands: list[str]) -> list[str]:
    """["VIEWS=clip,", "dinov2"] -> ["VIEWS=clip,dinov2"]: a word that is no command belongs to the list that a comma before or in it leaves open."""
    found: list[str] = []
    for word in words:
        if (
            found
            and NAMED.match(found[-1])
            and not NAMED.match(word)
            and word not in commands
            and (found[-1][-1] in ",=" or word[0] == ",")
        ):
            found[-1] += word
        else:
            found.append(word)
    return found


def as_typed(words: list[str]) -> str:
    """Names and goals as one types them to make."""
    parts = [word.partition("=") for word in words]
    return " ".join(
        [
            "make",
            *(
                name + equals + (shlex.quote(value) if value else "")
                for name, equals, value in parts
            ),
        ]
    )


def quoted(value: str) -> str:
    """A value as one types it to make: quoted for the shell, and each `$` doubled, since make takes what follows one for a variable of its own."""
    return shlex.quote(value.replace("$", "$$"))


def line_of(target: str, words: Mapping[str, str]) -> str:
    """The command of make with these names and values; a value of ARGS is for the shell already."""
    return " ".join(
        [f"make {target}", *(f"{name}={quoted(value)}" for name, value in words.items())]
    )


def typed(without: str = "", instead: Mapping[str, str | None] | None = None) -> str:
    """The command of make that this process is: `make extract VIEW=clip DATA=photos/ ARGS='--batch 8'`; '' for a process that is none.

    without: a flag that is left out. instead: names that get another value (None: that are left out), and flags ({"--force": ""}) that are set."""
    target = MODULES.get(_module(), "")
    if not target:
        return ""
    flags = {
        {"FROM": "--source", "RUNS": "--names"}.get(name, f"--{name.lower()}"): name
        for name in TARGETS[target][0]
        if name != "ARGS"
    }
    words, rest, given = {}, [], list(sys.argv[1:])
    while given:
        flag, equals, value = given.pop(0).partition("=")
        if flag in flags and (equals or given):
            words[flags[flag]] = value if equals else given.pop(0)
        elif flag != without:
            rest.append(flag + equals + value)
    for name, value in (instead or {}).items():
        if name.startswith("--"):
            at = rest.index(name) if name in rest else len(rest)
            rest[at : at + 1 + bool(value)] = [name, value] if value else [name]
        elif value is None:
            words.pop(name, None)
        elif name in TARGETS[target][0]:
            words[name] = value
    if rest:
        words["ARGS"] = shlex.join(rest)
    return line_of(target, words)


def started_as() -> str:
    """`.venv/bin/python -m train`: this Python and its module, as one types them here."""
    here = os.path.relpath(sys.executable)
    return f"{shlex.quote(sys.executable if here.startswith('..') else here)} -m {_module()}"


def _module() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else ""


def run_cli(main: Callable[[], None]) -> int:
    """Run a command; an expected error becomes one message on stderr, with the command to type, and its exit code, without a traceback."""
    interrupt.PRESSED.clear()
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and threading.current_thread() is threading.main_thread()
    ):
        signal.signal(signal.SIGINT, interrupt.pressed)
    try:
        main()
        sys.stdout.flush()
    except CoviewError as error:
        _say(str(error), error.exit_code, error.instead)
        return error.exit_code
    except SystemExit as error:
        if (
            error.code == UsageError.exit_code
        ):  # the parser has said what is wrong with a flag; `python` alone may be another one
            again = typed()
            print(
                f"all settings: {started_as()} --help"
                + f"\nTo mend and type again: {again}" * bool(again),
                file=sys.stderr,
                flush=True,
            )
        raise
    except (
        BrokenPipeError
    ):  # who read our output (`| head`) has gone; nothing is left to be said to him
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _say(
                f"{str(error.filename)[:80]}…: this name is too long for the file system; take a shorter one",
                UsageError.exit_code,
            )
            return UsageError.exit_code
        if error.errno not in OF_THE_DISK:
            raise
        _say(
            f"{error.filename or 'the disk'}: {error.strerror}. Make room, or mend the disk or the permissions",
            StorageError.exit_code,
        )
        return StorageError.exit_code
    except KeyboardInterrupt:
        _say(
            "interrupted; what is finished is kept, and the same command does the rest",
            StoppedError.exit_code,
        )
        return StoppedError.exit_code
    return 0


def _say(message: str, code: int, instead: Mapping[str, str | None] | None = None) -> None:
    """On stderr. A message that ends with no command of its own gets the one that this process is; changed, where the error says how."""
    again = typed(instead=instead)
    if again != typed():
        message += f"\nType: {again}"
    elif again and not re.search(rf"\bmake ({'|'.join(TARGETS)})\b", message):
        how = {
            UsageError.exit_code: "To mend and type again",
            RankDiedError.exit_code: "To go on, type",
            PreemptedError.exit_code: "To go on, type",
            StoppedError.exit_code: "To go on, type",
        }.get(code, "Then type")
        message += f"\n{how}: {again}"
    print(
        message if code == StoppedError.exit_code else f"error: {message}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(
        run_cli(
            lambda: check(
                sys.argv[1],
                sys.argv[2:],
                os.environ.get("GOALS", ""),
                os.environ.get("COMMANDS", ""),
            )
        )
    )
