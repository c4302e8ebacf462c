"""What the folders of a data set are: splits, classes, or wrappers that mean nothing.

    of_folders(data, paths)     each image's label and split, by the folders that it lies in

What is not plain is said, and what can be read in two ways is refused. Folders deeper than those
of the classes belong to the class.
"""

import enum
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from base.errors import UsageError
from base.phrase import quoted
from cache_specs.words import FILLERS, split_and_rest, split_named
from extract.data.naming import ImagePath, text

log = logging.getLogger(f"coview.{__name__}")

# What may stand beside folders of splits: for no training, or for one of two splits.
PREDICTED = {"pred", "predict", "prediction", "predictions"}
EITHER = {"eval", "evaluation"}
MASKS = {
    "mask",
    "masks",
    "labels",
    "segmentation",
    "segmentations",
    "annotations",
    "groundtruth",
    "gt",
}
_OF_MASKS = "masks?|labels?|label[ _-]?ids?|seg|segmentations?|annotations?|ground[ _-]?truth|gt"
MASK = re.compile(rf"(.+?)[ _.-]+({_OF_MASKS})([ _-]?\d+)?", re.IGNORECASE)
LOSSLESS = (".bmp", ".gif", ".pgm", ".png", ".tif", ".tiff")
Labelled = tuple[list[str], list[str]]


class Layout(enum.Enum):
    """How the folders of a data set lie."""

    CLASSES = "class/image, or images alone"
    SPLITS = "train|val|test|unlabelled/class/image"
    UNLABELLED = "unlabelled/image beside class/image"
    INNER = "class/train|val|test|unlabelled/image"


def of_folders(data: str, paths: Sequence[ImagePath]) -> Labelled:
    """Labels and splits of the images, going by the folders they lie in. Raises UsageError."""
    inside = _without_wrappers(data, [path.parts for path in paths])
    split_of = _split_folders(data, inside)
    layout = _layout(data, inside, split_of)
    if layout is Layout.SPLITS:
        inside = _without_inner_wrappers(data, inside, split_of)
    labels, splits = [], []
    for parts in inside:
        label, split = _label_and_split(layout, parts, split_of)
        labels.append("" if split == "unlabelled" else label)
        splits.append(split)
    _refuse_masks(data, paths, labels)
    if layout in (Layout.CLASSES, Layout.SPLITS):
        _warn_of_repeated(data, [parts[layout is Layout.SPLITS :] for parts in inside])
    return labels, splits


def _label_and_split(
    layout: Layout, parts: Sequence[str], split_of: Mapping[str, str]
) -> tuple[str, str]:
    top = parts[0] if len(parts) > 1 else ""
    match layout:
        case Layout.SPLITS:
            return parts[1] if len(parts) > 2 else "", split_of[top]
        case Layout.UNLABELLED:
            return top, split_of.get(top, "")
        case Layout.INNER:
            return top, split_named(parts[1])
        case Layout.CLASSES:
            return top, ""


Parts = list[tuple[str, ...]]  # of each image's path


def _without_wrappers(data: str, inside: Parts) -> Parts:
    """Without the folders at the top that hold all others, as `zip -r photos.zip photos/` leaves
    them."""
    own, left_out = PurePath(data).name.lower().split(".")[0], []
    while True:
        tops = {parts[0] for parts in inside}
        depth = min(map(len, inside))
        top = min(tops)
        if len(tops) > 1 or depth < 2 or not _wraps(top, own, depth, inside):
            break
        left_out.append(top)
        inside = [parts[1:] for parts in inside]
    if left_out:
        log.info(f"{data}: all images lie in {text('/'.join(left_out))}/, which is no class")
    return inside


def _wraps(top: str, own: str, depth: int, inside: Parts) -> bool:
    """Whether the only folder at the top stands for nothing."""
    if split_named(top):
        inner = {split_named(parts[1]) for parts in inside if len(parts) > 2}
        return depth > 2 and "" not in inner and len(inner) > 1
    return depth > 2 or top.lower() == own or _means_nothing(top)


def _means_nothing(name: str) -> bool:
    """images, Data, jpg_files …"""
    split, rest = split_and_rest(name)
    return not split and bool(rest) and set(rest) <= FILLERS


def _without_inner_wrappers(data: str, inside: Parts, split_of: Mapping[str, str]) -> Parts:
    """train/train/cat, test_images/images/cat: without the folders between split and classes. What
    is one of several classes of any split wraps nothing in another."""
    own: dict[str, Parts] = defaultdict(list)
    for parts in inside:
        own[parts[0]].append(parts[1:])
    classes = set[str]()
    for top, below in own.items():
        there = _folders_of(below, len(_wrappers(top, split_of[top], below, set())))
        classes |= there if len(there) > 1 else set()
    wrappers = {top: _wrappers(top, split_of[top], own[top], classes) for top in own}
    listed = ["/".join((top, *names)) for top, names in sorted(wrappers.items()) if names]
    if listed:
        log.info(f"{data}: the classes are taken from the folders in {text(', '.join(listed))}")
    return [(parts[0], *parts[1 + len(wrappers[parts[0]]) :]) for parts in inside]


