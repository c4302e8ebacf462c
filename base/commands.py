"""Running a command: its words become settings, its errors messages, and those say what to type.

    main("coview.cli:COMMANDS", ["extract", "--view", "clip"])      -> the exit status

The commands themselves stand in one table, which the command line hands in; this module knows none.
`make` comes in by the same door: the Makefile sets COVIEW_MAKE to the names that stand on its
command line.
"""

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from base import console, interrupt, make_words, option_groups
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
from base.phrase import field_of, line_of, phrase

MAKE, TYPED = "COVIEW_MAKE", "COVIEW_TYPED"  # names in the environment
NO_BUG = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ESTALE")
OF_THE_DISK = tuple(getattr(errno, name) for name in NO_BUG)  # wherever it happens
ON = "To go on, type"
HOW = {  # what stands before the command, by the exit code
    UsageError.exit_code: "To mend and type again",
    RankDiedError.exit_code: ON,
    PreemptedError.exit_code: ON,
    StoppedError.exit_code: ON,
}


@dataclass(frozen=True)
class Command:
    """One command. config: "module:Class" of its settings, a frozen dataclass. run: "module:name"
    of what does it, called as run(settings, found), where `found` is what --json will say.
    words: the names that make takes for it."""

    name: str
    config: str
    run: str
    words: tuple[str, ...]
    example: str


@dataclass(frozen=True)
class Typed:
    """What the user typed: names with values, further flags. form: make or coview."""

    form: str = "make"
    command: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    flags: Sequence[str] = ()

    def __str__(self) -> str:
        """The command as it is typed again; '' where nobody typed one."""
        if not self.command:
            return ""
        if self.form == "make":
            args = {"ARGS": shlex.join(self.flags)} if self.flags else {}
            return line_of(self.command, {**self.words, **args})
        return shlex.join(["coview", self.command, *self.argv()])

    def argv(self) -> list[str]:
        """The same as flags alone."""
        found = []
        for name, value in self.words.items():
            found += [f"--{field_of(name).replace('_', '-')}", value]
        return [*found, *self.flags]


@dataclass
class Current:
    """The command that this process belongs to. place: "module:name" of the table of all commands;
    child: another process of the command started this one, as one of its ranks or workers."""

    typed: Typed = Typed()
    place: str = ""
    child: bool = False

    @property
    def table(self) -> Sequence[Command]:
        return load(self.place) if self.place else ()

    def remember(self) -> None:
        """Also for the processes that this one starts."""
        told = {"typed": dataclasses.asdict(self.typed), "place": self.place}
        os.environ[TYPED] = json.dumps(told)


CURRENT = Current()


def inherit() -> None:
    """In a process that a command has started: messages speak of that command."""
    if TYPED in os.environ and not CURRENT.place:
        told = json.loads(os.environ[TYPED])
        CURRENT.typed, CURRENT.place = Typed(**told["typed"]), told["place"]
        CURRENT.child = True


def main(place: str, argv: Sequence[str]) -> int:
    """Run the command that argv names, of the table at `place`; its exit status."""
    inherit()
    if CURRENT.child:
        return run_cli(lambda: _run(list(argv)))
    CURRENT.place = place
    try:
        return run_cli(lambda: _run(list(argv)))
    finally:
        CURRENT.typed, CURRENT.place = Typed(), ""
        os.environ.pop(TYPED, None)


def _run(argv: list[str]) -> None:
    table = CURRENT.table
    by_name = {command.name: command for command in table}
    made = os.environ.pop(MAKE, None)
    name = argv.pop(0) if argv else "--help"
    if made is not None:
        argv = _from_make(name, made.split(), argv, by_name)
    elif name in ("--help", "-h", "help"):
        print(overview(table))
        return
    elif name not in by_name:
        near = nearest(name, by_name)
        again = shlex.join(["coview", near, *argv])
        then = f". Type: {again}" if near else ". All commands: coview --help"
        raise UsageError(f"coview has no command {name!r}{did_you_mean(name, by_name)}{then}")
    else:
        _remember(split(by_name[name], argv))
    command = by_name[name]
    settings = parse(command, argv)
    one = not CURRENT.child and os.environ.get("RANK", "0") == "0"  # one process speaks for all
    with console.document(one and getattr(settings, "json", False), name) as found:
        load(command.run)(settings, found)


def _from_make(
    name: str, given: list[str], flags: list[str], by_name: Mapping[str, Command]
) -> list[str]:
    """The flags of a command that make was given, after a look at its words."""
    order = by_name[name].words if name in by_name else ()
    values = {word: os.environ.get(word, "") for word in order if word in given}
    names = {one.name: (*one.words, "ARGS") for one in by_name.values()}
    examples = {one.name: one.example for one in by_name.values()}
    goals = os.environ.get("GOALS", "").split() or [name]
    others = [goal for goal in os.environ.get("COMMANDS", "").split() if goal not in by_name]
    make_words.check(name, given, goals, names, examples, others)
    typed = split(by_name[name], flags)
    typed = Typed("make", name, {**values, **typed.words}, typed.flags)
    _remember(typed)
    return typed.argv()


