"""What can go wrong, as types. Each error carries the exit code of the process and says what to
type next.

0 ok, 2 usage, 3 data quality, 4 storage, 5 integrity, 6 stale or mismatched, 7 a rank died,
75 pre-empted (resume me), 130 Ctrl-C
"""

import difflib
from collections.abc import Iterable, Mapping

UNKNOWN = "…"  # stands in a command for what only the user knows


class CoviewError(Exception):
    """What was found, what was expected, and what to type next; `exit_code` is the process's exit
    status.

    instead: the change to the command that the message asks for, {"RUN": "demo-2"}: names of make,
    None to leave one out, UNKNOWN for a value that the user must know, and flags of ARGS,
    {"--force": ""}. The command is then shown with it.

    of_all: every process of a run raises it, and one says it. told: it has been said.
    """

    exit_code = 1
    of_all = told = False

    def __init__(self, message: str = "", instead: Mapping[str, str | None] | None = None) -> None:
        super().__init__(message)
        self.instead = dict(instead or {})


class UsageError(CoviewError):
    exit_code = 2


class DataQualityError(CoviewError):
    exit_code = 3


class StorageError(CoviewError):
    exit_code = 4


class IntegrityError(CoviewError):
    exit_code = 5


class StaleError(CoviewError):
    exit_code = 6


class RankDiedError(CoviewError):
    exit_code = 7


class PreemptedError(CoviewError):
    exit_code = 75
    of_all = True


class StoppedError(CoviewError):
    exit_code = 130


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'clip'` for a near miss, otherwise `; there is: …`, to be appended to what
    was not found."""
    choices = sorted(choices)
    near = nearest(name, choices)
    if near:
        return f"; did you mean {near!r}"
    return f"; there is: {', '.join(choices) or 'nothing yet'}"


def nearest(name: str, choices: Iterable[str]) -> str:
    """The one of the choices that was probably meant, also where only the case differs; '' where
    none is near."""
    cased = {choice.lower(): choice for choice in sorted(choices)}
    near = difflib.get_close_matches(name.lower(), cased, n=1, cutoff=0.5)
    return cased[near[0]] if near else ""
