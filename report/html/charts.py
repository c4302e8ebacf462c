"""Charts of the page kit: each is a figure with its numbers as inline JSON, which assets/charts.js draws, and a table of values that needs no script.

lines("validation", [Series("joint", steps, top1)], x="step", y="top-1 in %")       bars(…)      scatter(…)      heat(…)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from report.html.page import Cell, Column, Html, data, short, table, tag

SERIES = 7  # colours in page.css
MOST_VALUES = 12  # rows of the table of values below a line chart


@dataclass(frozen=True)
class Series:
    """A line: its name, and points. y may hold NaN or None where there is nothing. colour: which of the seven; dash: 0 solid, 1 to 3; hollow: points that
    stand for little, which the line leaves out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    dash: int = 0
    dots: bool = False
    about: Sequence[str] = field(default=())
    hollow: Sequence[bool] = field(default=())


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    zero: bool = False,
    about: object = "",
) -> Html:
    """A line chart. diagonal: with the line y = x; zero: with the line y = 0; about: a line below it."""
    steps = sorted({float(value) for line in series for value in line.x})
    spec = {
        "kind": "lines",
        "x": x,
        "y": y,
        "range": y_range,
        "diagonal": diagonal,
        "zero": zero,
        "series": [
            {
                "name": line.name,
                "x": [short(float(v), 6) for v in line.x],
                "y": [None if v is None else short(float(v)) for v in line.y],
                "colour": line.colour % SERIES,
                "dash": line.dash,
                "dots": line.dots,
                "about": list(line.about),
                "hollow": list(line.hollow),
            }
            for line in series
        ],
    }
    shown = (
        [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, MOST_VALUES).astype(int))]
        if steps
        else []
    )
    values = [dict(zip(map(float, line.x), line.y, strict=True)) for line in series]
    rows = [
        [Cell(f"{step:,.6g}", step), *[_number(found.get(step)) for found in values]]
        for step in shown
    ]
    return _figure(
        title, spec, [Column(x, True), *[Column(line.name, True) for line in series]], rows, about
    )


def bars(
    title: str,
    labels: Sequence[str],
    series: dict[str, Sequence[float]],
    *,
    x: str,
    y: str,
    colours: Sequence[int] = (),
    about: object = "",
) -> Html:
    """Bars side by side for each label; of one series a histogram."""
    spec = {
        "kind": "bars",
        "x": x,
        "y": y,
        "labels": list(labels),
        "series": [
            {
                "name": name,
                "y": [short(float(v)) for v in values],
                "colour": (colours[i] if colours else i) % SERIES,
            }
            for i, (name, values) in enumerate(series.items())
        ],
    }
    rows = [
        [label, *[_number(values[i]) for values in series.values()]]
        for i, label in enumerate(labels)
    ]
    return _figure(title, spec, [Column(x), *[Column(name, True) for name in series]], rows, about)


def scatter(
    title: str,
    xy_n2: np.ndarray,
    group_n: np.ndarray,
    groups: Sequence[str],
    *,
    x: str = "",
    y: str = "",
    ring_n: np.ndarray | None = None,
    ring: str = "",
    about: object = "",
) -> Html:
    """A map of points by group (n,) int; ring_n: (n,) bool, points that get a ring, and what that means. Positions are kept to a thousandth of the range."""
    low, high = xy_n2.min(0), xy_n2.max(0)
    place = np.round((xy_n2 - low) / np.where(high > low, high - low, 1) * 1000).astype(int)
    used = np.flatnonzero(np.bincount(group_n, minlength=len(groups)))
    spec = {
        "kind": "scatter",
        "x": x,
        "y": y,
        "px": place[:, 0].tolist(),
        "py": place[:, 1].tolist(),
        "group": np.searchsorted(used, group_n).tolist(),
        "groups": [groups[g] for g in used],
        "ring": [] if ring_n is None else np.flatnonzero(ring_n).tolist(),
        "ringed": ring,
        "ratio": short(float((high - low)[1] / max((high - low)[0], 1e-12))),
    }
    counts = np.bincount(group_n, minlength=len(groups))[used]
    order = np.argsort(-counts, kind="stable")[: MOST_VALUES * 4]
    return _figure(
        title,
        spec,
        [Column("colour"), Column("points", True)],
        [[groups[used[i]], int(counts[i])] for i in order],
        about,
    )


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    *,
    shown: str = "{:.2f}",
    low: float = 0.0,
    high: float | None = None,
    about: object = "",
) -> Html:
    """A small matrix as a table whose cells are tinted from `low` (none) to `high` (full); needs no script."""
    top = (
        high if high is not None else float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    )
    head = tag("tr", tag("td"), *[tag("th", name, scope="col") for name in columns])
    body = [
        tag(
            "tr", tag("th", name, scope="row"), *[_tinted(value, shown, low, top) for value in line]
        )
        for name, line in zip(rows, values, strict=True)
    ]
    return tag(
        "figure",
        tag("figcaption", title),
        tag(
            "div",
            tag("table", tag("thead", head), tag("tbody", *body), class_="heat"),
            class_="scroll",
        ),
        tag("p", about, class_="note") if about else "",
        class_="chart",
    )


def _tinted(value: float, shown: str, low: float, high: float) -> Html:
    if not np.isfinite(value):
        return tag("td")
    share = min(1.0, max(0.0, (value - low) / (high - low if high > low else 1.0)))
    return tag(
        "td",
        shown.format(value),
        style=f"--p:{100 * share:.0f}%",
        class_="deep" if share > 0.55 else None,
    )


def _number(value: float | None) -> Cell:
    return (
        Cell("", None)
        if value is None or not np.isfinite(value)
        else Cell(f"{value:,.4g}", float(value))
    )


def _figure(
    title: str,
    spec: dict[str, Any],
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    about: object,
) -> Html:
    values = tag(
        "details", tag("summary", "values"), table(columns, rows, sortable=False), class_="values"
    )
    below = tag("p", about, class_="note") if about else ""
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", class_="plot"),
        data(spec),
        below,
        values,
        class_="chart",
    )
