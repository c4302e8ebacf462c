"""The page of `make inspect`: its findings (report/inspect/__main__.py) as one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from report.html.charts import bars, heat
from report.html.page import (
    Card,
    Cell,
    Column,
    Html,
    Section,
    command,
    facts,
    gallery,
    grid,
    join,
    note,
    page,
    table,
    tag,
)
from report.pictures import Pictures

if TYPE_CHECKING:
    from train.data.reader import Cache


def page_of(found: dict[str, Any], cache: "Cache", dataset: Path, root: Path) -> str:
    """The whole file. The images are read from where they were embedded, if they are still there."""
    pictures = Pictures(dataset, cache.items, root)
    names = [view["view"] for view in found["views"]]
    sections = [
        Section(
            "verdict",
            "Worth co-training?",
            _verdicts(found),
            "Rules of thumb on the nearest neighbours' errors. Only a run says whether "
            "co-training helps."
            if found["pairs"]
            else "One view alone has nobody to learn from.",
        ),
        Section(
            "leaks",
            "Leaks",
            _leaks(found, pictures),
            "The same image on both sides of the border between training, validation and test makes "
            "scores too good. Take one of each pair out of the data set, or put both on one side.",
        ),
        Section(
            "views",
            "Views",
            _views(found),
            "constant: dimensions of one single value; weak: those that vary a thousand times less than the "
            "median one; effective: how many dimensions would spread as much if all spread alike, on at most 2,048 images.",
        ),
        Section(
            "norms",
            "Lengths",
            _norms(found),
            "Rows of other lengths than the rest are often broken images, borders, or blank pages.",
        ),
    ]
    if len(names) > 1:
        sections.insert(
            2,
            Section(
                "alike",
                "How alike",
                _alike(found, names),
                "CKA: 1 is the same up to rotation and scale, about 0 is unrelated.",
            ),
        )
    rows = ", ".join(f"{count:,} {name}" for name, count in found["rows"].items())
    return page(
        found["dataset"],
        sections,
        kind="inspection",
        intro=join(
            [
                tag("p", f"{', '.join(names)}; {rows}; {found['classes']} classes.", class_="lead"),
                command(found["next"]),
            ]
        ),
    )


def _verdicts(found: dict[str, Any]) -> Html:
    if not found["pairs"]:
        return note("Name a second view: VIEWS=one,two")
    words = [
        join(
            [tag("h3", f"{' + '.join(pair['views'])}: {pair['worth']}"), tag("p", pair["verdict"])]
        )
        for pair in found["pairs"]
    ]
    counts = [
        Column(title, True)
        for title in (
            "both right",
            "only the first",
            "only the second",
            "both wrong",
            "if independent",
        )
    ]
    columns = [
        Column("views"),
        *counts,
        Column(
            "kappa of errors",
            True,
            "1: the same errors; 0: independent; below 0: they avoid each other's",
        ),
        Column("Yule's Q", True),
        Column("CKA", True),
    ]
    rows = [
        [
            " + ".join(pair["views"]),
            *(pair[key] for key in ("both_right", "only_first", "only_second", "both_wrong")),
            float(round(pair["expected_both_wrong"], 1)),
            Cell(f"{pair['kappa']:.2f} ± {pair['kappa_error']:.2f}", pair["kappa"]),
            float(round(pair["q"], 3)),
            float(round(pair["cka"], 3)),
        ]
        for pair in found["pairs"]
    ]
    return join(
        [
            *words,
            table(columns, rows),
            note(
                f"Of {found['asked']:,} validation images, by the vote of {found['k']} neighbours among {found['bank']:,} labelled ones. If independent: how many both "
                "would have wrong. The labels of the test images are not looked at."
            ),
        ]
    )


def _leaks(found: dict[str, Any], pictures: Pictures) -> Html:
    copies, near = found["copies"], found["near"]
    least = ", ".join(
        f"{least:.4f} in {view['view']}"
        for least, view in zip(near["least"], found["views"], strict=True)
    )
    return join(
        [
            facts(
                [
                    ("exact copies across the border", _crossing(copies["crossing"])),
                    ("groups of exact copies", f"{copies['groups']:,}"),
                    ("of these with different labels", f"{copies['labels_differ']:,}"),
                    ("near-duplicates across the border", _crossing(near["crossing"])),
                ]
            ),
            tag("h3", "Exact copies"),
            _groups(copies["shown"], pictures, []),
            tag("h3", "Near-duplicates"),
            _groups(
                [pair[:2] for pair in near["shown"]], pictures, [pair[2] for pair in near["shown"]]
            ),
            note(
                f"Near: a cosine of at least {least}. So much closer than usual, by four robust deviations of the logarithm of the distance to the nearest "
                f"neighbour, in every view at once. {near['asked']:,} of {near['held_out']:,} held-out images were looked at, evenly spaced."
            ),
            note(pictures.why, warning=True) if pictures.why else "",
        ]
    )


def _crossing(found: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in found.items()) or "none"


def _groups(
    groups: Sequence[Sequence[dict[str, Any]]],
    pictures: Pictures,
    cosines: Sequence[Sequence[float]],
) -> Html:
    shown, cards = pictures([one["row"] for group in groups for one in group]), []
    for number, group in enumerate(groups):
        told = (
            [f"cosine {', '.join(f'{cosine:.4f}' for cosine in cosines[number])}"]
            if cosines
            else []
        )
        for one in group:
            picture = shown.get(one["row"])
            cards.append(
                Card(
                    one["key"],
                    *((picture.uri, picture.width, picture.height) if picture else ("", 0, 0)),
                    [f"{number + 1}: {one['role']}", *told],
                )
            )
    return gallery(cards)


def _alike(found: dict[str, Any], names: list[str]) -> Html:
    values = np.eye(len(names))
    for pair in found["pairs"]:
        a, b = (names.index(name) for name in pair["views"])
        values[a, b] = values[b, a] = pair["cka"]
    return heat(
        "linear CKA, debiased",
        names,
        names,
        values,
        high=1.0,
        about=f"on {found['pairs'][0]['sample']:,} evenly spaced images",
    )


def _views(found: dict[str, Any]) -> Html:
    columns = [
        Column("view"),
        Column("width", True),
        Column("constant", True),
        Column("weak", True),
        Column("effective dimensions", True),
        Column("kNN on validation", True),
        Column("kNN, left out in turn", True),
    ]
    rows = [
        [
            view["view"],
            view["width"],
            len(view["constant"]),
            len(view["weak"]),
            float(round(view["effective"], 1)),
            Cell(f"{view['knn_val']:.1%}", view["knn_val"]),
            Cell(f"{view['knn_left_out']:.1%}", view["knn_left_out"]),
        ]
        for view in found["views"]
    ]
    dead = [
        note(
            f"{view['view']}: constant dimensions {', '.join(map(str, view['constant'][:50]))}",
            warning=True,
        )
        for view in found["views"]
        if view["constant"]
    ]
    return join(
        [
            table(columns, rows),
            *dead,
            note(
                f"{found['k']} neighbours; the commonest class alone is right on {found['chance']:.1%} of the validation images. Left out in turn: each labelled "
                "image by the other labelled ones, which is worse where they are few."
            ),
        ]
    )


def _norms(found: dict[str, Any]) -> Html:
    charts = []
    for number, view in enumerate(found["views"]):
        norm = view["norm"]
        odd = (
            f"{norm['odd_count']:,} rows lie more than ten robust deviations from the median: {', '.join(norm['odd'])}"
            if norm["odd_count"]
            else ""
        )
        charts.append(
            bars(
                view["view"],
                [f"{edge:.5g}" for edge in norm["edges"][:-1]],
                {"images": norm["counts"]},
                x="length",
                y="images",
                colours=[number],
                about=f"from {norm['least']:.5g} to {norm['most']:.5g}, {norm['zero']:,} of length zero. {odd}",
            )
        )
    return grid(*charts)
