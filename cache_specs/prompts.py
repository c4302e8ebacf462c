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

    def alike(self) -> list[list[str]]:
        """The classes that have the same names, together."""
        groups: dict[frozenset[str], list[str]] = {}
        for one, names in self.names.items():
            groups.setdefault(frozenset(map(str.casefold, names)), []).append(one)
        return [group for group in groups.values() if len(group) > 1]


def read_names(given: str, classes: Sequence[str]) -> Names:
    """What CLASSES says of these classes; of a data set without any, which there are. Raises
    UsageError for a file that is not there or no text, and naming line and class for one that is
    unknown, missing, there twice or without a name."""
    if given == OWN and not classes:
        raise UsageError(
            "CLASSES=own takes the classes' own names, and the data set has none: name a file with "
            "a line a class",
            instead={"CLASSES": UNKNOWN},
        )
    if given == OWN:
        return Names({one: (_spoken(one),) for one in classes})
    found = _parsed(given, frozenset(classes))
    _refuse_missing(given, classes, found)
    return found


def _refuse_missing(given: str, classes: Sequence[str], found: Names) -> None:
    if not classes and len(found.names) < 2:
        raise _wrong(given, "there are fewer than two classes: write a line for each")
    missing = [one for one in classes if one not in found.names]
    if missing:
        more = f" and {len(missing) - SHOWN:,} others" if len(missing) > SHOWN else ""
        raise _wrong(
            given,
            f"there is no line for {', '.join(map(repr, missing[:SHOWN]))}{more}: give each class "
            "of the data set one (CLASSES=own takes the classes' own names)",
        )


def _parsed(given: str, known: frozenset[str]) -> Names:
    names: dict[str, tuple[str, ...]] = {}
    templates: list[str] = []
    for number, line in enumerate(_lines(given), 1):
        one = _class_of(line, known)
        if PLACE in line and not one:
            templates.append(line)
        elif line and (one or not line.startswith("#")):
            own = _own_names(line, one, known, given, number)
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


def _class_of(line: str, known: frozenset[str]) -> str:
    """The class of a line, the longest of which the colon follows; '' where there is none. If none
    is known, what stands before the first colon is one."""
    if not known:
        head = line.partition(":")[0].strip()
        return "" if line.startswith("#") or PLACE in line else head
    if line in known:
        return line
    parts = line.split(":")
    heads = (":".join(parts[:count]).strip() for count in range(len(parts) - 1, 0, -1))
    return next((head for head in heads if head in known), "")


def _own_names(
    line: str, one: str, known: frozenset[str], given: str, number: int
) -> tuple[str, ...]:
    """Of the class `one`, which the line is of."""
    if not one:
        unknown = line.partition(":")[0].strip()
        told = f"the data set has no class {unknown!r}{_meant(unknown, known)}"
        raise _wrong(given, f"line {number}: {told}")
    if line == one:
        return (_spoken(one),)
    rest = line.removeprefix(one).lstrip().removeprefix(":")
    if PLACE in rest:
        told = f"{one!r} has {PLACE} in a name: templates are of all classes, a line each"
        raise _wrong(given, f"line {number}: {told}")
    names = tuple(filter(None, map(str.strip, rest.split(";"))))
    if not names:
        raise _wrong(given, f"line {number}: {one!r} has no name behind the colon")
    return names


def _meant(one: str, known: frozenset[str]) -> str:
    """Of thousands of classes none but the nearest is listed."""
    told = did_you_mean(one.strip(), known)
    return told if "did you mean" in told or len(known) <= 20 else ""


def _spoken(one: str) -> str:
    return one.replace("_", " ").strip() or one


def _wrong(given: str, what: str) -> UsageError:
    message = f"CLASSES={given}: {what}. A line is such as {EXAMPLE}"
    return UsageError(message, instead={"CLASSES": UNKNOWN})
