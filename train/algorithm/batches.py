"""Position is arithmetic: which rows a step sees is a pure function of (seed, step), the same in
every view, rank and restart."""

import numpy as np

from train.algorithm.streams import Purpose, stream

LABELLED, UNLABELLED = 0, 1


class Passes:
    """Which rows of a pool the steps of one experiment see. Each pass over the pool is a fresh
    permutation; a batch may cross into the next.

    role: LABELLED or UNLABELLED, so that the two streams of one seed differ. The orders of the last
    two passes are kept, as int32 where they fit: a batch may need both. They go with their
    training, and threads may share one.
    """

    def __init__(self, pool: np.ndarray, seed: int, role: int) -> None:
        self.pool, self.seed, self.role = pool, seed, role
        self.kept: dict[int, np.ndarray] = {}

    def __call__(self, step: int, batch: int) -> np.ndarray:
        """(batch,) row numbers of the pool for one step."""
        position, n = np.arange(step * batch, (step + 1) * batch), len(self.pool)
        epochs = position // n
        places = np.empty(batch, np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            places[here] = self._order(epoch)[position[here] - epoch * n]
        return self.pool[places]

    def _order(self, epoch: int) -> np.ndarray:
        """Of one pass. `kept` is replaced and never changed, so that who reads it needs no lock."""
        kept = self.kept
        if epoch in kept:
            return kept[epoch]
        n = len(self.pool)
        order = stream(self.seed, Purpose.PASS, epoch * 2 + self.role).permutation(n)
        order = order.astype(np.int32) if n < 2**31 else order
        newest = max(kept, default=epoch)
        self.kept = {newest: kept.get(newest, order), epoch: order}
        return order


def uniforms(seed: int, step: int, number: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1) for the draws of one step; `number` tells apart the views and what
    they draw for."""
    return stream(seed, Purpose.STEP, number, (0, 0, step)).random(count)
