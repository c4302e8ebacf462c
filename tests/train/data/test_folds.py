"""Every labelled row trains, and judges by what a training says that does not know its label."""

import functools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Made
from training import config

from base.errors import DataQualityError, UsageError
from cache_specs.items import Items
from train.algorithm.evaluate import predict
from train.algorithm.peers import LocalPeers
from train.classic import CLASSIC, out_of_fold
from train.command import run
from train.data import folds
from train.data.apart import AS_NAMED, BEFORE, Apart, apart_of
from train.data.folds import splits_of, trainings, with_folds
from train.data.graph import Graph
from train.data.jury import jury_of
from train.data.reader import Cache
from train.data.splits import Split, assign
from train.jobs import experiments, make_jobs
from train.loop import fit
from train.run.log import Ignore
from train.run.summary import doubt, middle

CPU = torch.device("cpu")
CROSS = Apart(choice="cross")


def split_of(made: Made, labels: str = "4", seed: int = 0, apart: Apart = CROSS) -> Split:
    return splits_of(made.items, np.ones(len(made.items), bool), labels, [seed], apart)[0]


def is_sound(split: Split) -> None:
    """Each row that judges is left out by one fold, and known to all others."""
    left_out = np.concatenate([fold.val for fold in split.folds])
    assert np.array_equal(np.sort(left_out), split.val)
    for fold in split.folds:
        assert np.array_equal(fold.labelled, np.setdiff1d(split.labelled, fold.val))
        assert np.array_equal(fold.unlabelled, np.union1d(split.unlabelled, fold.val))
        assert np.array_equal(fold.test, split.test)


@pytest.mark.parametrize("labels", ["2", "3", "4", "16"])
def test_each_label_judges_once_and_trains_in_all_other_folds(made: Made, labels: str) -> None:
    split = split_of(made, labels)
    assert np.array_equal(split.val, split.labelled) and len(split.folds) == folds.FOLDS
    is_sound(split)
    sizes = [len(fold.val) for fold in split.folds]
    assert max(sizes) - min(sizes) <= 1, sizes
    for fold in split.folds:
        assert len(np.unique(made.items.label[fold.labelled])) == 10, "a class lost all its labels"


def test_the_only_label_of_a_class_is_never_left_out(made: Made) -> None:
    assert not len(split_of(made, "1").val) and not split_of(made, "1").folds
    split = split_of(made, "3")
    few = split.labelled[made.items.label[split.labelled] != 7]
    seven = split.labelled[made.items.label[split.labelled] == 7][:1]
    bare = replace(split, labelled=np.union1d(few, seven), val=few[:0], folds=())
    whole = with_folds(bare, made.items.label, made.items.sha256, 0)
    assert np.array_equal(whole.val, few)
    assert all(seven[0] in fold.labelled for fold in whole.folds)


def test_copies_of_an_image_are_left_out_together(made: Made) -> None:
    split = split_of(made, "6")
    contents = [""] * len(made.items)
    for label in range(10):
        own = split.labelled[made.items.label[split.labelled] == label]
        for place, row in enumerate(own):
            contents[row] = f"{label} {place // 2}"
    bare = replace(split, val=split.val[:0], folds=())
    whole = with_folds(bare, made.items.label, contents, 0)
    is_sound(whole)
    for fold in whole.folds:
        out = {contents[row] for row in fold.val}
        assert not out & {contents[row] for row in fold.labelled}


def test_of_many_labels_one_fold_is_left_out(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "MANY", 100)
    split = split_of(made, "16")
    assert len(split.folds) == 1 and len(split.val) == 32
    is_sound(split)
    monkeypatch.setattr(folds, "ENOUGH", 16)
    assert len(split_of(made, "16").val) == 16


def test_where_copies_make_seeds_unequal_all_have_as_many_that_judge(made: Made) -> None:
    items = replace(made.items, sha256=[*made.items.sha256])
    ok = np.ones(len(items), bool)
    first, other = splits_of(items, ok, "2", [0, 1], CROSS)
    only = first.labelled[items.label[first.labelled] == 3]
    for row in only:
        items.sha256[row] = "the same"
    first, other = splits_of(items, ok, "2", [0, 1], CROSS)
    assert len(first.val) == len(other.val) == 18
    assert 3 not in items.label[first.val]
    for split in (first, other):
        is_sound(split)
        assert len(split.labelled) == 20
    of_each = np.bincount(items.label[other.val], minlength=10)
    assert of_each.min() == 1 and of_each.max() == 2, "no class is without a judge"


def test_where_one_seed_has_nobody_to_judge_none_has(made: Made) -> None:
    items = replace(made.items, sha256=[*made.items.sha256])
    ok = np.ones(len(items), bool)
    for row in splits_of(items, ok, "2", [0], CROSS)[0].labelled:
        items.sha256[row] = f"of class {items.label[row]}"
    for split in splits_of(items, ok, "2", [0, 1], CROSS):
        assert not len(split.val) and not split.folds


