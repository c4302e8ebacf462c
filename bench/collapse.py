"""Why do co-trained probes collapse? One change at a time to our own step, on the digits as pixels
and as gradients:  python bench/collapse.py

For each variant: the joint's validation accuracy after the supervised warm-up, at its best and at
the end, and the share of the unlabelled rows that the joint puts into its most frequent class at
the end (0.1 would be even; 1 is a full collapse). 8 draws of 4 labels a class, the paper's
temperature 1. Prints the table and writes bench/results/collapse.json. Some minutes.
"""

import argparse
import functools
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from train.algorithm import probe
from train.algorithm.batches import LABELLED, UNLABELLED, Passes, uniforms
from train.algorithm.cotrain import Batch, StepRule, mct_step, supervised_step
from train.algorithm.optimise import Adam, fresh
from train.algorithm.peers import LocalPeers
from train.algorithm.probe import Params

SEEDS, LABELS, WARMUP, COTRAIN = range(8), 4, 200, 600
SHAPE = probe.Shape(256, 2, dropout=0.2)


def forward(
    params: Params,
    x_EBD: Tensor,
    keep: list[Tensor] = (),
    chunk: int = 0,
    norm: str = "layer",
    last: str = "none",
    scale: float = 1.0,
) -> Tensor:
    """probe.forward with other choices: batch normalisation (always by the batch's own statistics),
    an activation on the logits, their scale."""
    h = x_EBD
    for i in range(2):
        h = torch.baddbmm(params[f"b{i}"], h, params[f"w{i}"])
        axis = -1 if norm == "layer" else 1
        if norm != "none":
            h = (h - h.mean(axis, keepdim=True)) / torch.sqrt(
                h.var(axis, correction=0, keepdim=True) + 1e-5
            )
        h = torch.relu(h * params[f"gain{i}"] + params[f"shift{i}"])
        if keep:
            h = h * keep[i]
    z = scale * torch.baddbmm(params["b2"], h, params["w2"])
    return (
        torch.relu(z)
        if last == "relu"
        else torch.nn.functional.leaky_relu(z, 0.01)
        if last == "leaky"
        else z
    )


VARIANTS: dict[str, dict] = {
    "ours: layer norm, bare logits, clip 1, lr 3e-4": {},
    "ReLU on the logits": {"last": "relu"},
    "leaky ReLU on the logits": {"last": "leaky"},
    "batch norm, labels by the batch's statistics": {"norm": "batch"},
    "no normalisation": {"norm": "none"},
    "logits x 10": {"scale": 10.0},
    "no clipping": {"clip": 1e9},
    "lr 3e-3": {"lr": 3e-3},
    "no warm-up": {"warmup": 0},
    "no supervised gradient in co-training": {"supervised": 0.0},
    "ReLU on the logits, no supervised gradient": {"last": "relu", "supervised": 0.0},
    "argmax labels": {"temperature": 0.0},
    "temperature 0.5": {"temperature": 0.5},
}


