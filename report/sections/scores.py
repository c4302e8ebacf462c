"""Sections of a report: what was trained on what, the table of scores, the curves of the
training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

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
from report.run import Run
from train.algorithm.paired import Difference
from train.config import make_command
from train.methods import MEASURES, METHODS, in_order
from train.run.summary import (
    against,
    chosen_on,
    kind_of,
    meaning,
    notes,
    scored,
    selected_by,
    told_apart,
    undecided,
)

JOINT = "joint"
PSEUDO = {  # what metrics.jsonl says of pseudo-labels: heading, axis, what it means
    "precision": (
        "Precision of the pseudo-labels",
        "right in %",
        "Of the labels that a view was taught since the last look, the share that is right, by "
        "hidden labels that training does not see.",
    ),
    "coverage": (
        "Coverage of the pseudo-labels",
        "of the unlabelled rows in %",
        "The share of the unlabelled rows that were given a label.",
    ),
}
FEEDBACK = (
    "Whether a student's step on the labels that it was handed helped it on the labelled rows: "
    "positive h reinforces these labels, negative h discourages them. At 0 the teachers hear "
    "nothing."
)
Told = list[tuple[int, dict[str, float | None]]]  # steps, each with a value for some names


def intro(run: Run, data: str = "") -> Html:
    """The head of the page. data: what the images are called in the cache, where DATA means a newer
    version by now."""
    summary, rows, environment = run.summary, run.summary["rows"], run.environment
    prints = ", ".join(f"{name} {value[:8]}" for name, value in summary["fingerprints"].items())
    known = [(name, value) for name, value in environment["versions"].items() if value]
    versions = ", ".join(f"{name} {value}" for name, value in known)
    git = "not recorded"
    if environment["git"]:
        dirty = " and uncommitted changes" if environment["dirty"] else ""
        git = f"{environment['git'][:8]}{dirty}"
    images = f"{rows['labelled']:,} labelled, {rows['unlabelled']:,} unlabelled"
    for part in ("val", "test"):
        if rows[part]:
            images += f", {rows[part]:,} {kind_of(summary, part)}"
    device = f"{environment['gpu'] or 'CPU'} ({environment['cpus']} cores)"
    told = [
        ("data", summary["dataset"]),
        ("views", ", ".join(summary["views"])),
        ("labels", summary["labels_text"]),
        ("images", images),
        ("classes", f"{summary['classes']:,}"),
        ("seeds", _seeds(summary["seeds"])),
        ("shown in detail", title(run.method)),
        ("device", f"{device}, {summary['seconds']:,.0f} s"),
        ("fingerprints", tag("code", prints)),
        ("versions", f"Python {environment['python']}, {versions}"),
        ("code", tag("code", git)),
    ]
    return tag("div", facts(told), command(repeat(run, data)), class_="intro")


def repeat(run: Run, data: str = "") -> str:
    """The command that trains this run again. Labels that came from a file are those that the run
    wrote down. data: what its images are called now."""
    labels = run.settings["labels"]
    if not isinstance(labels, str):
        first = run.summary["seeds"][0]
        labels = str(run.folder / "splits" / f"seed-{first}.labelled.txt")
    return make_command({**run.settings, "labels": labels, "data": data or run.settings["data"]})


def title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method


def score_rows(summary: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, what, its scores) of every line of the table; what: a view or joint."""
    found = []
    for method in in_order(summary["methods"]):
        result = summary["methods"][method]
        for view in summary["views"]:
            if view in result["views"]:
                found.append((method, view, result["views"][view]))
        if len(result["views"]) != 1:
            found.append((method, JOINT, result["joint"]))
    return found


def percent(score: dict[str, Any] | None) -> Cell:
    """A dash where a run of before has no such score."""
    if score is None:
        return Cell("–", None)
    spread = f" ± {100 * score['std']:.1f}" if score["n"] > 1 else ""
    return Cell(f"{100 * score['mean']:.1f}{spread}", score["mean"])


def scores(run: Run) -> Section:
    """The table of train/run/summary.py, sortable."""
    right, part, kind = _right(run), run.part, run.kind
    common = not part or run.parts[run.method][part].common
    summary: dict[str, Any] = {**run.summary, "told_apart": told_apart(right, common)}
    gains = against(right, common) if len(summary["views"]) > 1 else {}
    spread = "mean ± standard deviation over the seeds"
    measure = MEASURES[selected_by(summary).removeprefix("val_")]
    val = f"{measure} in %; models were selected by it, so it is slightly too good"
    nll = f"mean negative log-likelihood on the {kind} images, in nats"
    gain = f"difference of {kind} top-1 in points: {meaning(len(summary['seeds']))}"
    columns = [
        Column("method"),
        Column("of"),
        Column(f"{kind} top-1 in %", True, spread),
        Column("balanced", True, f"balanced accuracy in %, {kind}: the mean over the classes"),
        Column("F1", True, f"macro F1 in %, {kind}: the mean over the classes"),
        Column(kind_of(summary, "val"), True, val),
        Column("NLL", True, nll),
        Column("ECE", True, "expected calibration error, 15 bins"),
    ]
    if gains:
        columns.append(Column("against late fusion", True, gain))
    rows, marked = [], []
    for method, what, score in score_rows(summary):
        if method == run.method and what == JOINT and summary["told_apart"]:
            marked.append(len(rows))
        row = _score_row(method, what, score, part, selected_by(summary))
        if gains:
            row.append(_gain(gains.get(method), what))
        rows.append(row)
    whole = table(columns, rows, name="scores-table", marked=marked)
    doubtful = undecided(summary)
    first = [note(f"{doubtful}.", warning=True)] if doubtful else []
    return Section("scores", "Scores", join([*first, whole, _caveat(summary)]))


