"""Which images to label: whole loops of labelling and learning, rule by rule: make bench-labels
(or python bench/bench_labels.py [--quick] [--tasks digits,chars,weak,noise])

Five rounds, in each of which a rule chooses as many images as there are classes, learns their
labels, and is scored on the test images: by label propagation on the graph of both views (k = 7,
alpha = 0.9), and by logistic regression on both views side by side (C = 10). Neither has any other
label. Each of ten seeds draws four fifths of the task's training images as the pool, the same for
all rules. What needs a model has that of the round before, the graph's or the regression's; its
first round is MaxHerding's, but for `margin, random start`.

    random                          drawn
    margin, random start            the textbook's: random, then the smallest margins
    k-means centres                 of the images without a label, each round anew
    TypiClust, MaxHerding           by the embeddings alone
    margin, UHerding, DropQuery     by the model's opinions besides
    disagreement                    of four times as many with the largest disagreement of the
                                    views x entropy of the joint those that lie farthest apart

Prints the test top-1 as the mean of the five rounds (the area under the curve): mean and deviation
over the seeds, and the paired difference to random with its standard error; and that of the first
round, with the number of classes in which a label was found. Writes bench/results/labels.json with
every draw.
"""

import argparse
import datetime
import json
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks
from bench_cache import machine

from train.algorithm import to_label
from train.algorithm.neighbours import CPU
from train.data.graph import Features, links_of, nearest_on, nearest_rows, solve

ROUNDS, K, ALPHA, C = 5, 7, 0.9, 10.0
SCORERS = ("graph", "regression")


@dataclass(frozen=True, eq=False)
class Pool:
    """What one seed chooses from, and is tested on. views: rows of length 1 of each view."""

    x_nD: np.ndarray
    views_Vn: list[np.ndarray]
    y_n: np.ndarray
    test_mD: np.ndarray
    y_m: np.ndarray
    classes: int


@dataclass(frozen=True, eq=False)
class Opinions:
    """(n, C) of the pool, by both views and by each alone; first choices of any rows."""

    joint_nC: np.ndarray
    views: Callable[[], np.ndarray]
    choice: Callable[[np.ndarray], np.ndarray]
    score: float


