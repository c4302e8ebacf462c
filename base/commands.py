"""Running a command: its words become settings, its errors messages, and those say what to type.

    main("coview.cli:COMMANDS", ["extract", "--view", "clip"])      -> the exit status

The commands themselves stand in one table, which the command line hands in; this module knows none.
`make` comes in by the same door: the Makefile sets COVIEW_MAKE to the names that stand on its
command line.
"""

import contextlib
import dataclasses
import difflib
import errno
import importlib
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from base import console, interrupt, limits, make_words, native, option_groups
from base.changes import ALIKE, blamed, change_flag, flag_by_flag
from base.errors import (
    UNKNOWN,
    CoviewError,
    PreemptedError,
    RankDiedError,
    StoppedError,
    StorageError,
    UsageError,
    did_you_mean,
    nearest,
)
from base.phrase import flag_of, for_shell, line_of, phrase
from base.stray import LISTS, placed

MAKE, TYPED = "COVIEW_MAKE", "COVIEW_TYPED"  # names in the environment
NO_BUG = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ESTALE")
OF_THE_DISK = tuple(getattr(errno, name) for name in NO_BUG)  # wherever it happens
WIDTH = 100  # columns of what `coview --help` shows
HELP = ("--help", "-h")
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
        return " ".join(["coview", self.command, *map(for_shell, self.argv())])

    def argv(self) -> list[str]:
        """The same as flags alone."""
        found = []
        for name, value in self.words.items():
            flag = flag_of(name)
            found += [f"{flag}={value}"] if value.startswith("-") else [flag, value]
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

    @property
    def words(self) -> tuple[str, ...]:
        """The names that the command takes."""
        for command in self.table:
            if command.name == self.typed.command:
                return command.words
        return ()

    def remember(self) -> None:
        """Also for the processes that this one starts."""
        told = {"typed": dataclasses.asdict(self.typed), "place": self.place}
        os.environ[TYPED] = json.dumps(told)


CURRENT = Current()


def inherit() -> None:
    """In a process that a command has started: messages speak of that command."""
    if TYPED not in os.environ or CURRENT.place:
        return
    try:
        told = json.loads(os.environ[TYPED])
        typed, place = Typed(**told["typed"]), told["place"]
    except (ValueError, KeyError, TypeError):
        return  # somebody else's
    CURRENT.typed, CURRENT.place, CURRENT.child = typed, place, True


def main(place: str, argv: Sequence[str]) -> int:
    """Run the command that argv names, of the table at `place`; its exit status."""
    inherit()
    native.give_way()
    limits.allow_more_files()
    if CURRENT.child:
        return run_cli(lambda: _run(list(argv)))
    CURRENT.place = place
    try:
        return run_cli(lambda: _run(list(argv)))
    finally:
        CURRENT.typed, CURRENT.place = Typed(), ""
        os.environ.pop(TYPED, None)


def _run(argv: list[str]) -> None:
    _refuse_no_folder()
    made = os.environ.pop(MAKE, None)
    name, *flags = argv or ["--help"]
    if made is None and name in (*HELP, "help", "--version"):
        _introduce(name, flags)
        return
    first = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"
    one = first and not CURRENT.child  # one process speaks for all
    asked = one and "--json" in flags and not {*HELP} & {*flags}
    with console.document(asked, name, _told) as found:
        command, flags = _chosen(name, flags, made)
        settings = parse(command, flags)
        load(command.run)(settings, found)


