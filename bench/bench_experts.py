"""What other experts would add to a pool of graphs: closed-form heads on cached views, alone and
beside the three graphs of two views.

    python bench/bench_experts.py [--tasks digits,chars,weak,noise,pictures] [--labels 1,2,4,8]
                                  [--seeds 10] [--out bench/results/experts.json]

    graphs     label propagation on each view and on both side by side, 7 neighbours, alpha 0.9,
               their product with weight 0.5 each
    linear     logistic regression on each view (C = 10), their product: what probes are
    LDA        with the shrinkage of Ledoit and Wolf, both views side by side (from 3 labels on)
    Gaussian   transductive: class means and one diagonal of variances, of soft assignments of all
               rows of all views, balanced by Sinkhorn's scaling towards an estimated class
               marginal; labelled rows keep their labels, and hold the means (EM, 10 rounds;
               arXiv 2506.13723 and 2603.02959, anchored as arXiv 2501.03729)
    balanced   the graphs, their classes scaled until all of them are equally frequent among the
               training rows (class mass normalisation, Zhu et al. 2003), a quarter of the way

Of each expert that joins the pool, the weight of 0.1, 0.25 and 0.5 that is best on the test images
is taken: what it could add at most. Prints a Markdown table of test top-1 in %, mean over the
draws of labels, and writes all of them.
"""

import argparse
import datetime
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks
from bench_cache import machine

from train.data.graph import Features, Graph, groups_of, nodes_of
from train.data.splits import Split

CPU = torch.device("cpu")
LEAST, ROUNDS, ANCHOR = 1e-6, 10, 0.1
WEIGHTS = (0.1, 0.25, 0.5)


def log_softmax(z_nC: np.ndarray) -> np.ndarray:
    z_nC = z_nC - z_nC.max(1, keepdims=True)
    return z_nC - np.log(np.exp(z_nC).sum(1, keepdims=True))


