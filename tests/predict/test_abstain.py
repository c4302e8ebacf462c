"""RISK: which images keep their label."""

import re

import numpy as np
import pytest
from scipy.stats import beta, binom

from base.errors import UNKNOWN, UsageError
from predict.abstain import DOUBT, bound, counts, keep, risk_of


def judged(sure: list[float], right: list[int]) -> list[tuple[float, int]]:
    return list(zip(sure, right, strict=True))


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    for wrong, count in ((0, 10), (3, 40), (39, 40)):
        assert bound(wrong, count) == pytest.approx(beta.ppf(1 - DOUBT, wrong + 1, count - wrong))
        assert binom.cdf(wrong, count, bound(wrong, count)) == pytest.approx(DOUBT)
    assert bound(5, 5) == 1


def test_as_many_are_kept_as_the_risk_allows() -> None:
    """From the surest on, until one test fails; in whatever order they come."""
    sure = np.linspace(1, 0.5, 200)
    right = np.ones(200)
    right[100:] = np.arange(100) % 2
    order = np.random.default_rng(0).permutation(200)
    found = keep(judged(sure[order].tolist(), right[order].tolist()), "5%")
    assert found is not None and found.images == 200 and 80 <= found.sure <= 110
    assert found.confidence == sure[found.sure - 1] and found.risk == 0.05
    wrong = (1 - right[: found.sure]).sum()
    assert bound(wrong, found.sure) <= 0.05
    every = keep(judged(sure.tolist(), [1] * 200), "5%")
    assert every is not None and every.sure == 200
    assert keep(judged(sure.tolist(), [1] * 200), "") is None


def test_images_that_are_as_sure_are_kept_together_or_not_at_all() -> None:
    sure = [0.99] * 60 + [0.9] * 100
    found = keep(judged(sure, [1] * 60 + [1, 0] * 50), "5%")
    assert found is not None and found.confidence == 0.99 and found.sure == 60


def test_the_fewest_that_are_tested_can_have_no_error() -> None:
    for n, risk in ((80, 0.05), (30, 0.1), (300, 0.01)):
        tested = counts(n, risk)
        assert tested == sorted(set(tested)) and tested[-1] == n
        assert bound(0, tested[0]) <= risk < bound(0, tested[0] - 1)
    assert counts(10, 0.05) == [10] and counts(1000, 0.05)[0] == 250 and counts(0, 0.05) == []


def test_the_promise_holds() -> None:
    """In many draws of the images that judge, the share of labels kept that are wrong is above the
    risk in at most DOUBT of them (and three standard errors)."""
    chance, worlds, broken = np.random.default_rng(1), 400, 0
    for _ in range(worlds):
        sure = chance.random(150)
        right = chance.random(150) < 0.6 + 0.4 * sure
        try:
            found = keep(judged(sure.tolist(), right.astype(int).tolist()), "10%")
        except UsageError:
            continue
        assert found is not None
        truth = 1 - (0.6 + 0.4 * (1 + found.confidence) / 2)  # of all that are as sure
        broken += truth > 0.1
    assert broken / worlds <= DOUBT + 3 * (DOUBT * (1 - DOUBT) / worlds) ** 0.5


def test_what_cannot_be_promised_is_refused() -> None:
    few = judged([0.9] * 20, [1] * 20)
    with pytest.raises(UsageError, match=r"20 images judged .* promise no less than 11 %") as error:
        keep(few, "5%")
    assert error.value.instead == {"RISK": "11%"} and keep(few, "11%") is not None
    with pytest.raises(UsageError, match="export it again from its run, or leave RISK") as error:
        keep(None, "5%")
    assert error.value.instead == {"RISK": None} and keep(None, "") is None
    with pytest.raises(UsageError, match="no image judged this model") as error:
        keep([], "5%")
    assert error.value.instead == {"RISK": None}
    with pytest.raises(UsageError, match="so many are wrong that they can promise noth") as error:
        keep(judged([0.9], [0]), "5%")
    assert error.value.instead == {"RISK": None}
    first_wrong = judged(np.linspace(1, 0.5, 101).tolist(), [0] + [1] * 100)
    for given in ("3%", "5%"):  # what is advised is then accepted
        with pytest.raises(UsageError) as error:
            keep(first_wrong, given)
        assert keep(first_wrong, error.value.instead["RISK"]) is not None


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("0.1", "10%"),
        ("5", "5%"),
        ("1e-15%", UNKNOWN),
        ("0%", UNKNOWN),
        ("100%", UNKNOWN),
        ("x", UNKNOWN),
    ],
)
def test_what_is_no_share_is_refused(given: str, instead: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"RISK={given} is no share: give")) as error:
        risk_of(given)
    assert error.value.instead == {"RISK": instead}
    assert risk_of("5%") == 0.05
