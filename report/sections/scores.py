"""Sections of a report: what was trained on what, the table of scores, the curves of the training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from report.html.charts import Series, lines
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
from train.config import make_command
from train.methods import TITLES
from train.run.summary import against, limits

JOINT = "joint"


def intro(run: Run, data: str = "") -> Html:
    """The head of the page. data: what the images are called in the cache, where DATA means a newer version by now."""
    summary, rows, environment = run.summary, run.summary["rows"], run.environment
    prints = ", ".join(f"{name} {value[:8]}" for name, value in summary["fingerprints"].items())
    versions = ", ".join(
        f"{name} {value}" for name, value in environment["versions"].items() if value
    )
    git = (
        f"{environment['git'][:8]}{' and uncommitted changes' if environment['dirty'] else ''}"
        if environment["git"]
        else "not recorded"
    )
    return tag(
        "div",
        facts(
            [
                ("data", summary["dataset"]),
                ("views", ", ".join(summary["views"])),
                ("labels", summary["labels_text"]),
                (
                    "images",
                    f"{rows['labelled']:,} labelled, {rows['unlabelled']:,} unlabelled, {rows['val']:,} validation, {rows['test']:,} test",
                ),
                ("classes", f"{summary['classes']:,}"),
                ("seeds", _seeds(summary["seeds"])),
                ("shown in detail", title(run.method)),
                (
                    "device",
                    f"{environment['gpu'] or 'CPU'} ({environment['cpus']} cores), {summary['seconds']:,.0f} s",
                ),
                ("fingerprints", tag("code", prints)),
                ("versions", f"Python {environment['python']}, {versions}"),
                ("code", tag("code", git)),
            ]
        ),
        command(repeat(run, data)),
        class_="intro",
    )


def repeat(run: Run, data: str = "") -> str:
    """The command that trains this run again. Labels that came from a file are those that the run wrote down. data: what its images are called now."""
    labels = run.settings["labels"]
    written = (
        labels
        if isinstance(labels, str)
        else str(run.folder / "splits" / f"seed-{run.summary['seeds'][0]}.labelled.txt")
    )
    return make_command({**run.settings, "labels": written, "data": data or run.settings["data"]})


def title(method: str) -> str:
    return TITLES[method][0] if method in TITLES else method


def score_rows(summary: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, what, its scores) of every line of the table; what: a view or joint."""
    found = []
    for method in (name for name in TITLES if name in summary["methods"]):
        result = summary["methods"][method]
        found += [
            (method, view, result["views"][view])
            for view in summary["views"]
            if view in result["views"]
        ]
        found += [(method, JOINT, result["joint"])] if len(result["views"]) != 1 else []
    return found


def percent(score: dict[str, Any]) -> Cell:
    spread = f" ± {100 * score['std']:.1f}" if score["n"] > 1 else ""
    return Cell(f"{100 * score['mean']:.1f}{spread}", score["mean"])


def scores(run: Run) -> Section:
    """The table of train/run/summary.py, sortable."""
    summary, seeds, fusion = (
        run.summary,
        run.summary["seeds"],
        run.summary["methods"].get("supervised"),
    )
    paired = (
        bool(fusion)
        and len(seeds) > 1
        and len(summary["methods"]) > 1
        and len(summary["views"]) > 1
    )
    columns = [
        Column("method"),
        Column("of"),
        Column("test top-1 in %", True, "mean ± standard deviation over the seeds"),
        Column(
            "validation", True, "top-1 in %; models were selected by it, so it is slightly too good"
        ),
        Column("NLL", True, "mean negative log-likelihood on the test split, in nats"),
        Column("ECE", True, "expected calibration error, 15 bins"),
    ]
    columns += [
        Column(
            "against late fusion",
            True,
            "difference of test top-1 in points, paired over the seeds: mean ± standard error (t-test)",
        )
    ] * paired
    rows, marked = [], []
    for method, what, score in score_rows(summary):
        fused = what == JOINT
        row: list[object] = [
            title(method),
            TITLES[method][1] if fused else what,
            percent(score["test_top1"]),
            percent(score["val_top1"]),
            *[
                Cell(f"{score[key]['mean']:.3f}", score[key]["mean"])
                for key in ("test_nll", "test_ece")
            ],
        ]
        if paired:
            other = fused and method != "supervised"
            gain = score["test_top1"]["mean"] - fusion["joint"]["test_top1"]["mean"]
            row.append(
                Cell(against(summary["methods"][method], fusion).strip(), gain)
                if other
                else Cell("", None)
            )
        marked += [len(rows)] if method == run.method and fused else []
        rows.append(row)
    drawn = "weights and batches" if summary["labels"] == "all" else "labels, weights and batches"
    spread = (
        f"± is the spread over {len(seeds)} draws of {drawn}."
        if len(seeds) > 1
        else "One seed: there is no spread to judge by."
    )
    about = note(
        f"Selected on {summary['rows']['val']:,} labelled validation images, tested once on {summary['rows']['test']:,}. {spread} "
        f"{limits(summary).capitalize()}. The row in bold is "
        "the method that the rest of this page shows; the test split had no say in which."
    )
    return Section(
        "scores", "Scores", join([table(columns, rows, name="scores-table", marked=marked), about])
    )


