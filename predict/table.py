"""What was predicted, as a table for other programs and a summary for people.

    key, label, confidence, agreement, margin, status, then label_VIEW and confidence_VIEW of each view

agreement is empty where no view has an opinion of its own (concat). A row of another status than ok has nothing but its key and that: nothing is guessed.
"""

import csv
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from base import durable
from base.console import counted
from cache_specs.view import STATUS
from predict.model import Model, Opinions
from train.run.summary import doubt

FEW = 12  # images, or fewer, are listed one by one
STEPS = (0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute it


def columns(
    model: Model, keys: Sequence[str], status_n: np.ndarray, said: Opinions
) -> dict[str, list[Any]]:
    """said: of the rows whose status is ok, in order."""
    ok = np.flatnonzero(status_n == 0)

    def column(values: Sequence[Any]) -> list[Any]:
        whole: list[Any] = [None] * len(keys)
        for row, value in zip(ok, values, strict=True):
            whole[row] = value
        return whole

    def names(choice_n: np.ndarray) -> list[Any]:
        return column([model.classes[c] for c in choice_n])

    table = {
        "key": list(keys),
        "label": names(said.choice_n),
        "confidence": column(said.confidence_n.tolist()),
        "agreement": column(said.agreement_n.tolist() if len(said.views_VnC) else [None] * len(ok)),
        "margin": column(said.margin_n.tolist()),
        "status": [STATUS[code] for code in status_n],
    }
    for name, p_nC in zip(model.names, said.views_VnC, strict=False):  # concat has no view's own
        table |= {
            f"label_{name}": names(p_nC.argmax(1)),
            f"confidence_{name}": column(p_nC.max(1).tolist()),
        }
    return table


def write(path: Path, table: dict[str, list[Any]], replace: bool = False) -> tuple[Path, bool]:
    """Whole or not at all; the ending chooses the format. The file that holds the table now, and whether it was written: what is there already stays, and of
    something else the next free name is taken (x-2.csv, x-3.csv …), unless `replace`. Raises StorageError."""
    durable.make_folder(path.parent)
    data = _csv(table) if path.suffix.lower() == ".csv" else _parquet(table)
    if replace:
        durable.write(path, data, "predict.table")
        return path, True
    for number in itertools.count(1):
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if place.is_file() and place.read_bytes() == data:
            return place, False
        if not os.path.lexists(place) and _write_new(place, data):
            return place, True
    raise AssertionError


def _write_new(path: Path, data: bytes) -> bool:
    """False, and nothing is written, where another process was faster with this name. Raises StorageError."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    durable.write(temp, data, "predict.table")
    try:
        try:
            os.link(temp, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: the name is taken, and then filled
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
            os.rename(temp, path)
        durable.fsync_folder(path.parent)
        return True
    except OSError as error:
        raise durable.cannot_write(path, error) from error
    finally:
        temp.unlink(missing_ok=True)


def _csv(table: dict[str, list[Any]]) -> bytes:
    text = io.StringIO()
    out = csv.writer(text)  # lines end as RFC 4180 says, so that a lone CR in a cell is quoted too
    out.writerow(map(_cell, table))
    out.writerows([_cell(value) for value in row] for row in zip(*table.values(), strict=True))
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return "" if value is None else f"'{value}" if value.startswith(FORMULA) else value


def _parquet(table: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {
        name: name in ("confidence", "agreement", "margin") or name.startswith("confidence_")
        for name in table
    }
    sink = io.BytesIO()
    pq.write_table(
        pa.table(
            {
                name: pa.array(values, pa.float32() if numbers[name] else pa.string())
                for name, values in table.items()
            }
        ),
        sink,
        compression="zstd",
    )
    return sink.getvalue()


def figures(
    model: Model, said: Opinions, truth_n: np.ndarray | None, new: bool
) -> dict[str, float | None]:
    """Shares of the images that got a label: expected right, and how far that is in doubt; right (where truth_n, the labels, are known); with views that
    disagree (where there are two). new: the training has not learnt from them. Of those that it has learnt from, also without their labels, the confidence
    is no measure: the probes were told one another's labels of these very images. So what is right of the validation images is expected of them."""
    confidence = float(said.confidence_n.mean())
    expected = confidence if new else model.about["scores"]["joint"]["val_top1"]["mean"]
    apart = (
        (said.views_VnC.argmax(2) != said.views_VnC[0].argmax(1)).any(0)
        if len(said.views_VnC) > 1
        else None
    )
    return {
        "mean_confidence": confidence,
        "expected_accuracy": expected,
        "expected_accuracy_doubt": doubt(expected, model.about["rows"]["val"]),
        "found_accuracy": None if truth_n is None else float((said.choice_n == truth_n).mean()),
        "views_disagree": None if apart is None else float(apart.mean()),
    }


def listed(table: dict[str, list[Any]]) -> str:
    """Each image with its label and the views' own, where there are few."""
    if len(table["key"]) > FEW:
        return ""
    views = [name.removeprefix("label_") for name in table if name.startswith("label_")]
    return "".join(
        f"{key}: "
        + (
            status
            if label is None
            else f"{label} {confidence:.2f}"
            + "".join(
                f", {view} {table[f'label_{view}'][row]} {table[f'confidence_{view}'][row]:.2f}"
                for view in views
            )
        )
        + "\n"
        for row, (key, label, confidence, status) in enumerate(
            zip(*(table[name] for name in ("key", "label", "confidence", "status")), strict=True)
        )
    )


def summary(model: Model, said: Opinions, truth_n: np.ndarray | None, new: bool) -> str:
    """A histogram of the confidences, what accuracy to expect, and how often the views disagree. truth_n: the labels, where they are known."""
    n, confidence_n, shares = (
        len(said.joint_nC),
        said.confidence_n,
        figures(model, said, truth_n, new),
    )
    counts = np.bincount(
        np.clip(np.searchsorted(STEPS, confidence_n, side="right") - 1, 0, len(STEPS) - 2),
        minlength=len(STEPS) - 1,
    )
    lines = ["confidence         images"] if n > FEW else []
    for low, high, count in zip(STEPS, STEPS[1:], counts, strict=False) if n > FEW else ():
        lines.append(
            f"{low:4.2f} to {high:4.2f}  {count:11,}  {'#' * int(np.ceil(40 * count / max(1, counts.max())))}".rstrip()
        )
    val = f"{model.about['rows']['val']:,} validation images of {model.about['dataset']}"
    head = f"expected accuracy {100 * shares['expected_accuracy']:.1f} %, give or take {100 * shares['expected_accuracy_doubt']:.0f} points"
    lines.append(
        f"{head}: the mean confidence, calibrated on the {val}, and two standard errors of so many. It holds for images like those; of images of "
        "another kind the model is surer than it should be"
        if new
        else f"{head}: that of the {val}, and two standard errors of so many. The mean confidence, {100 * shares['mean_confidence']:.1f} %, is no measure "
        "here: half of these images or more were part of the training"
    )
    if truth_n is not None:
        lines.append(
            f"found accuracy {100 * shares['found_accuracy']:.1f} %: these images have labels, which were hidden in training"
        )
    if shares["views_disagree"] is not None:
        lines.append(
            f"the views disagree on {100 * shares['views_disagree']:.1f} % of {counted(n, 'image')}"
        )
    return "\n".join(lines)
