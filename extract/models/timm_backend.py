"""timm's models: built as a spec says, filled from a checkpoint of timm's or of the authors' own, every tensor accounted for."""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from base.errors import UsageError, did_you_mean
from cache_specs.spec import ViewSpec
from extract.models.checkpoint import mapped, require_fit, safetensors_of

Features = Callable[[torch.Tensor], torch.Tensor]
RESAMPLING = (
    "interpolation",
    "antialias",
    "interpolate_offset",
)  # arguments that say how a table of positions is brought to another size
OURS = ("checkpoint_path", "num_classes", "global_pool", "features_only")  # no arguments of a spec


def load_timm(spec: ViewSpec, files: dict[str, Path]) -> tuple[nn.Module, Features]:
    """timm: an architecture, with its tag where timm has one. The family's own filter, which moves older names to timm's, is applied to the checkpoint."""
    from safetensors.torch import load_file

    model = build_timm(spec)
    features, rename = timm_features(model, spec), timm_filter(model)
    rule = {key: value for key, value in spec.arguments.items() if key in RESAMPLING}
    if rule and (
        rename is None
        or not rule.keys() <= {*inspect.signature(rename).parameters, "interpolate_offset"}
    ):
        raise UsageError(
            f"{spec.source}: arguments: {spec.architecture} has no table of positions to resample; leave out {min(rule)!r}"
        )
    offset = rule.pop("interpolate_offset", 0)
    given = mapped(spec, load_file(safetensors_of(spec, files)))
    try:
        if offset:
            given["pos_embed"] = stretched(
                given["pos_embed"], model, offset, rule.get("antialias", True)
            )
        state = given if rename is None else rename(dict(given), model, **rule)
    except (
        Exception
    ) as error:  # of a checkpoint of another family: KeyError, AttributeError, RuntimeError …
        raise UsageError(
            f"the weights of {spec.name!r} are not of the kind of {spec.architecture}: {type(error).__name__}: {error}. Take others"
        ) from error
    fixed = dict(
        model.named_buffers()
    )  # tables that follow from the architecture; a checkpoint may have them too, the same ones
    gone = sorted(
        name
        for name in given.keys() - state.keys()
        if not _kept(given[name], state)
        and not (name in fixed and torch.equal(given[name], fixed[name]))
    )
    if gone:
        raise UsageError(
            f"the weights of {spec.name!r} have {len(gone)} tensors that {spec.architecture} does not use: {gone[:5]}; if that is "
            f"right, name them in tensors.drop of {spec.source}"
        )
    # timm would resample patches and windows of another size too, and that is another model
    resized = {
        name: given[name]
        for name, tensor in state.items()
        if name in given
        and name != "pos_embed"
        and not _kept(tensor, given)
        and tensor.shape != given[name].shape
    }
    require_fit(spec, model.state_dict(), state | resized)
    model.load_state_dict(state, strict=True)
    return model, features


def build_timm(spec: ViewSpec) -> nn.Module:
    """The model of a spec with timm's initial weights, its head replaced by the output that the spec names."""
    import timm

    arguments, name = (
        {key: value for key, value in spec.arguments.items() if key not in RESAMPLING},
        spec.architecture,
    )
    if ours := sorted(key for key in arguments if key in OURS or key.startswith("pretrained")):
        raise UsageError(
            f"{spec.source}: arguments: {ours[0]!r} is decided by the spec's output, width and weights; leave it out"
        )
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(
            f"timm has no architecture {name!r}{did_you_mean(name.partition('.')[0], timm.list_models())}"
        )
    widen = arguments.pop("widen", 1)  # of a ResNet: SwAV's, whose stem is as many times as wide
    if widen != 1:
        arguments["channels"] = tuple(64 * widen * 2**stage for stage in range(4))
    if (eps := arguments.pop("norm_eps", None)) is not None:
        arguments["norm_layer"] = functools.partial(nn.LayerNorm, eps=eps)
    pools = {"cls": {"global_pool": "token"}, "mean": {"global_pool": "avg"}}
    try:
        model = timm.create_model(
            name,
            pretrained=False,
            num_classes=spec.width if spec.output == "projected" else 0,
            **pools.get(spec.output, {}),
            **arguments,
        )
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise UsageError(
            f"{spec.source}: timm cannot build {name} with output {spec.output!r} and {arguments}: {error}; mend them"
        ) from error
    if (
        spec.output == "cls" and getattr(model, "cls_token", None) is None
    ):  # timm would take the first patch
        raise UsageError(
            f"{spec.source}: {name} has no class token; write output = 'pooled' or 'mean'"
        )
    if widen != 1:
        first, stem = model.layer1[0], 64 * widen
        model.conv1, model.bn1 = (
            nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(stem),
        )
        first.conv1 = nn.Conv2d(stem, first.conv1.out_channels, 1, bias=False)
        first.downsample[0] = nn.Conv2d(stem, first.downsample[0].out_channels, 1, bias=False)
    for module in model.modules():  # autocast gives a LayerNorm float32, but AIMv2's first RmsNorm bfloat16, of which torch warns
        if isinstance(module, timm.layers.RmsNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


def stretched(
    table_1ND: torch.Tensor, model: nn.Module, offset: float, antialias: bool
) -> torch.Tensor:
    """A table of positions for the model's own grid, resampled by a factor of (side + offset) / side of the table, as DINOv2's authors do it."""
    first, grid = model.num_prefix_tokens, model.patch_embed.grid_size
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
    """The family's own function from a checkpoint to timm's names and shapes; position tables are resampled to the model's own size."""
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)


def _kept(tensor: torch.Tensor, state: dict[str, torch.Tensor]) -> bool:
    """Whether one of these has the very memory of this tensor: under another name, or in another shape."""
    return any(
        tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        for other in state.values()
    )


def timm_features(model: nn.Module, spec: ViewSpec) -> Features:
    if spec.output != "last4":
        return model
    if getattr(model, "cls_token", None) is not None and hasattr(
        model, "get_intermediate_layers"
    ):  # the normed class tokens
        return lambda images: torch.cat(
            [
                prefix[:, 0]
                for _, prefix in model.get_intermediate_layers(
                    images, 4, return_prefix_tokens=True, norm=True
                )
            ],
            1,
        )
    if not hasattr(model, "layers"):
        raise UsageError(
            f"{spec.source}: {spec.architecture} has no output 'last4'; write another output"
        )
    last = [block for layer in model.layers for block in layer.blocks][-4:]

    def features(images: torch.Tensor) -> torch.Tensor:
        """Swin: the mean over the patches of each block, the last stage's after the norm (EsViT)."""
        seen: list[torch.Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _, inputs, output: seen.append(output))
            for block in last
        ]
        try:
            model.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(
            [
                (model.norm(x) if x.shape[-1] == model.num_features else x).mean((1, 2))
                for x in seen
            ],
            1,
        )

    return features