class Draw:
    """One draw of labels: what each expert says of the test rows, (n, C) log-probabilities."""

    def __init__(self, emb_V: Sequence[np.ndarray], y_N: np.ndarray, split: Split) -> None:
        self.split, self.y_L, self.classes = split, y_N[split.labelled], int(y_N.max()) + 1
        self.nodes = nodes_of(split)
        self.x_G = []
        self.graphs, self.of_nodes = 0.0, 0.0
        for group in groups_of(len(emb_V)):
            views = [emb_V[view] for view in group]
            self.x_G.append(Features(views, self.nodes))
            graph = Graph(views, y_N, [split], self.classes, CPU)
            told = graph.told(0, split.test), graph.told(0, self.nodes)
            test, nodes = (0.5 * np.log(np.maximum(p_nC, LEAST)) for p_nC in told)
            self.graphs, self.of_nodes = self.graphs + test, self.of_nodes + nodes

    def linear(self) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression

        said = 0.0
        for x in self.x_G[:-1]:
            known_LD, test_nD = (8 * x(rows) for rows in (self.split.labelled, self.split.test))
            model = LogisticRegression(C=10, max_iter=1_000).fit(known_LD, self.y_L)
            said = said + model.predict_log_proba(test_nD)
        return log_softmax(said)

    def lda(self) -> np.ndarray | None:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        if np.bincount(self.y_L).min() < 3:
            return None
        x = self.x_G[-1]
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        model.fit(x(self.split.labelled).astype(np.float64), self.y_L)
        return np.maximum(model.predict_log_proba(x(self.split.test).astype(np.float64)), -700)

    def gaussian(self) -> np.ndarray:
        known = np.isin(self.nodes, self.split.labelled)
        onehot_LC = np.eye(self.classes)[self.y_L]
        count_C = onehot_LC.sum(0)
        z_nC = np.exp(log_softmax(self.of_nodes))
        z_nC[known] = onehot_LC
        x_V = [x(self.nodes).astype(np.float64) for x in self.x_G[:-1]]
        heads: list[tuple[np.ndarray, np.ndarray]] = []
        prior_C = count_C / count_C.sum()
        for _ in range(ROUNDS):
            prior_C = 0.5 * z_nC[~known].mean(0) + 0.5 * (count_C + 1) / (count_C + 1).sum()
            heads = [self._head(x_nD, z_nC, known, onehot_LC) for x_nD in x_V]
            said = sum(likely(x_nD, *head) for x_nD, head in zip(x_V, heads, strict=True))
            z_nC = sinkhorn(said + np.log(prior_C), prior_C)
            z_nC[known] = onehot_LC
        test_V = [x(self.split.test).astype(np.float64) for x in self.x_G[:-1]]
        said = sum(likely(x_nD, *head) for x_nD, head in zip(test_V, heads, strict=True))
        return log_softmax(said + np.log(prior_C))

    def _head(
        self, x_nD: np.ndarray, z_nC: np.ndarray, known: np.ndarray, onehot_LC: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means (C, D), and what a squared distance counts in each dimension (D,)."""
        count_C1 = z_nC.sum(0)[:, None]
        own_CD = z_nC.T @ x_nD / np.maximum(count_C1, 1e-9)
        anchor_CD = onehot_LC.T @ x_nD[known] / np.maximum(onehot_LC.sum(0), 1)[:, None]
        share_C1 = count_C1 / (count_C1 + ANCHOR * len(x_nD) / self.classes)
        mean_CD = share_C1 * own_CD + (1 - share_C1) * anchor_CD
        within_D = (x_nD**2).mean(0) - (count_C1 * (2 * mean_CD * own_CD - mean_CD**2)).sum(
            0
        ) / len(x_nD)
        return mean_CD, 12 / x_nD.shape[1] / np.maximum(within_D, 1e-8)

    def balanced(self, strength: float = 0.25) -> np.ndarray:
        shift_C = np.zeros(self.classes)
        for _ in range(30):
            share_C = np.exp(log_softmax(self.of_nodes + shift_C)).mean(0)
            shift_C -= np.log(np.maximum(share_C * self.classes, LEAST))
        return self.graphs + strength * shift_C


def likely(x_nD: np.ndarray, mean_CD: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
    """(n, C): minus half of the scaled squared distance."""
    cross_nC = x_nD @ (mean_CD * scale_D).T
    return cross_nC - ((x_nD**2) @ scale_D)[:, None] / 2 - (mean_CD**2) @ scale_D / 2


def sinkhorn(log_nC: np.ndarray, prior_C: np.ndarray) -> np.ndarray:
    """Rows of sum 1, columns towards n times the prior."""
    z_nC = np.exp(log_nC - log_nC.max(1, keepdims=True))
    for _ in range(10):
        z_nC /= z_nC.sum(1, keepdims=True)
        z_nC *= len(z_nC) * prior_C / np.maximum(z_nC.sum(0), 1e-9)
    return z_nC / z_nC.sum(1, keepdims=True)


def scores(draw: Draw, y_n: np.ndarray) -> dict[str, float]:
    """Test top-1 in % of each."""
    linear, gaussian, lda = draw.linear(), draw.gaussian(), draw.lda()
    said = {"graphs": draw.graphs, "linear": linear, "Gaussian": gaussian}
    found = {"balanced": right(draw.balanced(), y_n)}
    if lda is not None:
        said["LDA"] = lda
    for name, log_p_nC in said.items():
        found[name] = right(log_p_nC, y_n)
        if name != "graphs":
            pools = [right(draw.graphs + weight * log_p_nC, y_n) for weight in WEIGHTS]
            found[f"graphs, {name}"] = max(pools)
    return found


def right(log_p_nC: np.ndarray, y_n: np.ndarray) -> float:
    return 100 * float((log_p_nC.argmax(1) == y_n).mean())


def splits(y_N: np.ndarray, part_N: np.ndarray, labels: int, seeds: int) -> list[Split]:
    """So many labels of each class; all other rows that are not for test are unlabelled."""
    pool, test = np.flatnonzero(part_N != "test"), np.flatnonzero(part_N == "test")
    found = []
    for seed in range(seeds):
        chance, known = np.random.default_rng(seed), []
        for label in np.unique(y_N):
            known.append(chance.permutation(pool[y_N[pool] == label])[:labels])
        rows = np.sort(np.concatenate(known))
        found.append(Split(rows, np.setdiff1d(pool, rows), np.empty(0, np.int64), test))
    return found


COLUMNS = ("graphs", "balanced", "linear", "graphs, linear", "LDA", "graphs, LDA", "Gaussian")
COLUMNS += ("graphs, Gaussian",)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(tasks.TASKS))
    parser.add_argument("--labels", default="1,2,4,8", help="labels a class")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/experts.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    date = datetime.date.today().isoformat()
    record: dict[str, Any] = {"date": date, "machine": machine(), "top1": {}}
    print(f"| task, labels a class | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for task in args.tasks.split(","):
        _, y_N, part, views = tasks.TASKS[task]()
        emb_V = [np.asarray(emb_ND, np.float16) for emb_ND in views.values()]
        for labels in map(int, args.labels.split(",")):
            draws: dict[str, list[float]] = {}
            for split in splits(y_N, np.array(part), labels, args.seeds):
                for name, value in scores(Draw(emb_V, y_N, split), y_N[split.test]).items():
                    draws.setdefault(name, []).append(round(value, 2))
            record["top1"][f"{task} {labels}"] = draws
            cells = [f"{np.mean(draws[name]):.1f}" if name in draws else "" for name in COLUMNS]
            print(f"| {task}, {labels} | {' | '.join(cells)} |", flush=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
