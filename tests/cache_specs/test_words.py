"""The words that mean that there is no label, and those of splits, at every door."""

import pyarrow.csv
import pytest

from base.errors import UsageError
from cache_specs.words import (
    means_no_label,
    read_as_class,
    split_and_rest,
    split_named,
    split_within,
    without_words,
)

ARROW = sorted(pyarrow.csv.ConvertOptions().null_values)  # which are those of pandas


@pytest.mark.parametrize(
    "word",
    [
        *ARROW,  # an independent list
        "unlabelled",
        "Unlabeled",
        " unknown ",
        "UN-labelled",
        "not_labelled",
        "No label",
        "<unknown>",
        "(none)",
        "[null]",
        "?",
        "-",
        "—",
        "#DIV/0!",
        "ｎ／ａ",
    ],
)
def test_words_that_mean_no_label_do_in_any_writing(word: str) -> None:
    assert means_no_label(word) and means_no_label(word.upper())


@pytest.mark.parametrize(
    "word", ["cat", "0", "1.0", "nano", "banana", "other", "empty", "background", "missing", "a"]
)
def test_names_of_classes_stay_classes(word: str) -> None:
    assert not means_no_label(word)


def test_as_class_makes_a_class_of_a_word_in_any_writing_and_of_no_other() -> None:
    labels = ["Unknown", "none", "cat", "", "unknown"]
    assert without_words(labels) == (
        ["", "", "cat", "", ""],
        {"Unknown": 1, "none": 1, "unknown": 1},
    )
    assert without_words(labels, read_as_class(" unknown ,")) == (
        ["Unknown", "", "cat", "", "unknown"],
        {"none": 1},
    )
    with pytest.raises(UsageError, match=r"--as-class cat: this word is a class anyway") as caught:
        read_as_class("none,cat")
    assert caught.value.instead == {"--as-class": None}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training Set", "train"),
        ("train_images", "train"),
        ("trainImages", "train"),
        ("train2017", "train"),
        ("02-test-jpg", "test"),
        ("hold-out", "test"),
        ("HoldOut", "test"),
        ("valid", "val"),
        ("dev_set", "val"),
        ("un-labelled", "unlabelled"),
        ("test_tube", ""),
        ("train_station", ""),
        ("trainA", ""),
        ("train_val", ""),
        ("eval", ""),
        ("images", ""),
        ("constrain", ""),
        ("", ""),
    ],
)
def test_a_name_says_a_split_or_is_another_name(name: str, split: str) -> None:
    assert split_named(name) == split


def test_longer_names_say_one_split_or_none() -> None:
    assert split_within("imagenet-val-0001") == "val" and split_within("train-or-test") == ""
    assert split_and_rest("seg_train") == ("train", ("seg",))