def _wrappers(top: str, split: str, below: Parts, classes: set[str]) -> list[str]:
    """The folders in that of a split, one in the other, that hold all of its images and stand for
    nothing."""
    found = list[str]()
    while True:
        names = _folders_of(below, len(found))
        name = min(names)
        alike = name.lower() == top.lower() or split_named(name) == split
        nothing = _means_nothing(name) and name not in classes
        if len(names) > 1 or not name or not (alike or nothing):
            return found
        found.append(name)


def _folders_of(inside: Parts, depth: int) -> set[str]:
    """The names of the folders so deep in these paths; '' where an image lies there."""
    return {parts[depth] if len(parts) > depth + 1 else "" for parts in inside}


def _split_folders(data: str, inside: Parts) -> dict[str, str]:
    """{folder at the top: its split} of those that are called after one. Names with more in them
    (seg_train, birds-test) are where they differ in the split alone. Raises UsageError."""
    tops = sorted(_folders_of(inside, 0) - {""})
    found = {top: split_named(top) for top in tops if split_named(top)}
    splits = _families(data, [top for top in tops if top not in found])
    known = [*splits, ()] if len(set(found.values())) > 1 else [*splits]
    for family in splits.values():
        found |= family
    others = [top for top in tops if top not in found]
    found |= dict.fromkeys(_predicted(others, known), "unlabelled")
    if found:
        _refuse_either(data, tops)
    return found


def _predicted(tops: Sequence[str], known: Sequence[tuple[str, ...]]) -> list[str]:
    """Folders of images that somebody wanted labels of, beside splits with these words."""
    found = []
    for top in tops:
        words = _telling(top)
        others = tuple(word for word in words if word not in PREDICTED)
        if len(others) < len(words) and others in known:
            found.append(top)
    return found


def _telling(top: str) -> tuple[str, ...]:
    """The words of a folder's name that are neither a split's nor mean nothing."""
    return tuple(word for word in split_and_rest(top)[1] if word not in FILLERS)


def _families(data: str, tops: Sequence[str]) -> dict[tuple[str, ...], dict[str, str]]:
    """{words in common: {folder: its split}} of folders whose names differ in the split. Raises
    UsageError where there are several such families."""
    families: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for top in tops:
        split = split_and_rest(top)[0]
        if split:
            families[_telling(top)][top] = split
    found = {rest: family for rest, family in families.items() if len(set(family.values())) > 1}
    if len(found) > 1:
        some = [top for family in found.values() for top in family]
        raise UsageError(
            f"DATA={data}: the folders {_listed(some)} say both a split and a class. Put the "
            f"images into one folder for each split, with those of the classes in it: "
            "train/cat/, test/cat/"
        )
    return found


def _refuse_either(data: str, tops: Sequence[str]) -> None:
    for top in tops:
        if set(split_and_rest(top)[1]) & EITHER:
            raise UsageError(
                f"DATA={data}: the folder {text(top)!r} may be the validation or the test split; "
                "call it val or test"
            )


def _layout(data: str, inside: Parts, split_of: Mapping[str, str]) -> Layout:
    """What the folders at the top are; said where it is not plain. Raises UsageError where they
    are splits, and images lie in none of them."""
    within, outside = _by_split(inside, split_of)
    if not outside:
        return Layout.SPLITS
    if not within:
        return _inner_layout(data, inside)
    listed = _listed({parts[0] for parts in within})
    kinds = {split_of[parts[0]] for parts in within}
    classes = any(len(parts) > 1 for parts in outside)
    if classes and kinds == {"unlabelled"}:
        log.info(f"{data}: the {len(within):,} images in {listed} are used without a label")
        return Layout.UNLABELLED
    _refuse_beside(data, within, outside[0], listed, len(kinds))
    log.warning(
        f"{data}: the folders {listed} are taken for classes, since other images or folders lie "
        "beside them. If they are splits, put all images into train/, val/, test/ or unlabelled/"
    )
    return Layout.CLASSES


def _by_split(inside: Parts, split_of: Mapping[str, str]) -> tuple[Parts, Parts]:
    """The images in folders of splits, and the others."""
    within, outside = [], []
    for parts in inside:
        if len(parts) > 1 and parts[0] in split_of:
            within.append(parts)
        else:
            outside.append(parts)
    return within, outside


