"""python -m extract.models.unpickle CHECKPOINT TARGET.safetensors [KEY]

Called by extract/models/convert.py, in a process of its own. The one place that unpickles, with
weights_only=True: tensors and plain values alone, no code. Names and values are kept as they are.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def main(source: str, target: str, key: str | None = None) -> None:
    """Write the tensors of the checkpoint, or of its entry `key`, by one rename. Raises ValueError
    where there are none."""
    # settings that a training script saved beside its tensors
    with torch.serialization.safe_globals([argparse.Namespace]):
        # no code: the only load of a pickle, see above
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    state = _tensors(loaded if key is None else _entry(loaded, key))
    temp = Path(target).with_name(f".{Path(target).name}.{os.getpid()}.tmp")
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, temp)
    with temp.open("rb") as file:
        os.fsync(file.fileno())
    temp.rename(target)


def _entry(loaded: Any, key: str) -> Any:
    if not isinstance(loaded, dict):
        raise ValueError(f"it has no entry {key!r}, but {type(loaded).__name__}")
    if key not in loaded:
        raise ValueError(f"it has no entry {key!r}, but {sorted(map(str, loaded))[:10]}")
    return loaded[key]


def _tensors(state: Any) -> dict[str, torch.Tensor]:
    if not isinstance(state, dict) or not state:
        raise ValueError("it is no dictionary of tensors")
    others = []
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            others.append(f"{name}: {type(value).__name__}")
    if others:
        raise ValueError(f"it is no dictionary of tensors: {', '.join(others[:10])}")
    return state


if __name__ == "__main__":
    main(*sys.argv[1:])
