"""Frozen foundation models: ViewSpec -> a module from (B, 3, S, S) uint8 pixels to (B, D) embeddings.

Each backend is one function in BACKENDS. Every tensor of the model must come from the checkpoint: a missing, left-over or
misshapen key is an error, never a warning, since a silently random backbone looks just like a bad one.
"""

import functools
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cache_specs.errors import UsageError, did_you_mean
from cache_specs.spec import ViewSpec

Features = Callable[[torch.Tensor], torch.Tensor]


class Backbone(nn.Module):
    """A frozen model. It stays in eval mode whatever is asked (no batch statistics, no drop-path), and needs no gradient."""

    def __init__(self, model: nn.Module, features: Features, spec: ViewSpec) -> None:
        super().__init__()
        self.model, self.features = model, features
        prep = spec.preprocess
        self.register_buffer("mean", torch.tensor(prep.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(prep.std).view(3, 1, 1), persistent=False)
        self.compute_dtype, self.width, self.origin = getattr(torch, spec.compute_dtype), spec.width, spec.source
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        self.layout = torch.channels_last if convolutions > 4 else torch.contiguous_format         # a ViT has the one of its patches
        self.to(memory_format=self.layout)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def forward(self, pixels_BCHW: torch.Tensor, exact: bool = False) -> torch.Tensor:
        """(B, 3, S, S) uint8 -> (B, D) float32. `exact` computes in float32 instead of the spec's compute dtype."""
        images = ((pixels_BCHW.float() / 255 - self.mean) / self.std).contiguous(memory_format=self.layout)
        low = self.compute_dtype != torch.float32 and not exact
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=low):
            emb_BD = self.features(images).float()
        if emb_BD.shape[1:] != (self.width,):
            raise UsageError(f"{self.origin}: width = {self.width}, but the model gives {tuple(emb_BD.shape[1:])}; write what it gives")
        return emb_BD


def load_backbone(spec: ViewSpec, files: dict[str, Path], device: str) -> Backbone:
    """Build the model, load `files` (see extract/weights.py) and freeze it on `device`. Raises UsageError naming what does not fit."""
    from safetensors import SafetensorError

    _safetensors(spec, files)
    torch.backends.cudnn.allow_tf32 = False                 # float32 means float32, also in the convolution of the patches
    try:
        model, features = BACKENDS[spec.backend](spec, files)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UsageError(f"the weights of {spec.name!r} cannot be read ({', '.join(map(str, files.values()))}): {error}") from error
    return Backbone(model, features, spec).to(device)


def _open_clip(spec: ViewSpec, files: dict[str, Path]) -> tuple[nn.Module, Features]:
    """open_clip: a named architecture, or the model_cfg of an open_clip_config.json among the files. The vision tower is kept."""
    import open_clip
    from safetensors.torch import load_file

    if "open_clip_config.json" in files:
        name = f"local-dir:{files['open_clip_config.json'].parent}"
    elif spec.architecture in open_clip.list_models():
        name = spec.architecture
    else:
        raise UsageError(f"open_clip has no architecture {spec.architecture!r}{did_you_mean(spec.architecture, open_clip.list_models())}")
    logging.getLogger().addFilter(_not_about_weights)        # open_clip warns that it loaded none; they are loaded, and checked, below
    model = open_clip.create_model(name, load_weights=False, pretrained_image=False, pretrained_text=False)
    logging.getLogger().removeFilter(_not_about_weights)
    state = mapped(spec, load_file(_safetensors(spec, files)))
    _require_fit(spec, model.state_dict(), state)
    model.load_state_dict(state, strict=True)
    visual = model.visual
    if spec.output == "pooled":
        visual.proj = None                       # the class token after the last norm, before CLIP's projection
    elif spec.output != "projected":
        raise UsageError(f"{spec.source}: open_clip gives the output 'pooled' or 'projected', not {spec.output!r}")
    return visual, visual


