"""RISK=5%: which images keep their label, so that at most this share of such labels is wrong.

The images that judged (validation, or out-of-fold) are taken from the surest quarter on, STEP more
at a time; each time it is tested whether the share of wrong ones among them can be as large as
RISK, by the upper Clopper-Pearson bound; the first time that it can ends it (fixed-sequence
testing: Angelopoulos et al. 2021, Learn then test). So the promise holds in all but DOUBT of the
draws of the images that judge, and for images like these.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from base.errors import UNKNOWN, UsageError
from train.algorithm.paired import upper_bound

DOUBT, LEAST = 0.1, 0.01  # of the promise; the smallest RISK, in %
STEP = 1.25  # by which so many more images are taken at a time


@dataclass(frozen=True)
class Kept:
    """Labels of at least this confidence are kept, of which at most the share `risk` is wrong; by
    how many images that was found, and how many of these are as sure."""

    risk: float
    confidence: float
    images: int
    sure: int


def risk_of(given: str) -> float:
    """5% -> 0.05. Raises UsageError."""
    try:
        percent = float(given.removesuffix("%"))
    except ValueError:
        percent = 0.0
    if given.endswith("%") and LEAST <= percent < 100:
        return percent / 100
    share = 100 * percent if 0 < percent < 1 else percent
    meant = f"{share:g}%" if 0 < share < 100 and not given.endswith("%") else UNKNOWN
    raise UsageError(f"RISK={given} is no share: give one such as RISK=5%", instead={"RISK": meant})


def keep(judged: Sequence[Sequence[float]] | None, given: str) -> Kept | None:
    """judged: of each image that judged its confidence, and 1 where its label was right, else 0;
    None in a folder that an earlier version wrote. given: RISK; None where it was not. Raises
    UsageError where they can promise no such risk."""
    if not given:
        return None
    risk = risk_of(given)
    if judged is None:
        raise UsageError(
            f"RISK={given}: an earlier version wrote this model, and did not note down how sure it "
            "was of the images that judged: export it again from its run, or leave RISK out",
            instead={"RISK": None},
        )
    sure_n, right_n = np.array(judged, np.float64).reshape(-1, 2).T
    order = np.argsort(-sure_n, kind="stable")
    sure_n, wrong_n = sure_n[order], np.cumsum(1 - right_n[order])
    found = _so_many(sure_n, wrong_n, risk)
    if not found:
        raise _none(sure_n, wrong_n, risk)
    return Kept(risk, float(sure_n[found - 1]), len(sure_n), found)


def _so_many(sure_n: np.ndarray, wrong_n: np.ndarray, risk: float) -> int:
    """How many of the surest can be promised. wrong_n: how many are wrong up to each."""
    found = 0
    for count in counts(len(sure_n), risk):
        whole = int((sure_n >= sure_n[count - 1]).sum())  # those as sure as the last one, too
        if bound(wrong_n[whole - 1], whole) > risk:
            break
        found = whole
    return found


def counts(n: int, risk: float) -> list[int]:
    """How many of n are tested: from a quarter, or the fewest that can promise anything, to
    all; of fewer a single error would end it."""
    first = max(math.ceil(math.log(DOUBT) / math.log(1 - risk)), math.ceil(n / 4))
    found = []
    while first < n:
        found.append(first)
        first = math.ceil(STEP * first)
    return [*found, n] if n else []


def bound(wrong: float, count: int) -> float:
    """The largest share of wrong ones that the promise reckons with."""
    return upper_bound(wrong, count, DOUBT)


def _none(sure_n: np.ndarray, wrong_n: np.ndarray, risk: float) -> UsageError:
    n = len(sure_n)
    if not n:
        return UsageError(
            f"RISK={100 * risk:g}%: no image judged this model, so nothing tells how often it is "
            "wrong: leave RISK out",
            instead={"RISK": None},
        )
    for percent in range(math.floor(100 * risk) + 1, 100):
        if _so_many(sure_n, wrong_n, percent / 100):
            return UsageError(
                f"RISK={100 * risk:g}%: {n:,} images judged this model, and they can promise no "
                f"less than {percent} %, for the surest of them: take that, or give more labels",
                instead={"RISK": f"{percent}%"},
            )
    return UsageError(
        f"RISK={100 * risk:g}%: of the {n:,} images that judged this model so many are wrong that "
        "they can promise nothing: leave RISK out, or give more labels",
        instead={"RISK": None},
    )
