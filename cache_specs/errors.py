"""What can go wrong, as types. Each error carries the exit code of the process and says what to type next.

    0 ok, 2 usage, 3 data quality, 4 storage, 5 integrity, 6 stale or mismatched, 7 a rank died, 75 pre-empted (resume me), 130 Ctrl-C
"""

import difflib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping

OF_THE_DISK = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE)      # no bug, wherever it happens


class CoviewError(Exception):
    """What was found, what was expected, and what to type next; `exit_code` is the process's exit status.

    instead: the change to the command that the message asks for, {"RUN": "demo-2"}: names of make, None to leave one out, and flags of ARGS,
    {"--force": ""}. The command is then shown with it.
    """

    exit_code = 1

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


class StoppedError(CoviewError):
    exit_code = 130


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'clip'` for a near miss, otherwise `; there is: …`, to be appended to what was not found."""
    choices = sorted(choices)
    near = nearest(name, choices)
    return f"; did you mean {near!r}" if near else f"; there is: {', '.join(choices) or 'nothing yet'}"


def nearest(name: str, choices: Iterable[str]) -> str:
    """The one of the choices that was probably meant, also where only the case differs; '' where none is near."""
    cased = {choice.lower(): choice for choice in sorted(choices)}
    return next((cased[near] for near in difflib.get_close_matches(name.lower(), cased, n=1, cutoff=0.5)), "")


PRESSED: list[int] = []         # interrupts that this process has had


def run_cli(main: Callable[[], None]) -> int:
    """Run a command; an expected error becomes one message on stderr, with the command to type, and its exit code, without a traceback."""
    PRESSED.clear()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
    try:
        main()
        sys.stdout.flush()
    except CoviewError as error:
        _say(str(error), error.exit_code, error.instead)
        return error.exit_code
    except SystemExit as error:
        if error.code == UsageError.exit_code:              # the parser has said what is wrong with a flag; `python` alone may be another one
            from cache_specs.make import started_as, typed

            again = typed()
            print(f"all settings: {started_as()} --help" + f"\nTo mend and type again: {again}" * bool(again), file=sys.stderr, flush=True)
        raise
    except BrokenPipeError:                                 # who read our output (`| head`) has gone; nothing is left to be said to him
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _say(f"{str(error.filename)[:80]}…: this name is too long for the file system; take a shorter one", UsageError.exit_code)
            return UsageError.exit_code
        if error.errno not in OF_THE_DISK:
            raise
        _say(f"{error.filename or 'the disk'}: {error.strerror}. Make room, or mend the disk or the permissions", StorageError.exit_code)
        return StorageError.exit_code
    except KeyboardInterrupt:
        _say("interrupted; what is finished is kept, and the same command does the rest", StoppedError.exit_code)
        return StoppedError.exit_code
    return 0


def _interrupt(number: int, frame: object) -> None:
    """Ctrl-C as Python has it, but remembered: what is raised in the middle of a library's import may be swallowed there. See interrupt.py."""
    PRESSED.append(number)
    raise KeyboardInterrupt


def _say(message: str, code: int, instead: Mapping[str, str | None] | None = None) -> None:
    """On stderr. A message that ends with no command of its own gets the one that this process is; changed, where the error says how."""
    from cache_specs.make import TARGETS, typed

    again = typed(instead=instead)
    if again != typed():
        message += f"\nType: {again}"
    elif again and not re.search(rf"\bmake ({'|'.join(TARGETS)})\b", message):
        how = {UsageError.exit_code: "To mend and type again", RankDiedError.exit_code: "To go on, type", PreemptedError.exit_code: "To go on, type",
               StoppedError.exit_code: "To go on, type"}.get(code, "Then type")
        message += f"\n{how}: {again}"
    print(message if code == StoppedError.exit_code else f"error: {message}", file=sys.stderr, flush=True)
