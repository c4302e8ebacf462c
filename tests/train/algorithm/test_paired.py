"""Differences of methods over seeds and test images: the p-value keeps to its 5 % where the methods
are truly alike, finds what is there, and is McNemar's of a single seed.

In the simulation an image is right where a sum of normal effects is above a threshold: how hard the
image is, how hard for this method, how good a seed's labels are, for both methods and for this one,
for each class, and chance. So the true accuracy is known, and that of both methods is the same.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binomtest, norm, ttest_rel

from train.algorithm.paired import FEW, Difference, difference, two_way

CLASSES = 10


@dataclass(frozen=True)
class World:
    """Variances of the effects on an image's score, of which chance has 1."""

    image: float = 2.0
    image_method: float = 0.5
    seed: float = 0.05
    seed_method: float = 0.02
    seed_class: float = 0.05  # of a method: other labelled images of a class are drawn

    @property
    def spread(self) -> float:
        every = self.image, self.image_method, self.seed, self.seed_method, self.seed_class, 1.0
        return float(np.sqrt(sum(every)))


WORLDS = {
    "usual": World(),
    "errors on the same images": World(image_method=0.0, seed_method=0.05, seed_class=0.1),
    "each its own images": World(1.0, 1.0, 0.0, 0.002, 0.0),
    "draws of labels that matter": World(1.0, 0.2, 0.3, 0.3, 0.3),
    "chance alone": World(0.0, 0.0, 0.0, 0.0, 0.0),
}
OF_IMAGES = World(2.0, 0.5, 0.0, 0.0, 0.0)  # all seeds are alike, as one seed must take it


def gains(world: World, trials: int, size: tuple[int, int], of: tuple[float, float]) -> np.ndarray:
    """(trials, E, n) differences of two methods whose true accuracies are `of`."""
    seeds, images = size
    chance = np.random.default_rng([trials, seeds, images, int(1000 * of[0])])

    def normal(*shape: int, variance: float) -> np.ndarray:
        if not variance:
            return np.zeros((), np.float32)
        return chance.standard_normal(shape, np.float32) * np.float32(variance**0.5)

    common = normal(trials, 1, images, variance=world.image)
    common = common + normal(trials, seeds, 1, variance=world.seed)
    label = chance.integers(CLASSES, size=(trials, 1, images))
    right = []
    for accuracy in of:
        own = normal(trials, 1, images, variance=world.image_method)
        own = own + normal(trials, seeds, 1, variance=world.seed_method)
        if world.seed_class:
            of_class = normal(trials, seeds, CLASSES, variance=world.seed_class)
            own = own + np.take_along_axis(of_class, label.repeat(seeds, 1), 2)
        score = common + own + normal(trials, seeds, images, variance=1.0)
        right.append(score > -ndtri(accuracy) * world.spread)
    return right[0].astype(np.float32) - right[1]


