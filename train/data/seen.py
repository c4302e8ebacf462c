"""A view that has learnt from labels is not judged by them, nor lent them where they are hidden."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from base.console import counted
from base.errors import UNKNOWN, DataQualityError
from base.phrase import shown
from train.data.reader import Cache
from train.data.splits import Split


def refuse_seen(cache: Cache, splits: Sequence[Split], seeds: Sequence[int]) -> None:
    """Raise DataQualityError where a view's backbone has learnt from a label that judges, or that
    an experiment takes for unknown. splits: of each seed."""
    for name, contents in cache.seen.items():
        seen_N = np.array([sha256 in contents for sha256 in cache.items.sha256])
        for seed, split in zip(seeds, splits, strict=True):
            _refuse_split(cache, name, seen_N, seed, split)


def _refuse_split(cache: Cache, name: str, seen_N: np.ndarray, seed: int, split: Split) -> None:
    judging = [("test", split.test)]
    if not split.folds:
        judging.append(("validation", split.val))
    elif seen_N[split.labelled].any():
        raise DataQualityError(
            f"the view {name!r} has learnt from the labels that would judge it: without a "
            "validation split that the data name, nobody can choose. Take everything as usual "
            "(VAL=none), or name a validation split that it was not tuned on",
            {"VAL": "none"},
        )
    for part, rows in judging:
        _refuse_judged(cache, name, part, rows[seen_N[rows]], len(rows))
    # copies of what is labelled are known anyway
    known = {cache.items.sha256[row] for row in split.labelled}
    rows = split.unlabelled[seen_N[split.unlabelled]]
    hidden = [row for row in rows.tolist() if cache.items.sha256[row] not in known]
    if hidden:
        raise _more_labels(cache, name, seed, hidden)


def tuned_of(cache: Cache) -> dict[str, str]:
    """Of each view whose backbone has learnt from labels: how, and of how many images."""
    found = {}
    for name, contents in cache.seen.items():
        mode = cache.tuned[name]["spec"]["tuned"]["mode"]
        found[name] = f"{mode}, on the labels of {counted(len(contents), 'image')}"
    return found


def told_of_tuned(tuned: Mapping[str, str]) -> list[str]:
    """tuned: as `tuned_of` has it."""
    return [f"the backbone of {name} was tuned ({how})" for name, how in tuned.items()]


def _refuse_judged(cache: Cache, name: str, part: str, rows: np.ndarray, of: int) -> None:
    if not len(rows):
        return
    others = [view for view in cache.names if view != name]
    raise DataQualityError(
        f"the view {name!r} has learnt from the labels of {len(rows):,} of {counted(of, 'image')} "
        f"of the {part} split, the first is {shown(cache.items.keys[rows[0]])!r}: what it says of "
        f"them is no judgement. Leave it out, or tune it without them (make finetune)",
        {"VIEWS": ",".join(others)} if others else None,
    )


def _more_labels(cache: Cache, name: str, seed: int, rows: Sequence[int]) -> DataQualityError:
    tuned = cache.tuned[name]
    settings = tuned["spec"]["tuned"]["settings"]
    told = (
        f"the view {name!r} has learnt from the labels of {counted(len(rows), 'image')} that seed "
        f"{seed} takes for unlabelled, the first is {shown(cache.items.keys[rows[0]])!r}: more "
        "labels would be used than are counted"
    )
    own = str(settings.get("seed", 0))
    run = Path(tuned["provenance"].get("spec_file", "")).parent
    keys = run / "splits" / f"seed-{own}.labelled.txt"
    same = {"LABELS": str(keys) if keys.is_file() else UNKNOWN, "SEEDS": own}
    return DataQualityError(f"{told}. Train with the labels that it was tuned on", same)
