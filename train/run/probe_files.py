"""The tensors that a run keeps: probes/METHOD/NAME.safetensors, each sealed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from base import durable
from base.errors import IntegrityError
from train.algorithm.probe import Params
from train.data.feed import Input


def write_probe(
    folder: Path,
    method: str,
    name: str,
    best: Params,
    fused: Params,
    source: Input,
    said: Params,
) -> None:
    """probes/METHOD/NAME.safetensors: a view's own (E, ...) parameters, those for the joint
    prediction, the input's mean and std, and what was said out of fold."""
    tensors = {**best}
    for key, value in fused.items():
        tensors[f"joint.{key}"] = value
    tensors |= {"input_mean": source.mean_D, "input_std": source.std_D, **said}
    write_tensors(folder, method, name, tensors)


def write_tensors(folder: Path, method: str, name: str, tensors: dict[str, Tensor]) -> None:
    """probes/METHOD/NAME.safetensors, whose metadata hold the sha256 of its tensors."""
    path = probe_file(folder, method, name)
    durable.make_folder(path.parent)
    kept = {key: value.detach().contiguous().cpu().clone() for key, value in tensors.items()}
    durable.write(path, save(kept, {"sha256": _digest(kept)}), "probe")


def probe_file(folder: Path, method: str, name: str) -> Path:
    return folder / "probes" / method / f"{name}.safetensors"


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def read_tensors(
    folder: Path, method: str, name: str, device: torch.device
) -> tuple[dict[str, Tensor], str]:
    """The tensors and the sha256 of the file. Raises IntegrityError."""
    path = probe_file(folder, method, name)
    try:
        data = path.read_bytes()
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size])
        if head["__metadata__"]["sha256"] != _digest(tensors):
            raise ValueError("it has changed since it was written")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise IntegrityError(
            f"the probe {path} cannot be read ({error}); delete {folder} and train again"
        ) from error
    moved = {key: value.clone().to(device) for key, value in tensors.items()}
    return moved, hashlib.sha256(data).hexdigest()


def is_trained(folder: Path, method: str, names: Sequence[str]) -> bool:
    return all(probe_file(folder, method, name).is_file() for name in names)
