"""Tables that lie beside the images of a folder: metadata.csv, as `datasets` reads it, gives the
labels where the folders give none."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from base.errors import UsageError
from base.phrase import quoted
from cache_specs.words import means_no_label
from extract.data.naming import text
from extract.data.readers import ReadFiles
from extract.data.sheets import is_table
from extract.data.tables import of_table

log = logging.getLogger(f"coview.{__name__}")


def tables_beside(
    base: Path, paths: Sequence[Path], splits: list[str]
) -> tuple[list[str], list[str]]:
    """Labels and splits of images whose folders give no label, by the metadata.csv in their folders
    or above; other tables are only told. Raises UsageError for one that contradicts a folder."""
    tables = _tables_among(base, paths)
    labels, splits = [""] * len(paths), list(splits)
    place = {os.path.abspath(base / path): row for row, path in enumerate(paths)}
    for table in tables:
        if table.name.lower().startswith("metadata."):
            count = _take(base / table, place, labels, splits)
            log.info(
                f"{text(str(base / table))}: it lies beside the images, and gives {count:,} of "
                f"{len(paths):,} of them their label"
            )
    others = [table for table in tables if not table.name.lower().startswith("metadata.")]
    if others and not any(labels):
        log.warning(
            f"{text(str(base))}: no image has a label, but a table lies beside them. If it has "
            f"the labels, name it: DATA={text(str(base / others[0]))}"
        )
    return labels, splits


def labelled(base: Path, paths: Sequence[Path]) -> set[int]:
    """The places of those to which a metadata.csv gives a label: images of their own, whatever they
    are called."""
    place = {os.path.abspath(base / path): row for row, path in enumerate(paths)}
    labels, splits = [""] * len(paths), [""] * len(paths)
    for table in _tables_among(base, paths):
        if table.name.lower().startswith("metadata."):
            _take(base / table, place, labels, splits)
    return {row for row, label in enumerate(labels) if label}


def _tables_among(base: Path, paths: Sequence[Path]) -> list[Path]:
    """Those in the images' folders, and above them."""
    folders = {Path(), *(parent for path in paths for parent in path.parents)}
    return [name for folder in sorted(folders) for name in _tables_in(base, folder)]


def _tables_in(base: Path, folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(base / folder))
    except OSError:
        return []
    return [folder / name for name in names if is_table(name) and not name.startswith(".")]


def _refuse_two_splits(table: Path, path: str, folder: str, split: str) -> None:
    shown = text(str(table))
    raise UsageError(
        f"{shown} says that {text(path)} is of the split {split}, but its folder says {folder}. "
        f"To go by the folders, delete the column of splits; to go by the table alone, name it: "
        f"DATA={quoted(shown)}",
        instead={"DATA": shown},
    )


def _take(table: Path, place: dict[str, int], labels: list[str], splits: list[str]) -> int:
    """Fill in what a table says of the images; how many labels that were. Raises UsageError where
    it says another split than the folder."""
    listing, count = of_table(str(table), Path(), alone=False), 0
    assert isinstance(listing.read, ReadFiles), listing.read
    said = zip(listing.read.paths, listing.labels, listing.splits, strict=True)
    for path, label, split in said:
        row = place.get(os.path.abspath(path))
        if row is None:
            continue
        if split and splits[row] and split != splits[row]:
            _refuse_two_splits(table, path, splits[row], split)
        splits[row] = splits[row] or split
        if splits[row] != "unlabelled" and label:
            labels[row] = label
            count += not means_no_label(label)
    return count
