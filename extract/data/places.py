"""Which files the paths of a table mean, as other systems and other people's machines write them.

A path that is there means itself. Otherwise it is resolved where exactly one file can be meant:
Windows' separators, capitals, blanks at its ends, accents in two codings, no ending; a name alone,
wherever below the table's folder its file lies; a path that is right from some folder on.
"""

import difflib
import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from extract.data.formats import EXTENSIONS, UNREAD
from extract.data.naming import find_images, passed_over


@dataclass
class Folder:
    """What lies in a folder: its names, and each as it is compared (`_folded`), with and without
    the ending of an image."""

    names: set[str]
    folded: Mapping[str, list[str]]
    stems: Mapping[str, list[str]]


@dataclass
class Places:
    """The files that a table in the folder `base` may name. Each folder is listed once."""

    base: str
    listed: dict[str, Folder] = field(default_factory=dict)
    below: Mapping[str, list[str]] | None = None

    def exists(self, path: str) -> bool:
        """Whether a path, relative to the base or absolute, is there."""
        folder, name = posixpath.split(path)
        names = self._folder(folder).names  # none of a folder that may be entered and not listed
        return name in names or (not names and os.path.lexists(posixpath.join(self.base, path)))

    def images_in(self, folder: str) -> list[str]:
        """The paths of the images that lie in a folder itself, going by their endings."""
        found = []
        for name in self._folder(folder).names:
            if name.lower().endswith(EXTENSIONS) and not passed_over(name):
                found.append(posixpath.join(folder, name))
        return found

    def find(self, written: str) -> str:
        """The one file that a path which is not there can mean, relative to the base where it was;
        '' where there is none, or several."""
        parts = _parts(written)
        for first in range(len(parts)):  # right as a whole, or from some folder on
            found = self._walk(parts[first:])
            if found and os.path.isfile(posixpath.join(self.base, found)):
                return found
        if len(parts) != 1:
            return ""
        alike = self._below().get(_folded(parts[0]), [])
        return alike[0] if len(alike) == 1 else ""

    def near(self, written: str) -> str:
        """The name that is nearest to it, in the last of its folders that is there."""
        parts = _parts(written)
        folder = "/" if parts[:1] == ["/"] else ""
        for part in parts[folder == "/" :]:
            names = self._folder(folder).names
            if part not in names:
                found = difflib.get_close_matches(part, sorted(names)[:10_000], n=1)
                return posixpath.join(folder, found[0]) if found else folder
            folder = posixpath.join(folder, part)
        return folder

    def _walk(self, parts: Sequence[str]) -> str:
        """From folder to folder, by the one name in each that can be meant; '' where none can."""
        place = "/" if parts[0] == "/" else ""
        steps = parts[1:] if place else parts
        for number, part in enumerate(steps, 1):
            if part == "..":
                place = posixpath.normpath(posixpath.join(place, part))
                continue
            name = self._name_in(place, part, number == len(steps))
            if not name:
                return ""
            place = posixpath.join(place, name)
        return place

    def _name_in(self, place: str, part: str, last: bool) -> str:
        folder = self._folder(place)
        if part in folder.names:
            return part
        alike = folder.folded.get(_folded(part), [])
        if last and not alike and _may_lack_ending(part):
            alike = folder.stems.get(_folded(part), [])
        return alike[0] if len(alike) == 1 else ""

    def _folder(self, place: str) -> Folder:
        if place not in self.listed:
            try:
                names = set(os.listdir(posixpath.join(self.base, place) or "."))
            except (OSError, ValueError):
                names = set()
            folded, stems = defaultdict(list), defaultdict(list)
            for name in names:
                folded[_folded(name)].append(name)
                if name.lower().endswith(EXTENSIONS):
                    stems[_stem(name)].append(name)
            self.listed[place] = Folder(names, folded, stems)
        return self.listed[place]

    def _below(self) -> Mapping[str, list[str]]:
        """{name, or name without its ending: the images below the base that are called so}"""
        if self.below is None:
            self.below = defaultdict(list)
            for path in find_images(Path(self.base)).images:
                for name in {_folded(path.name), _stem(path.name)}:
                    if name == _folded(path.name) or _may_lack_ending(name):
                        self.below[name].append(path.as_posix())
        return self.below


def is_guess(written: str, found: str) -> bool:
    """Whether more was completed than how a system writes the same path: a folder, the ending."""
    parts = PurePosixPath(found).parts
    return list(map(_folded, _parts(written))) != list(map(_folded, parts))


def is_address(written: str) -> bool:
    """https://…, s3://…: nothing that lies here."""
    return "://" in written and not written.startswith("file://")


def _parts(written: str) -> list[str]:
    """Its folders and its name; '/' first where it is absolute, and no drive."""
    plain = written.strip().strip("\"'").strip()
    if plain.startswith("file://"):
        plain = unquote(urlparse(plain).path)
    if "\\" in plain:
        plain = plain.replace("\\", "/")
    if plain.startswith("~/"):
        plain = os.path.expanduser(plain)
    return list(PurePosixPath(posixpath.normpath(plain)).parts) if plain else []


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _may_lack_ending(name: str) -> bool:
    """Whether no ending of an image is written: the 2 in 1.2 is none."""
    return not name.lower().endswith((*EXTENSIONS, *UNREAD))


def _stem(name: str) -> str:
    return _folded(posixpath.splitext(name)[0])
