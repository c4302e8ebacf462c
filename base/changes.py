"""What changes in a command that failed, so that it is not the same one that is advised."""

import re
from collections.abc import Sequence

from base.errors import UNKNOWN
from base.phrase import flag_of

# what DATA, IMAGES and FROM name may be right, and its contents wrong: not where a message says
ABSENT = "there is no such|has no|is missing|unknown format|is a file of none|type (?:one|at)"
ALIKE = {"DATA": "IMAGES", "IMAGES": "DATA"}  # one thing, by the name that each command has for it
PLACES = ("DATA", "IMAGES", "FROM")


def blamed(message: str, names: Sequence[str]) -> dict[str, str | None]:
    """The change that a message asks for by beginning with the name of what is wrong: NAME=value
    becomes NAME=…, which only the user knows, and a flag is left out. names: those that the command
    takes of make."""
    found = re.match(r"([A-Z]+)(?==|:| is missing)|(--[a-z-]+)", message)
    if found is None:
        return {}
    word, flag = found.groups()
    if flag:
        return {flag: None, **{name: None for name in names if flag_of(name) == flag}}
    if word in PLACES and not re.search(ABSENT, message):
        return {}
    return {word: UNKNOWN}


def change_flag(flags: list[str], name: str, value: str | None) -> None:
    """value: '' of a flag without one; None: it is left out."""
    if value is None:
        _leave_out(flags, name)
    else:
        _set_flag(flags, name, value)


def _set_flag(flags: list[str], name: str, value: str) -> None:
    """In its place, where it is there already."""
    new = [name, value] if value else [name]
    for at, flag in enumerate(flags):
        if flag == name:
            flags[at : at + len(new)] = new
            return
        if flag.startswith(f"{name}="):
            flags[at : at + 1] = new
            return
    flags += new


def _leave_out(flags: list[str], name: str) -> None:
    """The flag, with all that stands behind it up to the next."""
    for at, flag in enumerate(flags):
        if flag == name:
            end = at + 1
            while end < len(flags) and not flags[end].startswith("--"):
                end += 1
            del flags[at:end]
            return
        if flag.startswith(f"{name}="):
            del flags[at]
            return


def flag_by_flag(flags: Sequence[str]) -> list[list[str]]:
    """["--lr", "3", "--json"] -> [["--lr", "3"], ["--json"]]."""
    found: list[list[str]] = []
    for flag in flags:
        if flag.startswith("--") or not found:
            found.append([flag])
        else:
            found[-1].append(flag)
    return found
