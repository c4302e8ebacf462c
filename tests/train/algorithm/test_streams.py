"""No two purposes draw from one stream, and what is drawn for a name goes by the name alone."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from train.algorithm.batches import UNLABELLED, Passes, uniforms
from train.algorithm.streams import NUMBERS, Purpose, place_of, stream

# draws of their own: the fixed splits of a bundled set, keyed by the digit
ALONE = {"extract/data/datasets.py"}


def philox(*key: int, counter: tuple[int, ...] = (0, 0, 0, 0)) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[*key], counter=[*counter]))


def test_the_draws_of_a_training_are_those_that_they_were() -> None:
    """Written down again: whoever resumes an older run goes on with its batches."""
    order = philox(3, (1 << 40) + 2 * 1 + 1).permutation(50)
    assert np.array_equal(Passes(np.arange(50), 3, UNLABELLED)(1, 50), order)
    wanted = philox(3, (2 << 40) + 9, counter=(0, 0, 0, 7)).random(5)
    assert np.array_equal(uniforms(3, 7, 9, 5), wanted)


def test_no_two_purposes_share_a_stream() -> None:
    """The last number of one is not the first of the next, for any seed."""
    keys = {}
    for purpose, number in itertools.product(Purpose, (0, 1, NUMBERS - 1)):
        draws = tuple(stream(5, purpose, number).integers(2**63, size=4).tolist())
        keys[draws] = purpose, number
    assert len(keys) == 3 * len(Purpose)
    for number in (-1, NUMBERS):
        with pytest.raises(AssertionError):
            stream(5, Purpose.STEP, number)


def test_everything_that_is_drawn_by_a_seed_goes_through_the_table() -> None:
    found = set()
    for room in ("base", "cache_specs", "extract", "train", "predict", "report", "coview", "bench"):
        for path in (ROOT / room).rglob("*.py"):
            if re.search(r"Philox|<< 40", path.read_text()):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"train/algorithm/streams.py", *ALONE}
    for path in Path(ROOT / "train" / "algorithm").glob("*.py"):
        assert not re.search(r"np\.random\.(default_rng|seed|RandomState)", path.read_text()), path


def test_a_name_has_a_place_of_its_own() -> None:
    names = ["", "cat", "Cat", "cat ", "1", "1.0", "ü", "u\u0308", "\udcff", "a" * 10_000]
    places = {place_of(name) for name in names}
    assert len(places) == len(names)
    assert all(0 <= word < 2**64 for place in places for word in place)
    assert stream(0, Purpose.LABELLED, place=place_of("cat")).random() != (
        stream(0, Purpose.LABELLED, place=place_of("dog")).random()
    )
