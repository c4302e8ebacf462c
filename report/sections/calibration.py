"""Sections of a report: calibration, accuracy by class, agreement of the views; all from
predictions.parquet, by counting."""

from collections.abc import Sequence

import numpy as np

from base.console import counted
from report.html.charts import Axes, Series, bars, heat, lines
from report.html.page import Cell, Column, Html, Section, grid, join, note, table, tag
from report.run import Part, Run
from report.sections.scores import JOINT, mean_sd, title
from train.run.summary import kind_of

BINS = 15  # as in `ece` of train/algorithm/evaluate.py
FEW = 10  # images of a seed in a bin, below which its share says little
MOST_COUNTED = 4_096  # classes of which it is counted what each is taken for


def reliability(run: Run) -> Section:
    """Accuracy against confidence, of the joint and of each view, on the images that judge, of all
    seeds."""
    part = run.parts[run.method][run.part]
    seeds = len(part.pred_En)
    found = {JOINT: binned(part.sure_En.ravel(), part.right_En.ravel())}
    for view, own_En, sure_En in zip(run.views, part.own_VEn, part.own_sure_VEn, strict=False):
        found[view] = binned(sure_En.ravel(), (own_En == part.label_En).ravel())
    curves, histograms = [], {}
    for number, (name, bins) in enumerate(found.items()):
        curves.append(_curve(name, number, bins, seeds))
        histograms[name] = (bins[2] / seeds).tolist()
    a_seed = " a seed" if seeds > 1 else ""
    about = (
        "Points above the dotted line are too modest, points below it too sure. Hollow ones, which "
        f"no line joins, stand for fewer than {FEW} images{a_seed}."
    )
    axes = Axes("confidence", "share that is right", y_range=(0, 1), diagonal=True)
    middle = [f"{(b + 0.5) / BINS:.2f}" for b in range(BINS)]
    charts = grid(
        lines("Is the confidence right?", curves, axes, about),
        bars("How often is it how sure?", middle, histograms, Axes("confidence", "images")),
    )
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    return Section(
        "reliability",
        "Reliability",
        charts,
        f"{title(run.method)}, as trained, on {part.label_En.shape[1]:,} {run.kind} images{mean}. "
        "make predict and the galleries average the seeds, and then use one more temperature, "
        f"fitted on {kind_of(run.summary, 'val')} images.",
    )


def _curve(
    name: str, number: int, bins: tuple[np.ndarray, np.ndarray, np.ndarray], seeds: int
) -> Series:
    at, share, count = bins
    there = count > 0
    about = [counted(n, "image") for n in count[there].tolist()]
    if seeds > 1:
        about = [f"{images} of all seeds" for images in about]
    hollow = (count[there] < FEW * seeds).tolist()
    x, y = at[there].tolist(), share[there].tolist()
    return Series(name, x, y, number, dots=True, about=about, hollow=hollow)


