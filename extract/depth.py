"""Ten or twelve bits in files of sixteen (X-ray, CT, microscopes, depth cameras): no file says so,
but a whole data set shows it."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from base.console import counted
from base.phrase import quoted
from cache_specs.items import Items
from cache_specs.spec import ViewSpec
from extract.data.readers import Reader
from extract.pixels import NotReadError, Rules, deepest, picture, used_bits

log = logging.getLogger(f"coview.{__name__}")
FILES, ENOUGH, BYTES = 512, 300, 2**31  # looked at, evenly spaced; of these with 16 bits; read
TRIED = 8  # of these, with the bits that are suggested


def warn_of_depth(items: Items, read: Reader, spec: ViewSpec) -> None:
    """Say it where images of 16 bits use fewer than the spec declares, or more."""
    prep = spec.preprocess
    if prep.pixels == 1:
        return
    white = 2**prep.bits - 1
    levels = _levels(items, read, Rules(max_pixels=prep.max_pixels), white if white < 65535 else 0)
    if not levels:
        return
    most, looked = max(levels.values()), counted(len(levels), "image")
    bits = used_bits(most)
    if bits < prep.bits:
        then = (
            f"If so, copy {spec.source}, add bits = {bits} to its [preprocess], and name the copy: "
            f"VIEW=path/to/{spec.name}-{bits}bit.toml{_weights(spec)}"
        )
        refused = _refused([*levels], read, Rules(bits=bits, max_pixels=prep.max_pixels))
        if refused:
            then = f"That cannot be declared of such files ({refused}); then type the same command"
        log.warning(
            f"{items.name}: of {looked} with 16 bits a channel that were looked at, none has a "
            f"level above {2**bits - 1:,}, which suggests {bits} bits; with {prep.bits} they are "
            f"nearly black. {then}"
        )
    elif most > white:
        above = sum(level > white for level in levels.values())
        log.warning(
            f"{items.name}: {above:,} of {looked} with 16 bits a channel that were looked at have "
            f"levels above {white:,}, up to {most:,}, which bits = {prep.bits} makes all white"
        )


def _weights(spec: ViewSpec) -> str:
    """What a copy needs besides, where it says of its weights only where they lie beside it."""
    path = spec.weights.path
    if path is None or Path(path).is_absolute():
        return ""
    return f" WEIGHTS={quoted(str((spec.source.parent / path).resolve()))}"


def _refused(rows: Sequence[int], read: Reader, rules: Rules) -> str:
    """Why one of the first of these images cannot be read by these rules; '' where all can."""
    for row in rows[:TRIED]:
        try:
            picture(read(row), rules)
        except NotReadError as error:
            return str(error)
        except (OSError, MemoryError):
            continue
    return ""


def _levels(items: Items, read: Reader, rules: Rules, white: int) -> dict[int, int]:
    """The largest level of each image of 16 bits among those that are looked at, by its row. Until,
    without a `white`, one uses them all: then nothing is to be said."""
    found, left = dict[int, int](), BYTES
    rows = np.unique(np.linspace(0, len(items) - 1, FILES).astype(np.int64)).tolist()
    for row in rows:
        left -= int(items.size[row])
        if left < 0 or len(found) == ENOUGH:
            break
        try:
            level = deepest(read(row), rules)
        except (OSError, NotReadError, MemoryError):
            continue
        if level >= 0:
            found[row] = level
        if not white and level >= 2**14:
            return {}
    return found