def _refuse_no_folder() -> None:
    """Raise UsageError in a folder that was removed meanwhile, where no path means anything."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError(
            "the folder that you are in is not there any more. Go to one that is (cd ~), and type "
            "the command again there"
        ) from None


def _introduce(name: str, rest: Sequence[str]) -> None:
    """coview --help, coview help COMMAND, coview --version."""
    table = {command.name: command for command in CURRENT.table}
    if name == "--version":
        print(f"coview {importlib.metadata.version('coview')}")
    elif rest and rest[0] in table:
        parse(table[rest[0]], ["--help"])
    else:
        print(overview(CURRENT.table))


def _chosen(name: str, flags: list[str], made: str | None) -> tuple[Command, list[str]]:
    """The command, and its flags. made: the names that make was given, None where nobody used it.
    Raises UsageError."""
    by_name = {command.name: command for command in CURRENT.table}
    words: dict[str, str] = {}
    if made is not None:
        words = _from_make(name, made.split(), by_name)
    elif name not in by_name:
        near = nearest(name, by_name)
        again = shlex.join(["coview", near, *flags])
        then = f". Type: {again}" if near else ". All commands: coview --help"
        raise UsageError(f"coview has no command {name!r}{did_you_mean(name, by_name)}{then}")
    command, stray = by_name[name], dict[str, str]()
    if not {*HELP} & {*flags}:
        flags, stray = placed(flags, load(command.config), _free(command, words, flags))
    found = split(command, flags)
    typed = Typed("coview" if made is None else "make", name, {**words, **found.words}, found.flags)
    _remember(typed)
    if stray:
        raise _no_flag(stray)
    return command, flags if made is None else typed.argv()


def _from_make(name: str, given: list[str], by_name: Mapping[str, Command]) -> dict[str, str]:
    """The names that make was given for the command and their values, after a look at its words."""
    names = {one.name: (*one.words, "ARGS") for one in by_name.values()}
    examples = {one.name: one.example for one in by_name.values()}
    goals = os.environ.get("GOALS", "").split() or [name]
    others = [goal for goal in os.environ.get("COMMANDS", "").split() if goal not in by_name]
    make_words.check(name, given, goals, names, examples, others)
    return {word: os.environ.get(word, "") for word in by_name[name].words if word in given}


def _free(command: Command, words: Mapping[str, str], flags: Sequence[str]) -> list[str]:
    """The flags that a word without one may belong to: those of the command's example, or the
    first that there is, without those that were typed."""
    meant = [name for name in command.words if f" {name}=" in command.example]
    typed = {flag.partition("=")[0] for flag in flags} | {flag_of(name) for name in words}
    return [flag for flag in map(flag_of, meant or command.words[:1]) if flag not in typed]


def _no_flag(stray: Mapping[str, str]) -> UsageError:
    """Of words that no flag expects, where the command that is meant is CURRENT.typed."""
    word, flag = next(iter(stray.items()))
    if not flag:
        return UsageError(f"{word!r} has no flag before it; give it the one that says what it is")
    if flag in LISTS:
        return UsageError(f"{word!r} stands behind {flag}; put commas between the names of a list")
    return UsageError(
        f"{word!r} stands behind {flag}, which takes one value or none: give each value its flag, "
        "and quote a value with a blank, or one that the shell expands (* and {0..9})"
    )


def split(command: Command, argv: Sequence[str]) -> Typed:
    """The flags of a command that was typed: those that make has names for, and the others."""
    names = {flag_of(name): name for name in command.words}
    words: dict[str, str] = {}
    rest: list[str] = []
    given = list(argv)
    while given:
        word = given.pop(0)
        flag, equals, value = word.partition("=")
        if flag in names and equals:
            words[names[flag]] = value
        elif flag in names and given and not given[0].startswith("--"):
            words[names[flag]] = given.pop(0)
        else:
            rest.append(word)
    return Typed("coview", command.name, words, rest)


def _remember(typed: Typed) -> None:
    """From Python, without a command line, there is nothing that processes should inherit."""
    if CURRENT.place and not CURRENT.child:
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
    return option_groups.parse(load(command.config), f"{_program()} {command.name}", argv)


def _program() -> str:
    """What one types to run coview itself, which make runs without its being on the PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "coview")
    by_make = CURRENT.typed.command and CURRENT.typed.form == "make"
    if not by_make or shutil.which("coview") or not os.path.isfile(beside):
        return "coview"
    return for_shell(min(beside, os.path.relpath(beside), key=len))


