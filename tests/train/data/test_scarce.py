"""Classes that are short of labels: taken as they are, and told, with the best score that is still
possible."""

import dataclasses

import numpy as np
import pytest
from conftest import Made
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from cache_specs.items import Items
from train.data.scarce import Unlearnt, forced, rarer, rarer_text, unlearnt
from train.data.splits import Split, make_split


def without(items: Items, counts: dict[int, int]) -> Items:
    """These classes keep so many training labels; the other training images have none."""
    label, training = items.label.copy(), np.array(items.split) == "train"
    for number, count in counts.items():
        label[np.flatnonzero(training & (items.label == number))[count:]] = -1
    return dataclasses.replace(items, label=label)


def split_of(items: Items, labels: str, seed: int = 0) -> Split:
    return make_split(items, np.ones(len(items), bool), labels, seed)


@pytest.mark.parametrize("labels", ["1", "10", "500", "20%", "all"])
def test_every_class_gives_what_it_has(made: Made, labels: str) -> None:
    items = without(made.items, {3: 4, 5: 0, 7: 1})
    split = split_of(items, labels)
    there = np.bincount(items.label[(np.array(items.split) == "train") & (items.label >= 0)])
    wanted = there
    if labels.isdigit():
        wanted = np.minimum(there, int(labels))
    if labels == "20%":
        wanted = np.where(there > 0, np.maximum(np.round(0.2 * there), 1), 0)
    assert np.bincount(items.label[split.labelled], minlength=10).tolist() == wanted.tolist()
    assert not np.intersect1d(split.labelled, split.unlabelled).size


def test_fewer_labels_of_a_rare_class_change_no_other_choice(made: Made) -> None:
    """And they are nested as ever."""
    items = without(made.items, {3: 4})
    few, more = split_of(items, "4", 1), split_of(items, "10", 1)
    assert set(few.labelled) < set(more.labelled)
    usual = split_of(made.items, "10", 1).labelled
    others = more.labelled[items.label[more.labelled] != 3]
    assert others.tolist() == usual[made.items.label[usual] != 3].tolist()


def test_the_best_scores_are_those_of_who_knows_all_else(made: Made) -> None:
    """An oracle that is right of every image whose class it has seen, by scikit-learn."""
    items = without(made.items, {2: 0, 9: 0})
    split = split_of(items, "3")
    for judges, rows in (("test", split.test), ("validation", split.val)):
        truth = items.label[rows]
        said = np.where(np.isin(truth, [2, 9]), 0, truth)
        found = unlearnt(items, split, judges)
        assert found.classes == ["2", "9"] and found.judges == judges
        assert found.top1 == pytest.approx(accuracy_score(truth, said))
        assert found.balanced == pytest.approx(balanced_accuracy_score(truth, said))
        assert found.text(10) == (
            "of 10 classes 2 have no labelled training image: '2', '9'. No model can learn them: "
            f"on the {judges} images no top-1 above {100 * found.top1:.1f} % and no balanced "
            "accuracy above 80.0 % is possible"
        )


def test_what_else_is_said_of_them(made: Made) -> None:
    every = split_of(made.items, "3")
    assert unlearnt(made.items, every) == Unlearnt([], 1.0, 1.0)
    assert unlearnt(made.items, every).text(10) == "" == rarer_text("3", made.items, every)
    items = without(made.items, {2: 0})
    split = split_of(items, "3")
    untested = dataclasses.replace(split, test=split.test[items.label[split.test] != 2])
    assert unlearnt(items, untested).text(10) == (
        "of 10 classes 1 has no labelled training image: '2'. No model can learn it; no test "
        "image is of it, so no score shows it"
    )
    many = Unlearnt([str(n) for n in range(4000)], 0.5, 0.5).text(9000)
    assert many.startswith("of 9,000 classes 4,000 have no") and "'9' …. No model" in many
    assert len(many) < 300


def test_a_share_of_less_than_half_an_image_is_told(made: Made) -> None:
    """A share takes one image of a class at least, which may be far more."""
    items = made.items
    split = split_of(items, "0.3%")
    training = np.union1d(split.labelled, split.unlabelled)
    counts = np.bincount(items.label[training], minlength=10)
    assert len(split.labelled) == 10
    assert forced("0.3%", items, split) == dict(zip(items.classes, counts.tolist(), strict=True))
    told = rarer_text("0.3%", items, split)
    assert told.startswith("LABELS=0.3%: of 10 classes 10 have so few training images that one of ")
    assert f"'0' (1 of {counts[0]})" in told
    assert told.endswith(f"In all, {100 * 10 / counts.sum():.3g} % are labelled")
    assert rarer_text("50%", items, split_of(items, "50%")) == ""
    assert rarer_text("my%", items, split) == "", "a file"


def test_rarer_classes_are_named_with_what_they_have(made: Made) -> None:
    items = without(made.items, {3: 4, 5: 0, 7: 1})
    assert rarer("10", items, split_of(items, "10")) == {"7": 1, "3": 4}
    assert rarer_text("10", items, split_of(items, "10")) == (
        "LABELS=10: of 10 classes 2 have fewer labelled training images, of which all are taken: "
        "'7' (1), '3' (4)"
    )
    for labels in ("all", "10%", "1"):
        assert rarer(labels, items, split_of(items, labels)) == {}
