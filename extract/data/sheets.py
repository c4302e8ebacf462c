"""A table as programs write it, as rows and columns: CSV of spreadsheets and of pandas, or Parquet.

    read_sheet(path, is_image)      the rows, and which columns are path, label and split

Read are UTF-8 and UTF-16, `,`, `;`, tabs and `|`, Excel's first line `sep=;`, capitals and blanks
in names, empty rows and columns, .gz, and a table without a header whose first column are images.
"""

import csv
import difflib
import gzip
import io
import logging
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import UsageError
from cache_specs.items import SPLITS, read_parquet
from extract.data.naming import split_of

log = logging.getLogger(f"coview.{__name__}")

TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
ENDINGS = (*TEXT, ".parquet")
SEPARATORS = ",;\t|"
LARGEST = 2**32  # bytes of text, unpacked
LOOKED_AT = 20  # cells
# Names of columns without blanks, signs and capitals; the first that is there is meant.
_NAMES = {
    "path": "path filename filepath file files imagepath imgpath imagefile imgfile imagefilename "
    "imagename imgname image images img imageid imgid picture photo name id",
    "label": "label labels class classes classname labelname category categoryname target targets "
    "cls classlabel categorylabel targetname",
    "split": "split splits subset partition set usage phase fold",
}
NAMES = {column: words.split() for column, words in _NAMES.items()}
Row = dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """columns: what path, label and split are called, where they are there. lines: the number of
    each row, as a spreadsheet shows it."""

    rows: list[Row]
    names: list[str]
    columns: dict[str, str]
    lines: list[int]

    def cells(self, column: str) -> list[Any]:
        name = self.columns.get(column)
        return [row.get(name) if name else None for row in self.rows]


def is_table(data: str) -> bool:
    return data.lower().endswith(ENDINGS)


def read_sheet(path: Path, is_image: Callable[[Any], bool]) -> Sheet:
    """Raises UsageError. is_image: whether a cell names an image."""
    try:
        if path.name.lower().endswith(".parquet"):
            table = read_parquet(path.read_bytes())
            names, rows = table.column_names, table.to_pylist()
            lines = list(range(2, len(rows) + 2))
        else:
            names, rows, lines = _read_text(path, is_image)
    # Arrow's errors, and those of decoding and unpacking, are each OSError or ValueError
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise UsageError(
            f"{path} cannot be read: {error}; write it as a CSV in UTF-8 or as Parquet"
        ) from error
    if not rows:
        raise UsageError(f"{path}: the table has no row; write one row for each image: path,label")
    sheet = Sheet(rows, names, _columns(path, names, rows, is_image), lines)
    _say_unused(path, sheet)
    return sheet


