"""Which of the labelled images are set apart to judge: VAL= and TEST= of `make train`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from base.errors import UsageError, nearest

WAYS = ("auto", "cross", "split", "none")  # of VAL, beside a share
A_FIFTH = 20.0


@dataclass(frozen=True)
class Apart:
    """val, test: of each class this many percent are set apart, where the data name no such split;
    0: none. choice: VAL as it was typed: one of WAYS, or a share."""

    val: float = 0.0
    test: float = 0.0
    choice: str = "auto"

    @property
    def fills(self) -> bool:
        """Do splits that the data name stand, and is set apart only what they lack?"""
        return self.choice == "split"

    @property
    def trains(self) -> bool:
        """Does a validation split that the data name train, like the rest?"""
        return self.choice in ("cross", "none")


AS_NAMED = Apart()
BEFORE = Apart(A_FIFTH, A_FIFTH, "split")  # of runs that knew neither VAL nor TEST


def apart_of(settings: Mapping[str, Any]) -> Apart:
    """By the settings of a run. Raises UsageError for what is neither a way nor a share."""
    if "val" not in settings:
        return BEFORE
    val, test = settings["val"], settings["test"]
    percent = A_FIFTH if val == "split" else 0.0
    if val not in WAYS:
        percent = _share("VAL", val, WAYS)
    return Apart(percent, 0.0 if test == "auto" else _share("TEST", test, ("auto",)), val)


def nobody(apart: Apart) -> Apart:
    """Where class names have labelled, nobody judges by their word. Raises UsageError where
    something is to be set apart."""
    for word, percent in (("VAL", apart.val), ("TEST", apart.test)):
        if percent:
            raise UsageError(
                f"{word}: {percent:g} % of the labelled images are to be set apart, and no image "
                f"is labelled: leave {word} out",
                instead={word: None},
            )
    return replace(apart, choice="none")


def _share(word: str, given: str, ways: tuple[str, ...]) -> float:
    """20% -> 20.0"""
    try:
        percent = float(given[:-1]) if given.endswith("%") else 0.0
    except ValueError:
        percent = 0.0
    if 0 < percent < 100:
        return percent
    raise UsageError(
        f"{word}={given}: neither {' nor '.join(ways)} nor a share such as 20%",
        instead={word: nearest(given, ways) or _meant(given)},
    )


def _meant(given: str) -> str:
    """20 and 0.2 are 20%."""
    try:
        number = float(given)
    except ValueError:
        return "20%"
    percent = 100 * number if number < 1 else number
    return f"{percent:.6g}%" if 0 < percent < 100 else "20%"
