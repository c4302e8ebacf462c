"""What a run reads before it begins: the views, a split for each seed, and which methods these
allow; and what there is to be warned of.

The rows of a data set and their splits are train/data's; here they meet the settings of a run.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.console import NOTE
from base.errors import UNKNOWN, DataQualityError, UsageError
from cache_specs.alike import alike
from cache_specs.items import Items
from train.config import TrainConfig
from train.data.apart import Apart, nobody
from train.data.folds import splits_of, trainings
from train.data.reader import Cache, open_cache
from train.data.scarce import have, listed, rarer_text, unlearnt
from train.data.seen import refuse_seen
from train.data.splits import Split
from train.data.texts import TAKEN, TEXT, how_to_encode, labelled_by_names, with_texts
from train.methods import METHODS
from train.run.rundir import drew_otherwise, split_file

log = logging.getLogger(f"coview.{__name__}")

# beyond them the heavy methods would take hours or all memory
MOST_BYTES, MOST_LABELLED = 4e9, 50_000
NO_LABEL = "0"  # of LABELS
MOST_MEANT = 100  # a greater SEEDS is nobody's number of seeds


Ground = tuple[Cache, list[Split], list[str]]  # the views, a split for each seed, the methods


def read(config: TrainConfig, aloud: bool = False, remember: bool = True) -> Ground:
    """The views, a split for each seed, and the methods: those asked for, or, of the default and of
    `all`, those that the data allow; what is left out is said `aloud`. remember: what was checked
    is noted in the cache. Raises CoviewError."""
    data = os.path.expanduser(config.data)
    cache = open_cache(Path(config.cache), data, config.view_list(), remember)
    cache = _named(config, cache)
    if len(cache.items.classes) < 2:
        raise _too_few_classes(cache.items)
    splits, older = _splits(config, cache)
    refuse_seen(cache, splits, config.seed_list())
    methods, told = allowed(config, cache, splits)
    told += older
    told += told_of_texts(cache, methods)
    if config.seeds.isdecimal() and 1 < int(config.seeds) <= MOST_MEANT:
        n = int(config.seeds)
        told.append(f"SEEDS={n} is the one seed {n}; {n} are SEEDS=0..{n - 1}")
    if aloud:
        for text in told:
            log.log(NOTE, text)
    return cache, splits, methods


def _named(config: TrainConfig, cache: Cache) -> Cache:
    """With the class names, where somebody asks for them; labelled by these, where nobody else
    labels. Raises UsageError where there are none."""
    if config.labels == NO_LABEL or not (cache.items.label >= 0).any():
        return _bare(config.labels, with_texts(cache))
    asked = [METHODS[name] for name in config.method_list()]
    if any(method.text or method.graphs for method in asked):
        return with_texts(cache)
    return cache


def _bare(labels: str, cache: Cache) -> Cache:
    """Without a label, or with none that counts: labelled by the class names, where there are."""
    if not cache.texts:
        if labels == NO_LABEL:
            how = how_to_encode(cache)
            raise UsageError(f"LABELS=0 needs class names. {how}", {"LABELS": UNKNOWN})
        return cache
    if labels not in (NO_LABEL, "all"):
        raise UsageError(
            f"LABELS={labels}: no image of {cache.items.name!r} has a label; the class names stand "
            "in for labels: leave LABELS out",
            instead={"LABELS": None},
        )
    return labelled_by_names(cache)


def told_of_texts(cache: Cache, methods: Sequence[str]) -> list[str]:
    """Whose class names have a say in which of the methods, and that they alone label."""
    if not cache.texts:
        return []
    having = [name for name in methods if METHODS[name].text or METHODS[name].graphs]
    told = f"the class names of {', '.join(cache.texts)} have a say in {', '.join(having)}"
    silent = [name for name in cache.names if name not in cache.texts]
    if silent:
        told += f"; none are encoded for {', '.join(silent)}"
    found = [told] if having else []
    if cache.taken:
        found.append(
            f"no label is used: of each class up to {TAKEN} images, of which the class names are "
            f"surest, are taken for labelled ({cache.taken:,} in all)"
        )
    return found


def _too_few_classes(items: Items) -> DataQualityError:
    if items.classes:
        told = (
            f"{items.name!r} has 1 class, {items.classes[0]!r}; training needs at least two: add "
            f"images of what is no {items.classes[0]!r} as another class"
        )
    else:
        told = (
            f"{items.name!r} has no classes; training needs at least two. Put the images into "
            "class folders, or give a table with the columns path,label,split, or say what there "
            "is, for views with a text tower: CLASSES=names.txt"
        )
    return DataQualityError(f"{told}, and extract once more")


def _splits(config: TrainConfig, cache: Cache) -> tuple[list[Split], list[str]]:
    """One for each seed: by the rule, or, of a run that an earlier version began, with the labelled
    images that it wrote down; and what is to be said of that."""
    folder, told = Path(config.runs) / config.run, []
    of_each: list[str] = []
    older = drew_otherwise(folder, cache.fingerprints)
    for seed in config.seed_list():
        written = split_file(folder, seed)
        labels = str(written) if older and written.is_file() else config.labels
        of_each.append("all" if cache.taken else labels)
    apart = config.apart()
    if cache.taken:
        apart = nobody(apart)
    splits = splits_of(cache.items, cache.ok, of_each, config.seed_list(), apart)
    if older and config.labels != "all":
        told.append(
            f"{folder} was begun by an earlier version, which drew other labelled images for the "
            f"same seeds: it goes on with those that stand in {folder / 'splits'}"
        )
    return splits, told


@dataclass(frozen=True)
class Refusal:
    """A kind of method that the data do not allow (a flag of train/methods.py), why, and what to
    type instead."""

    kind: str
    why: str
    instead: str


def allowed(
    config: TrainConfig, cache: Cache, splits: Sequence[Split]
) -> tuple[list[str], list[str]]:
    """The methods that the data allow, and what is to be said of the others. Raises UsageError
    where one of those was asked for by name, or none is left."""
    methods, told = config.method_list(), []
    by_name = config.method not in ("", "all")
    for refusal in [*nameless(methods, cache), *refusals(config.labels, cache, splits)]:
        hit = [method for method in methods if getattr(METHODS[method], refusal.kind)]
        methods = [method for method in methods if method not in hit]
        if hit and (by_name or not methods):
            raise UsageError(f"{refusal.why} {', '.join(hit)}. {refusal.instead}")
        if hit:
            told.append(f"{refusal.why} {', '.join(hit)}: left out")
    return methods, told


def nameless(methods: Sequence[str], cache: Cache) -> list[Refusal]:
    if TEXT not in methods or cache.texts:
        return []
    views = ",".join(cache.names)
    why = f"VIEWS={views}: no class names are encoded for any of them, which is needed for"
    return [Refusal("text", why, how_to_encode(cache))]


def refusals(labels: str, cache: Cache, splits: Sequence[Split]) -> list[Refusal]:
    found = []
    full = min(len(split.unlabelled) for split in splits) == 0
    if full:
        found.append(
            Refusal(
                "unlabelled",
                f"LABELS={labels} leaves no unlabelled image for",
                "Give fewer (LABELS=4, LABELS=10%), add images without a label, or type "
                "METHOD=supervised",
            )
        )
    size = score_bytes(cache, splits)
    many = max(len(split.labelled) for split in splits) > MOST_LABELLED
    if size > MOST_BYTES or many:
        others = "supervised" if full else "supervised,mct"
        found.append(
            Refusal(
                "heavy",
                f"the scores of all validation and test images (here some {size / 1e9:,.1f} GB) "
                f"and a graph of all labelled images (at most {MOST_LABELLED:,}) would not fit "
                "into memory, for",
                f"Use fewer seeds (SEEDS=0), smaller splits, or METHOD={others}",
            )
        )
    return found


def score_bytes(cache: Cache, splits: Sequence[Split]) -> int:
    """Of the float64 scores of all experts, the views, class names and graphs, in one split."""
    rows = max(len(splits[0].val), len(splits[0].test))
    experts = 2 * len(cache.names) + 1 + bool(cache.texts)
    return 8 * len(trainings(splits)) * len(cache.items.classes) * rows * experts


def warn(cache: Cache, split: Split, labels: str, apart: Apart) -> None:
    """Of everything that makes the results of a run mean less than they seem to."""
    cache.warn_of_drift()
    warn_of_training_copies(cache, split)
    warn_of_large_splits(cache, split, apart)
    warn_of_scarce_classes(cache, split, labels)
    warn_of_missing_classes(cache, split)
    warn_of_single_labels(cache, split)
    for (one, other), why in alike(cache.names).items():
        log.warning(f"the views {one} and {other} are too alike to teach each other much: {why}")


def warn_of_scarce_classes(cache: Cache, split: Split, labels: str) -> None:
    """Say which classes no training image is labelled of, and which have fewer than LABELS."""
    items = cache.items
    none = unlearnt(items, split).text(len(items.classes))
    for told in filter(None, [none, rarer_text(labels, items, split)]):
        log.warning(told)


def warn_of_missing_classes(cache: Cache, split: Split) -> None:
    """Say which classes have no validation or test image: no score and no choice says anything of
    them."""
    classes = cache.items.classes
    val = split.labelled if split.folds else split.val  # see warn_of_single_labels
    for name, rows in (("validation", val), ("test", split.test)):
        if not len(rows):
            continue
        lacking = np.setdiff1d(np.arange(len(classes)), cache.items.label[rows]).tolist()
        if lacking:
            log.warning(
                f"of {len(classes):,} classes {len(lacking):,} {have(len(lacking))} no {name} "
                f"image: {listed([classes[number] for number in lacking])}. The {name} scores say "
                f"nothing of {'it' if len(lacking) == 1 else 'them'}"
            )


def warn_of_single_labels(cache: Cache, split: Split) -> None:
    """Say which classes have a single label, where the labels judge, too."""
    classes, label_N = cache.items.classes, cache.items.label
    few = np.setdiff1d(label_N[split.labelled], label_N[split.val])
    if split.folds and len(few):
        log.warning(
            f"of {len(classes):,} classes {len(few):,} {have(len(few))} labels of one image alone: "
            f"{listed([classes[number] for number in few.tolist()])}. Nothing can judge what is "
            f"said of {'it' if len(few) == 1 else 'them'}; two labels a class could"
        )


def warn_of_large_splits(cache: Cache, split: Split, apart: Apart) -> None:
    """Say where copies, which stay on one side, made a split that was set apart more than twice its
    share."""
    items = cache.items
    pairs = zip(items.split, items.label, strict=True)
    whole = sum(said in ("", "train") and label >= 0 for said, label in pairs)
    each = [("val", "validation", split.val, apart.val), ("test", "test", split.test, apart.test)]
    for name, word, rows, percent in each:
        if name not in items.split and 0 < 2 * percent / 100 * whole < len(rows):
            log.warning(
                f"the {word} split that was set apart has {len(rows):,} of {whole:,} labelled "
                f"images, more than {percent:g} %: copies of one image stay on one side. Take the "
                "copies out, or name the splits yourself (folders train/, val/, test/, or a column "
                "split)"
            )


def warn_of_training_copies(cache: Cache, split: Split) -> None:
    """Say how many validation and test images are byte for byte among the training images."""
    sha256 = cache.items.sha256
    train = {sha256[row] for rows in (split.labelled, split.unlabelled) for row in rows}
    for name, rows in (("validation", split.val), ("test", split.test)):
        if name == "validation" and split.folds:
            continue
        copies = sum(sha256[row] in train for row in rows)
        if copies:
            log.warning(
                f"{copies} of {len(rows)} {name} images are byte for byte also training images; "
                "their scores are too good"
            )
