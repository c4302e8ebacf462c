"""Tables: a list of image files (CSV or Parquet: path[, label][, split]), or Parquet with the
images in it (image[, label][, split][, key])."""

import csv
import logging
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base.errors import UsageError, did_you_mean, nearest
from cache_specs.items import MISSING, SPLITS, read_parquet
from extract.data import columns
from extract.data.formats import EXTENSIONS
from extract.data.naming import label_of, split_of
from extract.data.readers import Listing, ReadFiles

log = logging.getLogger(f"coview.{__name__}")

COLUMNS = ("path", "label", "split")
FIRST = 2  # the line of the first row, below the header


def of_table(data: str, root: Path) -> Listing:
    path = Path(data)
    if not path.is_file():
        raise UsageError(f"DATA={data}: there is no such file; name one that is there")
    try:
        if path.suffix == ".parquet" and columns.has_images(data):
            return columns.images_of(data, [(data, "")])
        rows, names = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except (OSError, ValueError, csv.Error) as error:  # Arrow's errors are OSError or ValueError
        raise UsageError(
            f"{path} cannot be read: {error}; write it as a CSV in UTF-8 or as Parquet"
        ) from error
    _refuse_misspelt(path, names)
    if not rows:
        raise UsageError(f"{path}: the table has no row; write one row for each image: path,label")
    _require_paths(path, rows[0], names)
    _say_unused(data, names)
    splits = [split_of(row.get("split")) for row in rows]
    keys = _keys(path, rows, splits)
    labels = _labels(path, rows, splits)
    _warn_of_missing(data, labels)
    return Listing(keys, labels, splits, ReadFiles([str(path.parent / key) for key in keys]))


def _refuse_misspelt(path: Path, names: Sequence[str]) -> None:
    for column in names:
        near = nearest(column, COLUMNS)
        if near and column not in COLUMNS:
            raise UsageError(
                f"{path}: unknown column {column!r}; did you mean {near!r}? Of the columns path, "
                "label and split only 'path' must be there"
            )


def _require_paths(path: Path, first: dict[str, Any], names: list[str]) -> None:
    if "path" in names:
        return
    then = "add it"
    for name in names:
        if str(first[name]).lower().endswith(EXTENSIONS):
            then = f"rename {name!r} to 'path'"
            break
    raise UsageError(
        f"{path}: a table needs a column 'path', the images' files; found the columns {names}; "
        f"{then}"
    )


def _say_unused(data: str, names: Sequence[str]) -> None:
    others = [repr(column) for column in names if column not in COLUMNS]
    if len(others) == 1:
        log.info(f"{data}: the column {others[0]} is not used")
    elif others:
        log.info(f"{data}: the columns {', '.join(others[:10])} are not used")


def _keys(path: Path, rows: Sequence[dict[str, Any]], splits: Sequence[str]) -> list[str]:
    """The images' files, relative to the table. Raises UsageError for one that is none, or outside
    of its folder, and for a split that is none."""
    keys = []
    for line, (row, split) in enumerate(zip(rows, splits, strict=True), FIRST):
        key = posixpath.normpath(str(row["path"])) if row["path"] else ""
        if split not in SPLITS:
            near = did_you_mean(split, SPLITS[1:])
            raise UsageError(f"{path}, row {line}: split {split!r}{near}")
        if not key:
            raise UsageError(f"{path}, row {line}: the path is empty; fill it in")
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise UsageError(
                f"{path}, row {line}: the path {key!r} leaves the table's folder; paths are "
                "relative to it"
            )
        keys.append(key)
    return keys


def _labels(path: Path, rows: Sequence[dict[str, Any]], splits: Sequence[str]) -> list[str]:
    labels = []
    for line, (row, split) in enumerate(zip(rows, splits, strict=True), FIRST):
        try:
            labels.append("" if split == "unlabelled" else label_of(row.get("label")))
        except ValueError as error:
            raise UsageError(f"{path}, row {line}: {error}; mend the table") from error
    return labels


def _warn_of_missing(data: str, labels: Sequence[str]) -> None:
    """Of labels that look as if they meant that there is none, such as 'nan'."""
    missing = sorted({label for label in labels if label.lower() in MISSING})
    if missing:
        taken = "are taken for classes" if len(missing) > 1 else "is taken for a class"
        log.warning(
            f"{data}: {', '.join(map(repr, missing))} {taken}; where a label is unknown, leave its "
            "cell empty"
        )


def _read_csv(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        file.seek(0)
        # A spreadsheet writes ; where a comma is the decimal point.
        separator = next((mark for mark in ",;\t" if mark in head), ",")
        reader = csv.DictReader(file, delimiter=separator)
        rows, names = list(reader), list(reader.fieldnames or [])
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise ValueError(f"the column {twice[0]!r} stands there twice")
    for line, row in enumerate(rows, FIRST):
        if None in row:
            raise ValueError(
                f"row {line} has more cells than the {len(names)} columns {names}; a cell with a "
                f'{separator!r} in it is quoted: "cat{separator} big"'
            )
    return rows, names


def _read_parquet(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    table = read_parquet(path.read_bytes())
    return table.to_pylist(), table.column_names
