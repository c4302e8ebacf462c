"""Which images have labels is a matter of the seed, and of each class alone."""

import dataclasses

import numpy as np
import pytest
from conftest import Made

from base.errors import DataQualityError
from cache_specs.items import Items
from train.algorithm.streams import Purpose, place_of, stream
from train.data.apart import BEFORE
from train.data.splits import make_split


def named(made: Made, names: list[str], classes: list[str]) -> Items:
    """The digits under other class names, with further classes, numbered as they stand."""
    number = np.array([classes.index(name) for name in names], np.int32)
    return dataclasses.replace(made.items, label=number[made.items.label], classes=classes)


def chosen(items: Items, labels: str = "3", seed: int = 0) -> dict[str, list[str]]:
    """{class: the keys that have labels}."""
    split = make_split(items, np.ones(len(items), bool), labels, seed)
    found: dict[str, list[str]] = {}
    for row in split.labelled:
        found.setdefault(items.classes[items.label[row]], []).append(items.keys[row])
    return found


@pytest.mark.parametrize("labels", ["1", "3", "10%"])
@pytest.mark.parametrize("seed", [0, 7])
def test_one_more_class_changes_the_labels_of_no_other(made: Made, labels: str, seed: int) -> None:
    """First, in the middle or last; without an image, or with some; and however classes are
    numbered."""
    names = made.items.classes
    before = chosen(made.items, labels, seed)
    for more in ([" aardvark", *names], [*names[:4], "4b", *names[4:]], [*names, "zebra"]):
        assert chosen(named(made, names, more), labels, seed) == before
    assert chosen(named(made, names, names[::-1]), labels, seed) == before
    label = made.items.label.copy()
    some = np.flatnonzero((label == 3) & (np.array(made.items.split) == "train"))[::2]
    label[some] = 10
    grown = dataclasses.replace(made.items, label=label, classes=[*names, "3b"])
    after = chosen(grown, labels, seed)
    assert {name: after[name] for name in names if name != "3"} == {
        name: before[name] for name in names if name != "3"
    }
    assert len(after["3b"]) > 0


def test_a_class_that_goes_changes_the_labels_of_no_other(made: Made) -> None:
    names, before = made.items.classes, chosen(made.items)
    gone = dataclasses.replace(
        made.items,
        label=np.where(made.items.label == 0, -1, made.items.label - 1).astype(np.int32),
        classes=names[1:],
    )
    assert chosen(gone) == {name: before[name] for name in names[1:]}


def test_another_name_draws_others_and_a_seed_too(made: Made) -> None:
    names = made.items.classes
    before = chosen(made.items)
    other = chosen(named(made, ["zero", *names[1:]], ["zero", *names[1:]]))
    assert other.pop("zero") != before["0"]
    assert other == {name: before[name] for name in names[1:]}
    again = chosen(made.items, seed=1)
    assert all(again[name] != before[name] for name in names)


def test_the_draw_of_a_class_is_one_permutation_by_its_name(made: Made) -> None:
    rows = np.flatnonzero((made.items.label == 6) & (np.array(made.items.split) == "train"))
    order = stream(4, Purpose.LABELLED, place=place_of("6")).permutation(rows)
    wanted = [made.items.keys[row] for row in sorted(order[:3])]
    assert chosen(made.items, "3", 4)["6"] == wanted


@pytest.mark.parametrize(
    ("each", "classes", "message"),
    [
        (1, 3, "The cause: every class has one image. From 4 images a class on"),
        (3, 3, "The cause: every class has 3 images or fewer"),
        (1, 1, "The cause: there is 1 class, of 1 image"),
        (2, 1, "The cause: there is 1 class, of 2 images"),
        (0, 3, "Put images into class folders, or give a table"),
    ],
)
def test_too_few_images_of_each_class_are_named_as_the_cause(
    made: Made, each: int, classes: int, message: str
) -> None:
    """And so many as are asked for are enough."""

    def few(each: int) -> Items:
        label = np.full(len(made.items), -1, np.int32)
        for number in range(classes):
            label[np.flatnonzero(made.items.label == number)[:each]] = number
        return dataclasses.replace(made.items, label=label, split=[""] * len(label))

    ok = np.ones(len(made.items), bool)
    with pytest.raises(DataQualityError, match=message):
        make_split(few(each), ok, "all", 0, BEFORE)
    enough = make_split(few(4), ok, "all", 0, BEFORE)
    assert len(enough.labelled) and len(enough.val) and len(enough.test)


def test_a_part_without_a_usable_image_is_no_matter_of_class_folders(made: Made) -> None:
    role = np.array(made.items.split)
    with pytest.raises(DataQualityError, match=r"no usable test .*No image of that part has"):
        make_split(made.items, role != "test", "all", 0)