def _transformers(spec: ViewSpec, files: dict[str, Path]) -> tuple[nn.Module, Features]:
    """transformers: a model class by name, of whose kind or of a larger model with one inside config.json may be. What transformers itself renames
    in older checkpoints is renamed by it; what it would only warn of is an error."""
    import transformers
    from safetensors.torch import load_file

    kind = getattr(transformers, spec.architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        names = [name for name in dir(transformers) if name.endswith("Model")]
        raise UsageError(f"transformers has no model class {spec.architecture!r}{did_you_mean(spec.architecture, names)}")
    if set(files) != {"config.json", "model.safetensors"}:
        raise UsageError(f"{spec.source}: transformers reads config.json and model.safetensors, so weights.files must be these two, found {sorted(files)}")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    config = kind.config_class.from_pretrained(files["config.json"].parent, local_files_only=True)
    state = mapped(spec, load_file(files["model.safetensors"]))
    model, info = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True)
    wrong = {what: sorted(map(str, info[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[what]}
    if wrong:
        raise UsageError(f"the weights of {spec.name!r} do not fit {spec.architecture}: {json.dumps(wrong)[:2000]}")
    # registers, where there are any, stand between the class token and the patches
    extra = 1 + getattr(model.config, "num_register_tokens", 0)
    outputs: dict[str, Callable] = {"cls": lambda out: out.last_hidden_state[:, 0], "pooled": lambda out: out.pooler_output,
                                    "mean": lambda out: out.last_hidden_state[:, extra:].mean(1)}
    if spec.output not in outputs:
        raise UsageError(f"{spec.source}: transformers gives the outputs {', '.join(outputs)}, not {spec.output!r}")
    if spec.output in ("cls", "mean") and not any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters()):
        raise UsageError(f"{spec.source}: {spec.architecture} has no class token, so that neither 'cls' nor 'mean' is known of it; try output = \"pooled\"")
    takes = inspect.signature(model.forward).parameters
    if unknown := sorted(set(spec.arguments) - set(takes)):
        raise UsageError(f"{spec.source}: arguments: {spec.architecture} takes no {unknown[0]!r}{did_you_mean(unknown[0], list(takes))}")
    return model, lambda images: outputs[spec.output](model(pixel_values=images, **spec.arguments))


def _timm(spec: ViewSpec, files: dict[str, Path]) -> tuple[nn.Module, Features]:
    """timm: an architecture, with its tag where timm has one. The family's own filter, which moves older names to timm's, is applied to the checkpoint."""
    from safetensors.torch import load_file

    model = build_timm(spec)
    features, rename = timm_features(model, spec), timm_filter(model)
    given = mapped(spec, load_file(_safetensors(spec, files)))
    try:
        state = given if rename is None else rename(dict(given), model)
    except Exception as error:              # of a checkpoint of another family: KeyError, AttributeError, RuntimeError …
        raise UsageError(f"the weights of {spec.name!r} are not of the kind of {spec.architecture}: {type(error).__name__}: {error}") from error
    fixed = dict(model.named_buffers())     # tables that follow from the architecture; a checkpoint may have them too, the same ones
    gone = sorted(name for name in given.keys() - state.keys()
                  if not _kept(given[name], state) and not (name in fixed and torch.equal(given[name], fixed[name])))
    if gone:
        raise UsageError(f"the weights of {spec.name!r} have {len(gone)} tensors that {spec.architecture} does not use: {gone[:5]}; if that is "
                         f"right, name them in tensors.drop of {spec.source}")
    # timm would resample patches and windows of another size too, and that is another model
    resized = {name: given[name] for name, tensor in state.items() if name in given and name != "pos_embed" and not _kept(tensor, given)
               and tensor.shape != given[name].shape}
    _require_fit(spec, model.state_dict(), state | resized)
    model.load_state_dict(state, strict=True)
    return model, features


def build_timm(spec: ViewSpec) -> nn.Module:
    """The model of a spec with timm's initial weights, its head replaced by the output that the spec names."""
    import timm

    arguments, name = dict(spec.arguments), spec.architecture
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"timm has no architecture {name!r}{did_you_mean(name.partition('.')[0], timm.list_models())}")
    widen = arguments.pop("widen", 1)                       # of a ResNet: SwAV's, whose stem is as many times as wide
    if widen != 1:
        arguments["channels"] = tuple(64 * widen * 2**stage for stage in range(4))
    if (eps := arguments.pop("norm_eps", None)) is not None:
        arguments["norm_layer"] = functools.partial(nn.LayerNorm, eps=eps)
    pools = {"cls": {"global_pool": "token"}, "mean": {"global_pool": "avg"}}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=spec.width if spec.output == "projected" else 0,
                                  **pools.get(spec.output, {}), **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UsageError(f"{spec.source}: timm cannot build {name} with output {spec.output!r} and {arguments}: {error}") from error
    if spec.output == "cls" and getattr(model, "cls_token", None) is None:      # timm would take the first patch
        raise UsageError(f"{spec.source}: {name} has no class token; its output is 'pooled' or 'mean'")
    if widen != 1:
        first, stem = model.layer1[0], 64 * widen
        model.conv1, model.bn1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(stem)
        first.conv1 = nn.Conv2d(stem, first.conv1.out_channels, 1, bias=False)
        first.downsample[0] = nn.Conv2d(stem, first.downsample[0].out_channels, 1, bias=False)
    return model


def timm_filter(model: nn.Module) -> Callable | None:
    """The family's own function from a checkpoint to timm's names and shapes; position tables are resampled to the model's own size."""
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)


