"""The Python door: scikit-learn's conventions, the numbers of `make train`, and views as arrays."""

import gc
import json
import re
import shutil
import subprocess
import sys
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Made
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils.estimator_checks import check_estimator
from training import QUICK, config

from base.errors import IntegrityError, UsageError
from cache_specs import store
from coview import MetaCoTrainingClassifier, ProbeClassifier, open_items, open_view
from coview.classifier import _contents
from coview.labels import encode, hold_out
from train.command import run
from train.data.splits import make_split

SMALL = {
    name: QUICK[name]
    for name in ("lr", "hidden", "batch_unlabelled", "warmup", "cotrain", "eval_every")
} | {"device": "cpu", "random_state": 1}
INHERENT = {
    "check_classifiers_classes": (
        "its classes are -1 and 1; -1 is no label here, "
        "as for scikit-learn's own semi-supervised classifiers"
    )
}


@pytest.fixture(autouse=True)
def rendered() -> None:
    """Nobody hears what the library logs, as in a notebook: instead of conftest's."""


def some(
    made: Made, n: int = 200, labelled: int = 60
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Two views of n digits, their labels, and the same with -1 behind the first `labelled`."""
    emb_V = [made.emb[name][:n].astype(np.float16) for name in ("pixels", "edges")]
    y = made.items.label[:n].astype(np.int64)
    return emb_V, y, np.where(np.arange(n) < labelled, y, -1)


# ---------------------------------------------------------------- scikit-learn's conventions


@pytest.mark.many
def test_scikit_learns_own_checks_of_the_single_view_probe() -> None:
    probe = ProbeClassifier(hidden=16, lr=5e-3, warmup=20, cotrain=40, random_state=0, device="cpu")
    with pytest.warns():  # few labels, and what the checks provoke on purpose
        found = check_estimator(probe, expected_failed_checks=INHERENT, on_skip=None)
    assert len(found) > 45 and {
        check["check_name"] for check in found if check["status"] not in ("passed", "skipped")
    } == set(INHERENT)


def test_it_is_cloned_searched_and_cross_validated_in_pipelines(made: Made) -> None:
    emb_V, y, partly = some(made, labelled=120)
    wide = np.concatenate(emb_V, 1).astype(np.float32)
    model = MetaCoTrainingClassifier(views=[64, 128], method="mct", **SMALL)
    assert clone(model).get_params() == model.get_params() and model.get_params()["views"] == [
        64,
        128,
    ]
    scores = cross_val_score(make_pipeline(MaxAbsScaler(), model), wide, partly, cv=2)
    assert (scores > 0.4).all()  # of the rows of each fold that have a label
    found = GridSearchCV(model, {"temperature": [0.5, 1.0]}, cv=2).fit(wide, partly)
    assert found.best_estimator_.n_features_in_ == 192 and found.predict(wide).shape == y.shape


def test_one_wide_array_is_the_same_as_a_list(made: Made) -> None:
    emb_V, _, partly = some(made)
    wide, single = np.concatenate(emb_V, 1), MetaCoTrainingClassifier(**SMALL).fit(emb_V, partly)
    for views in ([64, 128], [slice(0, 64), slice(64, None)]):
        model = MetaCoTrainingClassifier(views, **SMALL).fit(wide, partly)
        assert (
            np.array_equal(model.predict_proba(wide), single.predict_proba(emb_V))
            and model.n_features_in_ == single.n_features_in_ == 192
        )


def test_rows_of_any_dtype_and_order_are_read_and_never_written(made: Made) -> None:
    emb_V, _, partly = some(made)
    told = MetaCoTrainingClassifier(**SMALL).fit(emb_V, partly).predict_proba(emb_V)
    before = [emb_nD.copy() for emb_nD in emb_V]
    for dtype in (np.float32, np.float64, ">f4"):
        others = [np.asfortranarray(emb_nD.astype(dtype)) for emb_nD in emb_V]
        for array in (*others, partly):
            array.flags.writeable = False
        model = MetaCoTrainingClassifier(**SMALL).fit(others, partly)
        assert np.array_equal(model.predict_proba(others), told) and np.array_equal(
            model.predict_proba(emb_V), told
        )
    assert all(map(np.array_equal, emb_V, before))


def test_it_prints_nothing_leaves_nothing_and_keeps_its_draws_to_itself(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    emb_V, _, partly = some(made)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    model = MetaCoTrainingClassifier(**SMALL).fit(emb_V, partly)
    assert np.array_equal(
        model.predict(emb_V), MetaCoTrainingClassifier(**SMALL).fit(emb_V, partly).predict(emb_V)
    )
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(
        np.random.get_state()[1], before[1]
    )
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())
    model.set_params(verbose=True).fit(emb_V, partly)
    assert "mct-graph 40/40" in capfd.readouterr().err
    other = model.set_params(random_state=2, verbose=False).fit(emb_V, partly)
    assert not np.array_equal(
        other.predict_proba(emb_V),
        MetaCoTrainingClassifier(**SMALL).fit(emb_V, partly).predict_proba(emb_V),
    )
    alive = [weakref.ref(emb_nD) for emb_nD in emb_V]
    del emb_V
    gc.collect()
    assert all(
        array() is None for array in alive
    )  # a fitted model keeps what it needs, not all rows


def test_what_is_said_of_rows(made: Made) -> None:
    emb_V, y, partly = some(made, n=400, labelled=200)
    model = MetaCoTrainingClassifier(**SMALL, seeds=2).fit(emb_V, partly)
    seen, new = (
        [emb_nD[200:] for emb_nD in emb_V],
        [made.emb[name][400:700].astype(np.float16) for name in ("pixels", "edges")],
    )
    for rows, label in ((seen, y[200:]), (new, made.items.label[400:700])):
        proba, views = model.predict_proba(rows), model.predict_views(rows)
        assert (
            proba.shape == (len(label), 10)
            and np.allclose(proba.sum(1), 1)
            and np.array_equal(model.classes_[proba.argmax(1)], model.predict(rows))
        )
        assert np.array_equal(
            model.agreement(rows), (views == model.predict(rows)).mean(0, dtype=np.float32)
        )
        assert model.score(rows, label) == (model.predict(rows) == label).mean() > 0.75
    some_known = np.where(np.arange(200) < 50, y[200:], -1)
    assert model.score(seen, some_known) == (model.predict(seen)[:50] == y[200:250]).mean()
    assert (
        model.model_.seeds == [1, 2]
        and model.n_iter_ == 40
        and [record["step"] for record in model.history_] == [10, 20, 30, 40]
    )


def test_names_of_columns_are_kept_as_scikit_learn_does(made: Made) -> None:
    """Of tables of pandas, or of whatever speaks its protocol: pyarrow is here."""
    import pyarrow as pa

    emb_V, _, partly = some(made)
    tables = [
        pa.table({f"{name}{d}": column for d, column in enumerate(emb_nD.astype(np.float32).T)})
        for name, emb_nD in zip(("pixel", "edge"), emb_V, strict=True)
    ]
    single = ProbeClassifier(**SMALL).fit(tables[0], partly)
    assert single.feature_names_in_.tolist() == [f"pixel{d}" for d in range(64)]
    assert np.array_equal(
        single.predict_proba(tables[0]),
        ProbeClassifier(**SMALL).fit(emb_V[0], partly).predict_proba(emb_V[0]),
    )
    with pytest.raises(ValueError, match="feature names"):
        single.predict(tables[0].rename_columns([f"x{d}" for d in range(64)]))
    both = MetaCoTrainingClassifier(**SMALL).fit(tables, partly)
    assert np.array_equal(
        both.predict(tables), MetaCoTrainingClassifier(**SMALL).fit(emb_V, partly).predict(emb_V)
    )


# ---------------------------------------------------------------- the same engine


@pytest.mark.parametrize("method", ["supervised", "mct-graph", "concat"])
def test_it_gives_the_numbers_of_make_train(made: Made, tmp_path: Path, method: str) -> None:
    settings = config(made, tmp_path, method=method, seeds="1")
    summary = run(settings)
    split = make_split(made.items, np.ones(len(made.items), bool), "3", 1)
    train = np.union1d(split.labelled, split.unlabelled)
    emb_V = [made.emb[name].astype(np.float16) for name in ("pixels", "edges")]
    y = np.where(np.isin(train, split.labelled), made.items.label[train], -1)
    model = MetaCoTrainingClassifier(method=method, **SMALL).fit(
        [emb_ND[train] for emb_ND in emb_V],
        y,
        [emb_ND[split.val] for emb_ND in emb_V],
        made.items.label[split.val],
    )
    names = {"view0": "pixels", "view1": "edges"}
    told = [
        {
            key: {names.get(name, name): number for name, number in value.items()}
            if isinstance(value, dict)
            else value
            for key, value in line.items()
        }
        for line in model.history_
    ]
    expected = [
        json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    ]
    for line in expected:
        for marks in line.get("pseudo", {}).values():
            marks["precision"] = None  # there is no hidden label here to compare with
    assert told == expected
    test, label = [emb_ND[split.test] for emb_ND in emb_V], made.items.label[split.test]
    assert model.score(test, label) == summary["methods"][method]["joint"]["test_top1"]["mean"]
    for name, said in zip(("pixels", "edges"), model.predict_views(test), strict=False):
        assert (said == label).mean() == summary["methods"][method]["views"][name]["test_top1"][
            "mean"
        ]


# ---------------------------------------------------------------- labels


class NoTruth:
    """As pandas.NA."""

    __hash__ = None

    def __ne__(self, other: object) -> "NoTruth":
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.parametrize(
    ("y", "label", "classes"),
    [
        ([3, -1, 7, 3], [0, -1, 1, 0], [3, 7]),
        (np.array([1.0, np.nan, -1.0, 2.0]), [0, -1, -1, 1], [1, 2]),
        (["b", "", "a", "b"], [1, -1, 0, 1], ["a", "b"]),
        (np.array(["b", None, float("nan"), "a"], object), [1, -1, -1, 0], ["a", "b"]),
        (np.array([5, None, -1, 6], object), [0, -1, -1, 1], [5, 6]),
        (["b", -1, "a", float("nan")], [1, -1, 0, -1], ["a", "b"]),
        (np.ma.masked_equal([4, 9, 5], 9), [0, -1, 1], [4, 5]),
        (np.ma.masked_array(["b", "c", "a"], [0, 1, 0]), [1, -1, 0], ["a", "b"]),
        ([NoTruth(), 2, 3], [-1, 0, 1], [2, 3]),
        (("b", 1.0 * -1, "a"), [1, -1, 0], ["a", "b"]),
        (np.array([True, False, True]), [1, 0, 1], [False, True]),
        (np.array([0, 255, 1], np.uint8), [0, 2, 1], [0, 1, 255]),
    ],
)
def test_what_counts_as_no_label(y: object, label: list, classes: list) -> None:
    found, names = encode(y)
    assert found.tolist() == label and names.tolist() == classes and found.dtype == np.int32


def test_names_of_classes_come_back(made: Made) -> None:
    emb_V, _, partly = some(made)
    names = np.array([f"digit {label}" if label >= 0 else "" for label in partly])
    model, numbered = (ProbeClassifier(**SMALL).fit(emb_V[0], y) for y in (names, partly))
    assert model.score(emb_V[0], names) == numbered.score(emb_V[0], partly) > 0.5
    for fitted, other in ((model, partly), (numbered, names)):
        with pytest.raises(
            ValueError,
            match=(
                r"y has labels such as '?(digit )?0'?, but the model was fitted with "
                r"such as '?(digit )?0'?: give both as names"
            ),
        ):
            fitted.score(emb_V[0], other)
    assert model.classes_[3] == "digit 3" and set(model.predict(emb_V[0])) <= set(model.classes_)
    assert np.array_equal(model.predict_proba(emb_V[0]), numbered.predict_proba(emb_V[0]))


def test_words_that_mean_no_label_are_none_and_told_unless_they_are_named_as_classes() -> None:
    for y in (["cat", "Unlabeled", "", "dog"], np.array(["cat", "n/a", None, "dog"], object)):
        word = y[1]
        with pytest.warns(UserWarning, match=f"1 row of y with '{word}' .*as_class=") as caught:
            label, classes = encode(y)
        assert label.tolist() == [0, -1, -1, 1] and classes.tolist() == ["cat", "dog"]
        assert len(caught) == 1
        label, classes = encode(y, as_class=[word])
        assert label.max() == 2 and word in classes.tolist()
    with pytest.warns(UserWarning, match="'-1' is taken to have no label"):
        assert encode(["1", "-1", "0"])[0].tolist() == [1, -1, 0]
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the 2 rows has a"):
        encode(["unknown", "none"])


def test_as_class_goes_through_the_classifier(made: Made) -> None:
    emb_V, _, partly = some(made)
    names = np.array(["unknown" if label % 2 else "none" for label in partly])
    names[partly < 0] = ""
    model = ProbeClassifier(as_class=("unknown", "none"), **SMALL).fit(emb_V[0], names)
    assert model.classes_.tolist() == ["none", "unknown"] and model.score(emb_V[0], names) > 0.5
    assert model.get_params()["as_class"] == ("unknown", "none")


def test_validation_rows_are_a_share_of_each_class_and_a_matter_of_the_seed(made: Made) -> None:
    label = np.concatenate([np.repeat(np.arange(4), [1, 2, 3, 50]), np.full(9, -1)])
    held = hold_out(label, 0.2, 0)
    assert (
        np.bincount(label[held], minlength=4).tolist() == [0, 0, 1, 10] and (label[held] >= 0).all()
    )
    assert np.array_equal(held, hold_out(label, 0.2, 0)) and not np.array_equal(
        held, hold_out(label, 0.2, 1)
    )
    assert not len(hold_out(label, 0.0, 0)) and np.bincount(
        label[hold_out(label, 0.99, 0)], minlength=4
    ).tolist() == [0, 1, 2, 49]
    emb_V, _, partly = some(made)
    model = MetaCoTrainingClassifier(validation_fraction=0.2, **SMALL).fit(emb_V, partly)
    assert np.array_equal(model.validation_rows_, hold_out(partly, 0.2, 1))


def test_one_more_class_holds_out_the_same_rows_of_the_others() -> None:
    """Whatever the number of a class is: those behind the new one move up."""
    label = np.tile([0, 1, 2, -1], 20)
    held = hold_out(label, 0.2, 3)
    for new in range(4):
        number = np.where(label >= new, label + 1, label)
        more = hold_out(np.concatenate([number, np.full(10, new)]), 0.2, 3)
        assert np.array_equal(more[more < len(label)], held) and (more >= len(label)).sum() == 2


def test_four_threads_fit_what_one_fits(made: Made) -> None:
    emb_V, y, _ = some(made)
    few = np.where(np.arange(len(y)) < 60, y, -1)

    def fitted(seed: int) -> np.ndarray:
        probe = ProbeClassifier(**SMALL | {"random_state": seed})
        return probe.fit(emb_V[0], few).predict_proba(emb_V[0])

    alone = [fitted(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(4) as threads:
        for seed, found in zip((0, 1) * 4, threads.map(fitted, (0, 1) * 4), strict=True):
            assert np.array_equal(found, alone[seed])


def test_copies_of_a_row_do_not_judge_one_another(made: Made) -> None:
    """Each label twice, as oversampling makes them: the same folds as if they stood there once."""
    emb_V, y, _ = some(made)
    few, twice = np.arange(40), np.tile(np.arange(40), 2)
    contents = _contents([emb_nD[twice] for emb_nD in emb_V], y[twice])
    once = _contents([emb_nD[few] for emb_nD in emb_V], y[few])
    assert contents == once * 2 and len(set(once)) == 40
    assert _contents([emb_nD[few] for emb_nD in emb_V], np.full(40, -1)) == [""] * 40


def test_too_few_labels_to_hold_some_out_are_said(made: Made) -> None:
    emb_V, y, _ = some(made)
    one = np.where([(y[:row] == label).sum() < 1 for row, label in enumerate(y)], y, -1)
    told = r"none can be left out: nothing is chosen.*Give X_val and y_val, or more labels"
    with pytest.warns(UserWarning, match=told):
        model = MetaCoTrainingClassifier(**SMALL).fit(emb_V, one)
    assert (
        not len(model.validation_rows_)
        and model.model_.temperature == 1
        and model.score(emb_V, y) > 0.5
    )
    asked = MetaCoTrainingClassifier(validation_fraction=0, **SMALL).fit(
        emb_V, one
    )  # who asks for it is not warned
    assert np.array_equal(asked.predict(emb_V), model.predict(emb_V))


@pytest.mark.parametrize(
    ("changes", "label", "message"),
    [
        (
            {"method": "mtc"},
            None,
            "there is no method 'mtc' that keeps a model; did you mean 'mct'",
        ),
        ({"method": "logreg"}, None, "there is no method 'logreg' that keeps a model"),
        ({"hidden": 0}, None, "--hidden must be at least 1"),
        ({"seeds": 0}, None, "seeds=0 must be a whole number"),
        (
            {"validation_fraction": 1.0},
            None,
            r"validation_fraction=1.0 must be in \[0, 1\), or None",
        ),
        ({"random_state": -1}, None, r"random_state=-1 must be in \[0, 2\*\*31\)"),
        ({"random_state": 2**32}, None, r"random_state=4294967296 must be in"),
        ({"random_state": 2**64}, None, "random_state=18446744073709551616 must be in"),
        (
            {"random_state": 2**31 - 2, "seeds": 3},
            None,
            r"random_state=2147483646 and the 2 seeds after it must be below 2\*\*31",
        ),
        (
            {},
            ["a", 1] * 100,
            (
                "the labels are strings and other things, such as 'a' and 1: "
                "make all of them strings, or all numbers"
            ),
        ),
        ({}, np.array(["a", 1] * 100, object), "the labels are strings and other things"),
        (
            {},
            np.array([b"cat", b"dog"] * 100),
            r"the labels are bytes, such as b'cat': make them strings, by np\.char\.decode\(y\)",
        ),
        ({"views": [64, 100]}, None, "are 164 features, but X has 192 features"),
        ({"views": ["a", 3]}, None, r"must be widths such as \[512, 768\], or slices"),
        ({"views": [slice(0, 64), slice(200, 300)]}, None, "leaves a view without a column"),
        ({"views": [192]}, None, "needs at least two views, found 1"),
        ({}, [0] * 200, "there is only one class"),
        ({}, [-1] * 200, "none of the 200 rows has a label"),
        ({}, [0, 1] * 100, "learns from rows without a label"),
    ],
)
def test_what_cannot_be_meant_is_a_value_error(
    made: Made, changes: dict, label: list | None, message: str
) -> None:
    emb_V, _, partly = some(made)
    rows = np.concatenate(emb_V, 1) if "views" in changes else emb_V
    with pytest.raises(ValueError, match=message):
        MetaCoTrainingClassifier(**{**SMALL, **changes}).fit(
            rows, partly if label is None else label
        )


def test_rows_that_do_not_fit_are_named(made: Made) -> None:
    emb_V, _, partly = some(made)
    model = MetaCoTrainingClassifier(**SMALL)
    with pytest.raises(NotFittedError):
        model.predict(emb_V)
    bad = emb_V[1].copy()
    bad[3, 0] = np.nan
    for rows, message in (
        (emb_V[0], r"X is one ndarray, expected a list of one \(n, D\) array a view"),
        (
            [emb_V[0], bad],
            (
                r"Input X\[1\] contains NaN\.\n"
                r"A row that could not be embedded.*np.isfinite\(X\).all\(axis=1\) of each view$"
            ),
        ),
        ([emb_V[0], emb_V[1][:9]], "inconsistent numbers of samples"),
        ([emb_V[0][:9], emb_V[1][:9]], "inconsistent numbers of samples"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(rows, partly)
    with pytest.raises(
        ValueError,
        match=(
            r"X has views of \[128, 64\] features, "
            r"but MetaCoTrainingClassifier was fitted with \[64, 128\]"
        ),
    ):
        model.fit(emb_V, partly).predict(emb_V[::-1])
    for rows, label in (([emb_nD[:2] for emb_nD in emb_V], None), (None, [1, 2])):
        with pytest.raises(
            ValueError,
            match=(
                "X_val and y_val belong together, "
                f"and {'y_val' if rows else 'X_val'} is missing: give both or neither"
            ),
        ):
            model.fit(emb_V, partly, rows, label)
    with pytest.raises(
        ValueError,
        match="the validation rows have the class 99, which no labelled training row has",
    ):
        model.fit(emb_V, partly, [emb_nD[:2] for emb_nD in emb_V], [1, 99])


def test_a_fit_that_fails_or_is_interrupted_leaves_what_was_fitted_before(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb_V, _, partly = some(made)
    named = np.array([f"n{9 - label}" if label >= 0 else "" for label in partly])
    model = MetaCoTrainingClassifier(**SMALL).fit(emb_V, partly)
    before, state = model.predict(emb_V), set(vars(model))
    with pytest.raises(ValueError, match="validation_fraction=2"):
        model.set_params(validation_fraction=2).fit(emb_V, named)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coview.classifier.train_method", interrupt)
    for fitted in (model, MetaCoTrainingClassifier(**SMALL)):
        with pytest.raises(KeyboardInterrupt):
            fitted.set_params(validation_fraction=0.2).fit(emb_V, named)
    assert np.array_equal(model.predict(emb_V), before) and set(vars(model)) == state
    with pytest.raises(NotFittedError):
        fitted.predict(emb_V)


def test_rows_of_which_nothing_finite_can_be_said_are_a_value_error(made: Made) -> None:
    emb_V, _, partly = some(made)
    model = MetaCoTrainingClassifier(**SMALL).fit(emb_V, partly)
    large = [emb_nD[:5].astype(np.float32) for emb_nD in emb_V]
    large[0][2] *= 1e30
    with pytest.raises(
        ValueError,
        match="the model gives no probabilities of 1 of 5 rows, since their numbers are too large",
    ):
        model.predict(large)


def test_how_columns_are_shared_out_is_a_matter_of_the_fit(made: Made) -> None:
    emb_V, _, partly = some(made)
    wide = np.concatenate(emb_V, 1)
    model = MetaCoTrainingClassifier([64, 128], **SMALL).fit(wide, partly)
    before = model.predict(wide)
    assert np.array_equal(model.set_params(views=[128, 64]).predict(wide), before)


# ---------------------------------------------------------------- views as arrays


def test_a_view_is_a_read_only_map_of_all_its_rows(made: Made) -> None:
    for path in (
        made.cache / "digits" / "pixels",
        next(made.dataset.glob("pixels-*")),
        str(made.dataset / "pixels"),
    ):
        emb_ND, items = open_view(path), open_items(path)
        assert (
            emb_ND.dtype == np.float16
            and np.array_equal(emb_ND, made.emb["pixels"].astype(np.float16))
            and not emb_ND.flags.writeable
        )
        assert (
            items.keys == made.items.keys
            and np.array_equal(items.label, made.items.label)
            and open_items(made.dataset).classes == made.items.classes
        )
        assert open_items(made.cache / "digits").split == made.items.split
    with pytest.raises(ValueError, match="read-only"):
        emb_ND[0] = 0


def test_a_view_that_is_not_whole_is_refused_by_name(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.cache, tmp_path / "cache")
    dataset = next((tmp_path / "cache").glob("digits-*"))
    folder = {name: next(dataset.glob(f"{name}-*")) for name in ("pixels", "edges", "thirds")}
    (folder["pixels"] / "complete.json").unlink()
    shard = store.open_view(folder["edges"]).embeddings_file(1)
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    for name, kind, message in (
        ("digits/pixels", UsageError, r"the view 'pixels' is not finished \(4 of 4 shards"),
        ("digits/edges", IntegrityError, r"edges-\w+: shard 1 .*damaged"),
        (
            "digits/egdes",
            UsageError,
            r"no view 'egdes' in .*; did you mean 'edges'\. To extract it: make extract VIEW=egdes",
        ),
        ("digts/edges", UsageError, r"no dataset 'digts'.*did you mean 'digits'"),
    ):
        with pytest.raises(kind, match=message):
            open_view(tmp_path / "cache" / name)
    with pytest.raises(
        UsageError,
        match=(
            r"tiny-clip: a view is named by cache/DATA/VIEW, "
            r"such as cache/digits/tiny-clip; open that"
        ),
    ):
        open_view("tiny-clip")
    with pytest.raises(UsageError, match=r"there is no cache .*a view is cache/DATA/VIEW"):
        open_view(tmp_path / "nowhere" / "digits" / "edges")


def test_arrays_are_opened_without_torch() -> None:
    code = (
        "import sys, coview\ncoview.open_view\n"
        "print({'torch', 'sklearn'} & set(sys.modules), dir(coview))\n"
        "try: coview.nonsense\nexcept AttributeError as e: print(e)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (
        shown.startswith("set() ['MetaCoTrainingClassifier'")
        and "has no attribute 'nonsense'; it has MetaCo" in shown
    )


def test_the_page_on_python_runs(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of it, on two cheap views and with little training."""
    text = "".join(
        re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    )
    for old, new in (
        ("tiny-clip", "pixels"),
        ("tiny-dinov2", "edges"),
        ("random_state=0", "random_state=0, warmup=20, cotrain=20, hidden=16, lr=5e-3"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "cache").symlink_to(made.cache)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(text, "docs/python.md", "exec"), names)
    assert (
        names["proba"].shape == (1797, 10)
        and names["alone"].shape == (2, 1797)
        and names["ok_N"].all()
        and names["single"].n_features_in_ == 64
    )


def test_numpys_own_numbers_among_objects_are_numbers() -> None:
    from coview.labels import encode

    label, classes = encode(
        np.array([np.int64(0), np.int64(1), np.int64(-1), np.float32(-1), None], object)
    )
    assert label.tolist() == [0, 1, -1, -1, -1] and classes.tolist() == [0, 1]
