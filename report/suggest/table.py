"""The images to label next as text, as records, and at the head of a table of the whole data set.

That table has all images, since a data set is what its table lists: path, label, and split where
the data name splits. What is known stands in it as it is; the images to label have no label.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from base.console import counted
from base.errors import UNKNOWN, StaleError, UsageError
from base.phrase import line_of, quoted
from cache_specs.items import IMPORTED, said
from cache_specs.words import means_no_label
from extract.data.datasets import Dataset
from extract.data.naming import label_of, whole_numbers
from extract.data.readers import ReadFiles, Reordered
from predict.table import FORMULA, Table, write_table
from report.asked import Asked, Next, first_two
from report.config import SuggestConfig
from report.pictures import open_quietly
from train.config import make_command
from train.data.reader import Cache
from train.methods import with_model
from train.run.names import free_name

NAMED = ("train", "val", "test")  # splits that a table has to name


def require_model(run: Path, settings: dict[str, Any], summary: dict[str, Any]) -> None:
    """Raise UsageError where no method of a run keeps a model."""
    if with_model(summary["methods"]):
        return
    methods = ", ".join(sorted(summary["methods"]))
    labels = settings["labels"] if isinstance(settings["labels"], str) else "…"
    again = {**settings, "labels": labels, "method": "mct-graph", "run": free_name(run)}
    raise UsageError(
        f"RUN={run.name} keeps no model that could be asked ({methods}). Train one that does: "
        f"{make_command(again)}"
    )


def listed(chosen: Next, asked: Asked, cache: Cache) -> list[dict[str, Any]]:
    """What --json says of each image, best first."""
    classes, found = cache.items.classes, []
    for at, row in zip(chosen.at, chosen.rows, strict=True):
        joint_C = asked.says.joint_nC[at]
        first, second = first_two(joint_C)
        views = {}
        for view, p_C in zip(cache.names, asked.says.views_VnC[:, at], strict=False):
            views[view] = {"label": classes[p_C.argmax()], "confidence": float(p_C.max())}
        found.append(
            {
                "key": cache.items.keys[row],
                "label": classes[first],
                "confidence": float(joint_C[first]),
                "second": classes[second],
                "second_confidence": float(joint_C[second]),
                "views": views,
            }
        )
    return found


def text_of(records: Sequence[dict[str, Any]], wanted: int) -> str:
    """A line an image, with what a model says of it where one was asked; and that there are fewer
    than were wanted."""
    rows = [["image"], *([one["key"]] for one in records)]
    if "label" in records[0]:
        rows = _opinions(records)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    if len(records) < wanted:
        lines.append(f"there are no more: N={wanted}, and these are all {len(records):,}")
    return "\n".join(lines)


def _opinions(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Of those that are `listed`: a head, and the cells of each."""
    views = list(records[0]["views"]) if len(records[0]["views"]) > 1 else []
    rows = [["image", "first choice", "second", *views]]
    for one in records:
        row = [one["key"], f"{one['label']} {one['confidence']:.2f}"]
        row.append(f"{one['second']} {one['second_confidence']:.2f}")
        for view in views:
            own = one["views"][view]
            row.append(f"{own['label']} {own['confidence']:.2f}")
        rows.append(row)
    return rows


def write_all(
    to: Path, rows: np.ndarray, cache: Cache, config: SuggestConfig, views: str
) -> tuple[Path, str]:
    """Write the table with these rows of the data set first; its path, and how to go on.

    Raises UsageError where a table cannot hold the data set, or there is nothing to fill in, and
    StaleError where the images, labels or splits are others now than those that were embedded, or
    that the run was trained on.
    """
    if (cache.items.label[rows] >= 0).any():
        raise UsageError(
            f"TO={config.to}: these images have labels already, which LABELS hid from the "
            "training, so that there is nothing to fill in. Leave TO out",
            {"TO": None},
        )
    dataset = _as_it_is_now(cache, config)
    files = _files(dataset, config)
    order = [*rows.tolist(), *np.setdiff1d(np.arange(len(files)), rows).tolist()]
    table = _table(to, dataset, files, order, set(rows.tolist()))
    file, _ = write_table(to, table)
    return file, _how(file, len(rows), cache, config, views)


