"""Which rows are labelled, unlabelled, for validation and for test. A pure function of the item
list, LABELS and the seed.

    LABELS=all       every labelled training row
    LABELS=4         4 a class, and all of a class that has fewer
    LABELS=10%       that share of each class, at least 1
    LABELS=my.txt    the keys in a file, one a line, or only their last parts

For one seed the choices are nested: the rows of LABELS=3 are among those of LABELS=4. Those of a
class follow from its name and its images, whatever other classes there are.

Test and validation rows are those that the data set names. Where it names none, a share of each
class can be set apart (train/data/apart.py), the same for every seed, chosen by their contents;
rows that a file names are not given away. Without validation rows the labelled ones judge
(train/data/folds.py).

ImageNet's published lists (1percent.txt and 10percent.txt of github.com/google-research/simclr,
folder imagenet_subsets/) hold bare file names, which is enough.
"""

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.console import counted
from base.errors import UNKNOWN, DataQualityError, UsageError
from cache_specs.items import Items
from train.algorithm.streams import Purpose, place_of, stream
from train.data.apart import AS_NAMED, Apart

DRAWS = "of each class by its name"  # what a run notes down of how labelled images are drawn
SMALLEST = 4  # images of a class that leave some for training, validation and test
WORDS = {"validation": "VAL", "test": "TEST"}  # by which they are set apart
ONE_EACH = "every class has one image"
MOST_ASKED, NEAR = 10_000, 0.8  # keys among which a slip is looked for; how alike it must be
NUMBER = re.compile(r"all|\d+|[\d.]+%")


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers, ascending and disjoint. `unlabelled` are the training rows whose labels are
    hidden or unknown.

    folds: of a split whose validation rows are labelled training rows, too (train/data/folds.py):
    the same with some of these taken for unlabelled, which are their validation rows."""

    labelled: np.ndarray
    unlabelled: np.ndarray
    val: np.ndarray
    test: np.ndarray
    folds: tuple["Split", ...] = ()


def make_split(
    items: Items, ok: np.ndarray, labels: str, seed: int, apart: Apart = AS_NAMED
) -> Split:
    """The split of one experiment. ok: (N,) bool, the rows usable in every view. Raises UsageError
    or DataQualityError."""
    known = items.label >= 0
    named = None
    if not NUMBER.fullmatch(labels) and Path(labels).is_file():
        named = _from_file(items, Path(labels))
    role = assign(items, named, apart)
    val = np.flatnonzero((role == "val") & known & ok)
    test = np.flatnonzero((role == "test") & known & ok)
    pool = np.flatnonzero((role == "train") & known)
    if named is None:
        labelled = _choose(items, pool, ok, labels, seed)
    else:
        labelled = _usable(items, named, pool[ok[pool]], labels)
    training = np.flatnonzero(((role == "train") | (role == "unlabelled")) & ok)
    asked = {
        "labelled training": (labelled, True),
        "validation": (val, apart.val or (role == "val").any()),
        "test": (test, apart.test or (role == "test").any()),
    }
    for name, (rows, wanted) in asked.items():
        if wanted and len(rows) == 0:
            raise _none(items, ok, name)
    return Split(labelled, np.setdiff1d(training, labelled), val, test)


def _none(items: Items, ok: np.ndarray, name: str) -> DataQualityError:
    """Why there is no usable image of this part, and what to do."""
    known = items.label >= 0
    told = (
        f"{items.name!r} has no usable {name} image: {int(known.sum())} of {len(items)} have a "
        f"label, {int(ok.sum())} are usable in every view"
    )
    most = int(np.bincount(items.label[known], minlength=1).max())
    if most == 0:
        then = "Put images into class folders, or give a table with the columns path,label,split"
    elif most < SMALLEST:
        classes = len(np.unique(items.label[known]))
        have = f"every class has {counted(most, 'image')} or fewer" if most > 1 else ONE_EACH
        if classes == 1:
            have = f"there is 1 class, of {counted(most, 'image')}"
        then = f"The cause: {have}. Add images and type make extract once more"
        if name in WORDS:
            then = (
                f"The cause: {have}. From {SMALLEST} images a class on, some can be set apart: "
                f"leave {WORDS[name]} out, or add images and type make extract once more"
            )
    else:
        then = (
            "No image of that part has a label and can be read: mend or label some, or leave its "
            "folder or split out"
        )
    return DataQualityError(f"{told}. {then}")


def assign(items: Items, named: np.ndarray | None = None, apart: Apart = AS_NAMED) -> np.ndarray:
    """(N,) str: train, val, test or unlabelled for each row. What the data set says stands. What is
    to be set apart is not of the rows `named` as labelled: those are left out of the share, so that
    a test split of other labels has at most these rows more. Raises UsageError where the data set
    names what is to be set apart."""
    role = np.array(items.split, object)
    open_rows, labelled = role == "", items.label >= 0
    role[open_rows & ~labelled] = "unlabelled"
    role[open_rows & labelled] = "train"
    if apart.trains:
        role[role == "val"] = "train"
    given = role.copy()
    for name, key, percent in (("test", 1, apart.test), ("val", 2, apart.val)):
        there = (given == name).any()
        if not percent or (there and apart.fills):
            continue
        if there:
            raise _named_already(items, name, percent)
        for label in range(len(items.classes)):
            own = items.label == label
            rows = _by_content(items, np.flatnonzero((role == "train") & own), key)
            whole = int(((given == "train") & own).sum())
            count = max(1, int(whole * percent / 100 + 1e-9)) if len(rows) > 2 else 0
            role[rows[: _whole_groups(items, rows, count)]] = name
    if named is not None:
        role[named[given[named] == "train"]] = "train"
    return role


def _named_already(items: Items, name: str, percent: float) -> UsageError:
    told = {"val": ("VAL", "validation"), "test": ("TEST", "test")}
    word, split = told[name]
    return UsageError(
        f"{word}={percent:g}%: {items.name!r} names a {split} split of its own, which is used: "
        f"leave {word} out",
        instead={word: None},
    )


def _by_content(items: Items, rows: np.ndarray, key: int) -> np.ndarray:
    """The rows in an order that chance, by their contents, gives them: when images are added or
    moved, hardly one of the others changes its side."""
    digests = []
    for row in rows:
        content = items.sha256[row] or items.keys[row]
        digests.append(hashlib.sha256(f"{key} {content}".encode()).digest())
    return rows[sorted(range(len(rows)), key=digests.__getitem__)]


def _whole_groups(items: Items, rows: np.ndarray, count: int) -> int:
    """`count`, or, where it would cut through copies of one image, the number at which they end, or
    begin where they are the last; a class of one image's copies alone is cut all the same."""

    def cuts(place: int) -> bool:
        if not 0 < place < len(rows):
            return False
        content = items.sha256[rows[place]]
        return bool(content) and content == items.sha256[rows[place - 1]]

    end = count
    while cuts(end):
        end += 1
    if end < len(rows):
        return end
    begin = count
    while cuts(begin):
        begin -= 1
    return begin or count


