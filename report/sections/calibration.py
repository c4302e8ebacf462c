"""Sections of a report: calibration, accuracy by class, agreement of the views; all from predictions.parquet, by counting."""

from collections.abc import Sequence

import numpy as np

from base.console import counted
from report.html.charts import Series, bars, heat, lines
from report.html.page import Cell, Column, Section, grid, join, note, table, tag
from report.run import Part, Run
from report.sections.scores import JOINT, mean_sd, title

BINS = 15  # as in train/evaluate.ece
FEW = 10  # images of a seed in a bin, below which its share says little


def reliability(run: Run) -> Section:
    """Accuracy against confidence, of the joint and of each view, on the test images of all seeds."""
    part = run.parts[run.method]["test"]
    named = [(JOINT, part.sure_En, part.right_En)] + [
        (view, sure, own == part.label_n)
        for view, own, sure in zip(run.views, part.own_VEn, part.own_sure_VEn, strict=False)
    ]
    found = [(name, *binned(sure.ravel(), right.ravel())) for name, sure, right in named]
    seeds = len(part.pred_En)
    curves = []
    for number, (name, at, share, count) in enumerate(found):
        there = count > 0
        told = [
            f"{counted(n, 'image')}{' of all seeds' * (seeds > 1)}" for n in count[there].tolist()
        ]
        curves.append(
            Series(
                name,
                at[there].tolist(),
                share[there].tolist(),
                number,
                dots=True,
                about=told,
                hollow=(count[there] < FEW * seeds).tolist(),
            )
        )
    middle = [f"{(b + 0.5) / BINS:.2f}" for b in range(BINS)]
    return Section(
        "reliability",
        "Reliability",
        grid(
            lines(
                "Is the confidence right?",
                curves,
                x="confidence",
                y="share that is right",
                y_range=(0, 1),
                diagonal=True,
                about="Points above the dotted line are too modest, points below it too sure. Hollow ones, which no line joins, stand for fewer than "
                f"{FEW} images{' a seed' * (seeds > 1)}.",
            ),
            bars(
                "How often is it how sure?",
                middle,
                {name: (count / seeds).tolist() for name, _, _, count in found},
                x="confidence",
                y="images",
            ),
        ),
        f"{title(run.method)}, as trained, on {part.label_n.size:,} test images{f', mean of {seeds} seeds' if seeds > 1 else ''}. "
        "make predict and the galleries use one more temperature, fitted on validation.",
    )