def _as_it_is_now(cache: Cache, config: SuggestConfig) -> Dataset:
    """The data set, which must be what the run was trained on: labels that were given since must
    not be lost."""
    if cache.items.adapter == IMPORTED or not cache.source:
        raise _no_files(cache.items.name, config)
    dataset = open_quietly(cache.source, Path(config.root), cache.items.as_class)
    now = list(zip(dataset.labels, dataset.splits, strict=True))
    if list(dataset.keys) != cache.items.keys or now != said(cache.items):
        raise _changed(cache.source, config)
    return dataset


def _changed(source: str, config: SuggestConfig) -> StaleError:
    extract = f"make extract VIEWS={quoted(config.views or UNKNOWN)} DATA={quoted(source)}"
    since = "images or labels were added, moved or changed since"
    if not config.run:
        return StaleError(f"{source} is not what was embedded any more: {since}. Type {extract}")
    return StaleError(
        f"{source} is not what RUN={config.run} was trained on any more: {since}. Type {extract} "
        "with all views, train again under another RUN, and ask that one",
        {"RUN": UNKNOWN},
    )


def _files(dataset: Dataset, config: SuggestConfig) -> list[str]:
    """Where each image lies. Raises UsageError where images are no files of their own."""
    read = dataset.read
    if not isinstance(read, Reordered) or not isinstance(read.read, ReadFiles):
        raise _no_files(dataset.name, config)
    return [read.read.paths[place] for place in read.order.tolist()]


def _no_files(name: str, config: SuggestConfig) -> UsageError:
    return UsageError(
        f"TO={config.to}: the images of {name} are no files of their own, which a table could "
        "list. Leave TO out, and write the labels where the data set has them",
        {"TO": None},
    )


def _table(
    to: Path, dataset: Dataset, files: Sequence[str], order: Sequence[int], first: set[int]
) -> Table:
    """The columns. An image to label is of no split `unlabelled`, where its label would not
    count."""
    folder = os.path.abspath(to.parent).rstrip("/")
    read = whole_numbers(dataset.labels)  # as the whole column would be
    for label, again in sorted(set(zip(dataset.labels, read, strict=True))):
        _refuse_label(label, again, dataset)
    splits = list(dataset.splits)
    for row in first:
        splits[row] = "" if splits[row] == "unlabelled" else splits[row]
    table: Table = {
        "path": [_path(files[row], folder) for row in order],
        "label": [dataset.labels[row] for row in order],
    }
    if not {*splits}.isdisjoint(NAMED):
        table["split"] = [splits[row] for row in order]
    return table


def _refuse_label(label: str, again: str, dataset: Dataset) -> None:
    """Raise UsageError for a class that a table's cell would not give back; again: how it is read
    among the others."""
    lost = label.startswith(FORMULA) or label_of(label) != label or again != label
    if label and (lost or means_no_label(label, dataset.as_class)):
        raise UsageError(
            f"the class {label!r} of {dataset.name} cannot be written into a table: a spreadsheet, "
            "or extract, would read something else. Leave TO out, or give the class another name",
            {"TO": None},
        )


def _path(file: str, folder: str) -> str:
    """Relative to the table's folder, if it lies in it. Raises UsageError for a name that is not
    UTF-8."""
    whole = os.path.abspath(file)
    path = whole.removeprefix(f"{folder}/")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the name {os.fsencode(path)!r} is not UTF-8, so a table cannot hold it. Rename the "
            "file, or leave TO out",
            {"TO": None},
        ) from None
    return f"./{path}" if path.startswith(FORMULA) else path


def _how(file: Path, count: int, cache: Cache, config: SuggestConfig, views: str) -> str:
    """How to go on."""
    data = str(file)
    place = {} if config.cache == SuggestConfig.cache else {"CACHE": config.cache}
    words = {}
    if cache.items.as_class:
        words["ARGS"] = f"--as-class {shlex.quote(','.join(cache.items.as_class))}"
    embed = {"VIEWS" if "," in views else "VIEW": views, "DATA": data, **place, **words}
    lines = [line_of("extract", embed)]
    trained = {"VIEWS": views, "DATA": data, **place}
    if config.run:
        trained["RUN"] = free_name(Path(config.runs) / Path(config.run).name)
    lines.append(line_of("train", trained))
    whole = counted(len(cache.items), "image")
    return (
        f"\n{file}: all {whole} of {cache.items.name}, these {count:,} first. Write their labels "
        "into the column label (what stays empty has none); then type, which embeds no image "
        "again:\n  " + "\n  ".join(lines)
    )