def _choose(items: Items, known: np.ndarray, ok: np.ndarray, labels: str, seed: int) -> np.ndarray:
    """`known` are permuted before the unusable ones are dropped, so that a bad image of one view
    changes no other draw."""
    pool = known[ok[known]]
    if labels == "all" or not len(pool):
        _wanted(labels, 1)
        return pool
    chosen = []
    for label in np.unique(items.label[pool]):
        chance = stream(seed, Purpose.LABELLED, place=place_of(items.classes[label]))
        rows = chance.permutation(known[items.label[known] == label])
        rows = rows[ok[rows]]
        chosen.append(rows[: _wanted(labels, len(rows))])
    return np.sort(np.concatenate(chosen))


def _wanted(labels: str, of: int) -> int:
    """How many of a class's `of` images LABELS asks for: a number, a share, or all."""
    if labels == "all":
        return of
    try:
        if labels.endswith("%"):
            percent = float(labels[:-1])
            if 0 < percent <= 100:
                return max(1, round(of * percent / 100))
        elif int(labels) >= 1:
            return int(labels)
    except ValueError:
        pass
    raise UsageError(
        f"LABELS={labels}: neither a number a class (LABELS=4), nor a share (LABELS=10%), nor "
        "'all', nor a file that is there",
        instead={"LABELS": _as_share(labels)},
    )


