"""The page of `make inspect`: its findings (report/inspect/findings.py) as one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from report.html.charts import Axes, bars, heat
from report.html.page import (
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
from report.inspect.findings import crossing_text, differ_text, told_tuned
from report.pictures import Pictures, card_of
from train.data.reader import Cache
from train.data.scarce import Unlearnt

RULES = (
    "Rules of thumb on the nearest neighbours' errors. Only a run says whether co-training helps."
)
LEAKS = (
    "The same image on both sides of the border between training, validation and test makes scores "
    "too good. Take one of each pair out of the data set, or put both on one side."
)
VIEWS = (
    "constant: dimensions of one single value; weak: those that vary a thousand times less than "
    "the median one; effective: how many dimensions would spread as much if all spread alike, on "
    "at most 2,048 images."
)
LENGTHS = "Rows of other lengths than the rest are often broken images, borders, or blank pages."
ALIKE = "CKA: 1 is the same up to rotation and scale, about 0 is unrelated."


def page_of(found: dict[str, Any], cache: Cache, dataset: Path, root: Path) -> str:
    """The whole file. The images are read from where they were embedded, if they are still
    there."""
    pictures = Pictures(dataset, cache.items, root)
    names = [view["view"] for view in found["views"]]
    lead = RULES if found["pairs"] else "One view alone has nobody to learn from."
    sections = [
        Section("verdict", "Worth co-training?", _verdicts(found), lead),
        Section("leaks", "Leaks", _leaks(found, pictures), LEAKS),
    ]
    if len(names) > 1:
        sections.append(Section("alike", "How alike", _alike(found, names), ALIKE))
    sections += [
        Section("views", "Views", _views(found), VIEWS),
        Section("norms", "Lengths", _norms(found), LENGTHS),
    ]
    rows = ", ".join(f"{count:,} {name}" for name, count in found["rows"].items())
    told = tag("p", f"{', '.join(names)}; {rows}; {found['classes']} classes.", class_="lead")
    short = Unlearnt(**found["unlearnt"]).text(found["classes"])
    warned = note(f"{short[0].upper()}{short[1:]}.", warning=True) if short else ""
    learnt = [note(f"{text[0].upper()}{text[1:]}.", warning=True) for text in told_tuned(found)]
    intro = join([told, warned, *learnt, command(found["next"])])
    return page(found["dataset"], sections, kind="inspection", intro=intro)


def _verdicts(found: dict[str, Any]) -> Html:
    if not found["pairs"]:
        return note("Name a second view: VIEWS=one,two")
    words, rows = [], []
    for pair in found["pairs"]:
        words.append(tag("h3", f"{' + '.join(pair['views'])}: {pair['worth']}"))
        words.append(tag("p", pair["verdict"]))
        rows.append(_pair(pair))
    kappa = "1: the same errors; 0: independent; below 0: they avoid each other's"
    columns = [
        Column("views"),
        Column("both right", True),
        Column("only the first", True),
        Column("only the second", True),
        Column("both wrong", True),
        Column("if independent", True),
        Column("kappa of errors", True, kappa),
        Column("Yule's Q", True),
        Column("CKA", True),
    ]
    about = note(
        f"Of {found['asked']:,} labelled images, each by the vote of {found['k']} neighbours among "
        f"the others of {found['bank']:,}. If independent: how many both would have wrong. The "
        "labels of the test images are not looked at."
    )
    return join([*words, table(columns, rows), about])


def _pair(pair: dict[str, Any]) -> list[object]:
    return [
        " + ".join(pair["views"]),
        pair["both_right"],
        pair["only_first"],
        pair["only_second"],
        pair["both_wrong"],
        float(round(pair["expected_both_wrong"], 1)),
        Cell(f"{pair['kappa']:.2f} ± {pair['kappa_error']:.2f}", pair["kappa"]),
        float(round(pair["q"], 3)),
        float(round(pair["cka"], 3)),
    ]


def _leaks(found: dict[str, Any], pictures: Pictures) -> Html:
    copies, near = found["copies"], found["near"]
    close = [pair[:2] for pair in near["shown"]]
    cosines = [pair[2] for pair in near["shown"]]
    least = []
    for cosine, view in zip(near["least"], found["views"], strict=True):
        least.append(f"{cosine:.4f} in {view['view']}")
    told = [
        ("exact copies across the border", crossing_text(copies["crossing"])),
        ("groups of exact copies", f"{copies['groups']:,}"),
        ("of these with different labels", differ_text(copies)),
        ("near-duplicates across the border", crossing_text(near["crossing"])),
    ]
    about = (
        f"Near: a cosine of at least {', '.join(least)}. So much closer than usual, by four robust "
        "deviations of the logarithm of the distance to the nearest neighbour, in every view at "
        f"once. {near['asked']:,} of {near['held_out']:,} held-out images were looked at, evenly "
        "spaced."
    )
    return join(
        [
            facts(told),
            tag("h3", "Exact copies"),
            _groups(copies["shown"], pictures, []),
            tag("h3", "Near-duplicates"),
            _groups(close, pictures, cosines),
            note(about),
            note(pictures.why, warning=True) if pictures.why else "",
        ]
    )


def _groups(
    groups: Sequence[Sequence[dict[str, Any]]],
    pictures: Pictures,
    cosines: Sequence[Sequence[float]],
) -> Html:
    """A card an image; cosines: of each group, if there are any."""
    shown, cards = pictures([one["row"] for group in groups for one in group]), []
    for number, group in enumerate(groups):
        told = []
        if cosines:
            told = [f"cosine {', '.join(f'{cosine:.4f}' for cosine in cosines[number])}"]
        for one in group:
            lines = [f"{number + 1}: {one['role']}", *told]
            cards.append(card_of(one["key"], shown.get(one["row"]), lines))
    return gallery(cards)


def _alike(found: dict[str, Any], names: list[str]) -> Html:
    values = np.eye(len(names))
    for pair in found["pairs"]:
        a, b = (names.index(name) for name in pair["views"])
        values[a, b] = values[b, a] = pair["cka"]
    about = f"on {found['pairs'][0]['sample']:,} evenly spaced images"
    return heat("linear CKA, debiased", names, names, values, high=1.0, about=about)


def _views(found: dict[str, Any]) -> Html:
    columns = [
        Column("view"),
        Column("width", True),
        Column("constant", True),
        Column("weak", True),
        Column("effective dimensions", True),
        Column("kNN", True, "each labelled image by the others"),
    ]
    rows, dead = [], []
    for view in found["views"]:
        rows.append(
            [
                view["view"],
                view["width"],
                len(view["constant"]),
                len(view["weak"]),
                float(round(view["effective"], 1)),
                Cell(f"{view['knn']:.1%}", view["knn"]),
            ]
        )
        if view["equal"]:
            dead.append(note(f"{view['view']}: {view['equal']}", warning=True))
        if view["constant"]:
            numbers = ", ".join(map(str, view["constant"][:50]))
            dead.append(note(f"{view['view']}: constant dimensions {numbers}", warning=True))
    about = note(
        f"{found['k']} neighbours; the commonest class alone is right on {found['chance']:.1%} of "
        "the labelled images."
    )
    return join([table(columns, rows), *dead, about])


def _norms(found: dict[str, Any]) -> Html:
    charts = []
    for number, view in enumerate(found["views"]):
        norm, odd = view["norm"], ""
        if norm["odd_count"]:
            odd = (
                f"{norm['odd_count']:,} rows lie more than ten robust deviations from the median: "
                f"{', '.join(norm['odd'])}"
            )
        span = f"from {norm['least']:.5g} to {norm['most']:.5g}, {norm['zero']:,} of length zero."
        charts.append(
            bars(
                view["view"],
                [f"{edge:.5g}" for edge in norm["edges"][:-1]],
                {"images": norm["counts"]},
                Axes("length", "images"),
                colours=[number],
                about=f"{span} {odd}",
            )
        )
    return grid(*charts)
