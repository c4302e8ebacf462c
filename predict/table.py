"""What was predicted, as a table for other programs and a summary for people.

    key, label, confidence, second, second_confidence, agreement, margin, familiar, status, then
    label_VIEW and confidence_VIEW of each view, and, where they are asked for, probability_CLASS of
    each class

agreement is empty where no view has an opinion of its own (concat), familiar where the model has no
graph, or nobody judged it. A row of another status than ok has nothing but its key and that:
nothing is guessed.
"""

import csv
import io
import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from base import durable
from base.console import counted
from base.phrase import shown
from cache_specs.view import STATUS
from predict.abstain import DOUBT, Kept
from predict.label import Labelled
from predict.model import Model, Opinions
from train.run.summary import doubt, middle, unknowable

COPIES = "image is, byte for byte, also one that the training learnt from"
FEW = 12  # images, or fewer, are listed one by one
STEPS = (0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute it
NUMBERS = ("confidence", "second_confidence", "agreement", "margin", "familiar")
TOO_GOOD = ". These images were part of the training, which makes the promise a little too good"
UNSURE = "unsure"  # the status of an image that keeps no label
STRANGE = 0.05  # an image that is less familiar may be of none of the classes
NUMBERS_OF = ("confidence_", "probability_")

Table = dict[str, Sequence[Any] | np.ndarray]  # (n,) float32 with NaN for nothing, of a class


def columns(model: Model, found: Labelled, all_classes: bool, kept: Kept | None = None) -> Table:
    """all_classes: with a column for each class. kept: which labels are, where not all."""
    keys, status_n, said = found.keys, found.status_n, found.said
    ok = np.flatnonzero(status_n == 0)

    def column(values: Sequence[Any]) -> list[Any]:
        whole: list[Any] = [None] * len(keys)
        for row, value in zip(ok, values, strict=True):
            whole[row] = value
        return whole

    def labels(choice_n: np.ndarray) -> list[Any]:
        return column([model.classes[c] for c in choice_n])

    named: list[Any] = [model.classes[c] for c in said.choice_n]
    status = [STATUS[code] for code in status_n]
    if kept is not None:
        for place in np.flatnonzero(said.confidence_n < kept.confidence):
            named[place], status[ok[place]] = None, UNSURE
    nothing: list[Any] = [None] * len(ok)
    agreement = said.agreement_n.tolist() if len(said.views_VnC) else nothing
    familiar = nothing if found.familiar_n is None else found.familiar_n.tolist()
    second_n, sure_n = said.second
    table: Table = {
        "key": list(keys),
        "label": column(named),
        "confidence": column(said.confidence_n.tolist()),
        "second": labels(second_n),
        "second_confidence": column(sure_n.tolist()),
        "agreement": column(agreement),
        "margin": column(said.margin_n.tolist()),
        "familiar": column(familiar),
        "status": status,
    }
    for name, p_nC in zip(model.names, said.views_VnC, strict=False):  # concat has no view's own
        table[f"label_{name}"] = labels(p_nC.argmax(1))
        table[f"confidence_{name}"] = column(p_nC.max(1).tolist())
    if all_classes:
        for name, p_n in zip(model.classes, said.joint_nC.T, strict=True):
            whole_n = np.full(len(keys), np.nan, np.float32)
            whole_n[ok] = p_n
            table[f"probability_{name}"] = whole_n
    return table


def write_table(path: Path, table: Table, replace: bool = False) -> tuple[Path, bool]:
    """Whole or not at all; the ending chooses the format. The file that holds the table now, and
    whether it was written: what is there already stays, and of something else the next free name is
    taken (x-2.csv, x-3.csv …), unless `replace`. Raises StorageError."""
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
    """False, and nothing is written, where another process was faster with this name. Raises
    StorageError."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    durable.write(temp, data, "predict.table")
    try:
        if not _take(temp, path):
            return False
        durable.fsync_folder(path.parent)
        return True
    except OSError as error:
        raise durable.cannot_write(path, error) from error
    finally:
        temp.unlink(missing_ok=True)


def _take(temp: Path, path: Path) -> bool:
    """The file under its name, if that is free."""
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
    return True


def _csv(table: Table) -> bytes:
    text = io.StringIO()
    out = csv.writer(text)  # lines end as RFC 4180 says, so that a lone CR in a cell is quoted too
    out.writerow(map(_csv_cell, table))
    for row in zip(*table.values(), strict=True):
        out.writerow(map(_csv_cell, row))
    return text.getvalue().encode()


def _csv_cell(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:.6f}"
    return f"'{value}" if value.startswith(FORMULA) else value


def _parquet(table: Table) -> bytes:
    arrays = {}
    for name, values in table.items():
        number = name in NUMBERS or name.startswith(NUMBERS_OF)
        kind = pa.float32() if number else pa.string()
        arrays[name] = pa.array(values, kind, from_pandas=isinstance(values, np.ndarray))
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays), sink, compression="zstd")
    return sink.getvalue()


@dataclass(frozen=True)
class Figures:
    """Shares of the images that got a label: expected right (None: nothing tells), and how far that
    is in doubt; right (where the labels are known); with views that disagree (where there are two).
    test_accuracy: of the run's test images, test_images of them, that no seed has learnt from;
    out_of_fold_accuracy: of its labelled images, by trainings without their labels."""

    mean_confidence: float
    expected_accuracy: float | None
    expected_accuracy_doubt: float | None
    found_accuracy: float | None
    views_disagree: float | None
    test_accuracy: float | None
    test_images: int
    out_of_fold_accuracy: float | None = None
    out_of_fold_images: int = 0


def judged(held_out: dict[str, Any]) -> tuple[float | None, int]:
    """How often the model is right, as far as anything tells, and on how many images that stands:
    the test images, or labelled ones by trainings that did not know their labels, two more right
    and two more wrong ones among them, since the choices were made on them, too."""
    out = held_out.get("out_of_fold")
    if held_out["test"] or not out:
        return held_out["top1"], held_out["test"]
    return middle(out["top1"], out["images"]), out["images"]


def kind_of_judged(held_out: dict[str, Any]) -> str:
    return "test" if held_out["test"] else "out-of-fold"


def figures(model: Model, said: Opinions, truth_n: np.ndarray | None, new: bool) -> Figures:
    """new: the training has not learnt from these images. Of those that it has learnt from, also
    without their labels, the confidence is no measure: the probes were told one another's labels of
    these very images. So what this model, with all its seeds, makes of the test images is expected
    of them; of new ones too, where the confidence is far above it. truth_n: the labels, where they
    are known."""
    confidence, held_out = float(said.confidence_n.mean()), model.about["held_out"]
    expected, n = judged(held_out)
    if new:
        expected, n = confidence if held_out["val"] else None, held_out["val"]
        if _apart(held_out, confidence) > 0:
            expected, n = judged(held_out)
    uncertain = None if expected is None else doubt(expected, n)
    right = None if truth_n is None else float((said.choice_n == truth_n).mean())
    disagree = None
    if len(said.views_VnC) > 1:
        choice_Vn = said.views_VnC.argmax(2)
        disagree = float((choice_Vn != choice_Vn[0]).any(0).mean())
    tested = held_out["top1"], held_out["test"]
    out = held_out.get("out_of_fold") or {"top1": None, "images": 0}
    whole = *tested, out["top1"], out["images"]
    return Figures(confidence, expected, uncertain, right, disagree, *whole)


def _apart(held_out: dict[str, Any], confidence: float) -> int:
    """1 where the mean confidence is above the accuracy that is known by more than both leave in
    doubt, -1 where it is as far below; 0 otherwise, and where one of them is unknown."""
    top1, n = judged(held_out)
    if not held_out["val"] or top1 is None:
        return 0
    both = np.hypot(doubt(confidence, held_out["val"]), doubt(top1, n))
    return int(np.sign(confidence - top1)) * int(abs(confidence - top1) > both)


def each_image(table: Table) -> str:
    """Each image with its label and the views' own, where there are few."""
    if len(table["key"]) > FEW:
        return ""
    views = [name.removeprefix("label_") for name in table if name.startswith("label_")]
    lines = []
    for row, (key, label) in enumerate(zip(table["key"], table["label"], strict=True)):
        if label is None:
            lines.append(f"{shown(key)}: {table['status'][row]}\n")
            continue
        told = [f"{shown(key)}: {label} {table['confidence'][row]:.2f}"]
        for view in views:
            own, confidence = table[f"label_{view}"][row], table[f"confidence_{view}"][row]
            told.append(f"{view} {own} {confidence:.2f}")
        lines.append(f"{', '.join(told)}\n")
    return "".join(lines)


def told_of_kept(kept: Kept | None) -> dict[str, Any] | None:
    """For --json: which labels are kept, where RISK was given."""
    return None if kept is None else asdict(kept)


def _told_of_risk(said: Opinions, kept: Kept, new: bool) -> str:
    """Which labels are kept, and what is promised of them. new: as in `figures`."""
    n = len(said.joint_nC)
    many = int((said.confidence_n >= kept.confidence).sum())
    return (
        f"{many:,} of {counted(n, 'image')} ({100 * many / n:.1f} %) keep a label, those of "
        f"confidence {kept.confidence:.3f} and more: of such labels at most {100 * kept.risk:g} % "
        f"are wrong, with {100 - 100 * DOUBT:.0f} % certainty, by {kept.sure:,} of "
        f"{kept.images:,} images that judged{'' if new else TOO_GOOD}"
    )


def summary_text(
    model: Model, found: Labelled, shares: Figures, new: bool, kept: Kept | None = None
) -> str:
    """A histogram of the confidences, what accuracy to expect, how many images are strange, and how
    often the views disagree."""
    said = found.said
    n = len(said.joint_nC)
    lines = _histogram(said.confidence_n) if n > FEW else []
    lines += _expected(model, shares, new)
    if shares.found_accuracy is not None:
        lines.append(
            f"found accuracy {100 * shares.found_accuracy:.1f} %: these images have labels, which "
            "were hidden in training"
        )
    if kept is not None:
        lines.append(_told_of_risk(said, kept, new))
    if found.familiar_n is not None:
        strange = int((found.familiar_n < STRANGE).sum())
        lines.append(
            f"{strange:,} of {counted(n, 'image')} ({100 * strange / n:.1f} %) are less familiar "
            f"than {100 - 100 * STRANGE:.0f} % of the labelled ones: they may be of no class"
        )
    if shares.views_disagree is not None:
        disagree = 100 * shares.views_disagree
        lines.append(f"the views disagree on {disagree:.1f} % of {counted(n, 'image')}")
    return "\n".join(lines)


def _expected(model: Model, shares: Figures, new: bool) -> list[str]:
    held_out, rows = model.about["held_out"], model.about["rows"]
    head = "expected accuracy unknown"
    if shares.expected_accuracy is not None and shares.expected_accuracy_doubt is not None:
        expected, uncertain = 100 * shares.expected_accuracy, 100 * shares.expected_accuracy_doubt
        head = f"expected accuracy {expected:.1f} %, give or take {uncertain:.0f} points"
    sure = f"the mean confidence, {100 * shares.mean_confidence:.1f} %,"
    top1, _ = judged(held_out)
    if not new and top1 is None:
        why = f"every test {COPIES}" if rows["test"] else unknowable(model.about)
        return [f"{head}: {why}"]
    if not new:
        return [
            f"{head}: {_tested(model)}, and two standard errors of so many. T{sure[1:]} is no "
            "measure here: half of these images or more were part of the training"
        ]
    apart = _apart(held_out, shares.mean_confidence)
    if apart > 0:
        return [
            f"{head}: {_tested(model)}, and two standard errors of so many. T{sure[1:]} is not to "
            f"be trusted here: calibrated on {_calibrating(held_out)}, it is further above the "
            f"{kind_of_judged(held_out)} accuracy than both leave in doubt"
        ]
    lines = [f"{head}: {_by_confidence(model, sure)}"]
    if top1 is not None:
        unlike = "; it is less sure of these images, which may be of another kind" * (apart < 0)
        kind = kind_of_judged(held_out)
        lines.append(f"{kind} accuracy {100 * top1:.1f} %: {_tested(model)}{unlike}")
    return lines


def _by_confidence(model: Model, sure: str) -> str:
    """Of new images, what their confidence is worth; sure: what it is."""
    held_out = model.about["held_out"]
    if held_out["val"]:
        return (
            f"the mean confidence, calibrated on the {_calibrating(held_out)} "
            f"of {model.about['dataset']}, and two standard errors of so many. It holds for images "
            "like those; of images of another kind the model is surer than it should be"
        )
    none_left = "each label was used, and none left out"
    if model.about.get("taken"):
        none_left = "no label was used but the names of the classes"
    why = f"every validation {COPIES}" if model.about["rows"]["val"] else none_left
    return f"{sure} is not calibrated, since {why}"


def _calibrating(held_out: dict[str, Any]) -> str:
    kind = "labelled image" if held_out.get("out_of_fold") else "validation image"
    return counted(held_out["val"], kind)


def _tested(model: Model) -> str:
    held_out, seeds, name = model.about["held_out"], len(model.seeds), model.about["dataset"]
    who = f"the {seeds} seeds together label" if seeds > 1 else "it labels"
    if held_out["test"]:
        return (
            f"what {who} right of the {held_out['test']:,} test images of {name}, which had no "
            "part in the training"
        )
    n = held_out["out_of_fold"]["images"]
    return (
        f"what trainings without their labels say rightly of the {n:,} labelled images of {name} "
        "(out-of-fold), and of two right and two wrong ones more"
    )


def _histogram(confidence_n: np.ndarray) -> list[str]:
    bins = len(STEPS) - 1
    place_n = np.searchsorted(STEPS, confidence_n, side="right") - 1
    counts = np.bincount(np.clip(place_n, 0, bins - 1), minlength=bins)
    lines = ["confidence         images"]
    for (low, high), count in zip(itertools.pairwise(STEPS), counts, strict=True):
        bar = "#" * int(np.ceil(40 * count / max(1, counts.max())))
        lines.append(f"{low:4.2f} to {high:4.2f}  {count:11,}  {bar}".rstrip())
    return lines
