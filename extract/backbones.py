"""Frozen foundation models: ViewSpec -> a module from (B, 3, S, S) uint8 pixels to (B, D) embeddings.

Each backend is one function in BACKENDS. Every tensor of the model must come from the checkpoint: a missing, left-over or
misshapen key is an error, never a warning, since a silently random backbone looks just like a bad one.
"""

import json
import logging
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
        self.compute_dtype = getattr(torch, spec.compute_dtype)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def forward(self, pixels_BCHW: torch.Tensor, exact: bool = False) -> torch.Tensor:
        """(B, 3, S, S) uint8 -> (B, D) float32. `exact` computes in float32 instead of the spec's compute dtype."""
        images = (pixels_BCHW.float() / 255 - self.mean) / self.std
        low = self.compute_dtype != torch.float32 and not exact
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=low):
            return self.features(images).float()


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
    state = load_file(_safetensors(spec, files))
    _require_fit(spec, model.state_dict(), state)
    model.load_state_dict(state, strict=True)
    visual = model.visual
    if spec.output == "pooled":
        visual.proj = None                       # the class token after the last norm, before CLIP's projection
    elif spec.output != "projected":
        raise UsageError(f"{spec.source}: open_clip gives the output 'pooled' or 'projected', not {spec.output!r}")
    return visual, visual


def _transformers(spec: ViewSpec, files: dict[str, Path]) -> tuple[nn.Module, Features]:
    """transformers: a model class by name; config.json and the safetensors lie in one folder."""
    import transformers

    kind = getattr(transformers, spec.architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        names = [name for name in dir(transformers) if name.endswith("Model")]
        raise UsageError(f"transformers has no model class {spec.architecture!r}{did_you_mean(spec.architecture, names)}")
    if set(files) != {"config.json", "model.safetensors"}:
        raise UsageError(f"{spec.source}: transformers reads config.json and model.safetensors, so weights.files must be these two, found {sorted(files)}")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()             # what it would warn of is an error of ours, below
    model, info = kind.from_pretrained(files["config.json"].parent, dtype=torch.float32, output_loading_info=True, local_files_only=True,
                                       use_safetensors=True, ignore_mismatched_sizes=True)
    wrong = {what: sorted(map(str, info[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[what]}
    if wrong:
        raise UsageError(f"the weights of {spec.name!r} do not fit {spec.architecture}: {json.dumps(wrong)[:2000]}")
    # registers, where there are any, stand between the class token and the patches
    extra = 1 + getattr(model.config, "num_register_tokens", 0)
    outputs: dict[str, Callable] = {"cls": lambda out: out.last_hidden_state[:, 0], "pooled": lambda out: out.pooler_output,
                                    "mean": lambda out: out.last_hidden_state[:, extra:].mean(1)}
    if spec.output not in outputs:
        raise UsageError(f"{spec.source}: transformers gives the outputs {', '.join(outputs)}, not {spec.output!r}")
    choose = outputs[spec.output]
    return model, lambda images: choose(model(pixel_values=images))


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
    "open_clip": _open_clip, "transformers": _transformers,
}
