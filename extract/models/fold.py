"""The BatchNorms of a frozen convolutional net, folded into the convolutions before them: each time
one pass less over what these give. The same function; its float32 rounds otherwise, by some 1e-5.

    norm(conv(x)) = a conv(x) + b = conv'(x)    a, b: of the norm's statistics, gain and shift
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CLOSE = 1e-4  # of an image's features, as far as they may be off: else a pair was none


def fold(model: nn.Module, features: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> int:
    """Fold what can be folded of a model in eval mode, for ever; returns how many norms. features:
    what is computed by it, of any images. Where these come out otherwise, or do not come, it stays
    as it was."""
    names = {module: name for name, module in model.named_modules()}
    # inference tensors do not tell whether something was done to them
    with torch.inference_mode(False), torch.no_grad():
        pairs, before_BD = _pairs(model, features, images_BCHW)
        if not pairs:
            return 0
        try:
            for conv, norm in pairs:
                model.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
                model.set_submodule(names[norm], _rest_of(norm) or norm)
            if _alike(features(images_BCHW), before_BD):
                return len(pairs)
        except Exception:  # a model may look at its modules itself
            pass
    for module in (one for pair in pairs for one in pair):
        model.set_submodule(names[module], module)
    return 0


def _alike(after_BD: Tensor, before_BD: Tensor) -> bool:
    """Each image as a whole, and each feature by itself, however large others are."""
    off_BD = after_BD - before_BD
    whole = off_BD.norm(dim=1) <= CLOSE * before_BD.norm(dim=1)
    usual = before_BD.abs().median()
    each = off_BD.abs() <= 10 * CLOSE * (before_BD.abs() + usual)
    return bool(whole.all() and each.all())


def _pairs(
    model: nn.Module, features: Callable[[Tensor], Tensor], images_BCHW: Tensor
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Convolutions and the norms that take what they give, each used once; and the features."""
    used: list[nn.Module] = []
    given: list[tuple[Tensor, int, nn.Conv2d]] = []  # kept, so that no other takes its place
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def gives(conv: nn.Conv2d, _: object, output: Tensor) -> None:
        used.append(conv)
        given.append((output, output._version, conv))

    def takes(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        used.append(norm)
        for output, version, conv in given:
            if inputs and output is inputs[0] and output._version == version:  # as it was given
                found.append((conv, norm))

    hooks = []
    for module in model.modules():
        if type(module) is nn.Conv2d and not module._forward_pre_hooks:
            hooks.append(module.register_forward_hook(gives))
        elif isinstance(module, nn.BatchNorm2d) and _rest_of(module) is not None:
            hooks.append(module.register_forward_pre_hook(takes))
    before = features(images_BCHW)
    for hook in hooks:
        hook.remove()
    return [pair for pair in found if all(used.count(one) == 1 for one in pair)], before


def _rest_of(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What it does besides; None where nobody knows, or where it has no statistics of its own."""
    if norm.running_mean is None:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":  # timm's, which holds its activation
        return nn.Sequential(cast(nn.Module, norm.drop), cast(nn.Module, norm.act))
    return None
