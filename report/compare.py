"""make compare RUNS=a,b,c [TO=runs/compare.html]     (python -m report.compare --names a,b,c)

Puts finished runs side by side: the settings that differ, the scores with their spreads, the differences to the first run, paired over the seeds that both
have where data, labelled images and test images are the same (and says so where they are not), the learning curves. Prints tables and writes one page.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import UsageError
from base.phrase import line_of
from report.config import CompareConfig

if TYPE_CHECKING:
    from report.html.page import Html, Section
    from report.run import Run


def command(config: CompareConfig, found: dict[str, Any]) -> None:
    """make compare."""
    names = [name.strip() for name in config.names.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        others = sorted(
            Path(config.runs).glob("*/summary.json"), key=lambda path: path.stat().st_mtime
        )
        others = [path.parent.name for path in others if path.parent.name not in names]
        both = ",".join([*dict.fromkeys(names), *others[::-1]][:2])
        raise UsageError(
            f"RUNS={config.names}: at least two different runs are compared"
            + ("" if "," in both else "; train another, under another RUN"),
            instead={"RUNS": both} if "," in both else None,
        )
    from report.html.page import page_file

    to = page_file(config.to, line_of("compare", {"RUNS": config.names, "TO": "compare.html"}))
    from train.run.rundir import run_folder

    folders = []
    for name in names:
        try:
            folders.append(run_folder(config.runs, name))
        except UsageError as error:
            if (near := error.instead.pop("RUN", None)) and near not in names:
                error.instead["RUNS"] = ",".join(near if one == name else one for one in names)
            raise
    print(compare(folders, to, found))


def compare(folders: Sequence[Path], to: Path, told: dict[str, Any] | None = None) -> str:
    """Write the page; return the tables as text; what --json says of them is put into `told`. Raises CoviewError for a run that cannot be read."""
    from base import durable
    from report.html.page import page
    from report.run import read_run

    runs = [read_run(folder) for folder in folders]
    gains = differences(runs)
    if told is not None:
        told |= {
            "page": str(to),
            "runs": {run.name: run.summary["methods"] for run in runs},
            "differing": {name: values for name, *values in differing(runs)},
            "differences": [dataclasses.asdict(gain) for gain in gains],
        }
    text = page(
        " · ".join(run.name for run in runs),
        [settings(runs), scores(runs, gains), curves(runs)],
        kind="compare",
    )
    durable.make_folder(to.resolve().parent)
    durable.write(to, text.encode("utf-8", "replace"), "report")
    return "\n".join([_text(runs, gains), str(to)])


def labelled(run: "Run", seed: int) -> str:
    """A digest of the images that were labelled for a seed, and of their labels."""
    return run.summary["contents"]["labelled"][run.summary["seeds"].index(seed)]


KEEP = "to see what more labels bring, keep the test images apart before labelling, in folders val/ and test/ or a column split"


def why_not(first: "Run", other: "Run") -> tuple[list[int], str]:
    """The seeds over which two runs are paired, and, of none, the reason in words. Of two versions of a data set the same test images will do."""
    prints, names = (
        [run.summary["fingerprints"] for run in (first, other)],
        [run.summary["dataset"] for run in (first, other)],
    )
    of = [run.summary["contents"] for run in (first, other)]
    same_test = (
        first.parts[first.method]["test"].keys == other.parts[other.method]["test"].keys
        and of[0]["test"] == of[1]["test"]
    )
    if prints[0]["items"] != prints[1]["items"] and not (names[0] == names[1] and same_test):
        return (
            [],
            f"other data ({names[1]} {prints[1]['items'][:8]}, not {names[0]} {prints[0]['items'][:8]}"
            + (f"; {KEEP})" if names[0] == names[1] else ")"),
        )
    tests = [run.parts[run.method]["test"] for run in (first, other)]
    if tests[0].keys != tests[1].keys:
        return [], f"other test images ({len(tests[1].keys):,}, not these {len(tests[0].keys):,})"
    if of[0]["test_labels"] != of[1]["test_labels"]:
        return [], "other labels of the test images"
    shared = [seed for seed in first.summary["seeds"] if seed in other.summary["seeds"]]
    same = [seed for seed in shared if labelled(first, seed) == labelled(other, seed)]
    return same, ""


@dataclass(frozen=True)
class Gain:
    """A run's line against the same line of the first run: `text`, and the mean difference in points where they were paired, over `seeds`."""

    run: str
    method: str
    what: str
    text: str
    mean: float | None
    seeds: list[int]