def curves(run: Run) -> Section | None:
    """Validation accuracy by step of every method, of each view and joint; then what co-training hands out, and what it hears back."""
    groups = by_method(run.records)
    if not groups:
        return None
    names = {name: number + 1 for number, name in enumerate(run.summary["views"])} | {JOINT: 0}
    top1 = [
        100 * score["top1"]
        for records in groups.values()
        for record in records
        for score in record["val"].values()
    ]
    span = (max(0.0, min(top1) - 2), min(100.0, max(top1) + 2))
    charts = [
        lines(
            title(method),
            _series(
                records,
                names,
                lambda record: {name: 100 * score["top1"] for name, score in record["val"].items()},
            ),
            x="step",
            y="validation top-1 in %",
            y_range=span,
        )
        for method, records in groups.items()
    ]
    parts: list[Html] = [grid(*charts)]
    for key, heading, label, about in (
        (
            "precision",
            "Precision of the pseudo-labels",
            "right in %",
            "Of the labels that a view was taught since the last look, the share that is right, by hidden labels that training does not see.",
        ),
        (
            "coverage",
            "Coverage of the pseudo-labels",
            "of the unlabelled rows in %",
            "The share of the unlabelled rows that were given a label.",
        ),
    ):
        found = [
            lines(
                title(method),
                _series(
                    records,
                    names,
                    lambda record, key=key: {
                        name: None if told[key] is None else 100 * told[key]
                        for name, told in record["pseudo"].items()
                    },
                ),
                x="step",
                y=label,
                y_range=(0, 100),
            )
            for method, records in (
                (method, [one for one in records if "pseudo" in one])
                for method, records in groups.items()
            )
            if any(told[key] is not None for one in records for told in one["pseudo"].values())
        ]
        parts += [tag("h3", heading), note(about), grid(*found)] if found else []
    fed = {
        method: told
        for method, records in groups.items()
        if (told := [record for record in records if "feedback" in record])
    }
    if fed:
        parts += [
            tag("h3", "Feedback h"),
            note(
                "Whether a student's step on the labels that it was handed helped it on the labelled rows: positive h "
                "reinforces these labels, negative h discourages them. At 0 the teachers hear nothing."
            ),
            grid(
                *[
                    lines(
                        title(method),
                        _series(records, names, lambda record: record["feedback"]),
                        x="step",
                        y="h of the student",
                        zero=True,
                    )
                    for method, records in fed.items()
                ]
            ),
        ]
    return Section(
        "training", "Training", join(parts), "Means over the seeds, on the validation split."
    )


def by_method(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    return groups


def _series(records: Sequence[dict[str, Any]], names: dict[str, int], of: Any) -> list[Series]:
    """One line a name, the joint first; names that are no view (an mpl's teacher) get a colour of their own."""
    told = [(record["step"], of(record)) for record in records]
    found = sorted(
        dict.fromkeys(name for _, values in told for name in values),
        key=lambda name: names.get(name, len(names)),
    )
    return [
        Series(
            name,
            [step for step, values in told if name in values],
            [values[name] for _, values in told if name in values],
            names.get(name, len(names)),
            dash=(0 if names.get(name, 0) < 7 else 1),
        )
        for name in found
    ]


def _seeds(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{len(seeds)} ({seeds[0]} to {seeds[-1]})" if whole else ", ".join(map(str, seeds))


def mean_sd(values_E: np.ndarray) -> Cell:
    """In percent, with the spread where there is one."""
    value = float(values_E.mean())
    return Cell(
        f"{100 * value:.1f}"
        + (f" ± {100 * values_E.std(ddof=1):.1f}" if len(values_E) > 1 else ""),
        value,
    )
