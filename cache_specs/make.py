"""What `make` was given on its command line, checked before anything starts: `python -m cache_specs.make extract VIEW DATA`."""

import os
import re
import sys

from cache_specs.errors import UsageError, did_you_mean, run_cli

COMMON = ("DATA", "DEVICE", "GPUS", "CACHE", "ARGS")
CACHED = ("VIEW", "DATA", "CACHE", "ARGS")
TARGETS = {"extract": (("VIEW", "WEIGHTS", *COMMON), "make extract VIEW=clip DATA=photos/"),
           "views": (("DATA", "CACHE", "ARGS"), "make views"),
           "weights": (("VIEW", "FROM", "ARGS"), "make weights VIEW=swav"),
           "train": (("VIEWS", "LABELS", "METHOD", "SEEDS", "RUN", *COMMON), "make train VIEWS=clip,dinov2 DATA=photos/"),
           "sweep": (("VIEWS", "LABELS", "METHOD", "SEEDS", "GRID", "RUN", *COMMON), "make sweep VIEWS=clip,dinov2 DATA=photos/ GRID='lr=1e-4,3e-4'"),
           "verify": ((*CACHED, "WEIGHTS", "DEVICE"), "make verify   or   make verify VIEW=clip DATA=photos/"),
           "repair": ((*CACHED, "WEIGHTS", "DEVICE", "GPUS"), "make repair VIEW=clip DATA=photos/"),
           "import": ((*CACHED, "FROM"), "make import VIEW=mine FROM=embeddings.npz DATA=photos/"),
           "export": ((*CACHED, "TO"), "make export VIEW=clip DATA=photos/ TO=clip.h5"),
           "status": (("CACHE", "ARGS"), "make status"),
           "gc": (("CACHE", "ARGS"), "make gc")}


def check(target: str, given: list[str], goals: str = "") -> None:
    """Raise UsageError for a name that the target does not take, with the nearest one and the right command; and for `goals` that are no commands: of
    DATA=x-{0..9}.tar or DATA=photos/* without quotes the shell makes DATA=x-0.tar and nine further words."""
    names, example = TARGETS[target]
    if stray := [goal for goal in goals.split() if not re.fullmatch(r"[a-z-]+", goal) or (goal not in TARGETS and os.path.exists(goal))]:
        raise UsageError(f"make {target} was given a word that is no command: {stray[0]!r}. If it belongs to DATA (the shell expands {{0..9}} and *), quote "
                         f"it: make {target} DATA='x-{{000..012}}.tar'")
    for name in given:
        if name not in names:
            raise UsageError(f"make {target} takes no {name}{did_you_mean(name, names)}. Type: {example}   (names: {', '.join(names)})")


if __name__ == "__main__":
    sys.exit(run_cli(lambda: check(sys.argv[1], sys.argv[2:], os.environ.get("GOALS", ""))))
