"""What scikit-learn has for few labels, each in its own best way on the labels that a method of
ours gets, all views side by side:

    predictions(x_VnD, split, label_N) -> {name: (n_test,) classes}

    label spreading    with the library's defaults (an RBF kernel, gamma 20, alpha 0.2)
    kernel ridge       on one-hot labels, RBF; the penalty and the kernel's width by five-fold
                       cross-validation on all labelled rows, the defaults where a class has one
    LDA                with the shrinkage of Ledoit and Wolf; from three rows of each class on, as
                       two do not tell it how much to shrink

The embeddings are standardised by all training rows and scaled to length 1, as ours are.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from train.data.graph import Features, nodes_of
from train.data.splits import Split

PENALTIES, WIDTHS = (1e-3, 1e-2, 0.1, 1.0), (0.25, 1.0, 4.0)
FOLDS = 5


def predictions(
    emb_V: Sequence[np.ndarray], label_N: np.ndarray, split: Split
) -> dict[str, np.ndarray]:
    """emb_V: (N, D_v) each; label_N is read at split.labelled alone."""
    x = Features(emb_V, nodes_of(split))
    known_LD, y_L = x(split.labelled).astype(np.float64), label_N[split.labelled]
    test_nD = x(split.test).astype(np.float64)
    found = {
        "label spreading": _spreading(known_LD, y_L, x(split.unlabelled), test_nD),
        "kernel ridge": _kernel_ridge(known_LD, y_L, test_nD),
    }
    if np.unique(y_L, return_counts=True)[1].min() > 2:
        found["LDA"] = _lda(known_LD, y_L, test_nD)
    return found


def _spreading(
    known_LD: np.ndarray, y_L: np.ndarray, hidden_UD: np.ndarray, test_nD: np.ndarray
) -> np.ndarray:
    from sklearn.semi_supervised import LabelSpreading

    x_ND = np.concatenate([known_LD, hidden_UD])
    y_N = np.concatenate([y_L, np.full(len(hidden_UD), -1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of its rounds, and of rows far from all
        return LabelSpreading().fit(x_ND, y_N).predict(test_nD)


def _kernel_ridge(known_LD: np.ndarray, y_L: np.ndarray, test_nD: np.ndarray) -> np.ndarray:
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import StratifiedKFold

    classes, at_L = np.unique(y_L, return_inverse=True)
    onehot_LC = np.eye(len(classes))[at_L]
    best, most = KernelRidge(kernel="rbf", gamma=1.0, alpha=0.1), -1.0
    folds = min(FOLDS, int(np.bincount(at_L).min()))
    if folds > 1:
        deal = StratifiedKFold(folds, shuffle=True, random_state=0)
        parts = list(deal.split(known_LD, y_L))
        for gamma in WIDTHS:
            for alpha in PENALTIES:
                model, right = KernelRidge(kernel="rbf", gamma=gamma, alpha=alpha), 0
                for own, out in parts:
                    said = model.fit(known_LD[own], onehot_LC[own]).predict(known_LD[out])
                    right += int((said.argmax(1) == at_L[out]).sum())
                if right > most:
                    best, most = KernelRidge(kernel="rbf", gamma=gamma, alpha=alpha), right
    return classes[best.fit(known_LD, onehot_LC).predict(test_nD).argmax(1)]


def _lda(known_LD: np.ndarray, y_L: np.ndarray, test_nD: np.ndarray) -> np.ndarray:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return model.fit(known_LD, y_L).predict(test_nD)