def rejected(world: World, trials: int, size: tuple[int, int], *of: float) -> float:
    """The share of the trials, in %, in which p < 0.05."""
    accuracies = (of[0], of[-1])
    found, parts = [], -(-trials * size[0] * size[1] // 4_000_000)
    for part in range(parts):
        many = trials // parts + part  # another number, other draws
        found.append(two_way(gains(world, many, size, accuracies))[2] < 0.05)
    return 100 * float(np.concatenate(found).mean())


SIZES = [(5, 355), (5, 100), (10, 200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", WORLDS)
def test_five_percent_are_five_percent(name: str, size: tuple[int, int]) -> None:
    for accuracy in (0.6, 0.88):
        found = rejected(WORLDS[name], 600, size, accuracy)
        assert 2 < found < 8, (accuracy, found)  # 3 to 8, and two standard errors of 600 trials


@pytest.mark.many
@pytest.mark.parametrize("size", [*SIZES, (1, 355), (1, 100), (5, 1000), (20, 355)])
@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.88, 0.94])
@pytest.mark.parametrize("name", WORLDS)
def test_five_percent_are_five_percent_in_many_worlds(
    name: str, accuracy: float, size: tuple[int, int]
) -> None:
    world = OF_IMAGES if size[0] == 1 else WORLDS[name]
    assert 2.5 < rejected(world, 4_000, size, accuracy) < 8


@pytest.mark.parametrize("size", [(1, 9), (2, 9), (5, 9), (2, 36), (3, 100), (4, 100), (5, 36)])
def test_with_few_images_or_seeds_p_is_careful_and_never_bold(
    size: tuple[int, int],
) -> None:
    for name in ("usual", "each its own images", "draws of labels that matter"):
        world = OF_IMAGES if size[0] == 1 else WORLDS[name]
        for accuracy in (0.6, 0.97):
            assert rejected(world, 500, size, accuracy) < 8, (name, accuracy)


def test_one_seed_is_tested_over_the_images_alone() -> None:
    for images in (100, 355):
        assert 2 < rejected(OF_IMAGES, 1_000, (1, images), 0.88) < 8


def test_the_seeds_alone_are_too_bold() -> None:
    """What the table said before: a paired t-test over the seeds, which have their images in
    common."""
    gain_En = gains(WORLDS["each its own images"], 400, (10, 355), (0.88, 0.88))
    of_seeds = gain_En.mean(-1)
    p = ttest_rel(of_seeds, 0 * of_seeds, axis=1).pvalue
    assert 100 * (p < 0.05).mean() > 20 and 100 * (two_way(gain_En)[2] < 0.05).mean() < 8


def test_what_is_there_is_found() -> None:
    """Three points on 355 images seldom, eight nearly always, and more images find more."""
    usual = WORLDS["usual"]
    power = [rejected(usual, 300, (5, 355), 0.80 + more, 0.80) for more in (0.03, 0.05, 0.10)]
    assert 5 < power[0] < 50 and power[0] < power[1] < power[2] and power[2] > 85, power
    assert rejected(usual, 100, (5, 3000), 0.83, 0.80) > power[0]


@pytest.mark.parametrize("size", [(5, 200), (1, 200), (10, 50)])
def test_the_error_is_that_of_other_seeds_and_other_images(size: tuple[int, int]) -> None:
    """The mean of the squared error over many trials is the variance of the gains themselves."""
    world = OF_IMAGES if size[0] == 1 else WORLDS["usual"]
    mean, error, _ = two_way(gains(world, 1_500, size, (0.8, 0.8)))
    assert np.square(error).mean() == pytest.approx(mean.var(), rel=0.15)


def test_one_seed_is_mcnemars_test() -> None:
    chance = np.random.default_rng(0)
    one, other = chance.random((2, 1, 500)) < np.array([0.85, 0.80])[:, None, None]
    found = difference(one, other)
    b, c = int((one & ~other).sum()), int((other & ~one).sum())
    assert found.points == pytest.approx(100 * (b - c) / 500)
    assert found.error == pytest.approx(100 * (b + c) ** 0.5 / 500)
    assert found.p == pytest.approx(2 * norm.sf(abs(b - c) / (b + c) ** 0.5), rel=0.05)
    assert found.p == pytest.approx(binomtest(b, b + c).pvalue, rel=0.35)


def test_the_formula_written_down_again() -> None:
    """The variance of the seeds' means, and the covariance between seeds, which is the images'."""
    gain_En = gains(WORLDS["usual"], 1, (6, 300), (0.9, 0.8))[0].astype(float)
    seeds, images = gain_En.shape
    mean, error, _ = two_way(gain_En)
    covariance = np.cov(gain_En)
    shared = (covariance.sum() - covariance.trace()) / (seeds * (seeds - 1))
    # the mean square about 0 instead of about the mean
    shared += mean**2 - np.square(gain_En.mean(0) - mean).sum() / (images - 1) / images
    want = gain_En.mean(1).var(ddof=1) / seeds + shared / images
    assert error**2 == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (5, 1), (5, 4), (9, 9)])
def test_the_edges(size: tuple[int, int]) -> None:
    right, wrong = np.ones(size, bool), np.zeros(size, bool)
    assert difference(right, right) == Difference(0, 0, 1)
    found = difference(right, wrong)
    assert found.points == 100 and found.error > 0 and 1e-6 < found.p < 0.51
    back = difference(wrong, right)
    assert (back.points, back.error, back.p) == (-100, found.error, found.p)
    assert np.isfinite([found.error, found.p]).all()


def test_the_text() -> None:
    assert str(Difference(9.44, 2.06, 0.0031)) == "+9.4 ± 2.1 (p = 0.003)"
    assert str(Difference(-1.0, 0.1, 1e-5)) == "-1.0 ± 0.1 (p < 0.001)"
    assert FEW == 5  # as the tables say


def test_where_each_seed_has_its_own_images_the_seeds_are_the_draws() -> None:
    from scipy.stats import ttest_1samp  # pyrefly: ignore[untyped-import]  it has no stubs

    chance = np.random.default_rng(0)
    one, other = chance.random((6, 40)) < 0.8, chance.random((6, 40)) < 0.6
    found = difference(one, other, common=False)
    gain_E = 100 * (one.mean(1) - other.mean(1))
    assert found.points == pytest.approx(gain_E.mean())
    assert found.error == pytest.approx(gain_E.std(ddof=1) / 6**0.5)
    assert found.p == pytest.approx(ttest_1samp(gain_E, 0).pvalue)
    assert difference(one, one, common=False).p == 1
    single = difference(one[:1], other[:1], common=False)
    assert single == difference(one[:1], other[:1]), "of one seed the images are all there is"