def digits() -> tuple[list[Tensor], np.ndarray, np.ndarray, np.ndarray]:
    """Two standardised views (N, D), labels, and the rows for training and for validation."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = bunch.images.reshape(len(bunch.images), -1)
    padded = np.pad(bunch.images, ((0, 0), (1, 1), (1, 1)))
    edges = np.concatenate(
        [padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]], 1
    ).reshape(len(pixels), -1)
    order = np.random.default_rng(0).permutation(len(pixels))
    made = [
        torch.from_numpy((x - x.mean(0)) / np.maximum(x.std(0), 1e-2)).float()
        for x in (pixels, edges)
    ]
    return made, bunch.target, np.sort(order[:1200]), np.sort(order[1200:])


def run(
    variant: dict,
    views: list[Tensor],
    y: np.ndarray,
    train: np.ndarray,
    val: np.ndarray,
    cotrain_steps: int,
) -> dict[str, list[float]]:
    """The four figures of a variant, one number a seed each."""
    shape = {name: variant[name] for name in ("norm", "last", "scale") if name in variant}
    mine: Callable = functools.partial(forward, **shape)
    labelled = [
        np.concatenate(
            [
                np.random.default_rng([seed, c]).permutation(train[y[train] == c])[:LABELS]
                for c in range(10)
            ]
        )
        for seed in SEEDS
    ]
    hidden = [np.setdiff1d(train, known) for known in labelled]
    seen_L = [Passes(pool, seed, LABELLED) for pool, seed in zip(labelled, SEEDS, strict=True)]
    seen_U = [Passes(pool, seed, UNLABELLED) for pool, seed in zip(hidden, SEEDS, strict=True)]
    states = [
        fresh(probe.init(SEEDS, v, x.shape[1], 10, SHAPE, torch.float32), mine)
        for v, x in enumerate(views)
    ]
    method = StepRule(
        Adam(variant.get("lr", 3e-4), variant.get("clip", 1.0)),
        temperature=variant.get("temperature", 1.0),
        supervised=variant.get("supervised", 1.0),
    )
    warmup, found, y_val, best = (
        variant.get("warmup", WARMUP),
        {},
        torch.from_numpy(y[val]),
        np.zeros(len(SEEDS)),
    )

    def scores() -> np.ndarray:
        with torch.no_grad():
            z = sum(
                mine(state.params, x[torch.from_numpy(val)].expand(len(SEEDS), -1, -1))
                for state, x in zip(states, views, strict=True)
            )
        return (z.argmax(-1) == y_val).double().mean(1).numpy()

    for step in range(warmup + cotrain_steps):
        at_L, at_U = (
            torch.from_numpy(np.stack([rows(step, size) for rows in of_seeds]))
            for of_seeds, size in ((seen_L, 40), (seen_U, 128))
        )
        batches = [
            Batch(
                x[at_U],
                x[at_L],
                torch.from_numpy(y)[at_L],
                probe.dropout(SEEDS, step, 2 * v, 128, SHAPE, at_L.device, torch.float32),
                probe.dropout(SEEDS, step, 2 * v + 1, 40, SHAPE, at_L.device, torch.float32),
            )
            for v, x in enumerate(views)
        ]
        draws = torch.from_numpy(
            np.stack([[uniforms(seed, step, 8 + v, 128) for seed in SEEDS] for v in range(2)])
        )
        if step < warmup:
            states, _ = supervised_step(states, batches, LocalPeers(2), method)
        else:
            states, _ = mct_step(states, batches, draws, LocalPeers(2), method)
        if (step + 1) % 20 == 0:
            now = scores()
            best = np.maximum(best, now)
            if step + 1 == warmup:
                found["warm-up"] = now.tolist()
    found |= {"best": best.tolist(), "end": scores().tolist()}
    with torch.no_grad():
        z = sum(
            mine(state.params, x[torch.from_numpy(np.stack(hidden))])
            for state, x in zip(states, views, strict=True)
        )
    found["largest class"] = [
        float(np.bincount(row, minlength=10).max() / len(row)) for row in z.argmax(-1).numpy()
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=COTRAIN, help="co-training steps")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "collapse.json"
    )
    args = parser.parse_args()
    data, results = digits(), {}
    columns = ("warm-up", "best", "end", "largest class")
    print(
        f"{len(SEEDS)} draws, {LABELS} labels a class, {WARMUP} + {args.steps} steps; "
        f"mean ± std\n{'':50}" + "".join(f"{name:>16}" for name in columns)
    )
    for name, variant in VARIANTS.items():
        results[name] = run(variant, *data, args.steps)
        cells = [results[name].get(column) for column in columns]
        print(
            f"{name:50}"
            + "".join(
                f"{100 * np.mean(cell):9.1f} ± {100 * np.std(cell, ddof=1):4.1f}"
                if cell
                else f"{'':16}"
                for cell in cells
            ),
            flush=True,
        )
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "n": len(SEEDS),
        "results": results,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
