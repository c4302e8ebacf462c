"""BatchNorms folded into convolutions: the same function, and only where it is one. The oracle is
the model as it was, in float64."""

from pathlib import Path

import pytest
import torch
from models import load, pixels, randomised, write_spec, write_weights
from torch import nn

from extract.models.backbones import Backbone
from extract.models.fold import fold
from extract.models.timm_backend import build_timm

NETS = {  # of timm: architecture, width, the norms that can be folded
    "lite": ("efficientnet_lite0", 1280, 49),
    "resnet": ("resnet10t", 512, 14),
    "repvgg": ("repvgg_a0", 1280, 44),
    "densenet": ("densenet121", 1024, 59),
    "convnext": ("convnext_atto", 320, 0),  # LayerNorms
}


def backbones(folder: Path, name: str) -> list[Backbone]:
    """As it is loaded, and as it was."""
    architecture, width, _ = NETS[name]
    spec = write_spec(folder, architecture, "pooled", width, 64, name=name)
    write_weights(folder, randomised(build_timm(spec)).state_dict())
    return [load(spec), load(spec, folded=False)]


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", NETS)
def test_it_is_the_same_function(name: str, tmp_path: Path) -> None:
    folded, plain = backbones(tmp_path, name)
    assert norms(plain.model) - norms(folded.model) == NETS[name][2]
    images = pixels(64, 4)
    with torch.inference_mode():
        found = folded(images)
        expected = plain.double().features(plain_input(plain, images))
    off = (found.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert off.max() < 1e-5
    for module in folded.model.modules():
        if isinstance(module, nn.Conv2d):
            assert not module.weight.requires_grad and not module.training


def plain_input(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    return ((images.double() / 255 - backbone.mean) / backbone.std).contiguous(
        memory_format=torch.channels_last
    )


class Net(nn.Module):
    """A convolution, what is done between, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean.fill_(0.5)
        self.norm.weight.data.fill_(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


class Twice(Net):
    """What a convolution gives goes to a norm, and elsewhere besides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))


class Huge(Twice):
    """The same, beside a feature that is larger than all others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward(x), torch.full((len(x), 1), 4e6)], 1)


class Again(Net):
    """One convolution stands before two norms."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.conv(x)) + self.conv(x + 1)).mean((2, 3))


class Between(Net):
    """Something is done to the very tensor, which seldom shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(nn.functional.hardtanh_(y, -60, 60)).mean((2, 3))


class Looks(Net):
    """It looks at its norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).to(self.norm.weight.dtype)).mean((2, 3))


class Named(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(input=self.conv(x)).mean((2, 3))


class Batch(Net):
    """The statistics are those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


class Spectral(Net):
    """The weights are made anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.spectral_norm(self.conv)


class Own(nn.BatchNorm2d):
    """A norm of somebody's own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


class WithOwn(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Own(4)


@pytest.mark.parametrize(
    "kind", [Twice, Huge, Again, Between, Looks, Named, Batch, Spectral, WithOwn]
)
def test_what_cannot_be_folded_stays_as_it_was(kind: type[nn.Module]) -> None:
    model = kind().eval().requires_grad_(False)
    images, modules = torch.randn(2, 3, 8, 8), dict(model.named_modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(images)
    assert fold(model, model, images) == 0
    assert torch.equal(model(images), expected)
    assert dict(model.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in ordinary(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def ordinary(model: nn.Module) -> list[nn.Module]:
    """Without what has a hook of its own."""
    return [module for module in model.modules() if not hasattr(module, "weight_orig")]


@pytest.mark.parametrize("inference", [False, True])
def test_the_plain_one_is_folded(inference: bool) -> None:
    with torch.inference_mode(inference):
        model = Net().eval().requires_grad_(False)
        images = torch.randn(2, 3, 8, 8)
        expected = model(images)
        assert fold(model, model, images) == 1
        torch.testing.assert_close(model(images), expected)
