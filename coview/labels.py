"""What scikit-learn's users hand in: labels -> class numbers, columns of a wide array -> views, and
which labelled rows choose among the training's steps."""

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from base.errors import DataQualityError
from cache_specs.words import means_no_label
from train.algorithm.streams import Purpose, stream


def as_before_where_it_fails(fit: Callable[..., Any]) -> Callable[..., Any]:
    """A `fit` that raises, or is interrupted, leaves what was fitted before."""

    @functools.wraps(fit)
    def whole(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return whole


def value_errors(model: Callable[[Any], Any], rows: Any) -> Any:
    """What a model says of the rows; rows that it has no answer to are a ValueError."""
    try:
        return model(rows)
    except DataQualityError as error:
        raise ValueError(str(error)) from None


def encode(
    y: Any, classes: np.ndarray | None = None, as_class: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) labels -> (n,) int32 class numbers, -1 where there is no label, and the sorted classes
    (those given, where they are).

    No label is -1 in an array of numbers (NaN too, of floats), "" in one of strings, any of these,
    None or pandas' NA in one of objects or in a list of strings and other things, and whatever is
    masked. Words such as "unknown" and "n/a" (cache_specs/words.py) are none either, with a
    warning; but those of `as_class`, which are classes. Raises ValueError.
    """
    column, known = _column(y, as_class)
    told = _alike(column[known])
    check_classification_targets(told)
    found, number = np.unique(told, return_inverse=True)
    if classes is None:
        classes = found
    new = np.setdiff1d(found, classes)
    if len(new):
        raise ValueError(
            f"the validation rows have the class {new.tolist()[0]!r}, which no labelled training "
            f"row has; there is: {', '.join(map(repr, classes.tolist()))}"
        )
    label = np.full(len(column), -1, np.int32)
    label[known] = np.searchsorted(classes, found)[number]
    return label, classes


def _column(given: Any, as_class: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The labels as an array, and which of them are labels."""
    y = column_or_1d(given, warn=True)
    if y.dtype.kind == "S":
        raise ValueError(
            f"the labels are bytes, such as {bytes(y[0])!r}: make them strings, by "
            "np.char.decode(y)"
        )
    if y.dtype.kind == "U" and isinstance(given, list | tuple):
        plain = all(isinstance(value, str | bytes) for value in given)
        # NumPy makes "3" of the 3 in ["a", 3], and "nan" of NaN.
        y = y if plain else np.array(given, object)
    known = _known(y) & ~_words(y, as_class)
    if np.ma.isMaskedArray(given):
        known &= ~np.ravel(np.ma.getmaskarray(given))
    if not known.any():
        raise ValueError(
            f"none of the {len(y)} rows has a label; give some rows their class, and -1 to the "
            "others"
        )
    return y, known


def _alike(told: np.ndarray) -> np.ndarray:
    """Objects of one type as an array of that type: what pandas and lists with None hold."""
    if told.dtype != object:
        return told
    kinds = {isinstance(value, str): value for value in told}
    if len(kinds) > 1:
        raise ValueError(
            f"the labels are strings and other things, such as {kinds[True]!r} and "
            f"{kinds[False]!r}: make all of them strings, or all numbers"
        )
    return np.array(told.tolist()) if len(set(map(type, told))) == 1 else told


def _words(y: np.ndarray, as_class: Sequence[str]) -> np.ndarray:
    """Where a word says that there is no label, which is told."""
    if y.dtype.kind not in "UO":
        return np.zeros(len(y), bool)
    texts = [value if isinstance(value, str) else "" for value in y.tolist()]
    meant = {text for text in set(texts) if text and _says_none(text, as_class)}
    if meant:
        count = sum(map(texts.count, meant))
        rows, taken = ("1 row", "is") if count == 1 else (f"{count:,} rows", "are")
        names = sorted(meant)
        warnings.warn(
            f"{rows} of y with {', '.join(map(repr, names))} {taken} taken to have no label; "
            f"if that is a class: as_class={names}",
            UserWarning,
            stacklevel=6,
        )
    return np.array([text in meant for text in texts], bool)


def _says_none(text: str, as_class: Sequence[str]) -> bool:
    if text.strip() == "-1":
        return text not in as_class
    return means_no_label(text, as_class)


def encode_alike(
    y: Any, fitted: np.ndarray, as_class: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """`encode`; raises ValueError too where one are names and the classes fitted are numbers, or
    the reverse: then no prediction could be right."""
    label, classes = encode(y, as_class=as_class)
    if (classes.dtype.kind == "U") != (fitted.dtype.kind == "U"):
        raise ValueError(
            f"y has labels such as {classes.tolist()[0]!r}, but the model was fitted with such as "
            f"{fitted.tolist()[0]!r}: give both as names, or both as numbers"
        )
    return label, classes


def plainly(error: ValueError) -> ValueError:
    """scikit-learn's error of an X that does not fit; of rows that are not finite with the way out
    that there is here, instead of other classifiers."""
    what = str(error).split("\n")[0]
    if "NaN" not in what and "infinity" not in what:
        return error
    return ValueError(
        f"{what}\nA row that could not be embedded is NaN, and has nothing to learn from: leave it "
        "out of every view and of y, by keep = np.isfinite(X).all(axis=1) of each view"
    )


def _known(y: np.ndarray) -> np.ndarray:
    if y.dtype.kind in "iu":
        return y != -1
    if y.dtype.kind == "f":
        return ~np.isnan(y) & (y != -1)
    if y.dtype.kind == "U":
        return y != ""
    if y.dtype == object:
        return np.array([_is_label(value) for value in y], bool)
    return np.ones(len(y), bool)


def _is_label(value: Any) -> bool:
    if value is None or _differs_from_itself(value):
        return False
    return not (isinstance(value, str | Number) and value in ("", -1))


def _differs_from_itself(value: Any) -> bool:
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA has no truth
        return True


def hold_out(label: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Row numbers for validation: this share of the labelled rows of each class, at least one of
    three. Empty where every class has one or two. Each row has its chance, whatever the classes are
    called and however many others there are."""
    chance_n, held = stream(seed, Purpose.HELD_OUT).random(len(label)), []
    for number in range(label.max() + 1):
        rows = np.flatnonzero(label == number)
        least = 1 if len(rows) > 2 and fraction > 0 else 0
        take = min(max(int(len(rows) * fraction), least), len(rows) - 1)
        held.append(rows[np.argsort(chance_n[rows], kind="stable")[:take]])
    return np.sort(np.concatenate(held))


def share_out(views: Sequence[int | slice], width: int) -> list[slice]:
    """Where each view's columns stand in a wide array of `width` columns. Raises ValueError."""
    parts = _slices(views)
    if parts and not isinstance(views[0], slice) and parts[-1].stop != width:
        raise ValueError(
            f"views={list(views)} are {parts[-1].stop} features, but X has {width} features"
        )
    empty = [part for part in parts if not len(range(*part.indices(width)))]
    if empty or not parts:
        raise ValueError(f"views={views!r} leaves a view without a column of the {width} of X")
    return parts


def _slices(views: Sequence[int | slice]) -> list[slice]:
    """As they are, or side by side, of these widths."""
    slices = [part for part in views if isinstance(part, slice)]
    if len(slices) == len(views):
        return slices
    widths = [part for part in views if isinstance(part, int | np.integer) and part > 0]
    if len(widths) < len(views):
        raise ValueError(f"views={views!r} must be widths such as [512, 768], or slices of columns")
    ends = itertools.accumulate(widths)
    return [slice(end - part, end) for end, part in zip(ends, widths, strict=True)]
