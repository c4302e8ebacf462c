"""make compare RUNS=a,b,c [TO=runs/compare.html]     (coview compare --names a,b,c)

Puts finished runs side by side: the settings that differ, the scores with their spreads, the
differences to the first run, paired over the seeds that both have where data, labelled images and
test images are the same (and says so where they are not), the learning curves. Prints tables and
writes one page.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base import durable
from base.errors import CoviewError, UsageError
from base.phrase import line_of, quoted
from report.config import CompareConfig
from report.html.page import page, page_file
from report.pairs import Gain, all_lines, chosen_by, differences, differing, lines_of
from report.run import Run, read_run
from report.sections.runs import MEANING, curves, scores, settings
from report.sections.scores import JOINT, title
from train.methods import MEASURES
from train.run.rundir import newest_runs, run_folder
from train.run.summary import read_summary


def command(config: CompareConfig, found: dict[str, Any]) -> None:
    """make compare."""
    if not config.names and not Path(config.runs).is_dir():
        raise UsageError(
            f"--runs {config.runs}: it takes the folder where runs lie, and there is no such one; "
            f"the runs that are compared are RUNS={quoted(config.runs)}",
            {"RUNS": config.runs, "--runs": None},
        )
    names = _names(config)
    if len(names) < 2 or len(set(names)) < len(names):
        raise _too_few(config, names)
    to = page_file(config.to, line_of("compare", {"RUNS": ",".join(names), "TO": "compare.html"}))
    folders = [_folder(config.runs, name, names) for name in names]
    print(compare(folders, to, found))


def _names(config: CompareConfig) -> list[str]:
    """Of RUNS, between commas or, since only a folder's path may hold one, blanks."""
    found = []
    for part in config.names.split(","):
        found += [part.strip()] if "/" in part else part.split()
    return [name for name in found if name]


def _too_few(config: CompareConfig, names: Sequence[str]) -> UsageError:
    """With the command that compares the latest other run of the same data set too, where there
    is one."""
    folders = [_folder(config.runs, name, names) for name in names]
    others = newest_runs(config.runs)
    both = list(dict.fromkeys(names)) or [folder.name for folder in others[:1]]
    given = [*folders, *others][:1]
    if len(both) == 1:
        both += _others_like(given[0], others)[:1]
    there_are = len(both) >= 2
    another = "" if there_are else "; train another on the same data set, under another RUN"
    return UsageError(
        f"RUNS={config.names}: at least two different runs are compared{another}",
        instead={"RUNS": ",".join(both)} if there_are else None,
    )


def _others_like(folder: Path, others: Sequence[Path]) -> list[str]:
    """The names of the others of the same data set."""
    data, found = _data(folder), []
    for other in others:
        if other.name != folder.name and _data(other) == data:
            found.append(other.name)
    return found


def _data(folder: Path) -> str:
    """The data set of a finished run; '' where that cannot be read."""
    try:
        return str(read_summary(folder)["dataset"])
    except (CoviewError, KeyError):
        return ""


def _folder(runs: str, name: str, names: Sequence[str]) -> Path:
    """Of one of these names. What an error proposes instead of it is put among the others."""
    try:
        return run_folder(runs, name, names)
    except CoviewError as error:
        near = error.instead.pop("RUN", None)
        if near:
            error.instead["RUNS"] = ",".join(near if one == name else one for one in names)
        raise


def compare(folders: Sequence[Path], to: Path, told: dict[str, Any] | None = None) -> str:
    """Write the page; return the tables as text; what --json says of them is put into `told`.
    Raises CoviewError for a run that cannot be read."""
    runs = list(map(read_run, folders))
    gains = differences(runs)
    if told is not None:
        told |= {
            "page": str(to),
            "runs": {run.name: run.summary["methods"] for run in runs},
            "differing": {name: values for name, *values in differing(runs)},
            "differences": list(map(dataclasses.asdict, gains)),
        }
    heading = " · ".join(run.name for run in runs)
    sections = [settings(runs), scores(runs, gains), curves(runs)]
    text = page(heading, sections, kind="compare")
    durable.make_folder(to.resolve().parent)
    durable.write(to, text.encode("utf-8", "replace"), "report")
    return "\n".join([_text(runs, gains), str(to)])


def _text(runs: Sequence[Run], gains: Sequence[Gain]) -> str:
    kind = " or ".join(dict.fromkeys(run.kind for run in runs))
    lines = [
        *_scores(runs, "top1", f"{kind} top-1 in %, mean ± std over seeds"),
        *_scores(runs, "balanced", f"{kind} balanced accuracy"),
        *_scores(runs, "f1", f"{kind} macro F1"),
    ]
    for key in chosen_by(runs):
        heading = "validation, by which to choose between runs"
        if key != "val_top1":
            heading += f": {MEASURES[key.removeprefix('val_')]}"
        lines += _scores(runs, key, heading, JOINT)
    lines.append(f"differences: {MEANING}")
    for gain in gains:
        if gain.mean is None:
            lines.append(f"{gain.run}: {gain.text}")
        else:
            what = f"{gain.run} − {runs[0].name}, {gain.method}: {gain.what}"
            lines.append(f"{what:60}{gain.text:>34}")
    lines.append("")
    for name, *values in differing(runs):
        lines.append(f"{name}: {' | '.join(values)}")
    return "\n".join(lines)


def _scores(runs: Sequence[Run], key: str, heading: str, only: str = "") -> list[str]:
    """A table as lines; only: of these lines alone."""
    names, each = [run.name for run in runs], list(map(lines_of, runs))
    wide = max(14, 2 + max(map(len, names)))
    lines = [_line(heading, names, wide)]
    for method, what in all_lines(each):
        if only in ("", what):
            cells = []
            for run, found in zip(runs, each, strict=True):
                scores = found.get((method, what), {})
                cells.append(_cell(scores.get(key, scores.get(f"{run.part}_{key}"))))
            lines.append(_line(f"{title(method)}: {what}", cells, wide))
    return [*lines, ""]


def _line(first: str, cells: Sequence[str], wide: int) -> str:
    return f"{first:50}" + "".join(cell.rjust(wide) for cell in cells)


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "–"
    spread = f" ± {100 * score['std']:.1f}" if score["n"] > 1 else ""
    return f"{100 * score['mean']:.1f}{spread}"
