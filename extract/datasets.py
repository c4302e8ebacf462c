"""Dataset adapters: DATA=… -> keys, labels, splits and the bytes of each image.

    DATA=digits                 scikit-learn's 1,797 scanned digits (bundled, no download)
    DATA=photos/                class/img.jpg, or train|val|test|unlabelled/class/img.jpg, or just images
    DATA=list.csv               a table (CSV or Parquet) with the columns path[, label][, split]; paths are relative to the table
    DATA=torchvision:MNIST      a torchvision classification data set by its class name, already downloaded below ROOT

A new kind of data set is one more function in ADAPTERS. `read(i)` gives item i's encoded bytes or raises OSError, `read.digest(i)` their
number and sha256; it is picklable.
"""

import csv
import itertools
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_specs.errors import UsageError, did_you_mean
from cache_specs.items import SPLITS, Items, class_index, read_parquet
from cache_specs.sources import dataset_name
from extract.readers import ReadArrays, Reader, ReadFiles, ReadTorchvision, Reordered

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
                 "unlabelled": "unlabelled", "unlabeled": "unlabelled"}


@dataclass(frozen=True)
class Dataset:
    """N images: keys (unique), label names ('' = unknown), splits ('' = not given), and `read(i) -> bytes`."""

    name: str
    adapter: str
    keys: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    read: Reader


def open_dataset(data: str, root: Path, name: str | None = None) -> Dataset:
    """The data set that `DATA=data` names. Raises UsageError when there is none, or nothing in it."""
    if data.startswith("torchvision:"):
        adapter = "torchvision"
    elif data == "digits":
        adapter = "digits"
    elif Path(data).is_dir():
        adapter = "folder"
    elif data.endswith((".csv", ".parquet")):
        adapter = "table"
    else:
        raise UsageError(f"DATA={data}: there is no such folder{did_you_mean(data, ['digits'])}. "
                         "DATA may be a folder of images, a .csv or .parquet table, torchvision:NAME, or digits")
    keys, labels, splits, read = ADAPTERS[adapter](data, root)
    order = sorted(range(len(keys)), key=lambda i: keys[i].encode("utf-8", "surrogateescape"))
    doubles = [keys[a] for a, b in itertools.pairwise(order) if keys[a] == keys[b]]
    if doubles:
        raise UsageError(f"DATA={data}: the key {doubles[0]!r} stands there twice; each image may be listed once")
    return Dataset(name or dataset_name(data), adapter, [keys[i] for i in order], [labels[i] for i in order],
                   [splits[i] for i in order], Reordered(read, np.array(order)))


def build_items(dataset: Dataset, tick: Callable[[int], None] = lambda n: None) -> Items:
    """Read every image once and hash it. An unreadable one gets size 0 and an empty hash. `tick(1)` is called per image."""

    def digest(i: int) -> tuple[int, str]:
        try:
            return dataset.read.digest(i)
        except OSError:
            return 0, ""
        finally:
            tick(1)

    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(digest, range(len(dataset.keys))))
    label, classes = class_index(list(dataset.labels))
    return Items(dataset.name, dataset.adapter, list(dataset.keys), label, list(dataset.splits), np.array([size for size, _ in found], np.int64),
                 [sha for _, sha in found], classes)


