"""Random streams: whatever is drawn is a pure function of a seed, a purpose, and what it is drawn
for.

Every purpose that has streams stands in one table, so that no two can share one.
"""

import enum
import hashlib

import numpy as np

NUMBERS = 1 << 40  # of a purpose: those of the next begin there


@enum.unique
class Purpose(enum.IntEnum):
    """Never give one another number: all that was drawn for it would be drawn anew."""

    PASS = 1  # the order of a pass over labelled or unlabelled rows (batches.py)
    STEP = 2  # the uniforms of a step: dropout, sampled labels, noise (batches.py)
    LABELLED = 3  # which images of a class have labels (train/data/splits.py)
    HELD_OUT = 5  # which labelled rows validate, of arrays in memory (coview/labels.py)
    FOLDS = 4  # which labelled rows are left out together (train/data/folds.py)
    BLOCKS = 6  # the order of blocks and rows that are read ahead (bench/stream.py)
    TUNING = 7  # augmentations and mixtures of a step of fine-tuning (train/finetune)
    TO_LABEL = 8  # which rows are proposed to be labelled (to_label.py)


def stream(
    seed: int, purpose: Purpose, number: int = 0, place: tuple[int, int, int] = (0, 0, 0)
) -> np.random.Generator:
    """Philox by its key and counter. number: below NUMBERS; place: three 64-bit words, of which
    each begins a part of the stream that no draw before it reaches."""
    assert 0 <= number < NUMBERS, (purpose, number)
    key = [seed, purpose * NUMBERS + number]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, *place]))


def place_of(name: str) -> tuple[int, int, int]:
    """A place in a stream for a name, whatever other names there are."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    first, second, third = (int.from_bytes(digest[at : at + 8], "big") for at in (0, 8, 16))
    return first, second, third
