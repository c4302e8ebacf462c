"""Scores that count every class alike are scikit-learn's, also of classes that are not there."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from train.algorithm.evaluate import class_scores, judged, metrics, share_right
from train.methods import MEASURES

CASES = {
    "all classes": (range(5), range(5)),
    "a class is not tested": ((0, 1, 3), range(5)),
    "a class is never predicted": (range(5), (0, 2, 3)),
    "neither": ((0, 1), (1, 3)),
    "nothing right": ((0, 1), (3, 4)),
    "one class": ((2,), (2,)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_scores_are_scikit_learns(case: str) -> None:
    chance = np.random.default_rng(0)
    there, said = CASES[case]
    y_n, pred_En = chance.choice([*there], 200), chance.choice([*said], (3, 200))
    pred_En[0, :50] = y_n[:50] if case != "nothing right" else pred_En[0, :50]
    balanced, f1 = class_scores(torch.from_numpy(pred_En), torch.from_numpy(y_n), 5)
    assert balanced.dtype == f1.dtype == torch.float64
    for e, pred_n in enumerate(pred_En):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of predicted classes that are not there
            want = balanced_accuracy_score(y_n, pred_n), f1_score(y_n, pred_n, average="macro")
        assert (float(balanced[e]), float(f1[e])) == pytest.approx(want)
        for by, value in zip(("balanced", "f1"), want, strict=True):
            assert share_right(pred_n, y_n, 5, by) == pytest.approx(value)


def test_every_measure_can_be_chosen_by() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 100, 4, generator=chance)
    y = torch.randint(3, (100,), generator=chance)
    every = metrics(logits, y)
    assert set(every) == {*MEASURES, "nll", "ece"}
    for by in MEASURES:
        found = judged(logits, y, by)
        assert set(found) == {"top1", "nll", by} and found[by].tolist() == every[by]
        pred = logits[1].argmax(-1).numpy()
        assert share_right(pred, y.numpy(), 4, by) == pytest.approx(every[by][1])
