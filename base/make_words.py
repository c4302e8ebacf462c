"""What was given to make on its command line, checked before anything starts.

make itself takes any name and keeps quiet about those that nobody reads, and makes a goal of each
word without `=`; so VIEWS=clip, dinov2 trains on one view and then looks for a goal `dinov2`.
"""

import os
import shlex
from collections.abc import Collection, Mapping, Sequence

from base.changes import ALIKE
from base.errors import UsageError, nearest
from base.phrase import NAMED, quoted

OWN = ("VENV=", "PYTHON3=")  # names that are for the Makefile itself
BLANKS = ("ARGS", "GRID")  # names whose values have blanks as a rule
KIN = {**ALIKE, "VIEW": "VIEWS", "VIEWS": "VIEW", "RUN": "RUNS", "RUNS": "RUN"}
OF_A_RUN = ("VIEW", "VIEWS", "DATA", "LABELS", "VAL", "TEST", "SEEDS")  # with which it was trained


def check(
    command: str,
    given: Sequence[str],
    goals: Sequence[str],
    names: Mapping[str, Sequence[str]],
    examples: Mapping[str, str],
    others: Sequence[str] = (),
) -> None:
    """Raise UsageError, with the command as it was meant, for a goal that is no command, a name
    that the command does not take, and a name that stands there twice.

    given: the names that stand on make's command line. names: of each command those that it takes.
    others: targets of the Makefile that are no commands of coview, such as `test`.
    """
    commands = [*names, *others]
    words = on_the_line(goals)
    every = {name for given in names.values() for name in given}
    _refuse_unquoted(words, commands, every)
    for goal in goals:
        if goal not in commands:
            _refuse_goal(goal, command, words, commands, _home(given, names.get(command, ())))
    heads = _heads(words)
    for name in heads:
        if heads.count(name) > 1:
            raise UsageError(
                f"{name} was given several times. If the shell made that of {{0..9}} or {{a,b}}, "
                f"quote it: make {command} {name}='x-{{000..012}}'"
            )
    unknown = [name for name in given if name not in names[command]]
    if unknown:
        _refuse_name(unknown, command, names[command], words, examples[command], every)


def _heads(words: Sequence[str]) -> list[str]:
    """The names among the words, each as often as it is given a value."""
    return [found[0] for found in map(NAMED.match, words) if found]


def _home(given: Sequence[str], names: Sequence[str]) -> tuple[str, bool]:
    """The name that a loose word probably belongs to, and whether the line gives it a value."""
    for name in ("DATA", "IMAGES"):
        if name in given and name in names:
            return name, True
    return names[0] if names else "NAME", False


def _refuse_unquoted(words: list[str], commands: Sequence[str], every: Collection[str]) -> None:
    """Raise UsageError for a loose word behind a value that has blanks as a rule: it belongs to
    it. every: the names of all commands."""
    found: list[str] = []
    for word in words:
        name = NAMED.match(word)
        is_loose = word not in commands and not (name and name[0].upper() in every)
        if is_loose and found and found[-1].partition("=")[0] in BLANKS:
            found[-1] += f" {word}"
        else:
            found.append(word)
    if found != words:
        raise UsageError(
            f"a value of {' or '.join(BLANKS)} with blanks is quoted; without quotes make begins a "
            f"new word at each. Type: {as_typed(found)}"
        )


def _refuse_goal(
    goal: str, command: str, words: list[str], commands: list[str], home: tuple[str, bool]
) -> None:
    joined = join_lists(words, commands)
    if joined != words:
        raise UsageError(
            f"{goal!r} stands behind a blank, where make begins a new word; leave no blank in a "
            f"list. Type: {as_typed(joined)}"
        )
    if goal == command:
        near = nearest(goal, commands)
        again = as_typed([near if word == goal else word for word in words])
        then = f"; did you mean {near!r}. Type: {again}" if near else ". All commands: make help"
        raise UsageError(f"make has no command {goal!r}{then}")
    told = f"make {command} was given a word that is no command: {goal!r}"
    name, begun = home
    if not begun:
        raise UsageError(f"{told}. A value needs its name: make {command} {name}={quoted(goal)}")
    if name == "IMAGES":
        raise UsageError(
            f"{told}. IMAGES is one image, folder or list: for several images, name their folder"
        )
    raise UsageError(
        f"{told}. If it belongs to DATA (the shell expands {{0..9}} and *), quote it: make "
        f"{command} DATA='x-{{000..012}}.tar'"
    )


def _refuse_name(
    unknown: list[str],
    command: str,
    names: Sequence[str],
    words: list[str],
    example: str,
    every: Collection[str],
) -> None:
    meant = {name: _meant(name, names, every) for name in unknown}
    heads, again = _heads(words), []
    for word in words:
        name, equals, value = word.partition("=")
        other = meant.get(name, name)
        if name in unknown and (not other or other in heads):
            continue  # nothing here is it, or the line has that already
        again.append(other + equals + value)
        heads.append(other)
    near, first = meant[unknown[0]], unknown[0]
    if near:
        told = f"; did you mean {near!r}"
    elif "RUN" in names and first.upper() in OF_A_RUN:
        told = "; a run has its own, leave it out"
    else:
        told = f"; there is: {', '.join(names)}"
    raise UsageError(
        f"make {command} takes no {first}{told}. "
        f"Type: {as_typed(again) if again else example}   (names: {', '.join(names)})"
    )


def _meant(name: str, names: Sequence[str], every: Collection[str]) -> str:
    """The name of the command that was probably meant; '' where none is near. What is, or nearly
    is, a name of another command means what it means there, and not what looks a little like it
    here."""
    near = name if name in every else nearest(name, every)
    alike = KIN.get(near, "")
    return next((one for one in (near, alike) if one in names), "")


def on_the_line(goals: Sequence[str]) -> list[str]:
    """The names and goals that stand on the command line of the make that started this process, in
    order; [] where the system does not tell. make itself hands on neither their order nor, of a
    name that stands there twice, any but the last.
    """
    pid = os.getpid()
    for _ in range(4):  # a shell or two may stand between
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
                pid = int(stat.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as line:
                words = line.read().split("\0")
        except (OSError, ValueError, IndexError):
            break
        if os.path.basename(words[0]) in ("make", "gmake"):
            named = [word for word in words[1:] if NAMED.match(word) or word in goals]
            return [word for word in named if not word.startswith(OWN)]
    return []


def join_lists(words: list[str], commands: Sequence[str]) -> list[str]:
    """["VIEWS=clip,", "dinov2"] -> ["VIEWS=clip,dinov2"]: a word that is no command belongs to the
    list that a comma before or in it leaves open."""
    found: list[str] = []
    for word in words:
        is_part = not NAMED.match(word) and word not in commands
        if is_part and found and _is_open(found[-1], word):
            found[-1] += word
        else:
            found.append(word)
    return found


def _is_open(last: str, word: str) -> bool:
    """Does the list that `last` gives a name go on with the next word?"""
    return NAMED.match(last) is not None and (last[-1] in ",=" or word[0] == ",")


def as_typed(words: list[str]) -> str:
    """Names and goals as one types them to make. A `$` stands there doubled already, since these
    are the words that the shell handed to make."""
    parts = ["make"]
    for word in words:
        name, equals, value = word.partition("=")
        parts.append(name + equals + (shlex.quote(value) if value else ""))
    return " ".join(parts)
