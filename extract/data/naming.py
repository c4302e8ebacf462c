"""What the names of files and folders say: which files are images, which split and which label
they have, and the key."""

import enum
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from base.errors import UsageError
from extract.data.formats import EXTENSIONS, HEAD, UNREAD, format_of, is_read, remedy
from extract.data.readers import open_regular

log = logging.getLogger(f"coview.{__name__}")

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
    "unsupervised": "unlabelled",
}
ImagePath = PurePosixPath | Path  # relative to the folder that holds all images


def find_images(base: Path) -> tuple[list[Path], Counter[str]]:
    """The images below a folder, relative to it, and how many files have which other ending. Links
    are followed, loops and hidden names are not."""
    found, others = [], Counter[str]()
    for folder, folders, files in os.walk(base, followlinks=True):
        seen = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in seen if not _is_loop(Path(folder, name))]
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(EXTENSIONS) or is_nameless(Path(folder, name)):
                found.append(Path(folder, name).relative_to(base))
            else:
                others[Path(name).suffix.lower() or "no ending"] += 1
    return found, others


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


class Layout(enum.Enum):
    """How the folders of a data set lie. Folders deeper than these belong to the class."""

    CLASSES = "class/image, or images alone"
    SPLITS = "train|val|test|unlabelled/class/image"
    UNLABELLED = "unlabelled/image beside class/image"


def of_folders(data: str, paths: Sequence[ImagePath]) -> tuple[list[str], list[str]]:
    """Labels and splits of the images, going by the folders they lie in. Raises UsageError."""
    labels, splits = [], []
    layout = _layout(data, paths)
    for path in paths:
        folders, split = path.parts[:-1], _split_at_top(path)
        match layout:
            case Layout.SPLITS:
                folders = folders[1:]
            case Layout.CLASSES:
                split = ""
            case Layout.UNLABELLED:
                pass
        labels.append(folders[0] if folders and split != "unlabelled" else "")
        splits.append(split)
    return labels, splits


def _split_at_top(path: ImagePath) -> str:
    """The split that the first of an image's folders is named after; '' where it is none."""
    return SPLIT_NAMES.get(path.parts[0].lower(), "") if len(path.parts) > 1 else ""


def _layout(data: str, paths: Sequence[ImagePath]) -> Layout:
    """What the folders at the top are; said where it is not plain. Raises UsageError where they
    are splits, and images lie in none of them."""
    inside, outside = [], []
    for path in paths:
        (inside if _split_at_top(path) else outside).append(path)
    if not outside:
        return Layout.SPLITS
    if not inside:
        return Layout.CLASSES
    listed = ", ".join(sorted({path.parts[0] for path in inside}))
    kinds = set(map(_split_at_top, inside))
    if len(kinds) > 1:
        raise UsageError(
            f"DATA={data}: {listed} are splits, but {text(outside[0].as_posix())} lies in none of "
            "them. Put it into one, or move it away"
        )
    classes = any(len(path.parts) > 1 for path in outside)
    if classes and kinds == {"unlabelled"}:
        log.info(f"{data}: the {len(inside):,} images in {listed} are used without a label")
        return Layout.UNLABELLED
    log.warning(
        f"{data}: the folders {listed} are taken for classes, since other images or folders lie "
        "beside them. If they are splits, put all images into train/, val/, test/ or unlabelled/"
    )
    return Layout.CLASSES


def split_of(value: Any) -> str:
    """What a column of splits says; '' for nothing; what is no split stays as it is."""
    name = "" if value is None else str(value)
    return SPLIT_NAMES.get(name.lower(), name)


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


def split_in(name: str) -> str:
    """The split that a file's name says, such as imagenet-train-0001.tar; '' where it says none, or
    several."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else ""


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
