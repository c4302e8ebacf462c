"""What a run found, read again: summary.json, and the files that it vouches for; the table. Knows
no torch: what reckons it is train/run/scoring.py."""

import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from base import durable
from base.console import counted
from base.errors import UNKNOWN, IntegrityError
from train.algorithm.paired import FEW, Difference, difference
from train.data.scarce import Unlearnt
from train.data.seen import told_of_tuned
from train.methods import MEASURES, METHODS, Method, in_order

# a score, by what it is multiplied, and its digits
CELLS = (("top1", 100, 1), ("balanced", 100, 1), ("f1", 100, 1), ("nll", 1, 3), ("ece", 1, 3))
CHANCE = 0.05  # below it a difference counts, divided by the number of pairs that are looked at
UNKNOWABLE = (
    "how good this is cannot be known: each label was used, and none left out. Two labels a class "
    "would tell a little, a test split (TEST=20%) more"
)
NAMED = (
    "how good this is cannot be known: no label was used but the names of the classes. A test "
    "split of labelled images would tell"
)
AGAIN = (
    "Delete summary.json and type the command of the run once more, the same make train: the "
    "probes are kept, and what was made of them is made again"
)


def scored(summary: dict[str, Any]) -> str:
    """The part of the images that the results stand on: "test" where there are any, "val" where
    only these judge, "" where nobody can."""
    rows = summary["rows"]
    if rows["test"]:
        return "test"
    return "val" if rows["val"] else ""


def kind_of(summary: dict[str, Any], part: str) -> str:
    """What images, or scores, of a part are called."""
    if part == "val" and summary.get("folds"):
        return "out-of-fold"
    return {"test": "test", "val": "validation", "": "unknown"}[part]


def images_of(summary: dict[str, Any], part: str) -> str:
    """1 test image, 40 out-of-fold images."""
    return counted(summary["rows"][part], f"{kind_of(summary, part)} image")


def chosen_on(summary: dict[str, Any]) -> str:
    """By which images was chosen, and by which tested."""
    rows = summary["rows"]
    if not rows["val"]:
        text = "nothing was selected: no label was left out of any training"
    elif summary.get("folds"):
        text = (
            f"selected on {rows['val']:,} of the {rows['labelled']:,} labelled images, by what "
            "trainings without their labels say of them (out-of-fold)"
        )
    else:
        text = f"selected on {rows['val']:,} labelled validation images"
    return f"{text}, tested once on {rows['test']:,}" if rows["test"] else text


def summary_table(summary: dict[str, Any]) -> str:
    """The result as text: one line a view and method, mean ± standard deviation over the seeds, in
    percent; the joint lines against late fusion. Where it cannot tell the methods apart, it says so
    first; a run of before has no such numbers, and a dash instead."""
    seeds, methods, part = summary["seeds"], summary["methods"], scored(summary)
    paired = _is_paired(summary)
    body = []
    for name in in_order(methods):
        gain = ""
        if paired and name != "supervised":
            gain = _gain(methods[name].get("against"))
        body += _lines(METHODS[name], methods[name], summary["views"], part, gain)
    wide = max(len(title) for title, _ in body) + 2
    lines = [
        f"{summary['dataset']}, {summary['labels_text']}, {counted(len(seeds), 'seed')}; "
        f"{kind_of(summary, part)} scores in %, mean ± std over seeds",
        *filter(None, [undecided(summary)]),
        f"{'':{wide}}{'top-1':>11}{'balanced':>10}{'F1':>7}{'NLL':>8}{'ECE':>8}"
        f"{'   against late fusion' if paired else ''}",
        *[f"{title:{wide}}{cells}" for title, cells in body],
        f"{chosen_on(summary)}; {summary['seconds']:.0f} s",
        *notes(summary),
    ]
    if paired:
        lines.append(f"against late fusion: {meaning(len(seeds))}")
    return "\n".join(lines)


def _is_paired(summary: dict[str, Any]) -> bool:
    """Is there late fusion to compare others with, and somebody to judge?"""
    several = len(summary["methods"]) > 1 and len(summary["views"]) > 1
    return several and scored(summary) != "" and "supervised" in summary["methods"]


def _lines(
    method: Method, result: dict[str, Any], views: list[str], part: str, gain: str
) -> list[tuple[str, str]]:
    """Of one method, title and cells of a part's scores; gain: of the joint against late fusion."""
    lines = []
    for view in views:  # JSON keeps no order of its own
        if view in result["views"]:
            lines.append((f"{view}, {method.title}", _cells(result["views"][view], part)))
    if len(views) != 1 or not lines:  # one view has nothing to fuse with
        cells = f"{_cells(result['joint'], part)}{gain}"
        lines.append((f"{method.title}: {method.joint}", cells))
    return lines


def _cells(scores: dict[str, Any], part: str) -> str:
    cells = []
    for key, scale, digits in CELLS:
        found = scores.get(f"{part}_{key}")
        cells.append(f"{scale * found['mean']:.{digits}f}" if found else "–")
    top1 = scores.get(f"{part}_top1")
    if top1 and top1["n"] > 1:
        cells[0] += f" ± {100 * top1['std']:.1f}"
    value, balanced, f1, nll, ece = cells
    return f"{value:>11}{balanced:>10}{f1:>7}{nll:>8}{ece:>8}"


