"""timm's models: built as a spec says, filled from a checkpoint of timm's or of the authors' own,
every tensor accounted for."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import load_file
from torch import nn

from base.errors import UsageError, did_you_mean
from cache_specs.spec import ViewSpec
from extract.models.checkpoint import mapped, require_fit, safetensors_of

Features = Callable[[torch.Tensor], torch.Tensor]
Tensors = dict[str, torch.Tensor]
# Arguments that say how a table of positions is brought to another size.
RESAMPLING = ("interpolation", "antialias", "interpolate_offset")
OURS = ("checkpoint_path", "num_classes", "global_pool", "features_only")  # no arguments of a spec
POOLS = {"cls": {"global_pool": "token"}, "mean": {"global_pool": "avg"}}  # by the spec's output


class Grid(Protocol):
    grid_size: tuple[int, int]


class WithPositions(Protocol):
    """What is needed of a model whose table of positions is resampled."""

    num_prefix_tokens: int
    patch_embed: Grid


class WithTokens(Protocol):
    """What is needed of a transformer of which the last class tokens are taken."""

    def get_intermediate_layers(
        self, x: torch.Tensor, n: int, *, return_prefix_tokens: bool, norm: bool
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]: ...


class Stage(Protocol):
    blocks: Iterable[nn.Module]


class WithStages(Protocol):
    """What is needed of a Swin transformer, which has no class token."""

    layers: Iterable[Stage]
    norm: nn.Module
    num_features: int

    def forward_features(self, x: torch.Tensor) -> torch.Tensor: ...


def load_timm(spec: ViewSpec, files: dict[str, Path]) -> tuple[nn.Module, Features]:
    """timm: an architecture, with its tag where timm has one. The family's own filter, which moves
    older names to timm's, is applied to the checkpoint."""
    model = build_timm(spec)
    features, rename = timm_features(model, spec), timm_filter(model)
    rule = _resampling(spec, rename)
    offset = rule.pop("interpolate_offset", 0)
    given = mapped(spec, load_file(safetensors_of(spec, files)))
    try:
        if offset:
            antialias = rule.get("antialias", True)
            given["pos_embed"] = stretched(given["pos_embed"], model, offset, antialias)
        state = given if rename is None else rename(dict(given), model, **rule)
    # Of a checkpoint of another family: KeyError, AttributeError, RuntimeError …
    except Exception as error:
        raise UsageError(
            f"the weights of {spec.name!r} are not of the kind of {spec.architecture}: "
            f"{type(error).__name__}: {error}. Take others"
        ) from error
    _refuse_unused(spec, model, given, state)
    require_fit(spec, model.state_dict(), state | _resized(given, state))
    model.load_state_dict(state, strict=True)
    return model, features


def _resampling(spec: ViewSpec, rename: Callable | None) -> dict[str, Any]:
    """Those of the spec's arguments that say how a table of positions is resampled. Raises
    UsageError where the family has no such table."""
    rule = {key: value for key, value in spec.arguments.items() if key in RESAMPLING}
    known = {"interpolate_offset", *(inspect.signature(rename).parameters if rename else ())}
    if rule and (rename is None or not rule.keys() <= known):
        raise UsageError(
            f"{spec.source}: arguments: {spec.architecture} has no table of positions to resample; "
            f"leave out {min(rule)!r}"
        )
    return rule


def _refuse_unused(spec: ViewSpec, model: nn.Module, given: Tensors, state: Tensors) -> None:
    """Raise UsageError where the family's filter has dropped tensors of the checkpoint."""
    # Tables that follow from the architecture; a checkpoint may have them too, the same ones.
    fixed = dict(model.named_buffers())
    gone = []
    for name in sorted(given.keys() - state.keys()):
        same = name in fixed and torch.equal(given[name], fixed[name])
        if not same and not _kept(given[name], state):
            gone.append(name)
    if gone:
        raise UsageError(
            f"the weights of {spec.name!r} have {len(gone)} tensors that {spec.architecture} does "
            f"not use: {gone[:5]}; if that is right, name them in tensors.drop of {spec.source}"
        )


def _resized(given: Tensors, state: Tensors) -> Tensors:
    """The checkpoint's tensors that the filter has resampled, but for the table of positions: timm
    would do it to patches and windows of another size too, and that is another model."""
    found = {}
    for name, tensor in state.items():
        if name == "pos_embed" or name not in given or tensor.shape == given[name].shape:
            continue
        if not _kept(tensor, given):
            found[name] = given[name]
    return found