def load(place: str) -> Any:
    """ "module:name" -> what it is."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def overview(table: Sequence[Command]) -> str:
    """One line a command: what its settings say of themselves, as far as there is room."""
    usage = ("coview COMMAND [--flag value …]", "coview COMMAND --help", "coview --version")
    lines = [f"usage: {'      '.join(usage)}", ""]
    for command in table:
        head = f"  {command.name:14}"
        lines.append(head + _summary(load(command.config).__doc__ or "", WIDTH - len(head)))
    return "\n".join(lines)


def _summary(text: str, width: int) -> str:
    """The first sentence; of a long one what stands before its colon, or as many of its clauses as
    fit, or words."""
    first = " ".join(text.split()).partition(". ")[0].rstrip(".")
    if len(first) <= width:
        return first
    first = first.partition(": ")[0]
    comma = first.rfind(", ", 0, width)
    if len(first) > width and comma > 0:
        return first[:comma]
    return textwrap.shorten(first, width, placeholder=" …")


def started(name: str, settings: Any) -> list[str]:
    """What `python -m` needs to run a command with these settings in another process, of which
    messages speak of the command that was typed."""
    return [CURRENT.place.partition(":")[0], name, *argv_of(settings)]


def argv_of(settings: Any) -> list[str]:
    """The flags that say these settings, each of them but those that are None."""
    found = []
    for one in dataclasses.fields(settings):
        value, flag = getattr(settings, one.name), one.name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            found.append(f"--{flag}={value}")
    return found


def typed(without: str = "", instead: Mapping[str, str | None] | None = None) -> str:
    """The command that this process is, in the form in which it was typed; '' where there is none.

    without: a flag that is left out. instead: names that get another value (None: that are left
    out), and flags ({"--force": ""}) that are set (None: that are left out).
    """
    now = CURRENT.typed
    words, flags = dict(now.words), [flag for flag in now.flags if flag != without]
    takes = CURRENT.words
    for name, value in (instead or {}).items():
        if name.startswith("--"):
            change_flag(flags, name, value)
        elif value is None:
            words.pop(name, None)
        elif name in takes:
            words[name] = value
    return str(Typed(now.form, now.command, words, flags))


def takes(flag: str) -> bool:
    """Has the command that was typed such a flag?"""
    for command in CURRENT.table:
        if command.name == CURRENT.typed.command:
            return flag.removeprefix("--") in _settings(command)
    return False


def _settings(command: Command) -> list[str]:
    """The names of all flags of a command, without their dashes in front: dry-run."""
    return [field.name.replace("_", "-") for field in dataclasses.fields(load(command.config))]


def rendered(text: str) -> str:
    """A message in the form in which the user typed."""
    names = {command.name: (*command.words, "ARGS") for command in CURRENT.table}
    return phrase(text, names, CURRENT.typed.form if names else "make")


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """Ctrl-C is remembered where Python's own handler would raise it, and be it in an import."""
    interrupt.PRESSED.clear()
    handler = signal.getsignal(signal.SIGINT)
    python = handler is signal.default_int_handler
    ours = python and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, interrupt.pressed)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, handler)


def run_cli(do: Callable[[], None]) -> int:
    """Run a command; an expected error becomes one message on stderr, with the command to type,
    and its exit code, without a traceback."""
    inherit()
    try:
        with interruptible(), console.rendering(rendered):
            do()
            sys.stdout.flush()
    except BrokenPipeError:  # who read our output (`| head`) has gone; he is told nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except SystemExit as error:
        if error.code == UsageError.exit_code:  # the parser has said what is wrong with a flag
            name = CURRENT.typed.command
            print(f"all settings: {_program()} {name} --help", file=sys.stderr)
            print(f"Type: {typed(instead=_unreadable())}", file=sys.stderr, flush=True)
        raise
    except (CoviewError, OSError, KeyboardInterrupt, MemoryError, RuntimeError) as error:
        known = expected(error)
        if known is None:
            raise
        return _say(known)
    return 0