def binned(sure_n: np.ndarray, right_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean confidence, accuracy, count) of each of BINS equal bins of confidence; of an empty one the first two are NaN."""
    place = np.clip(np.ceil(sure_n.astype(float) * BINS).astype(int), 1, BINS) - 1
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return (
            np.bincount(place, sure_n, BINS) / count,
            np.bincount(place, right_n.astype(float), BINS) / count,
            count,
        )


def classes(run: Run, names: Sequence[str]) -> Section:
    """One row a class: how many test images, the accuracy of the joint, of each view and of the other methods, and what it is taken for."""
    part, count = run.parts[run.method]["test"], len(names)
    images = np.bincount(part.label_n, minlength=count)
    wrong = np.zeros((count, count), np.int32) if count <= 4_096 else None
    if wrong is not None:
        for pred_n in part.pred_En:
            np.add.at(wrong, (part.label_n, pred_n), pred_n != part.label_n)
    called = np.bincount(part.pred_En.ravel(), minlength=count)
    hit = np.bincount(
        np.broadcast_to(part.label_n, part.pred_En.shape)[part.right_En], minlength=count
    )
    own = [recall(part.label_n, own_En, count) for own_En in part.own_VEn]
    others = [name for name in run.methods if name != run.method]
    rest = [
        recall(run.parts[name]["test"].label_n, run.parts[name]["test"].pred_En, count).mean(0)
        for name in others
    ]
    joint = recall(part.label_n, part.pred_En, count)
    columns = [
        Column("class"),
        Column("test images", True),
        Column("joint, top-1 in %", True, f"of {title(run.method)}, mean ± std over the seeds"),
        Column("precision in %", True, "of the images that are called so, the share that is"),
        *[Column(view, True) for view in run.views],
        *[Column(title(name), True, "the joint of this method") for name in others],
        Column("most often taken for"),
    ]
    rows = []
    for c, name in enumerate(names):
        if not images[c]:
            rows.append([name, 0, *[Cell("", None)] * (len(columns) - 3), ""])
            continue
        worst = int(wrong[c].argmax()) if wrong is not None and wrong[c].any() else None
        precise = hit[c] / called[c] if called[c] else float("nan")
        taken = (
            ""
            if worst is None
            else f"{names[worst]} ({100 * wrong[c, worst] / images[c] / len(part.pred_En):.0f} %)"
        )
        rows.append(
            [
                name,
                int(images[c]),
                mean_sd(joint[:, c]),
                Cell(f"{100 * precise:.1f}" if called[c] else "", precise if called[c] else None),
                *[_share(accuracy[:, c].mean()) for accuracy in own],
                *[_share(accuracy[c]) for accuracy in rest],
                taken,
            ]
        )
    return Section(
        "classes",
        "Classes",
        table(
            columns,
            rows,
            name="classes-table",
            filtered=f"filter {count:,} classes",
            tall=count > 12,
        ),
        "On the test split, so it tells how good the run is, and is not there to choose by: what to label next stands above. A click on a column's "
        "title sorts.",
    )


def recall(label_n: np.ndarray, pred_En: np.ndarray, count: int) -> np.ndarray:
    """(E, C) share of each class's images that are recognised; NaN for a class without images."""
    with np.errstate(invalid="ignore"):
        return np.stack(
            [np.bincount(label_n[pred_n == label_n], minlength=count) for pred_n in pred_En]
        ) / np.bincount(label_n, minlength=count)


def agreement(run: Run) -> Section | None:
    """How often the views agree, what one knows that another does not, and how accurate the joint is when so many agree with it."""
    part: Part = run.parts[run.method]["test"]
    views = run.views
    if len(part.own_VEn) < 2:
        return None
    right_VEn = part.own_VEn == part.label_n
    same = np.array([[(a == b).mean() for b in part.own_VEn] for a in part.own_VEn])
    with np.errstate(invalid="ignore"):
        rescued = np.array(
            [[np.divide((b & ~a).sum(), (~a).sum()) for b in right_VEn] for a in right_VEn]
        )
    np.fill_diagonal(rescued, np.nan)
    with_joint = (part.own_VEn == part.pred_En).sum(0)
    counts = [int((with_joint == k).sum()) for k in range(len(views) + 1)]
    accuracy = [
        float(part.right_En[with_joint == k].mean()) if counts[k] else float("nan")
        for k in range(len(views) + 1)
    ]
    total = with_joint.size
    rows = [
        [
            f"{k} of {len(views)}",
            Cell(f"{100 * counts[k] / total:.1f}", counts[k]),
            Cell("" if not counts[k] else f"{100 * accuracy[k]:.1f}", accuracy[k]),
        ]
        for k in range(len(views), -1, -1)
    ]
    return Section(
        "agreement",
        "Agreement",
        join(
            [
                grid(
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
                    tag(
                        "div",
                        tag(
                            "figure",
                            tag("figcaption", "How many views agree with the joint"),
                            table(
                                [
                                    Column("agree"),
                                    Column("of the images in %", True),
                                    Column("joint right in %", True),
                                ],
                                rows,
                                sortable=False,
                            ),
                            class_="chart",
                        ),
                    ),
                ),
                note("Views that err on different images have something to teach each other."),
            ]
        ),
        f"How far the views of {title(run.method)} say the same on the test split{', all seeds together' if len(part.pred_En) > 1 else ''}.",
    )


def _share(value: float) -> Cell:
    return Cell(f"{100 * value:.1f}", float(value))
