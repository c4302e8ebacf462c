"""CLASSES=names.txt: what the classes of a data set are called in words.

    # a line a class; what stands behind the colon are its names, else it is called as it is
    sea_lion
    n02084071: dog; puppy; hound
    # a line with {} is a template, which every name is put into; without any, the view has its own
    a photo of a {}.
    a drawing of a {}.

CLASSES=own are the classes' own names, underscores as blanks, in the view's own templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from base.errors import UNKNOWN, UsageError, did_you_mean

OWN = "own"
EXAMPLE = "'n02084071: dog; puppy'"
SHOWN = 5  # classes of a message
PLACE = "{}"  # of the name, in a template


@dataclass(frozen=True)
class Names:
    """The names of each class, at least one, and the templates, () for the view's own."""

    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    templates: tuple[str, ...] = ()

    def prompts(self, templates: Sequence[str]) -> dict[str, list[str]]:
        """What is encoded of each class. templates: the view's own."""
        found = {}
        for one, names in self.names.items():
            given = self.templates or templates
            found[one] = [text.replace(PLACE, name) for name in names for text in given]
        return found


def read_names(given: str, classes: Sequence[str]) -> Names:
    """What CLASSES says of these classes. Raises UsageError for a file that is not there or no
    text, and naming line and class for one that is unknown, missing, there twice or without a
    name."""
    if not classes:
        raise UsageError(
            f"CLASSES={given} gives names to classes, and the data set has none: leave it out",
            instead={"CLASSES": None},
        )
    if given == OWN:
        return Names({one: (_spoken(one),) for one in classes})
    found = _parsed(given, frozenset(classes))
    missing = [one for one in classes if one not in found.names]
    if missing:
        more = f" and {len(missing) - SHOWN:,} others" if len(missing) > SHOWN else ""
        raise _wrong(
            given,
            f"there is no line for {', '.join(map(repr, missing[:SHOWN]))}{more}: give each class "
            "of the data set one (CLASSES=own takes the classes' own names)",
        )
    return found


def _parsed(given: str, known: frozenset[str]) -> Names:
    names: dict[str, tuple[str, ...]] = {}
    templates: list[str] = []
    for number, line in enumerate(_lines(given), 1):
        if PLACE in line and line not in known:
            templates.append(line)
        elif line and (line in known or not line.startswith("#")):
            one, own = _of_line(line, known, given, number)
            if one in names:
                raise _wrong(given, f"line {number} names {one!r} again: name each class once")
            names[one] = own
    return Names(names, tuple(templates))


def _lines(given: str) -> list[str]:
    path = Path(given).expanduser()
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise _wrong(
            given,
            f"this cannot be read ({why}): name a file with a line a class, or type CLASSES=own "
            "for the classes' own names",
        ) from error


def _of_line(
    line: str, known: frozenset[str], given: str, number: int
) -> tuple[str, tuple[str, ...]]:
    """A class and its names."""
    one, colon, rest = line.partition(":")
    if line in known:
        return line, (_spoken(line),)
    if one.strip() not in known:
        told = f"the data set has no class {one.strip()!r}{_meant(one, known)}"
        raise _wrong(given, f"line {number}: {told}")
    names = tuple(filter(None, map(str.strip, rest.split(";"))))
    if colon and not names:
        raise _wrong(given, f"line {number}: {one.strip()!r} has no name behind the colon")
    return one.strip(), names


def _meant(one: str, known: frozenset[str]) -> str:
    """Of thousands of classes none but the nearest is listed."""
    told = did_you_mean(one.strip(), known)
    return told if "did you mean" in told or len(known) <= 20 else ""


def _spoken(one: str) -> str:
    return one.replace("_", " ").strip() or one


def _wrong(given: str, what: str) -> UsageError:
    message = f"CLASSES={given}: {what}. A line is such as {EXAMPLE}"
    return UsageError(message, instead={"CLASSES": UNKNOWN})