def build_timm(spec: ViewSpec) -> nn.Module:
    """The model of a spec with timm's initial weights, its head replaced by the output that the
    spec names."""
    import timm  # noqa: PLC0415  takes seconds, and views of other backends do without

    name, arguments = spec.architecture, _arguments(spec)
    if not timm.is_model(name.partition(".")[0]):
        near = did_you_mean(name.partition(".")[0], timm.list_models())
        raise UsageError(f"timm has no architecture {name!r}{near}")
    classes = spec.width if spec.output == "projected" else 0
    pool = POOLS.get(spec.output, {})
    try:
        model = timm.create_model(name, pretrained=False, num_classes=classes, **pool, **arguments)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise UsageError(
            f"{spec.source}: timm cannot build {name} with output {spec.output!r} and {arguments}: "
            f"{error}; mend them"
        ) from error
    # timm would take the first patch
    if spec.output == "cls" and getattr(model, "cls_token", None) is None:
        raise UsageError(
            f"{spec.source}: {name} has no class token; write output = 'pooled' or 'mean'"
        )
    if spec.arguments.get("widen", 1) != 1:
        _widen_stem(spec, model, 64 * spec.arguments["widen"])
    # autocast gives a LayerNorm float32, but AIMv2's first RmsNorm bfloat16, of which torch warns
    for module in model.modules():
        if isinstance(module, timm.layers.RmsNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


def _arguments(spec: ViewSpec) -> dict[str, Any]:
    """Those of the constructor. Raises UsageError for one that is not the spec's to give.

    Two are our own: norm_eps, and widen, of a ResNet such as SwAV's: its stem and stages are as
    many times as wide."""
    found = {key: value for key, value in spec.arguments.items() if key not in RESAMPLING}
    for key in sorted(found):
        if key in OURS or key.startswith("pretrained"):
            raise UsageError(
                f"{spec.source}: arguments: {key!r} is decided by the spec's output, width and "
                "weights; leave it out"
            )
    widen, eps = found.pop("widen", 1), found.pop("norm_eps", None)
    if widen != 1:
        found["channels"] = tuple(64 * widen * 2**stage for stage in range(4))
    if eps is not None:
        found["norm_layer"] = functools.partial(nn.LayerNorm, eps=eps)
    return found


def _widen_stem(spec: ViewSpec, model: nn.Module, stem: int) -> None:
    """What comes before a ResNet's first stage, and the entry of that stage, for so many channels.
    Raises UsageError where the model is no such one."""
    model.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(stem)
    parts = dict(model.named_modules())
    for name in ("layer1.0.conv1", "layer1.0.downsample.0"):
        entry = parts.get(name)
        if not isinstance(entry, nn.Conv2d):
            raise UsageError(
                f"{spec.source}: arguments: {spec.architecture} has no convolution {name}, whose "
                "input could be widened; leave out 'widen'"
            )
        model.set_submodule(name, nn.Conv2d(stem, entry.out_channels, 1, bias=False))


def stretched(
    table_1ND: torch.Tensor, model: nn.Module, offset: float, antialias: bool
) -> torch.Tensor:
    """A table of positions for the model's own grid, resampled by a factor of (side + offset) /
    side of the table, as DINOv2's authors do it."""
    positions = cast(WithPositions, model)
    first, grid = positions.num_prefix_tokens, positions.patch_embed.grid_size
    side = round((table_1ND.shape[1] - first) ** 0.5)
    image = table_1ND[:, first:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(
        image,
        scale_factor=tuple((size + offset) / side for size in grid),
        mode="bicubic",
        antialias=antialias,
    )
    return torch.cat([table_1ND[:, :first], image.flatten(2).mT], 1)


def timm_filter(model: nn.Module) -> Callable | None:
    """The family's own function from a checkpoint to timm's names and shapes; position tables are
    resampled to the model's own size."""
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)


def _kept(tensor: torch.Tensor, state: Tensors) -> bool:
    """Whether one of these has the very memory of this tensor: under another name, or in another
    shape."""
    memory = tensor.untyped_storage().data_ptr()
    return any(memory == other.untyped_storage().data_ptr() for other in state.values())


def timm_features(model: nn.Module, spec: ViewSpec) -> Features:
    if spec.output != "last4":
        return model
    if getattr(model, "cls_token", None) is not None and hasattr(model, "get_intermediate_layers"):
        tower = cast(WithTokens, model)
        return lambda images: _last_class_tokens(tower, images)
    if not hasattr(model, "layers"):
        raise UsageError(
            f"{spec.source}: {spec.architecture} has no output 'last4'; write another output"
        )
    stages, blocks = cast(WithStages, model), list[nn.Module]()
    for stage in stages.layers:
        blocks += stage.blocks
    return lambda images: _last_means(stages, blocks[-4:], images)


def _last_class_tokens(model: WithTokens, images: torch.Tensor) -> torch.Tensor:
    """The normed class tokens of the last four blocks, side by side."""
    layers = model.get_intermediate_layers(images, 4, return_prefix_tokens=True, norm=True)
    return torch.cat([prefix[:, 0] for _, prefix in layers], 1)


def _last_means(
    model: WithStages, blocks: Sequence[nn.Module], images: torch.Tensor
) -> torch.Tensor:
    """Swin: the mean over the patches of each of the blocks, the last stage's after the norm
    (EsViT)."""
    seen, hooks = list[torch.Tensor](), []
    for block in blocks:
        hooks.append(block.register_forward_hook(lambda _, inputs, output: seen.append(output)))
    try:
        model.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    means = []
    for x in seen:
        last_stage = x.shape[-1] == model.num_features
        means.append((model.norm(x) if last_stage else x).mean((1, 2)))
    return torch.cat(means, 1)