def _folded(name: str) -> str:
    """Image_Path, ' image path' -> imagepath."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in plain if letter.isalnum())


def _columns(
    path: Path, names: Sequence[str], rows: Sequence[Row], is_image: Callable[[Any], bool]
) -> dict[str, str]:
    """{what a column is: its name}. Raises UsageError where that is not plain."""
    found = {}
    for what, known in NAMES.items():
        meant = _called(path, names, what, known)
        if meant and _folded(meant[0]) not in (what, f"{what}s"):
            meant = _by_contents(path, what, meant, rows, is_image)
        if meant:
            found[what] = meant[0]
    _refuse_misspelt(path, names, found)
    _require_paths(path, names, rows, found, is_image)
    for what, name in found.items():
        if _folded(name) != what:
            log.info(f"{path}: the column {name!r} is taken for the {what}")
    return found


def _called(path: Path, names: Sequence[str], what: str, known: Sequence[str]) -> list[str]:
    """The columns whose names say that they are this, the likeliest first. Raises UsageError where
    two have one name."""
    if what in names:
        return [what]
    found = []
    for word in known:
        alike = [name for name in names if _folded(name) == word]
        if len(alike) > 1:
            raise UsageError(
                f"{path}: the columns {' and '.join(map(repr, alike))} have one name; leave one"
            )
        found += alike
    return found


def _by_contents(
    path: Path,
    what: str,
    meant: list[str],
    rows: Sequence[Row],
    is_image: Callable[[Any], bool],
) -> list[str]:
    """Of columns whose names are not plain those that hold what their names say. Raises
    UsageError."""
    if what == "path":
        return [name for name in meant if _holds_images(rows, name, is_image)]
    if what == "split":
        return [name for name in meant if _are_splits(path, name, rows)]
    return _one_of(path, meant, rows)


def _holds_images(rows: Sequence[Row], name: str, is_image: Callable[[Any], bool]) -> bool:
    """Whether one of the first cells of a column names an image."""
    cells = [row[name] for row in rows if not _is_empty(row.get(name))]
    return any(map(is_image, cells[:LOOKED_AT]))


def _one_of(path: Path, meant: list[str], rows: Sequence[Row]) -> list[str]:
    """Of several columns that may be the labels the one with names, where they say the same.
    Raises UsageError where they do not."""
    for other in meant[1:]:
        pairs = {(str(row[meant[0]]), str(row[other])) for row in rows}
        if not len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs}):
            raise UsageError(
                f"{path}: the columns {' and '.join(map(repr, meant))} may each be the labels; "
                "rename the one that is meant to 'label'"
            )
    return sorted(meant, key=lambda name: str(_first(rows, name)).strip().isdigit())


def _first(rows: Sequence[Row], name: str) -> Any:
    """The first cell of a column that is not empty."""
    return next((row[name] for row in rows if not _is_empty(row.get(name))), None)


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _are_splits(path: Path, name: str, rows: Sequence[Row]) -> bool:
    """Whether all cells of a column of another name are splits. Raises UsageError where only some
    are."""
    said = {split_of(row.get(name)) for row in rows} - {""}
    others = sorted(said - {*SPLITS})
    if others and len(others) < len(said):
        raise UsageError(
            f"{path}: the column {name!r} holds splits, and {others[0]!r}, which is none of train, "
            "val, test and unlabelled; mend it, or give the column another name"
        )
    return bool(said) and not others


def _refuse_misspelt(path: Path, names: Sequence[str], found: dict[str, str]) -> None:
    """Raise UsageError for a column that is nearly called as one that is not there."""
    for what in NAMES:
        if what in found:
            continue
        for name in names:
            near = difflib.get_close_matches(_folded(name), [what, f"{what}s"], cutoff=0.79)
            if near and name not in found.values():
                raise UsageError(
                    f"{path}: unknown column {name!r}; did you mean {what!r}? Of the columns "
                    "path, label and split only 'path' must be there"
                )


def _require_paths(
    path: Path,
    names: Sequence[str],
    rows: Sequence[Row],
    found: dict[str, str],
    is_image: Callable[[Any], bool],
) -> None:
    if "path" in found:
        return
    then = "add it"
    for name in names:
        if name not in found.values() and _holds_images(rows, name, is_image):
            then = f"rename {name!r} to 'path'"
            break
    raise UsageError(
        f"{path}: a table needs a column 'path', the images' files; found the columns "
        f"{list(names)}; {then}"
    )


def _say_unused(path: Path, sheet: Sheet) -> None:
    others = [name for name in sheet.names if name not in sheet.columns.values()]
    if len(others) == 1:
        log.info(f"{path}: the column {others[0]!r} is not used")
    elif others:
        log.info(f"{path}: the columns {', '.join(map(repr, others[:10]))} are not used")
    if others and "label" not in sheet.columns:
        log.info(f"{path}: no column is the label; if one of these is, rename it to 'label'")
    for name in others:
        if "split" not in sheet.columns and len(_splits_in(sheet.rows, name)) > 1:
            log.warning(
                f"{path}: the column {name!r} holds the words of splits, and is not used; if it is "
                "the split, rename it to 'split'"
            )


def _splits_in(rows: Sequence[Row], name: str) -> set[str]:
    """The splits that a column holds; none where something else stands in it."""
    said = {split_of(row.get(name)) for row in rows} - {""}
    return said if said <= {*SPLITS} else set()


# --- text


def _read_text(
    path: Path, is_image: Callable[[Any], bool]
) -> tuple[list[str], list[Row], list[int]]:
    """The columns' names, the rows, and their numbers."""
    given, text = _declared(_text(path))
    separator = given or _separator(path, text)
    skipped = 1 if given else 0
    cells = _cells(text, separator, skipped)
    line, header = next(cells, (0, []))
    body = list(cells)
    if _is_headerless(header, is_image):
        return _without_header(path, header, [(line, header), *body])
    names = [name.strip() for name in header]
    used = _used(names, [row for _, row in body])
    _refuse_twice(names, used)
    rows, lines = [], []
    for line, row in body:
        _refuse_more_cells(line, row, names, separator)
        whole = [*row, *[None] * (len(names) - len(row))]
        rows.append({names[i]: whole[i] for i in used})
        lines.append(line)
    return [names[i] for i in used], rows, lines