def pool_of(task: tuple, seed: int, most: int) -> Pool:
    _, y, split, views = task
    chance, split = np.random.default_rng(seed), np.array(split)
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    train = np.sort(chance.permutation(train)[: min(most, len(train) * 4 // 5)])
    emb_V = [np.asarray(emb, np.float16) for emb in views.values()]
    both, alone = Features(emb_V, train), [Features([emb], train) for emb in emb_V]
    classes = int(y.max()) + 1
    views_Vn = [one(train) for one in alone]
    return Pool(both(train), views_Vn, y[train], both(test), y[test], classes)


class Graph:
    """Label propagation, as train/data/graph.py does it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.links = links_of(nearest_on(CPU, pool.x_nD, None, K))
        self.near_mK = nearest_rows(pool.x_nD, pool.test_mD, K)[1]
        self.views = [links_of(nearest_on(CPU, x_nD, None, K)) for x_nD in pool.views_Vn]

    def __call__(self, known: np.ndarray) -> Opinions:
        pool = self.pool
        y_n = np.full(len(pool.y_n), -1)
        y_n[known] = pool.y_n[known]

        def told(links: Any) -> np.ndarray:
            return solve(links, y_n, pool.classes, [ALPHA])[0].told_nC

        told_nC = told(self.links)

        def choice(x_qD: np.ndarray) -> np.ndarray:
            near = self._near(x_qD)
            return told_nC[near].mean(1).argmax(1)

        score = float((told_nC[self.near_mK].mean(1).argmax(1) == pool.y_m).mean())
        return Opinions(told_nC, lambda: np.stack([told(one) for one in self.views]), choice, score)

    def _near(self, x_qD: np.ndarray) -> np.ndarray:
        return nearest_rows(self.pool.x_nD, x_qD, K)[1]


class Regression:
    """scikit-learn's, of the classes that have a label."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __call__(self, known: np.ndarray) -> Opinions:
        pool = self.pool
        model = self._fit(pool.x_nD, known)

        def views() -> np.ndarray:
            found = []
            for x_nD in pool.views_Vn:
                found.append(self._wide(self._fit(x_nD, known), x_nD))
            return np.stack(found)

        score = float((model.predict(pool.test_mD) == pool.y_m).mean())
        return Opinions(self._wide(model, pool.x_nD), views, model.predict, score)

    def _fit(self, x_nD: np.ndarray, known: np.ndarray) -> Any:
        from sklearn.dummy import DummyClassifier
        from sklearn.linear_model import LogisticRegression

        y = self.pool.y_n[known]
        model = LogisticRegression(C=C, max_iter=200, tol=1e-3)
        if len(np.unique(y)) == 1:
            model = DummyClassifier()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(x_nD[known], y)

    def _wide(self, model: Any, x_nD: np.ndarray) -> np.ndarray:
        p_nC = np.zeros((len(x_nD), self.pool.classes))
        p_nC[:, model.classes_] = model.predict_proba(x_nD)
        return p_nC


def entropy(p_nC: np.ndarray) -> np.ndarray:
    return -(p_nC * np.log(np.maximum(p_nC, 1e-12))).sum(-1)


def disagreement(said: Opinions, free: np.ndarray) -> np.ndarray:
    views_VnC = said.views()[:, free]
    apart_n = np.maximum(entropy(views_VnC.mean(0)) - entropy(views_VnC).mean(0), 0)
    return apart_n * entropy(said.joint_nC[free])


Rule = Callable[[Pool, np.ndarray, np.ndarray, Opinions | None, int, int], np.ndarray]


def random(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    return to_label.at_random(len(free), b, s)


def kmeans(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    return to_label.kmeans_centres(pool.x_nD[free], b, s)


def typical(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    return to_label.typical(pool.x_nD[free], pool.x_nD[known], b, s)


def herding(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    return to_label.max_herding(pool.x_nD[free], pool.x_nD[known], b, s)


def margin(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    return to_label.least_margin(said.joint_nC[free], b)


def unsure(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    h = to_label.smallest_distance(pool.x_nD[known])
    return to_label.u_herding(pool.x_nD[free], pool.x_nD[known], said.joint_nC[free], b, s, h)


def unsure_wide(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    return to_label.u_herding(pool.x_nD[free], pool.x_nD[known], said.joint_nC[free], b, s)


def dropping(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    return to_label.drop_query(pool.x_nD[free], said.choice, b, s)


def apart(pool: Pool, free: np.ndarray, known: np.ndarray, said: Any, b: int, s: int) -> Any:
    score_n, x_nD = disagreement(said, free), pool.x_nD[free]
    top = np.argsort(-score_n, kind="stable")[: 4 * b]
    top = top[: max(b, int((score_n[top] >= score_n.max() / 4).sum()))]
    chosen, near = [0], x_nD[top] @ x_nD[top[0]]
    while len(chosen) < min(b, len(top)):
        near[chosen] = np.inf
        chosen.append(int(near.argmin()))
        near = np.maximum(near, x_nD[top] @ x_nD[top[chosen[-1]]])
    return top[chosen]


RULES: dict[str, tuple[Rule, Rule]] = {  # the first round, and the others
    "random": (random, random),
    "margin, random start": (random, margin),
    "k-means centres": (kmeans, kmeans),
    "TypiClust": (typical, typical),
    "MaxHerding": (herding, herding),
    "margin": (herding, margin),
    "UHerding": (herding, unsure),
    "UHerding, h = 1": (herding, unsure_wide),
    "DropQuery": (herding, dropping),
    "disagreement": (herding, apart),
}


FIRST = ("random", "k-means centres", "TypiClust", "MaxHerding")


def loops(task: tuple, seed: int, most: int) -> dict[str, dict[str, list[list[float]]]]:
    """{scorer: {rule: [[top-1, classes with a label] a round]}}."""
    torch.set_num_threads(1)
    pool, found = pool_of(task, seed, most), {}
    with threadpool_limits(1):  # else the threads of small products wait for one another
        for scorer, kind in zip(SCORERS, (Graph, Regression), strict=True):
            model = kind(pool)
            found[scorer] = {name: loop(pool, model, rules, seed) for name, rules in RULES.items()}
    return found


def loop(pool: Pool, model: Any, rules: tuple[Rule, Rule], seed: int) -> list[list[float]]:
    known, said, lines = np.empty(0, np.int64), None, []
    for number in range(ROUNDS):
        free = np.setdiff1d(np.arange(len(pool.y_n)), known)
        rule = rules[min(number, 1)]
        chosen = rule(pool, free, known, said, pool.classes, 100 * seed + number)
        known = np.concatenate([known, free[chosen]])
        said = model(known)
        lines.append([100 * said.score, len(np.unique(pool.y_n[known]))])
    return lines


def tables(found: dict[str, Any]) -> list[str]:
    """Lines of the tables in docs/labelling.md."""
    names = list(found["tasks"])
    lines = []
    for scorer in SCORERS:
        lines += ["", *head(f"mean of five rounds, {scorer}", names)]
        for rule in RULES:
            cells = [whole(found["tasks"][name], scorer, rule) for name in names]
            lines.append(f"| {' | '.join([rule, *cells])} |")
    lines += ["", *head("after the first round, graph (classes)", names)]
    for rule in FIRST:
        cells = []
        for name in names:
            line_E2 = np.array([draw["graph"][rule][0] for draw in found["tasks"][name]])
            cells.append(f"{spread(line_E2[:, 0])} ({line_E2[:, 1].mean():.0f})")
        lines.append(f"| {' | '.join([rule, *cells])} |")
    return lines


def head(title: str, names: list[str]) -> list[str]:
    return [f"| {' | '.join([title, *names])} |", "|" + "---|" * (len(names) + 1)]


def whole(draws: list[dict], scorer: str, rule: str) -> str:
    """Mean of all rounds and its deviation over the seeds; minus random, and its standard error."""
    area_E, random_E = area(draws, scorer, rule), area(draws, scorer, "random")
    if rule == "random":
        return spread(area_E)
    gain_E = area_E - random_E
    error = gain_E.std(ddof=1) / len(gain_E) ** 0.5
    return f"{spread(area_E)} ({gain_E.mean():+.1f} ± {error:.1f})".replace("-", "−")


def area(draws: list[dict], scorer: str, rule: str) -> np.ndarray:
    return np.array([np.mean([line[0] for line in draw[scorer][rule]]) for draw in draws])


def spread(x: np.ndarray) -> str:
    return f"{x.mean():.1f} ± {x.std(ddof=1):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="digits,chars,weak,noise")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="digits, two seeds, a small pool")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/labels.json")
    args = parser.parse_args()
    names = ["digits"] if args.quick else args.tasks.split(",")
    seeds, most = (2, 120) if args.quick else (args.seeds, 1_000_000)
    found: dict[str, Any] = {"machine": machine(), "date": datetime.date.today().isoformat()}
    found |= {"rounds": ROUNDS, "seeds": seeds, "tasks": {}}
    for name in names:
        with threadpool_limits(1):
            task = tasks.TASKS[name]()
        found["tasks"][name] = every_draw(task, range(seeds), most, 1 if args.quick else 2)
        args.out.write_text(json.dumps(found) + "\n")
        print(f"{name}: {seeds} seeds", flush=True)
    print("\n".join(tables(found)))


def every_draw(task: tuple, seeds: range, most: int, processes: int) -> list[dict]:
    if processes == 1:
        return [loops(task, seed, most) for seed in seeds]
    with ProcessPoolExecutor(processes) as workers:
        todo = [workers.submit(loops, task, seed, most) for seed in seeds]
        return [one.result() for one in todo]


if __name__ == "__main__":
    main()
