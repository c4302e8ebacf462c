"""Commands in messages, in the form in which the user typed: `make extract VIEW=clip DATA=photos/`,
or `coview extract --view clip --data photos/`.

All messages of the project are written in make's form. `phrase` translates a whole message at the
door, where it is printed; nobody else knows that there are two forms.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from base.errors import UNKNOWN

NAMED = re.compile(r"\w+(?=[:+?!]?=)", re.ASCII)
FIELDS = {"FROM": "source", "RUNS": "names"}  # names of make that are no field's name in capitals
VALUE = r"""(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])*"""


def field_of(name: str) -> str:
    """The setting that a name of make stands for: VIEW -> view, FROM -> source."""
    return FIELDS.get(name, name.lower())


def flag_of(name: str) -> str:
    """VIEW -> --view, FROM -> --source."""
    return f"--{field_of(name).replace('_', '-')}"


def quoted(value: str) -> str:
    """A value as one types it to make: quoted for the shell, and each `$` doubled, since make
    takes what follows one for a variable of its own."""
    return for_shell(value.replace("$", "$$"))


def shown(key: str) -> str:
    """The key of an image for a terminal, which a file's name must not steer."""
    return key if key.isprintable() else repr(key)


def for_shell(value: str) -> str:
    """Quoted, where the shell needs it; the sign for what is not known stays as it is."""
    return value if value == UNKNOWN else shlex.quote(value)


def line_of(command: str, words: Mapping[str, str]) -> str:
    """The command of make with these names and values; a value of ARGS is for the shell already."""
    given = [f"{name}={quoted(value)}" for name, value in words.items()]
    return " ".join([f"make {command}", *given])


def phrase(text: str, names: Mapping[str, Sequence[str]], form: str) -> str:
    """The text with its commands, and the names of make in it, in the `form` make or coview.

    names: of each command the names that it takes. What stands in quotes, in a path or without a
    value may be anybody's name, and what belongs to a command of coview is not make's.
    """
    if form == "make":
        return text
    every = {name for given in names.values() for name in given}
    commands, loose = _any([*names, "help"]), _any(every)
    flags = rf"(?: +--[\w-]+(?:={VALUE}| +(?!-){VALUE})?)*"
    meant = rf"=(?P<value>{VALUE})|(?= is missing| may be | out\b)"
    parts = (
        rf"\bcoview (?:{commands})\b(?!-){flags}",
        rf"\bmake (?P<command>{commands})\b(?!-)(?P<words>(?: +[A-Z]+={VALUE})*)",
        rf"(?<![\w/.'\"$-])(?P<name>{loose})(?:{meant})",
    )
    return re.sub("|".join(parts), _translated, text)


def _any(names: Iterable[str]) -> str:
    """A pattern of one of these, the longer ones first."""
    return "|".join(map(re.escape, sorted(sorted(names), key=len, reverse=True)))


def _translated(found: re.Match[str]) -> str:
    if found["name"]:
        return _flag(found["name"], found["value"])
    if found["command"]:
        return f"coview {found['command']}{_flags(found['words'])}"
    return found[0]


def _flags(words: str) -> str:
    """` VIEW=clip ARGS='--batch 8'` -> ` --view clip --batch 8`."""
    found = re.findall(rf" +([A-Z]+)=({VALUE})", words)
    return "".join(f" {_flag(name, value)}" for name, value in found)


def _flag(name: str, value: str | None) -> str:
    if value is not None:
        value = value.replace("$$", "$")
    if name == "ARGS":
        return _bare(value) if value else "flags"
    if not value:
        return flag_of(name)
    dashed = value.lstrip("'\"").startswith("-")
    return f"{flag_of(name)}{'=' if dashed else ' '}{value}"


def _bare(value: str) -> str:
    """What a quoted value of ARGS holds: words for the shell."""
    try:
        return " ".join(shlex.split(value))
    except ValueError:
        return value
