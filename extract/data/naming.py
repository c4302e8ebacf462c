"""What the names of files and folders say: which files are images, which split and which label
they have, and the key."""

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cache_specs.words import split_named
from extract.data.formats import EXTENSIONS, HEAD, UNREAD, format_of, is_read, remedy
from extract.data.readers import open_regular

log = logging.getLogger(f"coview.{__name__}")

# What systems and programs leave in folders, besides hidden names.
_OF_SYSTEMS = (
    "__macosx|thumbs.db|ehthumbs.db|desktop.ini|@eadir|@tmp|@recycle|@__thumb|#recycle|#snapshot|"
    "$recycle.bin|recycler|lost.dir|lost+found|__pycache__|system volume information|icon\r"
)
OF_SYSTEMS = frozenset(_OF_SYSTEMS.split("|"))
ImagePath = PurePosixPath | Path  # relative to the folder that holds all images


class Found(NamedTuple):
    """The images below a folder, relative to it; how many files have which other ending; and what
    was passed over, by name."""

    images: list[Path]
    others: Counter[str]
    passed: Counter[str]


def find_images(base: Path) -> Found:
    """Links are followed, loops are not; see `passed_over` for what is not looked at."""
    found, others, passed = [], Counter[str](), Counter[str]()
    for folder, folders, files in os.walk(base, followlinks=True):
        seen = sorted(_kept(folders, passed))
        folders[:] = [name for name in seen if not _is_loop(Path(folder, name))]
        for name in _kept(files, passed):
            if name.lower().endswith(EXTENSIONS) or is_nameless(Path(folder, name)):
                found.append(Path(folder, name).relative_to(base))
            else:
                others[Path(name).suffix.lower() or "no ending"] += 1
    return Found(found, others, passed)


def is_image(head: bytes) -> bool:
    """Does a file without an ending, of which this is the beginning, hold an image that is read?"""
    return is_read(format_of(head))


def is_nameless(path: Path) -> bool:
    """A file without an ending, or with one of digits alone, that holds an image."""
    if path.suffix.strip(".0123456789"):
        return False
    try:
        with open_regular(str(path), None) as file:
            return is_image(file.read(HEAD))
    except OSError:
        return False


def _is_loop(folder: Path) -> bool:
    """A link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def passed_over(name: str) -> str:
    """What a file or folder is that holds no images of anybody: `.git`, `._*`, `Thumbs.db`; '' for
    all others."""
    if name.startswith("._"):
        return "._*"
    if name.startswith(".") or name.lower() in OF_SYSTEMS:
        return name
    return ""


def _kept(names: Iterable[str], passed: Counter[str]) -> list[str]:
    """Those that are not passed over; the others are counted."""
    kept = []
    for name in names:
        other = passed_over(name)
        if other:
            passed[other] += 1
        else:
            kept.append(name)
    return kept


def say_passed_over(data: str, passed: Counter[str]) -> None:
    """Of how many hidden names, and names of other systems, nothing was read."""
    if passed:
        names = ", ".join(f"{count:,} {text(name)}" for name, count in passed.most_common(5))
        more = " …" if len(passed) > 5 else ""
        log.info(f"{data}: passed over, being hidden or another system's: {names}{more}")


def say_left_out(data: str, others: Counter[str], why: str, unit: str = "files") -> None:
    """others: {"with .txt": count}; `unit` is the plural."""
    if others:
        count = others.total()
        what = f"{unit[:-1]} is" if count == 1 else f"{unit} are"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(5))
        log.info(f"{data}: {count:,} {what} left out, {why}: {kinds}")
    unread = [ending for ending in UNREAD if others[f"with {ending}"]]
    if unread:
        log.warning(
            f"{data}: images with {', '.join(unread)} cannot be read; to use them too, "
            f"{remedy(unread)}"
        )


def split_of(value: Any) -> str:
    """What a column of splits says; '' for nothing; what is no split stays as it is."""
    name = "" if value is None else str(value).strip()
    return split_named(name) or name


def label_of(value: Any) -> str:
    """The class that a label names; '' where it is unknown: nothing, NaN, or a number below 0. A
    whole float is that number: 3.0 is 3.

    Raises ValueError for what is neither a number nor a name.
    """
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, int) and value < 0):
        return ""
    if not isinstance(value, str | int):
        raise ValueError(f"the label {value!r:.80}, expected a whole number or a name")
    found = str(value).strip()
    return "" if re.fullmatch(r"-\d+(\.0+)?", found) else found


def whole_numbers(labels: Sequence[str]) -> list[str]:
    """1.0 of one program is 1 of another: where all labels are whole numbers, they are written as
    such."""
    if all(re.fullmatch(r"\d+(\.0+|,0)?", label) for label in labels if label):
        return [re.sub(r"[.,]0+$", "", label) for label in labels]
    return list(labels)


def without_unlabelled(labels: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The labels, but none of the images whose split says that they are used unlabelled."""
    pairs = zip(labels, splits, strict=True)
    return ["" if split == "unlabelled" else label for label, split in pairs]


def hide_unlabelled(data: str, labels: Sequence[str], splits: list[str]) -> list[str]:
    """A test or validation split whose labels were never published can test nothing: its images are
    used unlabelled, and that is said."""
    for name in ("val", "test"):
        rows = [label for label, split in zip(labels, splits, strict=True) if split == name]
        if rows and not any(rows):
            log.info(
                f"{data}: none of the {len(rows):,} images of the split {name!r} has a label; they "
                "are used unlabelled"
            )
            splits = ["unlabelled" if split == name else split for split in splits]
    return splits


def text(name: str) -> str:
    """A file name as valid UTF-8; bytes that are not are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