def _kept(tensor: torch.Tensor, state: dict[str, torch.Tensor]) -> bool:
    """Whether one of these has the very memory of this tensor: under another name, or in another shape."""
    return any(tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in state.values())


def timm_features(model: nn.Module, spec: ViewSpec) -> Features:
    if spec.output != "last4":
        return model
    if getattr(model, "cls_token", None) is not None and hasattr(model, "get_intermediate_layers"):         # the normed class tokens
        return lambda images: torch.cat([prefix[:, 0] for _, prefix in model.get_intermediate_layers(images, 4, return_prefix_tokens=True, norm=True)], 1)
    if not hasattr(model, "layers"):
        raise UsageError(f"{spec.source}: {spec.architecture} has no output 'last4'")
    last = [block for layer in model.layers for block in layer.blocks][-4:]

    def features(images: torch.Tensor) -> torch.Tensor:
        """Swin: the mean over the patches of each block, the last stage's after the norm (EsViT)."""
        seen: list[torch.Tensor] = []
        hooks = [block.register_forward_hook(lambda _, inputs, output: seen.append(output)) for block in last]
        try:
            model.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([(model.norm(x) if x.shape[-1] == model.num_features else x).mean((1, 2)) for x in seen], 1)

    return features


def mapped(spec: ViewSpec, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint as the spec's [tensors] says: prefix off, what is no part of the model out, names replaced."""
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


def _safetensors(spec: ViewSpec, files: dict[str, Path]) -> Path:
    found = [path for name, path in files.items() if name.endswith(".safetensors")]
    if len(found) != 1 or found[0].suffix != ".safetensors":
        raise UsageError(f"the weights of {spec.name!r} must be one .safetensors file, found {', '.join(map(str, files.values()))}")
    return found[0]


def _not_about_weights(record: logging.LogRecord) -> bool:
    return "weights" not in record.getMessage()


def _require_fit(spec: ViewSpec, model: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    missing, unexpected = sorted(model.keys() - state.keys()), sorted(state.keys() - model.keys())
    misshapen = [f"{name} {tuple(state[name].shape)}, expected {tuple(model[name].shape)}"
                 for name in sorted(model.keys() & state.keys()) if model[name].shape != state[name].shape]
    if missing or unexpected or misshapen:
        raise UsageError(f"the weights of {spec.name!r} do not fit {spec.architecture}: {len(missing)} tensors missing {missing[:5]}, "
                         f"{len(unexpected)} unknown {unexpected[:5]}, {len(misshapen)} of another shape {misshapen[:5]}")


BACKENDS: dict[str, Callable[[ViewSpec, dict[str, Path]], tuple[nn.Module, Features]]] = {
    "timm": _timm, "open_clip": _open_clip, "transformers": _transformers,
}