def differences(runs: Sequence["Run"]) -> list[Gain]:
    """For every run but the first: each line that both have, and what each run would use (its shown method), paired where that is fair."""
    from report.sections.scores import JOINT, score_rows, title
    from train.run.summary import against

    first, found = runs[0], []
    for run in runs[1:]:
        seeds, reason = why_not(first, run)
        if reason:
            found.append(
                Gain(run.name, "", "", f"not comparable with {first.name}: {reason}", None, [])
            )
            continue
        lines = {(method, what): score for method, what, score in score_rows(first.summary)}
        pairs = [
            (title(method), what, score, lines[method, what])
            for method, what, score in score_rows(run.summary)
            if (method, what) in lines
        ]
        if run.method != first.method:
            pairs.append(
                (
                    f"{title(run.method)} against {title(first.method)}",
                    JOINT,
                    *(one.summary["methods"][one.method]["joint"] for one in (run, first)),
                )
            )
        for method, what, *both in pairs:
            a, b = (_of(score, one, seeds) for score, one in zip(both, (run, first), strict=True))
            gain = 100 * (sum(a) / len(a) - sum(b) / len(b))
            if not seeds:
                text = f"{gain:+.1f}, not paired: other labelled images or seeds"
            else:
                text = (
                    against(
                        *({"joint": {"test_top1": {"values": values}}} for values in (a, b))
                    ).strip()
                    if len(seeds) > 1
                    else f"{gain:+.1f}"
                )
                text += f", {len(seeds)} seed{'s' * (len(seeds) > 1)}"
            found.append(Gain(run.name, method, what, text, gain, seeds))
    return found


def _of(score: dict[str, Any], run: "Run", seeds: Sequence[int]) -> list[float]:
    """The values of these seeds; of none, all."""
    return [
        score["test_top1"]["values"][run.summary["seeds"].index(seed)]
        for seed in seeds or run.summary["seeds"]
    ]


def differing(runs: Sequence["Run"]) -> list[list[str]]:
    """A setting, fingerprint or version in which the runs differ, and what each run has."""

    def of(run: "Run") -> dict[str, str]:
        found = {
            name: f"{len(value)} keys of a file" if isinstance(value, list) else str(value)
            for name, value in run.settings.items()
        }
        prints = {
            f"fingerprint of {name}": value[:12]
            for name, value in run.summary["fingerprints"].items()
        }
        return (
            found
            | {
                "device": run.environment["gpu"] or "CPU",
                "code": (run.environment["git"] or "")[:8],
            }
            | prints
            | {
                f"version of {name}": str(value)
                for name, value in run.environment["versions"].items()
            }
        )

    each = [of(run) for run in runs]
    names = [
        name
        for name in dict.fromkeys(name for one in each for name in one)
        if len({one.get(name) for one in each}) > 1
    ]
    return [[name, *[one.get(name, "–") for one in each]] for name in names]


def settings(runs: Sequence["Run"]) -> "Section":
    from report.html.page import Column, Section, command, facts, join, note, table, tag
    from report.sections.scores import repeat

    rows = differing(runs)
    columns = [Column("setting"), *[Column(run.name) for run in runs]]
    body = (
        table(columns, rows, sortable=False)
        if rows
        else note("They are the same in every setting and fingerprint.")
    )
    commands = [
        tag(
            "details",
            tag("summary", f"the command of {run.name}"),
            command(repeat(run)),
            class_="values",
        )
        for run in runs
    ]
    about = facts(
        (
            run.name,
            f"{run.summary['dataset']}, {run.summary['labels_text']}, seeds {run.settings['seeds']}",
        )
        for run in runs
    )
    return Section(
        "settings", "What differs", join([about, tag("h3", "Settings"), body, *commands])
    )


