"""Tables: a list of image files (CSV or Parquet: path[, label][, split]), or Parquet with the
images in it (image[, label][, split][, key]).

Paths are relative to the table's folder, or absolute. Keys are relative to it too, or to the folder
that all files have in common where one lies outside.
"""

import logging
import os
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from base.console import counted
from base.errors import UsageError, did_you_mean
from cache_specs.items import SPLITS
from extract.data import columns
from extract.data.formats import EXTENSIONS
from extract.data.layout import masks_among
from extract.data.naming import label_of, split_of, text
from extract.data.places import Places, is_address, is_guess
from extract.data.readers import Listing, ReadFiles
from extract.data.sheets import Sheet, read_sheet

log = logging.getLogger(f"coview.{__name__}")
SHOWN = 5  # rows


def of_table(data: str, root: Path, alone: bool = True) -> Listing:
    """alone: images that it does not list are not used, which is said. Raises UsageError."""
    path = Path(data)
    if not path.is_file():
        raise UsageError(f"DATA={data}: there is no such file; name one that is there")
    if data.lower().endswith(".parquet") and _has_images(path):
        return columns.images_of(data, [(data, "")])
    places = Places(str(path.parent))

    def is_image(cell: Any) -> bool:
        named = "" if cell is None else str(cell)
        return named.strip().lower().endswith(EXTENSIONS) or (
            len(named) < 4096 and bool(places.find(named))
        )

    sheet = read_sheet(path, is_image)
    splits = _splits(path, sheet)
    labels = _labels(path, sheet, splits)
    files = _files(data, sheet, places)
    keys = _keys(data, files, str(path.parent))
    if alone:
        _refuse_twice(data, keys, sheet.lines)
        _say_others(data, files, places)
    return Listing(keys, labels, splits, ReadFiles([str(path.parent / file) for file in files]))


def _has_images(path: Path) -> bool:
    try:
        return columns.has_images(str(path))
    except (OSError, ValueError) as error:  # Arrow's errors
        raise UsageError(
            f"{path} cannot be read: {error}; write it as a CSV in UTF-8 or as Parquet"
        ) from error


def _files(data: str, sheet: Sheet, places: Places) -> list[str]:
    """The files that are meant, relative to the table, or absolute. Raises UsageError for an empty
    path, and for an address."""
    files, other, lost = list[str](), list[int](), list[int]()
    cells = sheet.cells("path")
    for place, (line, cell) in enumerate(zip(sheet.lines, cells, strict=True)):
        written = "" if cell is None else str(cell)
        if not written.strip():
            raise UsageError(f"{data}, row {line}: the path is empty; fill it in")
        if is_address(written):
            raise UsageError(
                f"{data}, row {line}: {written!r} is an address, not a file; fetch the images "
                "first, and write where they lie"
            )
        plain = posixpath.normpath(written)
        found = plain if places.exists(plain) else places.find(written)
        if not found:
            lost.append(place)
        elif found != plain:
            other.append(place)
        files.append(found or plain)
    _say_meant(data, sheet, places, files, (other, lost))
    return files


def _say_meant(
    data: str,
    sheet: Sheet,
    places: Places,
    files: Sequence[str],
    places_of: tuple[Sequence[int], Sequence[int]],
) -> None:
    """places_of: the rows whose file is another than is written, and those without one."""
    other, lost = places_of
    written = [str(cell) for cell in sheet.cells("path")]
    guessed = [place for place in other if is_guess(written[place], files[place])]
    if other:
        first, say = (guessed or other)[0], log.warning if guessed else log.info
        completed = f", {len(guessed):,} of them by another folder or ending" if guessed else ""
        say(
            f"{data}: {len(other):,} of {len(files):,} paths are not there as they are "
            f"written, and mean the one file that they can mean{completed}: {written[first]!r} is "
            f"{text(files[first])!r}"
        )
    if lost:
        first = lost[0]
        near = places.near(written[first])
        hint = f"; the nearest there is {text(near)!r}" if near else ""
        log.warning(
            f"{data}: {len(lost):,} of {len(files):,} paths name no file, or several; "
            f"first row {sheet.lines[first]}: {written[first]!r}{hint}"
        )


def _say_others(data: str, files: Sequence[str], places: Places) -> None:
    """How many images lie beside those that the table lists, in the same folders."""
    here = os.path.abspath(places.base)
    others = _others(here, files, places)
    if others:
        are = "is" if len(others) == 1 else "are"
        log.info(
            f"{data}: {counted(len(others), 'image')} beside the {len(files):,} that it lists "
            f"{are} not used, first {text(os.path.relpath(others[0], here))}; to use them "
            "unlabelled, list them too, with an empty label"
        )


def _others(here: str, files: Sequence[str], places: Places) -> list[str]:
    """Whole paths of images that are not listed, without masks. here: the table's folder."""
    found = set[str]()
    for folder in {posixpath.dirname(file) for file in files}:
        found |= {posixpath.join(here, name) for name in places.images_in(folder)}
    others = sorted(found - {posixpath.join(here, file) for file in files})
    if not others:
        return []
    masks = masks_among([PurePosixPath(path) for path in (*others, *(found - {*others}))])
    return [path for place, path in enumerate(others) if place not in masks]


def _keys(data: str, files: Sequence[str], base: str) -> list[str]:
    """Relative to the table's folder; or to the folder that all files share, where some lie outside
    of it, which is said: a table of somebody else's might name anything."""
    here = os.path.abspath(base)
    whole = [os.path.normpath(os.path.join(here, file)) for file in files]
    outside = [file for file in whole if not file.startswith(f"{here.rstrip('/')}/")]
    if not outside:
        return [text(os.path.relpath(file, here)) for file in whole]
    common = os.path.commonpath([os.path.dirname(file) for file in whole])
    log.info(
        f"{data}: {len(outside):,} of {len(whole):,} files lie outside of the table's "
        f"folder, first {text(outside[0])!r}; keys are relative to {text(common)}"
    )
    return [text(os.path.relpath(file, common)) for file in whole]


def _refuse_twice(data: str, keys: Sequence[str], lines: Sequence[int]) -> None:
    """Raise UsageError where images are listed several times, with the rows of the first."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for key, line in zip(keys, lines, strict=True):
        rows_of[key].append(line)
    several = {key: rows for key, rows in rows_of.items() if len(rows) > 1}
    if several:
        key, rows = next(iter(several.items()))
        listed = ", ".join(map(str, rows[:SHOWN])) + (" …" if len(rows) > SHOWN else "")
        others = f" (and {len(several) - 1:,} more keys twice)" if len(several) > 1 else ""
        raise UsageError(
            f"DATA={data}: the key {key!r} stands there twice, in the rows {listed}{others}; each "
            "image may be listed once"
        )


def _splits(path: Path, sheet: Sheet) -> list[str]:
    splits = []
    for line, cell in zip(sheet.lines, sheet.cells("split"), strict=True):
        split = split_of(cell)
        if split not in SPLITS:
            near = did_you_mean(split, SPLITS[1:])
            raise UsageError(f"{path}, row {line}: split {split!r}{near}")
        splits.append(split)
    return splits


def _labels(path: Path, sheet: Sheet, splits: Sequence[str]) -> list[str]:
    labels = []
    for line, cell, split in zip(sheet.lines, sheet.cells("label"), splits, strict=True):
        try:
            labels.append("" if split == "unlabelled" else label_of(cell))
        except ValueError as error:
            raise UsageError(f"{path}, row {line}: {error}; mend the table") from error
    return labels