def test_the_folds_of_a_seed_are_its_own_and_always_the_same(made: Made) -> None:
    one, again, other = split_of(made), split_of(made), split_of(made, seed=1)
    for fold, same in zip(one.folds, again.folds, strict=True):
        assert np.array_equal(fold.val, same.val)
    assert not np.array_equal(one.folds[0].val, other.folds[0].val)


def test_a_jury_asks_of_each_row_the_training_that_does_not_know_its_label(made: Made) -> None:
    splits = splits_of(made.items, np.ones(len(made.items), bool), "3", [0, 1], CROSS)
    every, jury = trainings(splits), jury_of(splits, made.items.label, CPU)
    said_EnC = torch.arange(len(every), dtype=torch.float64)[:, None, None].expand(-1, 30, 1)
    for seed, judge_n in enumerate(jury.opinions(said_EnC)[..., 0].long().tolist()):
        for row, judge in zip(splits[seed].val, judge_n, strict=True):
            assert row in every[judge].val and row not in every[judge].labelled
            assert judge // (1 + folds.FOLDS) == seed
    assert jury.own_S.tolist() == [0, 1 + folds.FOLDS]
    chosen = jury.of_each(torch.tensor([5.0, 7.0]))
    assert chosen.tolist() == [5.0] * (1 + folds.FOLDS) + [7.0] * (1 + folds.FOLDS)


@pytest.mark.parametrize("method", ["logreg", "knn"])
def test_no_label_has_a_say_in_what_a_classifier_says_of_its_image(made: Made, method: str) -> None:
    """Another label, and the opinion is the same to the last bit, with every hyper-parameter."""
    split, x_ND = split_of(made), made.emb["pixels"].astype(np.float64)
    fit = functools.partial(CLASSIC[method], classes=10)
    y_L = made.items.label[split.labelled]
    before = out_of_fold(fit, x_ND[split.labelled], y_L, split)
    for place in (0, 17, 39):
        told = y_L.copy()
        told[place] = (told[place] + 1) % 10
        after = out_of_fold(fit, x_ND[split.labelled], told, split)
        assert before.keys() == after.keys()
        others = 0
        for key, p_nC in before.items():
            assert np.array_equal(p_nC[place], after[key][place]), key
            others += not np.array_equal(p_nC, after[key])
        assert others, "no other opinion depends on the label: it was not read at all"


def test_no_label_has_a_say_in_what_a_graph_says_of_its_image(made: Made) -> None:
    split = split_of(made)
    fold = next(fold for fold in split.folds if split.val[17] in fold.val)
    found, others = [], []
    for more in (0, 1):
        label = made.items.label.copy()
        label[split.val[17]] = (label[split.val[17]] + more) % 10
        every = trainings([split])
        settled = [(7, 0.9)] * len(every)
        graph = Graph([made.emb["edges"]], label, every, 10, CPU, settled)
        found.append(graph.told(every.index(fold), split.val[17:18]))
        others.append(graph.told(0, split.val[17:18]))
    assert np.array_equal(*found) and not np.array_equal(*others)


@pytest.mark.parametrize("method", ["supervised", "mct", "fixmatch", "self-training"])
def test_no_label_has_a_say_in_what_a_training_says_of_its_image(
    made: Made, tmp_path: Path, method: str
) -> None:
    """With one look, at the end, so that nothing is chosen."""
    split, found = split_of(made), []
    for more in (0, 1):
        label = made.items.label.copy()
        label[split.val[17]] = (label[split.val[17]] + more) % 10
        items = replace(made.items, label=label)
        ok = np.ones(len(items), bool)
        views = [made.emb["pixels"], made.emb["edges"]]
        cache = Cache(items, ["pixels", "edges"], views, ok, {}, {}, "")
        settings = config(made, tmp_path, warmup=10, cotrain=10, eval_every=10**6)
        peers, tries = LocalPeers(2), experiments(replace(settings, seeds="0"))
        for job in make_jobs(method, cache, [split], tries, peers, CPU, settings):
            folder = tmp_path / str(more)
            done = fit(job, settings, Ignore(), folder, threading.Event())
            said = [
                predict(p, x, job.task.jury.rows)
                for p, x in zip(done.best, job.task.inputs, strict=True)
            ]
            found.append(torch.stack([job.task.jury.opinions(z) for z in said]))
    one, other = found
    assert torch.equal(one[:, :, 17], other[:, :, 17]) and not torch.equal(one, other)


# ---------------------------------------------------------------- VAL= and TEST=


@pytest.mark.parametrize(
    ("val", "test", "apart"),
    [
        ("auto", "auto", AS_NAMED),
        ("cross", "auto", CROSS),
        ("none", "20%", Apart(test=20, choice="none")),
        ("split", "auto", Apart(20, choice="split")),
        ("12.5%", "1%", Apart(12.5, 1, "12.5%")),
    ],
)
def test_what_val_and_test_ask_for(val: str, test: str, apart: Apart) -> None:
    assert apart_of({"val": val, "test": test}) == apart


def test_a_run_of_before_had_a_fifth_for_each() -> None:
    assert apart_of({}) == BEFORE == Apart(20, 20, "split")


