"""Sections of compare.html: what runs differ in, their scores and curves side by side."""

from collections.abc import Sequence
from typing import Any

from report.html.charts import Axes, Series, lines
from report.html.page import (
    Cell,
    Column,
    Html,
    Section,
    command,
    facts,
    grid,
    join,
    note,
    table,
    tag,
)
from report.pairs import Gain, all_lines, differing, lines_of
from report.run import Run
from report.sections.scores import JOINT, by_method, percent, repeat, title

HONEST = (
    "To choose between runs, go by these: who chooses by the test split is left with no honest "
    "figure."
)
PAIRED = (
    "Paired over the seeds that two runs share, with the same labelled and the same test images: "
    "mean ± standard error, and, of 5 seeds or more, p of a two-sided paired t-test. With many "
    "lines some p are small by chance."
)


def settings(runs: Sequence[Run]) -> Section:
    told, commands = [], []
    for run in runs:
        summary, seeds = run.summary, run.settings["seeds"]
        about = f"{summary['dataset']}, {summary['labels_text']}, seeds {seeds}"
        told.append((run.name, about))
        head = tag("summary", f"the command of {run.name}")
        commands.append(tag("details", head, command(repeat(run)), class_="values"))
    rows = differing(runs)
    if rows:
        columns = [Column("setting"), *[Column(run.name) for run in runs]]
        body = table(columns, rows, sortable=False)
    else:
        body = note("They are the same in every setting and fingerprint.")
    parts = [facts(told), tag("h3", "Settings"), body, *commands]
    return Section("settings", "What differs", join(parts))


def scores(runs: Sequence[Run], gains: Sequence[Gain]) -> Section:
    first, paired, refused = runs[0].name, [], []
    for gain in gains:
        if gain.mean is None:
            refused.append(note(f"{gain.run} is {gain.text}.", warning=True))
        else:
            paired.append([gain.run, gain.method, gain.what, Cell(gain.text, gain.mean)])
    columns = [Column("run"), Column("method"), Column("of")]
    columns.append(Column(f"minus {first}, in points", True))
    body = [
        tag("h3", "On the test split"),
        _top1(runs, "test_top1"),
        tag("h3", "On validation"),
        note(HONEST),
        _top1(runs, "val_top1"),
        tag("h3", f"Differences to {first}"),
        *refused,
        table(columns, paired) if paired else "",
        note(PAIRED),
    ]
    lead = "Top-1 in %, mean ± standard deviation over the seeds."
    return Section("scores", "Scores", join(body), lead)


def _top1(runs: Sequence[Run], key: str) -> Html:
    each, rows = list(map(lines_of, runs)), []
    for method, what in all_lines(each):
        cells = []
        for found in each:
            there = (method, what) in found
            cells.append(percent(found[method, what][key]) if there else Cell("–", None))
        rows.append([title(method), what, *cells])
    columns = [Column("method"), Column("of"), *[Column(run.name, True) for run in runs]]
    return table(columns, rows)


def curves(runs: Sequence[Run]) -> Section:
    """The joint's validation accuracy, one figure a method, one line a run."""
    drawn: dict[str, list[Series]] = {}  # by method
    for number, run in enumerate(runs):
        for method, records in by_method(run.records).items():
            drawn.setdefault(method, []).append(_curve(run.name, number, records))
    axes = Axes("step", "validation top-1 of the joint in %")
    charts = [lines(title(method), series, axes) for method, series in drawn.items()]
    body = grid(*charts) if charts else note("No method of these runs is trained step by step.")
    return Section("training", "Training", body, "Means over the seeds.")


def _curve(name: str, number: int, records: Sequence[dict[str, Any]]) -> Series:
    steps = [record["step"] for record in records]
    top1 = [100 * record["val"][JOINT]["top1"] for record in records]
    return Series(name, steps, top1, number, dash=number // 7 % 4)
