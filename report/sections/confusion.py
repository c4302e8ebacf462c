"""The confusion matrix: readable at 10 classes as a grid of numbers, at 1,000 as a map to zoom
into; and the most confused pairs as a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from report.html.page import Cell, Column, Html, Section, data, join, note, table, tag
from report.run import Part, Run
from report.sections.scores import title
from train.run.summary import kind_of

MOST_PAIRS, MOST_ORDERED, MOST_CELLS = 40, 2_000, 30_000
MANY = 30  # classes, of which one wants to look for one, and to see those alike together
SPLITS = ("val", "test")
ABOUT = (
    "Rows are labels, columns what the joint says. Blue: right, orange: wrong, each as a share of "
    "its row. A click or Enter on a cell shows its images in the gallery of errors (never of the "
    "test split, whatever the matrix counts); arrow keys move, Escape shows all again. Of "
    f"many classes only the {MOST_CELLS:,} most frequent cells of all methods are here; shares are "
    "of all images of the label."
)


def confusion(run: Run, names: Sequence[str]) -> Section:
    """Counts of (label, prediction), summed over the seeds, of every method's joint on validation
    and test; a click on a cell filters the gallery of errors."""
    sets, judging = _sets(run, len(names)), "val" if run.summary["rows"]["val"] else "test"
    part = run.parts[run.method][judging]
    order = by_likeness(part, len(names)) if MANY < len(names) <= MOST_ORDERED else []
    spec = {"classes": list(names), "sets": sets, "order": order}
    left = tag(
        "div",
        tag("div", id="confusion-view"),
        tag("p", id="confusion-told", class_="note", aria_live="polite"),
        class_="side",
    )
    heading = tag("h3", f"Most confused pairs, {kind_of(run.summary, judging)}")
    right = tag("div", heading, _worst(part, names), class_="side")
    body = [
        _controls(sets, len(names), bool(order)),
        _listed(names) if len(names) > MANY else "",
        tag("div", left, right, class_="pair"),
        data(spec, id="confusion-data"),
    ]
    return Section("confusion", "Confusion", join(body), ABOUT)


def _sets(run: Run, classes: int) -> list[dict[str, Any]]:
    """What the matrix may count: each method on each split, the shown method first."""
    shown = [run.method, *[name for name in run.methods if name != run.method]]
    room = MOST_CELLS // len(shown) // 2
    sets = []
    for method in shown:
        for split in SPLITS:
            if split not in run.parts[method]:
                continue
            part, text = run.parts[method][split], kind_of(run.summary, split)
            sets.append(
                {
                    "name": f"{title(method)}, {text}",
                    "split": text,
                    "seeds": len(part.pred_En),
                    "cells": cells(part, room),
                    "totals": totals(part, classes),
                }
            )
    return sets


def _controls(sets: Sequence[dict[str, Any]], classes: int, ordered: bool) -> Html:
    options = [tag("option", one["name"], value=number) for number, one in enumerate(sets)]
    order = tag(
        "select",
        tag("option", "by name", value="name"),
        tag("option", "alike together", value="alike"),
        id="confusion-order",
    )
    find = tag(
        "input",
        type="search",
        id="confusion-class",
        placeholder="find a class",
        aria_label="a class, with those that it is confused with",
        list="class-names",
    )
    return tag(
        "p",
        tag("label", "of", tag("select", *options, id="confusion-set")),
        tag("label", "order", order) if ordered else "",
        find if classes > MANY else "",
        tag("button", "whole matrix", type="button", id="confusion-whole", hidden=True),
        class_="controls",
    )


def _listed(names: Sequence[str]) -> Html:
    return tag("datalist", *[tag("option", value=name) for name in names], id="class-names")


def _worst(part: Part, names: Sequence[str]) -> Html:
    """The table of the pairs that are most often confused."""
    rows = []
    for label, prediction, count, share in pairs(part, len(names)):
        images = Cell(f"{count / len(part.pred_En):,.1f}", count)
        percent = Cell(f"{100 * share:.0f}", share)
        show = _show(label, prediction)
        rows.append([names[label], names[prediction], images, percent, show])
    if not rows:
        return note("Nothing was confused.")
    columns = [
        Column("label"),
        Column("taken for"),
        Column("images", True, "mean over the seeds"),
        Column("share in %", True, "of the label's images"),
        Column(""),
    ]
    return table(columns, rows, name="pairs-table", tall=len(rows) > 12)


def cells(part: Part, most: int) -> list[list[int]]:
    """[label, prediction, count over the seeds] of each pair that occurs; of too many, the most
    frequent."""
    width = int(max(part.label_En.max(), part.pred_En.max())) + 1
    both, count = np.unique(part.label_En * width + part.pred_En, return_counts=True)
    keep = np.sort(np.argsort(-count, kind="stable")[:most])
    return np.stack([both[keep] // width, both[keep] % width, count[keep]], 1).tolist()


def totals(part: Part, classes: int) -> list[int]:
    """Images of each label, of all seeds: also of those whose cells are too rare to be among
    `cells`."""
    return np.bincount(part.label_En.ravel(), minlength=classes).tolist()


def pairs(part: Part, classes: int) -> list[tuple[int, int, int, float]]:
    """(label, prediction, count over the seeds, share of the label's images) of the pairs most
    often confused."""
    images = totals(part, classes)
    wrong = [(t, p, n) for t, p, n in cells(part, 2**31) if t != p]  # by label and prediction
    wrong.sort(key=lambda cell: -cell[2])
    return [(t, p, n, n / images[t]) for t, p, n in wrong[:MOST_PAIRS]]


def by_likeness(part: Part, classes: int) -> list[int]:
    """The classes in an order in which those that are confused stand together: by the second
    eigenvector of the confusion graph's Laplacian (Fiedler)."""
    like = np.full((classes, classes), 1e-4)
    for t, p, n in cells(part, 2**31):
        if t != p:
            like[t, p] += n
            like[p, t] += n
    scale = 1 / np.sqrt(like.sum(1))
    _, vectors = np.linalg.eigh(np.eye(classes) - scale[:, None] * like * scale)
    return np.argsort(vectors[:, 1] * scale, kind="stable").tolist()


def _show(label: int, prediction: int) -> Html:
    return tag("button", "show", type="button", class_="show", data_t=label, data_p=prediction)