@pytest.mark.parametrize(
    ("settings", "told", "meant"),
    [
        (
            {"val": "crss"},
            "VAL=crss: neither auto nor cross nor split nor none nor a share",
            "cross",
        ),
        ({"val": "0.1"}, "VAL=0.1: neither", "10%"),
        ({"val": "100%"}, "VAL=100%: neither", "20%"),
        ({"val": "x%"}, "VAL=x%: neither", "20%"),
        ({"test": "20"}, "TEST=20: neither auto nor a share such as 20%", "20%"),
        ({"test": "none"}, "TEST=none: neither auto nor a share", "20%"),
    ],
)
def test_what_is_neither_a_way_nor_a_share_is_refused(
    settings: dict[str, str], told: str, meant: str
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        apart_of({"val": "auto", "test": "auto", **settings})
    assert list(caught.value.instead.values()) == [meant]


def test_a_named_validation_split_judges_unless_all_labels_shall_train(made: Made) -> None:
    role = np.array(made.items.split, object)
    named = split_of(made, "all", apart=AS_NAMED)
    assert np.array_equal(named.val, np.flatnonzero(role == "val")) and not named.folds
    for way in ("cross", "none"):
        split = split_of(made, "all", apart=Apart(choice=way))
        assert np.array_equal(split.labelled, np.flatnonzero(role != "test"))
        assert np.array_equal(split.test, named.test)
        assert (len(split.folds), len(split.val)) == ((0, 0) if way == "none" else (1, 289))
    assert np.array_equal(split_of(made, "all", apart=BEFORE).val, named.val)


@pytest.mark.parametrize(
    ("apart", "word"), [(Apart(val=10, choice="10%"), "VAL"), (Apart(test=20), "TEST")]
)
def test_a_share_is_not_set_apart_beside_a_split_that_the_data_name(
    made: Made, apart: Apart, word: str
) -> None:
    with pytest.raises(UsageError, match=f"{word}=.*names a .* split of its own") as caught:
        split_of(made, "4", apart=apart)
    assert caught.value.instead == {word: None}


@pytest.mark.parametrize("percent", [10, 20, 50])
def test_a_share_is_taken_of_each_class(made: Made, percent: float) -> None:
    bare = replace(made.items, split=[""] * len(made.items))
    role = assign(bare, apart=Apart(percent, percent, f"{percent}%"))
    count = np.bincount(bare.label)
    for name in ("val", "test"):
        found = np.bincount(bare.label[role == name], minlength=10)
        assert np.array_equal(found, count * percent // 100), name


def test_without_any_split_all_labels_train_and_nobody_tests(made: Made) -> None:
    bare = replace(made.items, split=[""] * len(made.items))
    split = splits_of(bare, np.ones(len(bare), bool), "4", [0], AS_NAMED)[0]
    assert len(split.labelled) == len(split.val) == 40 and not len(split.test)
    assert len(split.unlabelled) == len(bare) - 40
    is_sound(split)


def test_a_share_of_classes_that_are_too_small_is_refused(made: Made) -> None:
    few = np.concatenate([np.flatnonzero(made.items.label == c)[:2] for c in range(10)])
    label = np.full(len(made.items), -1, np.int32)
    label[few] = made.items.label[few]
    bare = replace(made.items, label=label, split=[""] * len(label))
    with pytest.raises(DataQualityError, match=r"no usable test image.*leave TEST out, or add"):
        split_of_items(bare, Apart(test=20))
    told = r"no usable validation image.*leave VAL out, or add"
    with pytest.raises(DataQualityError, match=told):
        split_of_items(bare, Apart(20, choice="20%"))
    assert len(split_of_items(bare, AS_NAMED).labelled) == 20


def split_of_items(items: Items, apart: Apart) -> Split:
    return splits_of(items, np.ones(len(items), bool), "all", [0], apart)[0]


# ---------------------------------------------------------------- how good is it?


def covered(made: Made, tmp_path: Path, seeds: str) -> np.ndarray:
    """Of each draw of labels: does what is expected by the out-of-fold opinions, give or take,
    hold for 355 images that nothing was chosen by?"""
    settings = config(
        made, tmp_path, method="supervised-graph", seeds=seeds, labels="4", val="cross"
    )
    found = run(settings)["methods"]["supervised-graph"]["joint"]
    expected = zip(found["val_top1"]["values"], found["test_top1"]["values"], strict=True)
    return np.array([abs(middle(p, 40) - true) <= doubt(p, 40) for p, true in expected])


def test_what_is_expected_out_of_fold_mostly_holds(made: Made, tmp_path: Path) -> None:
    assert covered(made, tmp_path, "0..7").sum() >= 6


@pytest.mark.many
def test_what_is_expected_out_of_fold_holds_in_nine_of_ten_draws(
    made: Made, tmp_path: Path
) -> None:
    found = []
    for first in range(0, 200, 20):
        found.append(covered(made, tmp_path / str(first), f"{first}..{first + 19}"))
    assert 0.85 <= np.concatenate(found).mean() <= 0.99
