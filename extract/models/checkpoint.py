"""The tensors of a checkpoint: found, named as the model names them, and complete."""

import re
from pathlib import Path

import torch

from base.errors import UsageError
from cache_specs.spec import ViewSpec


def mapped(spec: ViewSpec, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint as the spec's [tensors] says: prefix off, what is no part of the model out,
    names replaced."""
    found = {}
    for name, tensor in state.items():
        name = name.removeprefix(spec.tensors.strip)
        if name.startswith(spec.tensors.drop):
            continue
        for pattern, replacement in spec.tensors.rename.items():
            name = re.sub(pattern, replacement, name)
        if name in found:
            raise UsageError(f"{spec.source}: tensors.rename gives two tensors the name {name!r}")
        found[name] = tensor
    return found


def safetensors_of(spec: ViewSpec, files: dict[str, Path]) -> Path:
    found = [path for name, path in files.items() if name.endswith(".safetensors")]
    if len(found) != 1 or found[0].suffix != ".safetensors":
        listed = ", ".join(map(str, files.values()))
        raise UsageError(
            f"the weights of {spec.name!r} must be one .safetensors file, found {listed}"
        )
    return found[0]


def require_fit(
    spec: ViewSpec, model: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> None:
    """Raise UsageError for each tensor that only one of the two has, or that has another shape."""
    missing, unexpected = sorted(model.keys() - state.keys()), sorted(state.keys() - model.keys())
    misshapen = []
    for name in sorted(model.keys() & state.keys()):
        found, expected = tuple(state[name].shape), tuple(model[name].shape)
        if found != expected:
            misshapen.append(f"{name} {found}, expected {expected}")
    if missing or unexpected or misshapen:
        raise UsageError(
            f"the weights of {spec.name!r} do not fit {spec.architecture}: {len(missing)} tensors "
            f"missing {missing[:5]}, {len(unexpected)} unknown {unexpected[:5]}, {len(misshapen)} "
            f"of another shape {misshapen[:5]}. Take the weights of this architecture, or mend "
            f"architecture, arguments or tensors in {spec.source}"
        )