def split(command: Command, argv: Sequence[str]) -> Typed:
    """The flags of a command that was typed: those that make has names for, and the others."""
    flags = {f"--{field_of(name).replace('_', '-')}": name for name in command.words}
    words, rest, given = {}, [], list(argv)
    while given:
        flag, equals, value = given.pop(0).partition("=")
        if flag in flags and (equals or given):
            words[flags[flag]] = value if equals else given.pop(0)
        else:
            rest.append(flag + equals + value)
    return Typed("coview", command.name, words, rest)


def _remember(typed: Typed) -> None:
    if not CURRENT.child:
        CURRENT.typed = typed
        CURRENT.remember()


def amend(name: str, value: str | None) -> None:
    """From now on the command that was typed is one with another value of `name`; None: without."""
    words = {**CURRENT.typed.words}
    words.pop(name, None)
    if value is not None:
        words[name] = value
    _remember(dataclasses.replace(CURRENT.typed, words=words))


def parse(command: Command, argv: Sequence[str]) -> Any:
    """The settings. Ends the process with 2, after saying what is wrong with a flag."""
    return option_groups.parse(load(command.config), f"coview {command.name}", argv)


def load(place: str) -> Any:
    """ "module:name" -> what it is."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def overview(table: Sequence[Command]) -> str:
    lines = ["usage: coview COMMAND [--flag value …]      coview COMMAND --help", ""]
    for command in table:
        told = " ".join((load(command.config).__doc__ or "").split())
        lines.append(f"  {command.name:14}{told.partition('. ')[0].rstrip('.')}")
    return "\n".join(lines)


def started() -> list[str]:
    """What `python -m` needs to run this very command in another process."""
    return [CURRENT.place.partition(":")[0], CURRENT.typed.command, *CURRENT.typed.argv()]


def typed(without: str = "", instead: Mapping[str, str | None] | None = None) -> str:
    """The command that this process is, in the form in which it was typed; '' where there is none.

    without: a flag that is left out. instead: names that get another value (None: that are left
    out), and flags ({"--force": ""}) that are set.
    """
    now = CURRENT.typed
    words, flags = dict(now.words), [flag for flag in now.flags if flag != without]
    takes = next((one.words for one in CURRENT.table if one.name == now.command), ())
    for name, value in (instead or {}).items():
        if name.startswith("--"):
            at = flags.index(name) if name in flags else len(flags)
            flags[at : at + 1 + bool(value)] = [name, value] if value else [name]
        elif value is None:
            words.pop(name, None)
        elif name in takes:
            words[name] = value
    return str(Typed(now.form, now.command, words, flags))


def rendered(text: str) -> str:
    """A message in the form in which the user typed."""
    names = {command.name: (*command.words, "ARGS") for command in CURRENT.table}
    return phrase(text, names, CURRENT.typed.form if names else "make")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is remembered where Python's own handler would raise it, and be it in an import."""
    interrupt.PRESSED.clear()
    python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if python and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt.pressed)
    yield


def run_cli(do: Callable[[], None]) -> int:
    """Run a command; an expected error becomes one message on stderr, with the command to type,
    and its exit code, without a traceback."""
    inherit()
    try:
        with interruptible(), console.rendering(rendered):
            do()
            sys.stdout.flush()
    except CoviewError as error:
        return _say(str(error), error.exit_code, error.instead)
    except SystemExit as error:
        if error.code == UsageError.exit_code:  # the parser has said what is wrong with a flag
            name = CURRENT.typed.command
            print(f"all settings: coview {name} --help", file=sys.stderr)
            print(f"To mend and type again: {typed()}", file=sys.stderr, flush=True)
        raise
    except BrokenPipeError:  # who read our output (`| head`) has gone; he is told nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = str(error.filename)[:80]
            told = f"{name}…: this name is too long for the file system; take a shorter one"
            return _say(told, UsageError.exit_code)
        if error.errno not in OF_THE_DISK:
            raise
        told = f"{error.filename or 'the disk'}: {error.strerror}. "
        return _say(f"{told}Make room, or mend the disk or the permissions", StorageError.exit_code)
    except KeyboardInterrupt:
        told = "interrupted; what is finished is kept, and the same command does the rest"
        return _say(told, StoppedError.exit_code)
    return 0


def _say(message: str, code: int, instead: Mapping[str, str | None] | None = None) -> int:
    """On stderr. A message that ends with no command of its own gets the one that this process is;
    changed, where the error says how."""
    again, names = typed(instead=instead), "|".join(one.name for one in CURRENT.table)
    message = rendered(message)
    if again != typed():
        message += f"\nType: {again}"
    elif again and not re.search(rf"\b(make|coview) ({names})\b", message):
        message += f"\n{HOW.get(code, 'Then type')}: {again}"
    head = "" if code == StoppedError.exit_code else "error: "
    print(f"{head}{message}", file=sys.stderr, flush=True)
    return code
