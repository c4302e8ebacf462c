"""Runs side by side: over which seeds two may be paired, what a run gains over the first, and what
they differ in."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from report.run import Run
from report.sections.scores import JOINT, score_rows, title
from train.run.summary import against

KEEP = (
    "to see what more labels bring, keep the test images apart before labelling, in folders val/ "
    "and test/ or a column split"
)


@dataclass(frozen=True)
class Gain:
    """A run's line against the same line of the first run: `text`, and the mean difference in
    points where they were paired, over `seeds`."""

    run: str
    method: str
    what: str
    text: str
    mean: float | None
    seeds: list[int]


def why_not(first: Run, other: Run) -> tuple[list[int], str]:
    """The seeds over which two runs are paired, and, of none, the reason in words. Of two versions
    of a data set the same test images will do."""
    ours, theirs = first.summary, other.summary
    our_keys = first.parts[first.method]["test"].keys
    their_keys = other.parts[other.method]["test"].keys
    if ours["fingerprints"]["items"] != theirs["fingerprints"]["items"]:
        same_test = our_keys == their_keys and _contents(first, "test") == _contents(other, "test")
        if not same_test or ours["dataset"] != theirs["dataset"]:
            return [], _other_data(ours, theirs)
    if our_keys != their_keys:
        return [], f"other test images ({len(their_keys):,}, not these {len(our_keys):,})"
    if _contents(first, "test_labels") != _contents(other, "test_labels"):
        return [], "other labels of the test images"
    return _shared(first, other), ""


def _shared(first: Run, other: Run) -> list[int]:
    """The seeds that both have, with the same labelled images."""
    found = []
    for seed in first.summary["seeds"]:
        if seed in other.summary["seeds"] and labelled(first, seed) == labelled(other, seed):
            found.append(seed)
    return found


def _contents(run: Run, name: str) -> Any:
    """A digest of the images of a split, or of their labels."""
    return run.summary["contents"][name]


def _other_data(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    here = f"{ours['dataset']} {ours['fingerprints']['items'][:8]}"
    there = f"{theirs['dataset']} {theirs['fingerprints']['items'][:8]}"
    keep = f"; {KEEP}" if ours["dataset"] == theirs["dataset"] else ""
    return f"other data ({there}, not {here}{keep})"


def labelled(run: Run, seed: int) -> str:
    """A digest of the images that were labelled for a seed, and of their labels."""
    return _contents(run, "labelled")[run.summary["seeds"].index(seed)]


def lines_of(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, view or joint) -> its scores."""
    return {(method, what): score for method, what, score in score_rows(run.summary)}


def all_lines(each: Sequence[dict[tuple[str, str], Any]]) -> list[tuple[str, str]]:
    """The lines of several runs, each once, in their order."""
    return list(dict.fromkeys(itertools.chain.from_iterable(each)))


def differences(runs: Sequence[Run]) -> list[Gain]:
    """For every run but the first: each line that both have, and what each run would use (its shown
    method), paired where that is fair."""
    first, found = runs[0], []
    for run in runs[1:]:
        seeds, reason = why_not(first, run)
        if reason:
            told = f"not comparable with {first.name}: {reason}"
            found.append(Gain(run.name, "", "", told, None, []))
            continue
        lines = lines_of(first)
        for (method, what), score in lines_of(run).items():
            if (method, what) in lines:
                theirs = _values(score, run, seeds)
                ours = _values(lines[method, what], first, seeds)
                text, gain = _gain(theirs, ours, seeds)
                found.append(Gain(run.name, title(method), what, text, gain, seeds))
        if run.method != first.method:
            theirs = _values(run.summary["methods"][run.method]["joint"], run, seeds)
            ours = _values(first.summary["methods"][first.method]["joint"], first, seeds)
            text, gain = _gain(theirs, ours, seeds)
            both = f"{title(run.method)} against {title(first.method)}"
            found.append(Gain(run.name, both, JOINT, text, gain, seeds))
    return found


def _values(score: dict[str, Any], run: Run, seeds: Sequence[int]) -> list[float]:
    """Those of these seeds; of none, all."""
    there, values = run.summary["seeds"], score["test_top1"]["values"]
    return [values[there.index(seed)] for seed in seeds or there]


def _gain(theirs: list[float], ours: list[float], seeds: Sequence[int]) -> tuple[str, float]:
    """The mean difference in points, in words and as a number. seeds: over which it is paired."""
    gain = 100 * (sum(theirs) / len(theirs) - sum(ours) / len(ours))
    if not seeds:
        return f"{gain:+.1f}, not paired: other labelled images or seeds", gain
    if len(seeds) == 1:
        return f"{gain:+.1f}, 1 seed", gain
    return f"{against(_alone(theirs), _alone(ours)).strip()}, {len(seeds)} seeds", gain


def _alone(values: list[float]) -> dict[str, Any]:
    """These accuracies as a summary has them."""
    return {"joint": {"test_top1": {"values": values}}}


def differing(runs: Sequence[Run]) -> list[list[str]]:
    """A setting, fingerprint or version in which the runs differ, and what each run has."""
    each, rows = list(map(_told, runs)), []
    for name in dict.fromkeys(itertools.chain.from_iterable(each)):
        values = [told.get(name, "–") for told in each]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def _told(run: Run) -> dict[str, str]:
    """All that runs may differ in."""
    found = {}
    for name, value in run.settings.items():
        found[name] = f"{len(value)} keys of a file" if isinstance(value, list) else str(value)
    found["device"] = run.environment["gpu"] or "CPU"
    found["code"] = (run.environment["git"] or "")[:8]
    for name, value in run.summary["fingerprints"].items():
        found[f"fingerprint of {name}"] = value[:12]
    for name, value in run.environment["versions"].items():
        found[f"version of {name}"] = str(value)
    return found
