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
from report.pairs import Gain, all_lines, chosen_by, differing, lines_of
from report.run import Run
from report.sections.scores import JOINT, by_method, percent, repeat, title
from train.methods import MEASURES

HONEST = (
    "To choose between runs, go by these: who chooses by the test split is left with no honest "
    "figure."
)
MEANING = (
    "of top-1, paired by the images and by the seeds that two runs share with the same "
    "labelled images: mean ± standard error over both, p two-sided; of 1 seed over the images "
    "alone, of fewer than 5 too careful. With many lines some p are small by chance"
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
    validation = [tag("h3", "On validation"), note(HONEST)]
    for key in chosen_by(runs):
        measure = MEASURES[key.removeprefix("val_")]
        validation += [note(f"{measure[0].upper()}{measure[1:]}:"), _table(runs, key)]
    body = [
        tag("h3", headline(runs)),
        _table(runs, "top1"),
        tag("h3", "Balanced accuracy"),
        _table(runs, "balanced"),
        tag("h3", "Macro F1"),
        _table(runs, "f1"),
        *validation,
        tag("h3", f"Differences to {first}"),
        *refused,
        table(columns, paired) if paired else "",
        note(f"{MEANING[0].upper()}{MEANING[1:]}."),
    ]
    lead = "In %, top-1 first; mean ± standard deviation over the seeds."
    return Section("scores", "Scores", join(body), lead)


def headline(runs: Sequence[Run]) -> str:
    """On what the scores of these runs stand."""
    kinds = list(dict.fromkeys(run.kind for run in runs))
    if len(kinds) == 1:
        return f"On the {kinds[0]} images"
    return "On " + ", ".join(f"the {run.kind} images of {run.name}" for run in runs)


def _table(runs: Sequence[Run], key: str) -> Html:
    """key: a score of the part that each run's results stand on, or one by its whole name."""
    each, rows = list(map(lines_of, runs)), []
    for method, what in all_lines(each):
        cells = []
        for run, found in zip(runs, each, strict=True):
            scores = found.get((method, what), {})
            cells.append(percent(scores.get(key, scores.get(f"{run.part}_{key}"))))
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