def _as_share(labels: str) -> str:
    """0.1 -> 10%, the share that is probably meant; else the sign for what only the user knows."""
    try:
        share = float(labels)
    except ValueError:
        return UNKNOWN
    return f"{100 * share:.6g}%" if 0 < share < 1 else UNKNOWN


def _from_file(items: Items, path: Path) -> np.ndarray:
    """The rows that a file names, in its order, by their keys or by the ends of keys. Raises
    UsageError where a line names none, or several."""
    lines = [(line, key) for line, key in enumerate(read_keys(path), 1) if key]
    index = {key: row for row, key in enumerate(items.keys)}
    ends = _by_ends(index, [key for _, key in lines])
    rows, wrong = [], []
    for line, key in lines:
        found = [index[key]] if key in index else _ending(items, ends.get(_end(key), []), key)
        rows += found[:1]
        if len(found) != 1:
            wrong.append((line, key, found))
    if wrong:
        _refuse_lines(items, path, wrong, len(lines))
    if not rows:
        raise UsageError(
            f"LABELS={path}: the file names no image; write one key a line, such as "
            f"{items.keys[0]!r}"
        )
    return np.array(rows, np.int64)


def _ending(items: Items, rows: list[int], key: str) -> list[int]:
    return [row for row in rows if items.keys[row].endswith(f"/{key}")]


def _end(key: str) -> str:
    return key.rpartition("/")[2]


def _by_ends(index: dict[str, int], keys: list[str]) -> dict[str, list[int]]:
    """Of each last part of `keys` that are no whole keys: the rows of the keys that end so."""
    wanted = {_end(key) for key in keys if key not in index}
    ends: dict[str, list[int]] = {}
    if wanted:
        for key, row in index.items():
            end = _end(key)
            if end in wanted:
                ends.setdefault(end, []).append(row)
    return ends


def _refuse_lines(
    items: Items, path: Path, wrong: list[tuple[int, str, list[int]]], lines: int
) -> None:
    """Those that name no image first, then those that name several."""
    unknown = [one for one in wrong if not one[2]]
    wrong = unknown or wrong
    line, key, found = wrong[0]
    several = f" ({len(wrong):,} of {lines:,} lines are like that)" if len(wrong) > 1 else ""
    if not found:
        near = difflib.get_close_matches(key, items.keys[:MOST_ASKED], n=1, cutoff=NEAR)
        meant = f"did you mean {near[0]!r}" if near else f"a key looks like {items.keys[0]!r}"
        raise UsageError(
            f"{path}, line {line}: {items.name!r} has no image {key!r}; {meant}{several}"
        )
    one, other = items.keys[found[0]], items.keys[found[1]]
    raise UsageError(
        f"{path}, line {line}: {items.name!r} has {len(found)} images of the name {key!r}, such as "
        f"{one!r} and {other!r}; write whole keys{several}"
    )


def _usable(items: Items, named: np.ndarray, pool: np.ndarray, labels: str) -> np.ndarray:
    wrong = named[~np.isin(named, pool)]
    if len(wrong):
        others = ""
        if len(wrong) > 1:
            others = f", and so are {len(wrong) - 1:,} others of the {len(named):,} named"
        raise UsageError(
            f"LABELS={labels}: {items.keys[wrong[0]]!r} is not a labelled training image that "
            f"could be embedded{others}; leave it out of the file"
        )
    return np.unique(named)


def read_keys(path: Path) -> list[str]:
    """The lines of a file of keys. Raises UsageError when it is not text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"LABELS={path}: the file is not text in UTF-8 ({error}); write one key a line"
        ) from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
