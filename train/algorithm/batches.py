"""Position is arithmetic: which rows a step sees is a pure function of (seed, step), the same in
every view, rank and restart."""

import numpy as np

LABELLED, UNLABELLED = 0, 1
ROWS, DRAWS = 1 << 40, 2 << 40  # so that no two purposes ever share a stream
_orders: dict[tuple[int, int, int], dict[int, np.ndarray]] = {}


def rows(pool: np.ndarray, seed: int, step: int, batch: int, role: int) -> np.ndarray:
    """(batch,) row numbers of `pool` for one step. Each pass over the pool is a fresh permutation;
    a batch may cross into the next.

    role: LABELLED or UNLABELLED, so that the two streams of one seed differ.
    """
    position = np.arange(step * batch, (step + 1) * batch)
    epochs = position // len(pool)
    places = np.empty(batch, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        order = _permutation(len(pool), seed, epoch, role)
        places[here] = order[position[here] - epoch * len(pool)]
    return pool[places]


def _permutation(n: int, seed: int, epoch: int, role: int) -> np.ndarray:
    """The order of one pass. Those of the last two passes of each stream are kept, as int32 where
    they fit: a batch may need both."""
    kept = _orders.setdefault((n, seed, role), {})
    if epoch not in kept:
        while len(kept) > 1:
            del kept[min(kept)]
        chance = np.random.Generator(np.random.Philox(key=[seed, ROWS + epoch * 2 + role]))
        order = chance.permutation(n)
        kept[epoch] = order.astype(np.int32) if n < 2**31 else order
    return kept[epoch]


def uniforms(seed: int, step: int, stream: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1) for the draws of one step; `stream` tells apart the views and
    purposes."""
    counter = [0, 0, 0, step]
    chance = np.random.Generator(np.random.Philox(key=[seed, DRAWS + stream], counter=counter))
    return chance.random(count)