def scores(runs: Sequence["Run"], gains: Sequence[Gain]) -> "Section":
    from report.html.page import Cell, Column, Section, join, note, table, tag
    from report.sections.scores import percent, score_rows, title

    each = [
        {(method, what): score for method, what, score in score_rows(run.summary)} for run in runs
    ]

    def top1(key: str) -> "Html":
        rows = [
            [
                title(method),
                what,
                *[
                    percent(one[method, what][key]) if (method, what) in one else Cell("–", None)
                    for one in each
                ],
            ]
            for method, what in dict.fromkeys(line for one in each for line in one)
        ]
        return table(
            [Column("method"), Column("of"), *[Column(run.name, True) for run in runs]], rows
        )

    paired = [
        [gain.run, gain.method, gain.what, Cell(gain.text, gain.mean)]
        for gain in gains
        if gain.mean is not None
    ]
    refused = [
        note(f"{gain.run} is {gain.text}.", warning=True) for gain in gains if gain.mean is None
    ]
    first = runs[0].name
    return Section(
        "scores",
        "Scores",
        join(
            [
                tag("h3", "On the test split"),
                top1("test_top1"),
                tag("h3", "On validation"),
                note(
                    "To choose between runs, go by these: who chooses by the test split is left with no honest figure."
                ),
                top1("val_top1"),
                tag("h3", f"Differences to {first}"),
                *refused,
                table(
                    [
                        Column("run"),
                        Column("method"),
                        Column("of"),
                        Column(f"minus {first}, in points", True),
                    ],
                    paired,
                )
                if paired
                else "",
                note(
                    "Paired over the seeds that two runs share, with the same labelled and the same test images: mean ± standard error, and, of 5 seeds or more, p of "
                    "a two-sided paired t-test. With many lines some p are small by chance."
                ),
            ]
        ),
        "Top-1 in %, mean ± standard deviation over the seeds.",
    )


def curves(runs: Sequence["Run"]) -> "Section":
    """The joint's validation accuracy, one figure a method, one line a run."""
    from report.html.charts import Series, lines
    from report.html.page import Section, grid, note
    from report.sections.scores import JOINT, by_method, title

    each = [by_method(run.records) for run in runs]
    methods = list(dict.fromkeys(method for one in each for method in one))
    charts = [
        lines(
            title(method),
            [
                Series(
                    run.name,
                    [record["step"] for record in one[method]],
                    [100 * record["val"][JOINT]["top1"] for record in one[method]],
                    number,
                    dash=number // 7 % 4,
                )
                for number, (run, one) in enumerate(zip(runs, each, strict=True))
                if method in one
            ],
            x="step",
            y="validation top-1 of the joint in %",
        )
        for method in methods
    ]
    return Section(
        "training",
        "Training",
        grid(*charts) if charts else note("No method of these runs is trained step by step."),
        "Means over the seeds.",
    )


def _text(runs: Sequence["Run"], gains: Sequence[Gain]) -> str:
    from report.sections.scores import JOINT, score_rows, title

    wide = max(14, *(len(run.name) + 2 for run in runs))
    each = [
        {(method, what): score for method, what, score in score_rows(run.summary)} for run in runs
    ]

    def top1(key: str, heading: str, only: str = "") -> list[str]:
        lines = [f"{heading:50}" + "".join(f"{run.name:>{wide}}" for run in runs)]
        for method, what in dict.fromkeys(
            line for one in each for line in one if only in ("", line[1])
        ):
            found = [one.get((method, what), {}).get(key) for one in each]
            cells = [
                "–"
                if score is None
                else f"{100 * score['mean']:.1f}"
                + (f" ± {100 * score['std']:.1f}" if score["n"] > 1 else "")
                for score in found
            ]
            lines.append(
                f"{f'{title(method)}: {what}':50}" + "".join(f"{cell:>{wide}}" for cell in cells)
            )
        return [*lines, ""]

    lines = top1("test_top1", "test top-1 in %, mean ± std over seeds") + top1(
        "val_top1", "validation, by which to choose between runs", JOINT
    )
    for gain in gains:
        what = f"{gain.run} − {runs[0].name}, {gain.method}: {gain.what}"
        lines.append(
            f"{what:60}{gain.text:>34}" if gain.mean is not None else f"{gain.run}: {gain.text}"
        )
    lines += ["", *(f"{name}: {' | '.join(values)}" for name, *values in differing(runs))]
    return "\n".join(lines)