def _digits(data: str, root: Path) -> tuple:
    """Fixed splits: of each class 20 % test, 20 % val, the rest train, by a permutation with seed 0."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)          # published as 0..16
    split = np.full(len(images), "train", object)
    for digit in range(10):
        rows = np.random.Generator(np.random.Philox(key=digit)).permutation(np.flatnonzero(bunch.target == digit))
        fifth = len(rows) // 5
        split[rows[:fifth]], split[rows[fifth:2 * fifth]] = "test", "val"
    return [f"{i:04d}" for i in range(len(images))], [str(digit) for digit in bunch.target], split.tolist(), ReadArrays(images)


def _folder(data: str, root: Path) -> tuple:
    base, found, others = Path(data), [], Counter()
    for folder, folders, files in os.walk(base, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_loop(Path(folder, name)))
        for name in (name for name in files if not name.startswith(".")):
            if name.lower().endswith(EXTENSIONS):
                found.append(Path(folder, name).relative_to(base))
            else:
                others[Path(name).suffix.lower() or "no ending"] += 1
    if others:
        print(f"{data}: {others.total():,} files are left out, their endings are not those of images ({', '.join(EXTENSIONS)}): "
              + ", ".join(f"{count:,} with {ending}" for ending, count in others.most_common(5)))
    if not found:
        raise UsageError(f"DATA={data}: no image in this folder (looked for {', '.join(EXTENSIONS)}, at any depth)")
    has_splits = all(path.parts[0].lower() in SPLIT_FOLDERS and len(path.parts) > 1 for path in found)
    tops = {path.parts[0] for path in found if len(path.parts) > 1}
    if (named := sorted(top for top in tops if top.lower() in SPLIT_FOLDERS)) and not has_splits:
        print(f"warning: {data}: the folders {', '.join(named)} are taken for classes, since other images or folders lie beside them. If they are splits, "
              "put all images into train/, val/, test/ or unlabelled/", flush=True)
    splits = [SPLIT_FOLDERS[path.parts[0].lower()] if has_splits else "" for path in found]
    depth = 1 if has_splits else 0
    labels = [path.parts[depth] if len(path.parts) > depth + 1 and split != "unlabelled" else ""
              for path, split in zip(found, splits, strict=True)]
    return [_text(path.as_posix()) for path in found], [_text(label) for label in labels], splits, ReadFiles([str(base / path) for path in found])


def _is_loop(folder: Path) -> bool:
    """A link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _table(data: str, root: Path) -> tuple:
    path = Path(data)
    if not path.is_file():
        raise UsageError(f"DATA={data}: there is no such file")
    try:
        rows, columns = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except (OSError, ValueError, csv.Error) as error:           # Arrow's errors are OSError or ValueError
        raise UsageError(f"{path} cannot be read: {error}; a table is a UTF-8 CSV or a Parquet file") from error
    for column in columns:
        if column not in ("path", "label", "split"):
            raise UsageError(f"{path}: unknown column {column!r}{did_you_mean(column, ['path', 'label', 'split'])}")
    if "path" not in columns or not rows:
        raise UsageError(f"{path}: a table needs a column 'path' and at least one row; found the columns {columns} and {len(rows)} rows")
    keys = [posixpath.normpath(str(row["path"])) if row["path"] else "" for row in rows]
    splits = [SPLIT_FOLDERS.get(str(row.get("split") or "").lower(), str(row.get("split") or "")) for row in rows]
    for line, (key, split) in enumerate(zip(keys, splits, strict=True), 2):
        if split not in SPLITS:
            raise UsageError(f"{path}, row {line}: split {split!r}{did_you_mean(split, SPLITS[1:])}")
        if not key:
            raise UsageError(f"{path}, row {line}: the path is empty")
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise UsageError(f"{path}, row {line}: the path {key!r} leaves the table's folder; paths are relative to it")
    labels = ["" if split == "unlabelled" or row.get("label") in (None, "", -1, "-1") else str(row["label"])
              for row, split in zip(rows, splits, strict=True)]
    return keys, labels, splits, ReadFiles([str(path.parent / key) for key in keys])


def _read_csv(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), list(reader.fieldnames or [])
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise ValueError(f"the column {twice[0]!r} stands there twice")
    for line, row in enumerate(rows, 2):
        if None in row:
            raise ValueError(f"row {line} has more cells than the {len(columns)} columns {columns}; a cell with a comma in it is quoted: \"cat, big\"")
    return rows, columns


def _read_parquet(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    table = read_parquet(path.read_bytes())
    return table.to_pylist(), table.column_names


def _torchvision(data: str, root: Path) -> tuple:
    import inspect

    import torchvision.datasets as sets

    name = data.split(":", 1)[1]
    kinds = {key: kind for key, kind in vars(sets).items() if inspect.isclass(kind) and issubclass(kind, sets.VisionDataset)}
    if name not in kinds:
        raise UsageError(f"torchvision has no data set {name!r}{did_you_mean(name, kinds)}")
    parameters = inspect.signature(kinds[name]).parameters
    choices = [{"train": flag} for flag in (True, False)] if "train" in parameters else \
        [{"split": split} for split in ("train", "val", "test")] if "split" in parameters else [{}]
    parts, splits, failures = [], [], []
    for choice in choices:
        try:
            parts.append(kinds[name](str(root), **choice))
        except ValueError as error:                                    # a split that this data set does not have
            failures.append(error)
        except (RuntimeError, OSError) as error:
            raise UsageError(_to_download(name, root, choice, error)) from error
        else:
            splits.append(choice.get("split", "") if "train" not in choice else "train" if choice["train"] else "test")
    if not parts:
        raise UsageError(f"torchvision's {name} cannot be opened in {root}: {failures[0]}")
    where = [(part, i) for part, images in enumerate(parts) for i in range(len(images))]
    labels = []
    for images in parts:
        targets = next((getattr(images, field) for field in ("targets", "_labels", "labels") if hasattr(images, field)), None)
        numbers = [int(label) for label in targets] if targets is not None else [int(images[i][1]) for i in range(len(images))]
        names = getattr(images, "classes", None)
        labels += [str(names[number]) if names else str(number) for number in numbers]
    keys = [f"{splits[part] or 'all'}/{i:08d}" for part, i in where]
    return keys, labels, [splits[part] for part, _ in where], ReadTorchvision(parts, where)


def _to_download(name: str, root: Path, choice: dict[str, Any], error: Exception) -> str:
    which = "".join(f", {key}={value!r}" for key, value in choice.items())
    return (f"torchvision's {name}{which} is not in {root} ({error}). Download it once with:\n"
            f"  .venv/bin/python -c \"import torchvision.datasets as d; d.{name}('{root}'{which}, download=True)\"")


def _text(name: str) -> str:
    """A file name as valid UTF-8; bytes that are not are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


ADAPTERS: dict[str, Callable[[str, Path], tuple]] = {"digits": _digits, "folder": _folder, "table": _table, "torchvision": _torchvision}
