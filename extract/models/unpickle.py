"""python -m extract.models.unpickle CHECKPOINT TARGET.safetensors [KEY]     (called by extract/models/convert.py, in a process of its own)

The one place that unpickles, with weights_only=True: tensors and plain values alone, no code. Names and values are kept as they are.
"""

import argparse
import os
import sys
from pathlib import Path


def main(source: str, target: str, key: str | None = None) -> None:
    """Write the tensors of the checkpoint, or of its entry `key`, by one rename. Raises ValueError where there are none."""
    import torch
    from safetensors.torch import save_file

    with torch.serialization.safe_globals(
        [argparse.Namespace]
    ):  # settings that a training script saved beside its tensors
        loaded = torch.load(
            source, map_location="cpu", weights_only=True
        )  # no code: the only load of a pickle, see above
    if key is not None and (not isinstance(loaded, dict) or key not in loaded):
        raise ValueError(
            f"it has no entry {key!r}, but {sorted(map(str, loaded))[:10] if isinstance(loaded, dict) else type(loaded).__name__}"
        )
    state = loaded if key is None else loaded[key]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    ):
        others = (
            [
                f"{name}: {type(value).__name__}"
                for name, value in state.items()
                if not isinstance(value, torch.Tensor)
            ]
            if isinstance(state, dict)
            else []
        )
        raise ValueError(
            f"it is no dictionary of tensors{': ' if others else ''}{', '.join(others[:10])}"
        )
    temp = Path(target).with_name(f".{Path(target).name}.{os.getpid()}.tmp")
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, temp)
    with temp.open("rb") as file:
        os.fsync(file.fileno())
    temp.rename(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
