"""What the names of files and folders say: which files are images, which split and which label they have, and the key."""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from base.errors import UsageError

UNREAD = (
    ".arw",
    ".avif",
    ".cr2",
    ".cr3",
    ".dng",
    ".heic",
    ".heif",
    ".jp2",
    ".jxl",
    ".nef",
    ".psd",
    ".svg",
)  # images too, but not to be read here
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
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


def find_images(base: Path) -> tuple[list[Path], Counter[str]]:
    """The images below a folder, relative to it, and how many files have which other ending. Links are followed, loops and hidden names are not."""
    found, others = [], Counter[str]()
    for folder, folders, files in os.walk(base, followlinks=True):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not _is_loop(Path(folder, name))
        )
        for name in (name for name in files if not name.startswith(".")):
            if name.lower().endswith(EXTENSIONS):
                found.append(Path(folder, name).relative_to(base))
            else:
                others[Path(name).suffix.lower() or "no ending"] += 1
    return found, others


def _is_loop(folder: Path) -> bool:
    """A link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def say_left_out(data: str, others: Counter[str], why: str, unit: str = "files") -> None:
    """others: {"with .txt": count}; `unit` is the plural."""
    if others:
        count, plural = others.total(), others.total() != 1
        print(
            f"{data}: {count:,} {unit if plural else unit[:-1]} {'are' if plural else 'is'} left out, {why}: "
            + ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(5)),
            flush=True,
        )
    if unread := [ending for ending in UNREAD if others[f"with {ending}"]]:
        print(
            f"warning: {data}: images with {', '.join(unread)} cannot be read; to use them too, make JPEG or PNG files of them first",
            flush=True,
        )


def of_folders(data: str, paths: Sequence[PurePosixPath | Path]) -> tuple[list[str], list[str]]:
    """Labels and splits of class/image, with or without unlabelled/image beside them, or of split/class/image; deeper folders belong to the class."""
    has_splits = all(path.parts[0].lower() in SPLIT_NAMES and len(path.parts) > 1 for path in paths)
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    named = sorted(top for top in tops if top.lower() in SPLIT_NAMES)
    if len({SPLIT_NAMES[top.lower()] for top in named}) > 1 and not has_splits:
        other = next(
            path
            for path in paths
            if len(path.parts) == 1 or path.parts[0].lower() not in SPLIT_NAMES
        )
        raise UsageError(
            f"DATA={data}: {', '.join(named)} are splits, but {text(other.as_posix())} lies in none of them. Put it into one, or move it away"
        )
    if (
        named
        and {SPLIT_NAMES[top.lower()] for top in named} == {"unlabelled"}
        and len(tops) > len(named)
    ):
        hidden = [len(path.parts) > 1 and path.parts[0] in named for path in paths]
        print(
            f"{data}: the {sum(hidden):,} images in {', '.join(named)} are used without a label",
            flush=True,
        )
        return (
            [
                "" if out or len(path.parts) == 1 else path.parts[0]
                for path, out in zip(paths, hidden, strict=True)
            ],
            ["unlabelled" if out else "" for out in hidden],
        )
    if named and not has_splits:
        print(
            f"warning: {data}: the folders {', '.join(named)} are taken for classes, since other images or folders lie beside them. If they are splits, "
            "put all images into train/, val/, test/ or unlabelled/",
            flush=True,
        )
    splits = [SPLIT_NAMES[path.parts[0].lower()] if has_splits else "" for path in paths]
    depth = 1 if has_splits else 0
    labels = [
        path.parts[depth] if len(path.parts) > depth + 1 and split != "unlabelled" else ""
        for path, split in zip(paths, splits, strict=True)
    ]
    return labels, splits


def split_of(value: Any) -> str:
    """What a column of splits says; '' for nothing; what is no split stays as it is."""
    name = "" if value is None else str(value)
    return SPLIT_NAMES.get(name.lower(), name)


def label_of(value: Any) -> str:
    """The class that a label names; '' where it is unknown: nothing, NaN, or a number below 0. A whole float is that number: 3.0 is 3.

    Raises ValueError for what is neither a number nor a name.
    """
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        value = -1 if math.isnan(value) else int(value)
    if value is None or (isinstance(value, int) and value < 0):
        return ""
    if not isinstance(value, str | int):
        raise ValueError(f"the label {value!r:.80}, expected a whole number or a name")
    found = str(value).strip()
    return "" if re.fullmatch(r"-\d+(\.0+)?", found) else found


def split_in(name: str) -> str:
    """The split that a file's name says, such as imagenet-train-0001.tar; '' where it says none, or several."""
    found = {
        SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES
    }
    return found.pop() if len(found) == 1 else ""


def hide_unlabelled(data: str, labels: list[str], splits: list[str]) -> list[str]:
    """A test or validation split whose labels were never published can test nothing: its images are used unlabelled, and that is said."""
    for name in ("val", "test"):
        rows = [label for label, split in zip(labels, splits, strict=True) if split == name]
        if rows and not any(rows):
            print(
                f"{data}: none of the {len(rows):,} images of the split {name!r} has a label; they are used unlabelled",
                flush=True,
            )
            splits = ["unlabelled" if split == name else split for split in splits]
    return splits


def text(name: str) -> str:
    """A file name as valid UTF-8; bytes that are not are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
