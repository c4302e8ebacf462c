"""Tables: a list of image files (CSV or Parquet: path[, label][, split]), or Parquet with the images in it (image[, label][, split][, key])."""

import csv
import posixpath
from pathlib import Path
from typing import Any

from base.errors import UsageError, did_you_mean, nearest
from cache_specs.items import MISSING, SPLITS, read_parquet
from extract.data import columns
from extract.data.naming import EXTENSIONS, label_of, split_of
from extract.data.readers import ReadFiles

COLUMNS = ("path", "label", "split")


def table(data: str, root: Path) -> tuple:
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
    for column in names:
        if column not in COLUMNS and (near := nearest(str(column), COLUMNS)):
            raise UsageError(
                f"{path}: unknown column {column!r}; did you mean {near!r}? Of the columns path, label and split only 'path' must be there"
            )
    if not rows:
        raise UsageError(f"{path}: the table has no row; write one row for each image: path,label")
    if "path" not in names:
        named = next(
            (str(name) for name in names if str(rows[0][name]).lower().endswith(EXTENSIONS)), None
        )
        raise UsageError(
            f"{path}: a table needs a column 'path', the images' files; found the columns {names}; "
            + (f"rename {named!r} to 'path'" if named else "add it")
        )
    if others := [str(column) for column in names if column not in COLUMNS]:
        print(
            f"{data}: the column{'s' * (len(others) > 1)} {', '.join(map(repr, others[:10]))} {'are' if len(others) > 1 else 'is'} not used",
            flush=True,
        )
    keys = [posixpath.normpath(str(row["path"])) if row["path"] else "" for row in rows]
    splits = [split_of(row.get("split")) for row in rows]
    for line, (key, split) in enumerate(zip(keys, splits, strict=True), 2):
        if split not in SPLITS:
            raise UsageError(
                f"{path}, row {line}: split {split!r}{did_you_mean(split, SPLITS[1:])}"
            )
        if not key:
            raise UsageError(f"{path}, row {line}: the path is empty; fill it in")
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise UsageError(
                f"{path}, row {line}: the path {key!r} leaves the table's folder; paths are relative to it"
            )
    labels = []
    for line, (row, split) in enumerate(zip(rows, splits, strict=True), 2):
        try:
            labels.append("" if split == "unlabelled" else label_of(row.get("label")))
        except ValueError as error:
            raise UsageError(f"{path}, row {line}: {error}; mend the table") from error
    if missing := sorted({label for label in labels if label.lower() in MISSING}):
        taken = "are taken for classes" if len(missing) > 1 else "is taken for a class"
        print(
            f"warning: {data}: {', '.join(map(repr, missing))} {taken}; where a label is unknown, leave its cell empty",
            flush=True,
        )
    return keys, labels, splits, ReadFiles([str(path.parent / key) for key in keys])


def _read_csv(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        file.seek(0)
        separator = next(
            (mark for mark in ",;\t" if mark in head), ","
        )  # a spreadsheet writes ; where a comma is the decimal point
        reader = csv.DictReader(file, delimiter=separator)
        rows, names = list(reader), list(reader.fieldnames or [])
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise ValueError(f"the column {twice[0]!r} stands there twice")
    for line, row in enumerate(rows, 2):
        if None in row:
            raise ValueError(
                f"row {line} has more cells than the {len(names)} columns {names}; a cell with a {separator!r} in it is quoted: "
                f'"cat{separator} big"'
            )
    return rows, names


def _read_parquet(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    table = read_parquet(path.read_bytes())
    return table.to_pylist(), table.column_names