def expected(error: BaseException) -> CoviewError | None:
    """What is no bug of ours, as an error that says so; None where it is one."""
    if isinstance(error, CoviewError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return StoppedError(
            "interrupted; what is finished is kept, and the same command does the rest"
        )
    if limits.is_out_of_memory(error):
        advice = "Free memory (nvidia-smi, top show who has it), or take another DEVICE"
        return limits.too_little(error, "this command", advice)
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENAMETOOLONG:
        name = str(error.filename)[:80]
        return UsageError(f"{name}…: this name is too long for the file system; take a shorter one")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StorageError(
            f"{error.filename or 'a file'}: {error.strerror}. Allow more, and type the command "
            "again: ulimit -n 65536 (as far as `ulimit -Hn` lets you)"
        )
    if error.errno in OF_THE_DISK:
        return StorageError(
            f"{error.filename or 'the disk'}: {error.strerror}. Make room, or mend the disk or the "
            "permissions"
        )
    return None


def _told(error: BaseException) -> tuple[str, int]:
    """What --json says of an error, and the exit status of the process."""
    if known := expected(error):
        return rendered(str(known)) or type(error).__name__, known.exit_code
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return "the flags cannot be read: see stderr", code
    return str(error) or type(error).__name__, 1


def _unreadable() -> dict[str, str | None]:
    """The change to the command that leaves out what the parser cannot read; a flag that is nearly
    one of the command's becomes that."""
    now, found = CURRENT.typed, dict[str, str | None]()
    command = next(one for one in CURRENT.table if one.name == now.command)
    for flag, *values in flag_by_flag(now.flags):
        name, equals, value = flag.partition("=")
        if _is_readable(command, [flag, *values]):
            continue
        found[name] = None
        if meant := _word_or_flag(name, command):
            found[meant] = value if equals else " ".join(values)
    for name, value in now.words.items():
        if not _is_readable(command, [f"{flag_of(name)}={value}"]):
            found[name] = UNKNOWN
    return found


def _word_or_flag(name: str, command: Command) -> str:
    """What a flag that there is not may mean: a name of make, or another flag; '' for none."""
    word = name[2:].upper()
    if word in command.words and flag_of(word) != name:  # --from
        return word
    flag = f"--{_nearly(name[2:], _settings(command))}"
    if flag == "--":
        return ""
    return {flag_of(one): one for one in command.words}.get(flag, flag)


def _nearly(name: str, known: Sequence[str]) -> str:
    """The flag that one which there is not may mean; '' where there is none, or it is known."""
    if name in known:
        return ""
    alike = ALIKE.get(name.upper(), "").lower()
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return alike if alike in known else next(iter(close), "")


def _is_readable(command: Command, flags: Sequence[str]) -> bool:
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
            parse(command, flags)
    except SystemExit:
        return False
    return True


def _mended(error: CoviewError, advises: bool) -> dict[str, str | None]:
    """The change to the command that the error asks for; {} where none helps. advises: the message
    has a command of its own."""
    changes = [error.instead]
    if isinstance(error, UsageError) and not advises:
        changes.append(blamed(str(error), CURRENT.words))
    for change in changes:
        if change and typed(instead=change) != typed():
            return change
    return {}


def _say(error: CoviewError) -> int:
    """On stderr. A message that ends with no command of its own gets the one that this process is;
    changed, where the error says how, or begins with the name of what is wrong in it."""
    if error.told:
        return error.exit_code
    names = "|".join(one.name for one in CURRENT.table)
    message = rendered(str(error))
    advises = bool(re.search(rf"\b(make|coview) ({names})\b", message))
    now, again = typed(), typed(instead=_mended(error, advises))
    if again != now:
        message += f"\nType: {again}"
    elif again and not advises:
        message += f"\n{HOW.get(error.exit_code, 'Then type')}: {again}"
    head = "" if error.exit_code == StoppedError.exit_code else "error: "
    print(f"{head}{message}", file=sys.stderr, flush=True)
    return error.exit_code