def binned(sure_n: np.ndarray, right_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean confidence, accuracy, count) of each of BINS equal bins of confidence; of an empty one
    the first two are NaN."""
    place = np.clip(np.ceil(sure_n.astype(float) * BINS).astype(int), 1, BINS) - 1
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, sure_n, BINS) / count
        accuracy = np.bincount(place, right_n.astype(float), BINS) / count
    return confidence, accuracy, count


def classes(run: Run, names: Sequence[str]) -> Section:
    """One row a class: how many images that judge, the accuracy of the joint, of each view and of
    the other methods, and what it is taken for."""
    part, count, seeds = run.parts[run.method][run.part], len(names), len(run.summary["seeds"])
    images = np.bincount(part.label_En.ravel(), minlength=count)
    joint_EC = recall(part.label_En, part.pred_En, count)
    precision_C = _precision(part, count)
    others = [name for name in run.methods if name != run.method]
    single_C = [_over_seeds(recall(part.label_En, own_En, count)) for own_En in part.own_VEn]
    for name in others:
        other = run.parts[name][run.part]
        single_C.append(_over_seeds(recall(other.label_En, other.pred_En, count)))
    taken_C = _taken_for(part, names)
    columns = [
        Column("class"),
        Column(f"{run.kind} images", True, "of a seed, the mean where they differ"),
        Column("joint, top-1 in %", True, f"of {title(run.method)}, mean ± std over the seeds"),
        Column("precision in %", True, "of the images that are called so, the share that is"),
        *[Column(view, True) for view in run.views],
        *[Column(title(name), True, "the joint of this method") for name in others],
        Column("most often taken for"),
    ]
    rows: list[list[object]] = []
    for c, name in enumerate(names):
        if not images[c]:
            rows.append([name, 0, *[Cell("", None)] * (len(columns) - 3), ""])
            continue
        shares = [_share(accuracy_C[c]) for accuracy_C in single_C]
        known_E = joint_EC[np.isfinite(joint_EC[:, c]), c]
        joint, precision = mean_sd(known_E), _share(precision_C[c])
        rows.append([name, _of_a_seed(images[c] / seeds), joint, precision, *shares, taken_C[c]])
    whole = table(
        columns, rows, name="classes-table", filtered=f"filter {count:,} classes", tall=count > 12
    )
    return Section(
        "classes",
        "Classes",
        whole,
        f"On the {run.kind} images, so it tells how good the run is, and is not there to choose "
        "by: what to label next stands above. A click on a column's title sorts.",
    )


def _over_seeds(recall_EC: np.ndarray) -> np.ndarray:
    """(C,) means of the seeds that have images of a class."""
    known_EC = np.isfinite(recall_EC)
    with np.errstate(invalid="ignore"):
        return np.where(known_EC, recall_EC, 0).sum(0) / known_EC.sum(0)


def _of_a_seed(images: float) -> Cell:
    return Cell(f"{images:.0f}" if images == int(images) else f"{images:.1f}", images)


def _precision(part: Part, count: int) -> np.ndarray:
    """(C,) of the images that are called so, the share that is; NaN where none is called so."""
    called_C = np.bincount(part.pred_En.ravel(), minlength=count)
    hit_C = np.bincount(part.label_En[part.right_En], minlength=count)
    with np.errstate(invalid="ignore"):
        return hit_C / called_C


def _taken_for(part: Part, names: Sequence[str]) -> list[str]:
    """Of each class the one that its images are most often taken for, and how often."""
    if len(names) > MOST_COUNTED:
        return [""] * len(names)
    wrong_CC = np.zeros((len(names), len(names)), np.int32)
    np.add.at(wrong_CC, (part.label_En, part.pred_En), ~part.right_En)
    images_C = np.bincount(part.label_En.ravel(), minlength=len(names)).tolist()
    found = []
    for worst, n, images in zip(wrong_CC.argmax(1), wrong_CC.max(1), images_C, strict=True):
        share = 100 * n / images if n else 0
        found.append(f"{names[worst]} ({share:.0f} %)" if n else "")
    return found


def recall(label_En: np.ndarray, pred_En: np.ndarray, count: int) -> np.ndarray:
    """(E, C) share of each class's images that are recognised; NaN for a class without images."""
    shares = []
    for label_n, pred_n in zip(label_En, pred_En, strict=True):
        images = np.bincount(label_n, minlength=count)
        hits = np.bincount(label_n[pred_n == label_n], minlength=count)
        with np.errstate(invalid="ignore"):
            shares.append(hits / images)
    return np.stack(shares)


def agreement(run: Run) -> Section | None:
    """How often the views agree, what one knows that another does not, and how accurate the joint
    is when so many agree with it."""
    part = run.parts[run.method][run.part]
    views = run.views
    if len(part.own_VEn) < 2:
        return None
    same, rescued = _between(part)
    tables = grid(
        heat(
            "Two views have the same first choice, in %",
            views,
            views,
            100 * same,
            shown="{:.1f}",
            high=100,
        ),
        heat(
            "Where the row's view is wrong, the column's is right, in %",
            views,
            views,
            100 * rescued,
            shown="{:.1f}",
            high=100,
        ),
        tag("div", _with_joint(part, len(views))),
    )
    about = note("Views that err on different images have something to teach each other.")
    together = ", all seeds together" if len(part.pred_En) > 1 else ""
    return Section(
        "agreement",
        "Agreement",
        join([tables, about]),
        f"How far the views of {title(run.method)} say the same on the {run.kind} images"
        f"{together}.",
    )


def _between(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """(V, V) shares: of the images, where two views say the same; of those that the row's view has
    wrong, where the column's is right."""
    V = len(part.own_VEn)
    right_VEn = part.own_VEn == part.label_En
    same, rescued = np.ones((V, V)), np.full((V, V), np.nan)
    for a in range(V):
        wrong_En = ~right_VEn[a]
        for b in range(V):
            same[a, b] = (part.own_VEn[a] == part.own_VEn[b]).mean()
            if a != b and wrong_En.any():
                rescued[a, b] = (right_VEn[b] & wrong_En).sum() / wrong_En.sum()
    return same, rescued


def _with_joint(part: Part, views: int) -> Html:
    """How many views agree with the joint, and how good it is then."""
    with_joint_En = (part.own_VEn == part.pred_En).sum(0)
    rows = []
    for k in range(views, -1, -1):
        right = part.right_En[with_joint_En == k]
        share = f"{100 * right.size / with_joint_En.size:.1f}"
        accuracy = _share(right.mean()) if right.size else Cell("", float("nan"))
        rows.append([f"{k} of {views}", Cell(share, right.size), accuracy])
    columns = [
        Column("agree"),
        Column("of the images in %", True),
        Column("joint right in %", True),
    ]
    caption = tag("figcaption", "How many views agree with the joint")
    return tag("figure", caption, table(columns, rows, sortable=False), class_="chart")


def _share(value: float) -> Cell:
    if np.isnan(value):
        return Cell("", None)
    return Cell(f"{100 * value:.1f}", float(value))
