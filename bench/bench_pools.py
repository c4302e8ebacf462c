"""What real pools do to the methods: python bench/bench_pools.py [--tasks digits,pictures]
[--seeds 0..9]

    usual     4 labels of each class, the task as it is
    tail      the classes' sizes fall geometrically to a hundredth, in an order that is drawn; 4
              labels of each class, or all of it
    random    the same, with as many labels in all, but drawn at random
    foreign   a fifth of the classes is none of yours: in the pool and among the test images, never
              labelled
    wrong     10 labels of each class, a fifth of them another class's

Through `MetaCoTrainingClassifier()`, as it is, and two baselines that choose by the same
cross-fitting (train/classic.py): label propagation and logistic regression on all views. All labels
are counted; each draw has its own. Test images are those of the task (of tail and random thinned
like the pool, of foreign without the foreign ones, but where they are asked for). Prints, over the
draws, mean ± standard deviation of top-1 and balanced accuracy, the mean confidence, and the paired
difference of mct-graph ± its standard error; of foreign how well `familiar` and the confidence tell
foreign images (area under the ROC curve), and which shares are below 0.05; of wrong the precision
and recall of the suspected labels, by out-of-fold label propagation. Writes
bench/results/pools.json. A quarter of an hour on 2 cores.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import bench_methods
from bench_cache import machine
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from coview import MetaCoTrainingClassifier
from report.sections.choose import wrong_labels
from train.classic import classify
from train.data.folds import with_folds
from train.data.reader import Cache, open_cache
from train.data.splits import Split

LABELS, MANY, WRONG, FOREIGN, THINNEST = 4, 10, 0.2, 0.2, 100
STRANGE = 0.05
METHODS = ("mct-graph", "label propagation", "logistic regression")


class Draw(NamedTuple):
    """Rows of the task: the pool, and those of test. label_N: the true classes; given: (rows,
    labels) as somebody typed them; foreign_N: is it of no class?"""

    pool: np.ndarray
    test: np.ndarray
    label_N: np.ndarray
    given: tuple[np.ndarray, np.ndarray]
    foreign_N: np.ndarray


def usual(cache: Cache, chance: np.random.Generator, labels: int = LABELS) -> Draw:
    label_N, testing = cache.items.label, np.array(cache.items.split) == "test"
    pool, test = np.flatnonzero(~testing), np.flatnonzero(testing)
    rows = of_each(label_N, pool, chance, labels)
    return Draw(pool, test, label_N, (rows, label_N[rows]), np.zeros(len(label_N), bool))


def of_each(
    label_N: np.ndarray, pool: np.ndarray, chance: np.random.Generator, labels: int
) -> np.ndarray:
    """So many rows of each class, or all of it."""
    found = []
    for number in np.unique(label_N[pool]):
        found.append(chance.permutation(pool[label_N[pool] == number])[:labels])
    return np.sort(np.concatenate(found))


def tail(cache: Cache, chance: np.random.Generator) -> Draw:
    draw, classes = usual(cache, chance), len(cache.items.classes)
    share_C = THINNEST ** (-chance.permutation(classes) / (classes - 1))
    kept_N = chance.random(len(draw.label_N)) < share_C[draw.label_N]
    kept_N[of_each(draw.label_N, draw.pool, chance, 1)] = True
    kept_N[of_each(draw.label_N, draw.test, chance, 1)] = True
    pool, test = draw.pool[kept_N[draw.pool]], draw.test[kept_N[draw.test]]
    rows = of_each(draw.label_N, pool, chance, LABELS)
    return draw._replace(pool=pool, test=test, given=(rows, draw.label_N[rows]))


def random(cache: Cache, chance: np.random.Generator) -> Draw:
    draw = tail(cache, chance)
    rows = np.sort(chance.permutation(draw.pool)[: len(draw.given[0])])
    return draw._replace(given=(rows, draw.label_N[rows]))


def foreign(cache: Cache, chance: np.random.Generator) -> Draw:
    draw, classes = usual(cache, chance), len(cache.items.classes)
    strange = chance.permutation(classes)[: max(1, round(FOREIGN * classes))]
    foreign_N = np.isin(draw.label_N, strange)
    rows = draw.given[0][~foreign_N[draw.given[0]]]
    return draw._replace(given=(rows, draw.label_N[rows]), foreign_N=foreign_N)


def wrong(cache: Cache, chance: np.random.Generator) -> Draw:
    draw, classes = usual(cache, chance, MANY), len(cache.items.classes)
    rows, true = draw.given
    moved = (true + chance.integers(1, classes, len(true))) % classes
    typed = np.where(chance.permutation(len(true)) < WRONG * len(true), moved, true)
    return draw._replace(given=(rows, typed))


POOLS: dict[str, Callable[[Cache, np.random.Generator], Draw]] = {
    "usual": usual,
    "tail": tail,
    "random": random,
    "foreign": foreign,
    "wrong": wrong,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parent
    work = root.parent / "runs" / "bench-methods"
    parser.add_argument("--work", type=Path, default=work, help="the tasks, as of bench_methods")
    parser.add_argument("--tasks", default="digits,pictures")
    parser.add_argument("--pools", default=",".join(POOLS))
    parser.add_argument("--seeds", default="0..9")
    parser.add_argument("--out", type=Path, default=root / "results" / "pools.json")
    args = parser.parse_args()
    first, last = map(int, args.seeds.split(".."))
    bench_methods.prepare(args.work, args.tasks.split(","))
    rows = []
    for task in args.tasks.split(","):
        cache = open_cache(args.work / "cache", task, ["a", "b"])
        for pool in args.pools.split(","):
            draws = []
            for seed in range(first, last + 1):
                chance = np.random.default_rng([seed, list(POOLS).index(pool)])
                draws.append(measured(cache, POOLS[pool](cache, chance), seed))
            rows.append({"task": task, "pool": pool, **summed(draws)})
            print(json.dumps(rows[-1]), flush=True)
    found = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": rows}
    args.out.write_text(json.dumps(found, indent=1) + "\n")


def measured(cache: Cache, draw: Draw, seed: int) -> dict[str, float]:
    """Of one draw, all in %."""
    emb_V, own = cache.emb, draw.test[~draw.foreign_N[draw.test]]
    typed_N = np.full(len(draw.label_N), -1)
    typed_N[draw.given[0]] = draw.given[1]
    model = MetaCoTrainingClassifier(random_state=seed)
    model.fit([emb[draw.pool] for emb in emb_V], typed_N[draw.pool])
    p_nC = np.zeros((len(own), len(cache.items.classes)))
    p_nC[:, model.classes_] = model.predict_proba([emb[own] for emb in emb_V])
    said, found = {METHODS[0]: p_nC}, {}
    free = np.setdiff1d(draw.pool, draw.given[0])
    split = with_folds(
        Split(draw.given[0], free, free[:0], own), typed_N, [""] * len(typed_N), seed
    )
    for name, method in zip(METHODS[1:], ("label-propagation", "logreg"), strict=True):
        scores = classify(method, emb_V, typed_N, len(cache.items.classes), split)
        said[name] = np.exp(scores.test[-1].astype(np.float64))
        if method == "label-propagation" and (typed_N != draw.label_N)[draw.given[0]].any():
            found |= suspects(np.exp(scores.val[-1]), typed_N[split.val], draw.label_N[split.val])
    for name, p_nC in said.items():
        pick_n, y_n = p_nC.argmax(1), draw.label_N[own]
        found[f"{name}: top-1"] = float((pick_n == y_n).mean())
        found[f"{name}: balanced"] = float(balanced_accuracy_score(y_n, pick_n))
        found[f"{name}: confidence"] = float(p_nC.max(1).mean())
    if draw.foreign_N.any():
        found |= strangers(model, [emb[draw.test] for emb in emb_V], draw.foreign_N[draw.test])
    return {key: 100 * value for key, value in found.items()}


def suspects(p_nC: np.ndarray, typed_n: np.ndarray, true_n: np.ndarray) -> dict[str, float]:
    """Of the wrong labels, which share is suspected, and of the suspected, which share is wrong."""
    chosen, _ = wrong_labels(p_nC, typed_n, len(typed_n))
    bad_n = typed_n != true_n
    hits = float(bad_n[chosen].sum())
    return {
        "suspects: precision": hits / max(1, len(chosen)),
        "suspects: recall": hits / max(1, int(bad_n.sum())),
    }


def strangers(
    model: MetaCoTrainingClassifier, emb_V: list[np.ndarray], foreign_n: np.ndarray
) -> dict[str, float]:
    """How well foreign images are told from others."""
    familiar_n = model.model_.familiar(emb_V)
    sure_n = model.predict_proba(emb_V).max(1)
    assert familiar_n is not None, "some label has judged"
    return {
        "foreign: AUROC of familiar": float(roc_auc_score(foreign_n, -familiar_n)),
        "foreign: AUROC of confidence": float(roc_auc_score(foreign_n, -sure_n)),
        "foreign: strange": float((familiar_n[foreign_n] < STRANGE).mean()),
        "foreign: others strange": float((familiar_n[~foreign_n] < STRANGE).mean()),
        "foreign: confidence": float(sure_n[foreign_n].mean()),
    }


def summed(draws: list[dict[str, float]]) -> dict[str, Any]:
    """{figure: [mean, deviation over the draws]}, and what mct-graph gains, with its standard
    error over the draws."""
    found: dict[str, Any] = {"draws": len(draws)}
    for key in draws[0]:
        values = np.array([one[key] for one in draws])
        found[key] = [round(float(values.mean()), 1), round(float(values.std(ddof=1)), 1)]
    for name in METHODS[1:]:
        for score in ("top-1", "balanced"):
            ours, theirs = f"{METHODS[0]}: {score}", f"{name}: {score}"
            gain = np.array([one[ours] - one[theirs] for one in draws])
            error = gain.std(ddof=1) / len(gain) ** 0.5
            told = [round(float(gain.mean()), 1), round(float(error), 1)]
            found[f"over {name}: {score}"] = told
    return found


if __name__ == "__main__":
    main()