def _right(run: Run) -> dict[str, np.ndarray]:
    """By method, which images the joint has right; nothing where nobody judges."""
    if not run.part:
        return {}
    return {method: run.parts[method][run.part].right_En for method in run.methods}


def _gain(found: Difference | None, what: str) -> Cell:
    """Nothing of a view's line, or of late fusion itself."""
    if found is None or what != JOINT:
        return Cell("", None)
    return Cell(str(found), found.points)


def _score_row(method: str, what: str, score: dict[str, Any], part: str, val: str) -> list[object]:
    return [
        title(method),
        METHODS[method].joint if what == JOINT else what,
        percent(score.get(f"{part}_top1")),
        percent(score.get(f"{part}_balanced")),
        percent(score.get(f"{part}_f1")),
        percent(score.get(val)),
        _number(score.get(f"{part}_nll")),
        _number(score.get(f"{part}_ece")),
    ]


def _number(score: dict[str, Any] | None) -> Cell:
    return Cell("–", None) if score is None else Cell(f"{score['mean']:.3f}", score["mean"])


def _caveat(summary: dict[str, Any]) -> Html:
    seeds, chosen = len(summary["seeds"]), chosen_on(summary)
    spread = "One seed: there is no spread to judge by."
    if seeds > 1:
        labels = "" if summary["labels"] == "all" else "labels, "
        spread = f"± is the spread over {seeds} draws of {labels}weights and batches."
    shown = "The row in bold is the method that the rest of this page shows"
    if not summary["told_apart"]:
        shown = "No row is in bold: which method the rest of this page shows is said above"
    more = " ".join(f"{text[0].upper()}{text[1:]}." for text in notes(summary))
    no_say = "; the test split had no say in which" if scored(summary) == "test" else ""
    return note(f"{chosen[0].upper()}{chosen[1:]}. {spread} {more} {shown}{no_say}.")


def curves(run: Run) -> Section | None:
    """Validation accuracy by step of every method, of each view and joint; then what co-training
    hands out, and what it hears back."""
    groups = by_method(run.records)
    if not groups:
        return None
    numbers = {name: number + 1 for number, name in enumerate(run.summary["views"])}
    numbers[JOINT] = 0
    parts: list[Html] = [_validation(groups, numbers)]
    for key, (heading, axis, about) in PSEUDO.items():
        charts, axes = [], Axes("step", axis, (0, 100))
        for method, records in groups.items():
            told = _pseudo(records, key)
            if _says_something(told):
                charts.append(lines(title(method), _series(told, numbers), axes))
        if charts:
            parts += [tag("h3", heading), note(about), grid(*charts)]
    charts, axes = [], Axes("step", "h of the student", zero=True)
    for method, records in groups.items():
        told = _feedback(records)
        if told:
            charts.append(lines(title(method), _series(told, numbers), axes))
    if charts:
        parts += [tag("h3", "Feedback h"), note(FEEDBACK), grid(*charts)]
    about = f"Means over the seeds, on the {kind_of(run.summary, 'val')} images."
    return Section("training", "Training", join(parts), about)


def by_method(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Those of the looks in which something was judged."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in filter(_judged, records):
        groups.setdefault(record["method"], []).append(record)
    return groups


def _judged(record: dict[str, Any]) -> bool:
    return bool(record["val"])


def _validation(groups: dict[str, list[dict[str, Any]]], numbers: dict[str, int]) -> Html:
    """One chart a method, all with the same axis."""
    low, high, told = np.inf, -np.inf, {}
    for method, records in groups.items():
        told[method] = []
        for record in records:
            top1 = {name: 100 * score["top1"] for name, score in record["val"].items()}
            low, high = min(low, *top1.values()), max(high, *top1.values())
            told[method].append((record["step"], top1))
    axes = Axes("step", "validation top-1 in %", (max(0.0, low - 2), min(100.0, high + 2)))
    charts = [lines(title(method), _series(one, numbers), axes) for method, one in told.items()]
    return grid(*charts)


def _pseudo(records: Sequence[dict[str, Any]], key: str) -> Told:
    told: Told = []
    for record in records:
        if "pseudo" in record:
            shares = {name: one[key] for name, one in record["pseudo"].items()}
            told.append((record["step"], {name: _in_percent(x) for name, x in shares.items()}))
    return told


def _feedback(records: Sequence[dict[str, Any]]) -> Told:
    return [(record["step"], record["feedback"]) for record in records if "feedback" in record]


def _says_something(told: Told) -> bool:
    return any(value is not None for _, values in told for value in values.values())


def _in_percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _series(told: Told, numbers: dict[str, int]) -> list[Series]:
    """One line a name, the joint first; names that are no view (an mpl's teacher) get a colour of
    their own."""
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float | None]] = {}
    for step, found in told:
        for name, value in found.items():
            steps.setdefault(name, []).append(step)
            values.setdefault(name, []).append(value)
    series = []
    for name in sorted(steps, key=lambda name: numbers.get(name, len(numbers))):
        colour = numbers.get(name, len(numbers))
        dash = 0 if numbers.get(name, 0) < 7 else 1
        series.append(Series(name, steps[name], values[name], colour, dash))
    return series


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{len(seeds)} ({seeds[0]} to {seeds[-1]})"
    return ", ".join(map(str, seeds))


def mean_sd(values_E: np.ndarray) -> Cell:
    """In percent, with the spread where there is one."""
    value = float(values_E.mean())
    spread = f" ± {100 * values_E.std(ddof=1):.1f}" if len(values_E) > 1 else ""
    return Cell(f"{100 * value:.1f}{spread}", value)