def _gain(against: dict[str, Any] | None) -> str:
    return f"   {Difference(**against)}" if against else "   –"


def doubt(share: float, n: int) -> float:
    """Two standard errors of a share that was found on n images, with two more right and two more
    wrong ones (Agresti & Coull 1998)."""
    p = (share * n + 2) / (n + 4)
    return 2 * float(np.sqrt(p * (1 - p) / (n + 4)))


def middle(share: float, n: int) -> float:
    """The middle of `doubt`: of few images a share is nearer to a half than it looks."""
    return (share * n + 2) / (n + 4)


def unknowable(summary: dict[str, Any]) -> str:
    """Why nobody judges. summary: of a run, or what a model says of it."""
    return NAMED if summary.get("taken") else UNKNOWABLE


def limits(summary: dict[str, Any]) -> str:
    """What the number of images that judge leaves open, whatever the spread over the seeds is: of
    test images, these have them in common."""
    part = scored(summary)
    if not part:
        return unknowable(summary)
    kind = kind_of(summary, part)
    common = ", and all seeds share them" if len(summary["seeds"]) > 1 and part == "test" else ""
    return f"so many {kind} images leave {_in_doubt(summary)}{common}"


def _in_doubt(summary: dict[str, Any]) -> str:
    part = scored(summary)
    best = max(found["joint"][f"{part}_top1"]["mean"] for found in summary["methods"].values())
    points = 100 * doubt(best, summary["rows"][part])
    return f"{100 * best:.1f} % in doubt by {points:.1f} points (two standard errors)"


def undecided(summary: dict[str, Any]) -> str:
    """That no two of the methods differ by more than chance would make them; '' where some do."""
    if summary.get("told_apart", True):
        return ""
    images = images_of(summary, scored(summary))
    pairs = math.comb(len(summary["methods"]), 2)
    among = f", counting all {pairs:,} pairs (Bonferroni)" if pairs > 1 else ""
    return (
        f"THIS TABLE CANNOT TELL THE METHODS APART: no difference is beyond chance{among}. "
        f"{images} leave {_in_doubt(summary)}; more labelled images tell more"
    )


def selected_by(summary: dict[str, Any]) -> str:
    """The validation score by which steps and settings were chosen, as `methods` have it; runs of
    before knew one alone."""
    return f"val_{summary.get('select', 'top1')}"


def selection_score(summary: dict[str, Any], method: str) -> float:
    """The joint's score that steps and settings were chosen by; 0.0 where nothing was chosen."""
    found = summary["methods"][method]["joint"].get(selected_by(summary))
    return found["mean"] if found else 0.0


def notes(summary: dict[str, Any]) -> list[str]:
    """What limits the scores, besides."""
    found = [] if undecided(summary) else [limits(summary)]
    found += told_of_tuned(summary.get("tuned", {}))
    if "unlearnt" in summary:
        found += filter(None, [Unlearnt(**summary["unlearnt"]).text(summary["classes"])])
    if summary.get("select", "top1") != "top1":
        chosen = MEASURES[summary["select"]]
        found.append(f"steps and settings were chosen by {chosen}")
    return found


def meaning(seeds: int) -> str:
    """What ± and p of a difference mean."""
    if seeds == 1:
        return (
            "mean difference ± its standard error, over the images alone; what other labels, "
            "weights and batches would give, one seed does not say: SEEDS=0..4"
        )
    few = "" if seeds >= FEW else "; of fewer than 5 seeds p is too careful: SEEDS=0..4"
    return f"mean difference ± its standard error, over seeds and images{few}"


def against(right: dict[str, np.ndarray], common: bool = True) -> dict[str, Difference]:
    """Of each other method the difference to late fusion of the supervised probes. right: {method:
    (E, n) bool}, which images the joint has right; common: the same ones of all seeds."""
    if "supervised" not in right:
        return {}
    fusion = right["supervised"]
    others = [name for name in right if name != "supervised"]
    return {name: difference(right[name], fusion, common) for name in others}


def told_apart(right: dict[str, np.ndarray], common: bool = True) -> bool:
    """Is one of the methods better than another one by more than chance, as many pairs as there are
    (Bonferroni)? True of one method alone."""
    pairs = list(itertools.combinations(right.values(), 2))
    if not pairs:
        return True
    return min(difference(*pair, common).p for pair in pairs) < CHANCE / len(pairs)


def read_summary(folder: Path) -> dict[str, Any]:
    """Raises IntegrityError where a byte of it is another than was written."""
    try:
        return durable.read_sealed(folder / "summary.json")
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{folder / 'summary.json'} is damaged ({error}). {AGAIN}") from error


def checked(folder: Path, name: str, summary: dict[str, Any]) -> Path:
    """A file of a finished run that is, byte for byte, what its summary was made with. Raises
    IntegrityError."""
    path = folder / name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read ({error.strerror}). {AGAIN}") from error
    if found != summary["files"].get(name):
        made_of_probes = name == "predictions.parquet" or name.startswith("splits/")
        then = AGAIN if made_of_probes else "Train again under another RUN"
        raise IntegrityError(
            f"{path} is not the file that {folder / 'summary.json'} was made with: it was changed "
            f"afterwards. {then}",
            instead=None if then == AGAIN else {"RUN": UNKNOWN, "RUNS": UNKNOWN},
        )
    return path
