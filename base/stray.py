"""Words that no flag expects: `coview train --views a b`, `coview predict first`."""

import dataclasses
import re
from collections.abc import Sequence

LISTS = ("--view", "--views", "--names", "--method", "--seeds")  # values between commas


def placed(
    argv: Sequence[str], settings: type, free: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """(the flags with each stray word where it probably belongs, the stray words and what each
    stands behind). A word behind a flag that has its value already belongs to that value, in a list
    behind a comma; the others become the values of the `free` flags, in order; those that are left
    are left out. What follows a flag that `settings`, a dataclass, does not have is kept: the
    parser speaks of it."""
    switches, valued = _flags(settings)
    free = list(free)
    found: list[str] = []
    stray: dict[str, str] = {}
    flag, full = "", True  # the flag behind which a word stands, and whether it has its value
    for word in argv:
        if word.startswith("--"):
            flag, equals, _ = word.replace("_", "-").partition("=")
            full = bool(equals) or flag in switches
            found.append(word)
        elif not full:
            full = flag in valued
            found.append(word)
        else:
            stray[word] = flag
            if flag in valued:
                found[-1] = _joined(found[-1], word, flag)
            elif free:
                found += [free.pop(0), word]
    return found, stray


def _flags(settings: type) -> tuple[set[str], set[str]]:
    """Those that take no value, and those that take one."""
    switches, valued = set(), set()
    for field in dataclasses.fields(settings):
        name = field.name.replace("_", "-")
        if isinstance(field.default, bool):
            switches |= {f"--{name}", f"--no-{name}"}
        else:
            valued.add(f"--{name}")
    return switches, valued


def _joined(value: str, word: str, flag: str) -> str:
    if flag in LISTS:
        return re.sub(",+", ",", f"{value},{word}")
    return f"{value} {word}"
