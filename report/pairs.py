"""Runs side by side: over which seeds two may be paired, what a run gains over the first, and what
they differ in."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from base.console import counted
from report.run import Run
from report.sections.scores import JOINT, score_rows, title
from train.algorithm.paired import difference
from train.run.summary import selected_by

KEEP = (
    "to see what more labels bring, keep the test images apart before labelling, in folders val/ "
    "and test/ or a column split"
)


@dataclass(frozen=True)
class Gain:
    """A run's line against the same line of the first run: `text`, the mean difference in points,
    and, where they were paired, over `seeds`, its standard error and p-value."""

    run: str
    method: str
    what: str
    text: str
    mean: float | None
    seeds: list[int]
    error: float | None = None
    p: float | None = None


Line = tuple[str, str]  # method, and a view or the joint


def why_not(first: Run, other: Run) -> tuple[list[int], str]:
    """The seeds over which two runs are paired, and, of none, the reason in words. Of two versions
    of a data set, or a folder and a table of it, the same test images will do; out-of-fold, the
    same labelled ones."""
    ours, theirs, part = first.summary, other.summary, first.part
    if not part or not other.part:
        return [], "nothing tells how good one of them is: no label was left out"
    if other.part != part or first.kind != other.kind:
        return [], f"{other.kind} scores, not {first.kind} ones"
    same_data = ours["fingerprints"]["items"] == theirs["fingerprints"]["items"]
    if first.kind == "out-of-fold":
        seeds = _shared(first, other)
        told = _other_data(ours, theirs, ours["dataset"] == theirs["dataset"])
        return (seeds, "") if seeds or same_data else ([], told)
    return _of_common_images(first, other, same_data)


def _of_common_images(first: Run, other: Run, same_data: bool) -> tuple[list[int], str]:
    """Where the same images judge for all seeds."""
    ours, theirs, part = first.summary, other.summary, first.part
    our_keys, their_keys = _keys(first), _keys(other)
    same_test = our_keys == their_keys and _contents(first, part) == _contents(other, part)
    if not same_test and not same_data:
        related = ours["dataset"] == theirs["dataset"] or not set(our_keys).isdisjoint(their_keys)
        return [], _other_data(ours, theirs, related)
    if not same_test:
        told = f"other {first.kind} images ({len(their_keys):,}, not these {len(our_keys):,})"
        return [], told
    if _contents(first, f"{part}_labels") != _contents(other, f"{part}_labels"):
        return [], f"other labels of the {first.kind} images"
    return _shared(first, other), ""


def _below(keys: Sequence[str]) -> list[str]:
    """Keys without the folders that all have in common, which a table beside the folder adds."""
    cut = os.path.commonprefix(keys).rfind("/") + 1  # noqa: RUF071  at a slash
    return [key[cut:] for key in keys]


def _keys(run: Run, seed: int = 0) -> list[str]:
    """Of the images that judge, of the seed at this place."""
    return _below(run.parts[run.method][run.part].keys_E[seed])


def _shared(first: Run, other: Run) -> list[int]:
    """The seeds that both have, with the same labelled images, and the same images that judge."""
    found, here, there = [], first.summary["seeds"], other.summary["seeds"]
    for seed in here:
        if seed not in there or labelled(first, seed) != labelled(other, seed):
            continue
        if _keys(first, here.index(seed)) == _keys(other, there.index(seed)):
            found.append(seed)
    return found


def _contents(run: Run, name: str) -> Any:
    """A digest of the images of a split, or of their labels."""
    return run.summary["contents"][name]


def _other_data(ours: dict[str, Any], theirs: dict[str, Any], related: bool) -> str:
    """related: one grew out of the other."""
    here = f"{ours['dataset']} {ours['fingerprints']['items'][:8]}"
    there = f"{theirs['dataset']} {theirs['fingerprints']['items'][:8]}"
    keep = f"; {KEEP}" if related else ""
    return f"other data ({there}, not {here}{keep})"


def labelled(run: Run, seed: int) -> str:
    """A digest of the images that were labelled for a seed, and of their labels."""
    return _contents(run, "labelled")[run.summary["seeds"].index(seed)]


def lines_of(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, view or joint) -> its scores."""
    return {(method, what): score for method, what, score in score_rows(run.summary)}


def chosen_by(runs: Sequence[Run]) -> list[str]:
    """The validation scores by which runs may be chosen: those by which they chose themselves."""
    return list(dict.fromkeys(selected_by(run.summary) for run in runs))


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
        for line in lines_of(run):
            if line in lines:
                found.append(_gain(run, line, first, line, seeds))
        if run.method != first.method:
            found.append(_gain(run, (run.method, JOINT), first, (first.method, JOINT), seeds))
    return found


def _gain(run: Run, line: Line, first: Run, than: Line, seeds: list[int]) -> Gain:
    """Of a line of `run` over one of `first`. seeds: over which it is paired."""
    method = title(line[0])
    if line != than:
        method = f"{method} against {title(than[0])}"
    mean = 100 * (_mean(run, line, seeds) - _mean(first, than, seeds))
    gain = Gain(run.name, method, line[1], f"{mean:+.1f}", mean, seeds)
    if not seeds:
        return replace(gain, text=f"{gain.text}, not paired: other labelled images or seeds")
    right_En, other_En = _right(run, line, seeds), _right(first, than, seeds)
    over = counted(len(seeds), "seed")
    if right_En is None or other_En is None:
        return replace(gain, text=f"{gain.text} ± –, {over}")
    common = run.parts[run.method][run.part].common
    found = difference(right_En, other_En, common)
    return replace(gain, text=f"{found}, {over}", error=found.error, p=found.p)


def _mean(run: Run, line: Line, seeds: Sequence[int]) -> float:
    """The mean accuracy over these seeds; of none, all."""
    method, what = line
    found, there = run.summary["methods"][method], run.summary["seeds"]
    scores = found["joint"] if what == JOINT else found["views"][what]
    values = [scores[f"{run.part}_top1"]["values"][there.index(seed)] for seed in seeds or there]
    return sum(values) / len(values)


def _right(run: Run, line: Line, seeds: Sequence[int]) -> np.ndarray | None:
    """(E, n) bool: which images a line has right for these seeds; None of a view in a run of
    before, which did not write that down."""
    method, what = line
    part, there = run.parts[method][run.part], run.summary["seeds"]
    at = [there.index(seed) for seed in seeds]
    if what == JOINT:
        return part.right_En[at]
    own = run.summary["methods"][method]["views"]
    if len(part.own_VEn) < len(own):
        return None
    number = [view for view in run.summary["views"] if view in own].index(what)
    return part.own_VEn[number][at] == part.label_En[at]


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
    found["data"] = found["data"].rstrip("/") or "/"  # photos/ is photos
    found["device"] = run.environment["gpu"] or "CPU"
    found["code"] = (run.environment["git"] or "")[:8]
    for name, value in run.summary["fingerprints"].items():
        found[f"fingerprint of {name}"] = value[:12]
    for name, value in run.environment["versions"].items():
        found[f"version of {name}"] = str(value)
    return found
