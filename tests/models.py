"""Small models with random weights, and the views that name them, as files on a disk."""

import json
import math
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cache_specs.spec import ViewSpec, load_spec
from extract.models.backbones import Backbone, load_backbone

TOML = """
backend = "{backend}"
architecture = "{architecture}"
output = "{output}"
width = {width}
storage_dtype = "float16"
compute_dtype = "{dtype}"
[arguments]
{arguments}
[weights]
path = "."
files = {files}
[tensors]
strip = "{strip}"
{drop}
[tensors.rename]
{rename}
[preprocess]
resize = {crop}
resize_rule = "squash"
crop = {crop}
interpolation = "bicubic"
antialias = true
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


def lines(table: Mapping[str, object]) -> str:
    return "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())


def write_spec(
    folder: Path,
    architecture: str,
    output: str,
    width: int,
    crop: int = 32,
    *,
    backend: str = "timm",
    arguments: Mapping | None = None,
    strip: str = "",
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    files: Sequence[str] = ("model.safetensors",),
    dtype: str = "float32",
    name: str = "v",
) -> ViewSpec:
    """The view `name` in `folder`, whose weights lie beside it."""
    (folder / f"{name}.toml").write_text(
        TOML.format(
            backend=backend,
            architecture=architecture,
            output=output,
            width=width,
            crop=crop,
            dtype=dtype,
            arguments=lines(arguments or {}),
            strip=strip,
            drop=f"drop = {json.dumps(list(drop))}" if drop else "",
            rename=lines(rename or {}),
            files=json.dumps(list(files)),
        )
    )
    return load_spec(str(folder / f"{name}.toml"))


def write_weights(
    folder: Path, state: Mapping[str, torch.Tensor], name: str = "model.safetensors"
) -> None:
    """Tensors that share their memory with others are copied, and only they: a model may have a
    thousand million parameters."""
    alone = {key: tensor.detach().contiguous() for key, tensor in state.items()}
    save_file(
        {
            key: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
            for key, tensor in alone.items()
        },
        folder / name,
        {"format": "pt"},
    )


def load(spec: ViewSpec, folded: bool = True) -> Backbone:
    files = {name: spec.source.parent / name for name in spec.weights.files}
    return load_backbone(spec, files, "cpu", folded)


def drawn(name: str, shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """A random tensor as large as one of that name is in a trained model: tokens and tables of
    positions as large as the patches."""
    shape = tuple(shape)
    chance = torch.randn(
        shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    )
    if name.endswith("running_var"):
        return chance.abs_().add_(0.5)
    scale = {0: 0.2, 1: 0.2, 3: 0.5}.get(len(shape)) or math.prod(shape[1:]) ** -0.5
    return chance.mul_(scale).add_(1 if len(shape) == 1 and name.endswith("weight") else 0)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic is drawn anew, so that none can be swapped, left out or at its
    initial value without being seen."""
    for (
        name,
        tensor,
    ) in model.state_dict().items():  # what no checkpoint holds (tables of sines) stays as it is
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(drawn(name, tensor.shape, seed))
    return model.eval()


def calibrated(model: nn.Module, images_BCHW: torch.Tensor) -> nn.Module:
    """With the statistics of these images: through drawn ones nothing of an image is
    left after many batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(images_BCHW)
    return model.eval()


def unpickle_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make weights` opens checkpoints in this process instead of one of its own, which
    takes seconds to import torch."""
    from extract.models import unpickle

    def run(command: list[str], **given: object) -> subprocess.CompletedProcess:
        assert command[1:3] == ["-m", "extract.models.unpickle"]
        try:
            unpickle.main(*command[3:])
        except Exception as error:
            return subprocess.CompletedProcess(
                command, 1, "", f"Traceback\n{type(error).__name__}: {' '.join(str(error).split())}"
            )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("extract.models.convert.subprocess.run", run)


def pixels(crop: int = 32, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0,
        256,
        (batch, 3, crop, crop),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.uint8,
    )


def images(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Normalised as the TOML above says."""
    return (pixels_BCHW.float() / 255 - 0.5) / 0.5


def same(found: torch.Tensor, expected: torch.Tensor, bound: float = 2e-5) -> bool:
    """Equal to within `bound` of the rows' length, and not because both
    are degenerate: rows differ."""
    spread = (expected[0] - expected[-1]).norm() / expected.norm()
    difference = (found - expected).norm() / expected.norm()
    assert found.shape == expected.shape and spread > 100 * bound, (
        found.shape,
        expected.shape,
        spread,
    )
    assert difference < bound, difference
    return True
