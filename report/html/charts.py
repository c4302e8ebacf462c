"""Charts of the page kit: each is a figure with its numbers as inline JSON, which assets/charts.js
draws, and a table of values that needs no script.

    lines("validation", [Series("joint", steps, top1)], Axes("step", "top-1 in %"))
    bars(…)      scatter(…)      heat(…)
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
    """A line: its name, and points. y may hold NaN or None where there is nothing. colour: which of
    the seven; dash: 0 solid, 1 to 3; hollow: points that stand for little, which the line leaves
    out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    dash: int = 0
    dots: bool = False
    about: Sequence[str] = field(default=())
    hollow: Sequence[bool] = field(default=())


@dataclass(frozen=True)
class Axes:
    """What the axes of a chart say. y_range: from where to where, if the values shall not decide
    it; diagonal: with the line y = x; zero: with the line y = 0."""

    x: str
    y: str
    y_range: tuple[float, float] | None = None
    diagonal: bool = False
    zero: bool = False


def lines(title: str, series: Sequence[Series], axes: Axes, about: object = "") -> Html:
    """A line chart. about: a line below it."""
    spec = {
        "kind": "lines",
        "x": axes.x,
        "y": axes.y,
        "range": axes.y_range,
        "diagonal": axes.diagonal,
        "zero": axes.zero,
        "series": [_drawn(line) for line in series],
    }
    columns = [Column(axes.x, True), *[Column(line.name, True) for line in series]]
    return _figure(title, spec, columns, _values(series), about)


def _drawn(line: Series) -> dict[str, Any]:
    """A line as charts.js reads it."""
    return {
        "name": line.name,
        "x": [short(float(x), 6) for x in line.x],
        "y": [None if y is None else short(float(y)) for y in line.y],
        "colour": line.colour % SERIES,
        "dash": line.dash,
        "dots": line.dots,
        "about": list(line.about),
        "hollow": list(line.hollow),
    }


def _values(series: Sequence[Series]) -> list[list[Cell]]:
    """The rows below a line chart: what its lines are at some places, evenly chosen."""
    at: list[dict[float, float | None]] = []
    places: set[float] = set()
    for line in series:
        at.append(dict(zip(map(float, line.x), line.y, strict=True)))
        places.update(at[-1])
    if not places:
        return []
    ordered, rows = sorted(places), []
    for place in np.unique(np.linspace(0, len(ordered) - 1, MOST_VALUES).astype(int)):
        x = ordered[place]
        rows.append([Cell(f"{x:,.6g}", x), *[_number(found.get(x)) for found in at]])
    return rows


def bars(
    title: str,
    labels: Sequence[str],
    series: dict[str, Sequence[float]],
    axes: Axes,
    *,
    colours: Sequence[int] = (),
    about: object = "",
) -> Html:
    """Bars side by side for each label; of one series a histogram."""
    drawn = []
    for number, (name, values) in enumerate(series.items()):
        colour = (colours[number] if colours else number) % SERIES
        drawn.append({"name": name, "y": [short(float(y)) for y in values], "colour": colour})
    spec = {"kind": "bars", "x": axes.x, "y": axes.y, "labels": list(labels), "series": drawn}
    columns = [Column(axes.x), *[Column(name, True) for name in series]]
    rows = []
    for place, label in enumerate(labels):
        rows.append([label, *[_number(values[place]) for values in series.values()]])
    return _figure(title, spec, columns, rows, about)


def scatter(
    title: str,
    xy_n2: np.ndarray,
    group_n: np.ndarray,
    groups: Sequence[str],
    *,
    ring_n: np.ndarray | None = None,
    ring: str = "",
    about: object = "",
) -> Html:
    """A map of points by group (n,) int, without names of the axes.

    ring_n: (n,) bool, points that get a ring, and what that means. Positions are kept to a
    thousandth of the range.
    """
    low, high = xy_n2.min(0), xy_n2.max(0)
    place = np.round((xy_n2 - low) / np.where(high > low, high - low, 1) * 1000).astype(int)
    count = np.bincount(group_n, minlength=len(groups))
    used = np.flatnonzero(count)
    spec = {
        "kind": "scatter",
        "x": "",
        "y": "",
        "px": place[:, 0].tolist(),
        "py": place[:, 1].tolist(),
        "group": np.searchsorted(used, group_n).tolist(),
        "groups": [groups[g] for g in used.tolist()],
        "ring": [] if ring_n is None else np.flatnonzero(ring_n).tolist(),
        "ringed": ring,
        "ratio": short(float((high - low)[1] / max((high - low)[0], 1e-12))),
    }
    largest = used[np.argsort(-count[used], kind="stable")[: MOST_VALUES * 4]]
    rows = [[groups[g], int(count[g])] for g in largest.tolist()]
    return _figure(title, spec, [Column("colour"), Column("points", True)], rows, about)


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    *,
    shown: str = "{:.2f}",
    high: float | None = None,
    about: object = "",
) -> Html:
    """A small matrix as a table whose cells are tinted from 0 (none) to `high` (full; the largest
    value, where it is not given); needs no script."""
    if high is None:
        high = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    head = tag("tr", tag("td"), *[tag("th", name, scope="col") for name in columns])
    body = []
    for name, line in zip(rows, values, strict=True):
        cells = [_tinted(value, shown, high) for value in line]
        body.append(tag("tr", tag("th", name, scope="row"), *cells))
    whole = tag("table", tag("thead", head), tag("tbody", *body), class_="heat")
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", whole, class_="scroll"),
        tag("p", about, class_="note") if about else "",
        class_="chart",
    )


def _tinted(value: float, shown: str, high: float) -> Html:
    if not np.isfinite(value):
        return tag("td")
    share = min(1.0, max(0.0, value / (high if high > 0 else 1.0)))
    kind = "deep" if share > 0.55 else None
    return tag("td", shown.format(value), style=f"--p:{100 * share:.0f}%", class_=kind)


def _number(value: float | None) -> Cell:
    if value is None or not np.isfinite(value):
        return Cell("", None)
    return Cell(f"{value:,.4g}", float(value))


def _figure(
    title: str,
    spec: dict[str, Any],
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    about: object,
) -> Html:
    summary, whole = tag("summary", "values"), table(columns, rows, sortable=False)
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", class_="plot"),
        data(spec),
        tag("p", about, class_="note") if about else "",
        tag("details", summary, whole, class_="values"),
        class_="chart",
    )