def _is_headerless(first: Sequence[str], is_image: Callable[[Any], bool]) -> bool:
    """first: the cells of the first row."""
    return bool(first) and not _has_known_names(first) and is_image(first[0].strip())


def _declared(text: str) -> tuple[str, str]:
    """The separator that Excel's first line `sep=;` declares, '' without one, and what follows."""
    first, _, rest = text.partition("\n")
    first = first.strip().strip('"').lower()
    if first.startswith("sep=") and len(first) == 5:
        return first[4], rest
    return "", text


def _refuse_twice(names: list[str], used: Sequence[int]) -> None:
    twice = sorted({names[i] for i in used if names[i] and names.count(names[i]) > 1})
    if twice:
        raise ValueError(f"the column {twice[0]!r} stands there twice")


def _refuse_more_cells(line: int, row: Sequence[str], names: list[str], separator: str) -> None:
    if any(cell.strip() for cell in row[len(names) :]):
        raise ValueError(
            f"row {line} has more cells than the {len(names)} columns {names}; a cell with a "
            f'{separator!r} in it is quoted: "cat{separator} big"'
        )


def _text(path: Path) -> str:
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        with gzip.open(io.BytesIO(data)) as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes when it is unpacked")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path} cannot be read: it is neither in UTF-8 nor in UTF-16 (row {row}, byte "
            f"0x{data[error.start]:02x}); save it as CSV UTF-8, or as Parquet"
        ) from error


def _separator(path: Path, text: str) -> str:
    """The mark by which the header has a known name; else the first of them in it. A spreadsheet
    writes ; where a comma is the decimal point."""
    head = next((line for line in text.splitlines() if line.strip(f'{SEPARATORS} "')), "")
    there = [mark for mark in SEPARATORS if mark in head]
    if "\t" in there and ".tsv" in path.name.lower():
        return "\t"
    for mark in there:
        if _has_known_names(next(csv.reader([head], delimiter=mark), [])):
            return mark
    return there[0] if there else ","


def _has_known_names(header: Sequence[str]) -> bool:
    folded = {_folded(name) for name in header}
    return any(folded.intersection(known) for known in NAMES.values())


def _cells(text: str, separator: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """(number, cells) of each row in which something stands; the header is row 1."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    for number, row in enumerate(reader, 1 + skipped):
        if any(cell.strip() for cell in row):
            yield number, row


def _used(names: Sequence[str], body: Sequence[Sequence[str]]) -> list[int]:
    """The columns that have a name, or something in them."""
    used = []
    for i, name in enumerate(names):
        if name or any(len(row) > i and row[i].strip() for row in body):
            used.append(i)
    return used


def _without_header(
    path: Path, first: Sequence[str], body: Sequence[tuple[int, Sequence[str]]]
) -> tuple[list[str], list[Row], list[int]]:
    """The first column are paths, the second labels, and a third one splits."""
    names = ["path", "label", "split"][: len(first)]
    rows = [dict(zip(names, row, strict=False)) for _, row in body]
    splits = {split_of(row.get("split")) for row in rows}
    if len(first) > len(names) or not splits <= {*SPLITS}:
        raise UsageError(
            f"{path}: it has no header, and {len(first)} columns, which could be anything; write a "
            "first line that names them: path,label,split"
        )
    listed = " and ".join(names) if len(names) < 3 else ", ".join(names)
    log.info(f"{path}: the table has no header; its columns are taken for {listed}")
    return names, rows, [line for line, _ in body]