def _refuse_beside(
    data: str, within: Parts, beside: tuple[str, ...], listed: str, splits: int
) -> None:
    """Raise UsageError for an image beside folders that are certainly splits. listed: these, in
    words; splits: how many."""
    stray = text("/".join(beside))
    if splits > 1:
        raise UsageError(
            f"DATA={data}: {listed} are splits, but {stray} lies in none of them. Put it into one, "
            "or move it away"
        )
    holds = {parts[1] for parts in within if len(parts) > 2}
    if len(holds) > 1:
        raise UsageError(
            f"DATA={data}: {listed} holds folders of classes ({_listed(holds)}), so it is a split, "
            f"but {stray} lies beside it. Call its folder train, val, test or unlabelled, or move "
            "it away"
        )


def _inner_layout(data: str, inside: Parts) -> Layout:
    """class/split/image, where that is so in all classes."""
    splits = {split_named(parts[1]) if len(parts) > 2 else "" for parts in inside}
    if "" in splits or len(splits) < 2:
        return Layout.CLASSES
    log.info(f"{data}: the folders in those of the classes are splits: {_listed(splits)}")
    return Layout.INNER


def _warn_of_repeated(data: str, inside: Parts) -> None:
    """Say that each folder that is taken for a class holds nearly the same folders, which may be
    the classes: fold0/cat, fold0/dog, fold1/cat, fold1/dog. inside: from the class on."""
    below: dict[str, set[str]] = defaultdict(set)
    for parts in inside:
        if len(parts) > 1:
            below[parts[0]].add(parts[1] if len(parts) > 2 else "")
    if len(below) < 2:
        return
    common = set.intersection(*below.values())
    every = set.union(*below.values())
    if "" not in every and len(common) > max(1, len(every) / 2):
        log.warning(
            f"{data}: the folders {_listed(set(below))} are taken for the classes, but each of "
            f"them holds folders of the same names: {_listed(common)}. If these are the classes, "
            "put them at the top, or write a table: path,label"
        )


def _refuse_masks(data: str, paths: Sequence[ImagePath], labels: Sequence[str]) -> None:
    """Raise UsageError where masks would be a class beside that of their images."""
    classes = set(labels) - {""}
    masks = {name for name in classes if set(split_and_rest(name)[1]) & MASKS}
    images = {name for name in classes if _means_nothing(name)}
    if not masks or not images or masks | images != classes:
        return
    places = _places_of(min(images), paths, labels)
    where = str(Path(data, *min(places)))
    then, instead = "Move the masks elsewhere", None
    if len(places) == 1 and Path(where).is_dir():
        then, instead = f"Name the images alone: DATA={quoted(where)}", {"DATA": where}
    raise UsageError(
        f"DATA={data}: {_listed(masks)} holds the masks of {_listed(images)}, and is no class. "
        f"{then}",
        instead=instead,
    )


def _places_of(
    name: str, paths: Sequence[ImagePath], labels: Sequence[str]
) -> set[tuple[str, ...]]:
    """The folders of this name in which the images of the class lie."""
    places = set()
    for path, label in zip(paths, labels, strict=True):
        if label == name:
            places.add(path.parts[: path.parts.index(name) + 1])
    return places


def masks_among(paths: Sequence[ImagePath]) -> set[int]:
    """The places of those that are a mask of another: cat_mask.png or cat_label.png beside
    cat.jpg."""
    stems = {(path.parent, path.stem) for path in paths}
    found = set()
    for place, path in enumerate(paths):
        said = MASK.fullmatch(path.stem)
        if said and path.suffix.lower() in LOSSLESS and (path.parent, said[1]) in stems:
            found.add(place)
    return found


def say_masks(data: str, paths: Sequence[ImagePath], masks: set[int]) -> None:
    if masks:
        first = text(paths[min(masks)].as_posix())
        log.info(
            f"{data}: {len(masks):,} masks are left out, whose images lie beside them, first "
            f"{first}. If they are images of their own, put them into other folders"
        )


def warn_of_names(data: str, paths: Sequence[ImagePath], labels: Sequence[str]) -> None:
    """Say that the names of files without any label seem to hold it: cat.0.jpg, dog.1.jpg."""
    if any(labels):
        return
    begins = Counter[str]()
    for path in paths:
        said = re.fullmatch(r"([^\W\d][^\W\d _-]*(?:[ _-][^\W\d]+)*)[ ._-]*\(?\d+\)?", path.stem)
        if said:
            begins[said[1].lower()] += 1
    often = {name: count for name, count in begins.items() if count > 1}
    if len(often) > 1 and sum(often.values()) > len(paths) / 2:
        listed = ", ".join(f"{text(name)} ({count:,})" for name, count in begins.most_common(5))
        first = text(min(often))
        log.warning(
            f"{data}: no image has a label, but their names begin alike: {listed}. If these are "
            f"the classes, put the files into folders of that name ({first}/), or write a table: "
            "path,label"
        )


def _listed(names: Sequence[str] | set[str]) -> str:
    shown = sorted(names)
    more = " …" if len(shown) > 6 else ""
    return f"{', '.join(map(text, shown[:6]))}{more}"
