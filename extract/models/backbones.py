"""Frozen foundation models: ViewSpec -> a module from (B, 3, S, S) uint8 pixels to (B, D)
embeddings.

Each backend is one function in BACKENDS. Every tensor of the model must come from the checkpoint: a
missing, left-over or misshapen key is an error, never a warning, since a silently random backbone
looks just like a bad one.
"""

import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from base import native
from base.errors import UsageError, did_you_mean
from cache_specs.spec import ViewSpec
from extract.models.checkpoint import mapped, require_fit, safetensors_of
from extract.models.fold import fold
from extract.models.leaks import refuse_tuned
from extract.models.timm_backend import Features, load_timm

TRANSFORMERS_FILES = ("config.json", "model.safetensors")


class Backbone(nn.Module):
    """A frozen model. It stays in eval mode whatever is asked (no batch statistics, no drop-path),
    and needs no gradient."""

    def __init__(self, model: nn.Module, features: Features, spec: ViewSpec) -> None:
        super().__init__()
        self.model = model
        # in a tuple, which registers nothing: where it is the model itself, that has one name
        self.held = (features,)
        self.compiled: Features | None = None
        prep = spec.preprocess
        self.register_buffer("mean", torch.tensor(prep.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(prep.std).view(3, 1, 1), persistent=False)
        self.precision: str = spec.compute_dtype  # or another: see `precision_of`
        self.width, self.origin = spec.width, spec.source
        # A ViT has the one convolution of its patches.
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        self.layout = torch.channels_last if convolutions > 4 else torch.contiguous_format
        self.crop = prep.crop
        self.to(memory_format=self.layout)
        self.requires_grad_(False)
        self.eval()

    @property
    def features(self) -> Features:
        """Normalised images (B, 3, S, S) -> (B, D)."""
        return self.held[0]

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def fold(self) -> None:
        """From now on a convolution and the BatchNorm behind it are one (extract/models/fold.py):
        for who does not tune the model."""
        if self.layout == torch.channels_last:
            images = torch.randn(
                2, 3, self.crop, self.crop, generator=torch.Generator().manual_seed(0)
            )
            fold(self.model, self.features, images.contiguous(memory_format=self.layout))
            self.to(memory_format=self.layout)

    def compile_features(self) -> None:
        """From now on what is computed in `precision` goes through torch.compile; `exact`
        does not."""
        self.compiled = torch.compile(self.features, dynamic=False)

    def forward(self, pixels_BCHW: torch.Tensor, exact: bool = False) -> torch.Tensor:
        """(B, 3, S, S) uint8 -> (B, D) float32. `exact` computes in float32, whatever
        `precision` is."""
        images = (pixels_BCHW.float() / 255 - self.mean) / self.std
        images = images.contiguous(memory_format=self.layout)
        features = self.features if exact or self.compiled is None else self.compiled
        low = self.precision != "float32" and not exact
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=low):
            emb_BD = features(images).float()
        if emb_BD.shape[1:] != (self.width,):
            raise UsageError(
                f"{self.origin}: width = {self.width}, but the model gives "
                f"{tuple(emb_BD.shape[1:])}; write what it gives"
            )
        return emb_BD


def load_backbone(
    spec: ViewSpec, files: dict[str, Path], device: str, folded: bool = True
) -> Backbone:
    """Build the model, load `files` (see extract/models/weights.py) and freeze it on `device`, in
    the precision that this has. folded: for who does not tune it. Raises UsageError naming what
    does not fit."""
    refuse_tuned(spec, safetensors_of(spec, files))
    native.keep_memory()
    # float32 means float32, also in the convolution of the patches
    torch.backends.cudnn.allow_tf32 = False
    try:
        model, features = BACKENDS[spec.backend](spec, files)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        listed = ", ".join(map(str, files.values()))
        raise UsageError(
            f"the weights of {spec.name!r} cannot be read ({listed}): {error}. Fetch them again"
        ) from error
    backbone = Backbone(model, features, spec)
    if folded:
        backbone.fold()
    backbone.to(device)
    backbone.precision = precision_of(spec, device)
    return backbone


def precision_of(spec: ViewSpec, device: str) -> str:
    """What a view that is begun on this device is computed in. A spec's bfloat16 asks for at least
    that: a CPU without such instructions is faster in float32, which is more exact."""
    if device == "cpu" and not native.has_bfloat16():
        return "float32"
    return spec.compute_dtype


def open_clip_model(spec: ViewSpec, files: dict[str, Path]) -> nn.Module:
    """A model of open_clip with both towers: of a named architecture, or of the model_cfg of an
    open_clip_config.json among the files."""
    import open_clip  # noqa: PLC0415  takes seconds, and views of other backends do without

    if "open_clip_config.json" in files:
        name = f"local-dir:{files['open_clip_config.json'].parent}"
    elif spec.architecture in open_clip.list_models():
        name = spec.architecture
    else:
        near = did_you_mean(spec.architecture, open_clip.list_models())
        raise UsageError(f"open_clip has no architecture {spec.architecture!r}{near}")
    # open_clip warns that it loaded no weights; they are loaded, and checked, below
    logging.getLogger().addFilter(_not_about_weights)
    model = open_clip.create_model(
        name, load_weights=False, pretrained_image=False, pretrained_text=False
    )
    logging.getLogger().removeFilter(_not_about_weights)
    state = mapped(spec, load_file(safetensors_of(spec, files)))
    require_fit(spec, model.state_dict(), state)
    model.load_state_dict(state, strict=True)
    return model


def _open_clip(spec: ViewSpec, files: dict[str, Path]) -> tuple[nn.Module, Features]:
    """open_clip: the vision tower is kept."""
    visual = open_clip_model(spec, files).get_submodule("visual")
    if spec.output == "pooled":
        # the class token after the last norm, before CLIP's projection
        if isinstance(getattr(visual, "proj", None), nn.Parameter):
            visual.register_parameter("proj", None)
    elif spec.output != "projected":
        raise UsageError(
            f"{spec.source}: open_clip gives the output 'pooled' or 'projected', not "
            f"{spec.output!r}; write one of them"
        )
    return visual, visual


def transformers_model(spec: ViewSpec, files: dict[str, Path]) -> Any:
    """A model of transformers: a class by name, of whose kind or of a larger model with one inside
    config.json may be. What transformers itself renames in older checkpoints is renamed by it; what
    it would only warn of is an error."""
    import transformers  # noqa: PLC0415  takes seconds, and views of other backends do without

    kind = getattr(transformers, spec.architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        names = [name for name in dir(transformers) if name.endswith("Model")]
        near = did_you_mean(spec.architecture, names)
        raise UsageError(f"transformers has no model class {spec.architecture!r}{near}")
    if not set(files) >= set(TRANSFORMERS_FILES):
        raise _other_files(spec, files)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    config = _transformers_config(spec, kind, files["config.json"])
    state = mapped(spec, load_file(files["model.safetensors"]))
    loaded: Any = kind.from_pretrained(  # a pair, for the loading info
        None,
        config=config,
        state_dict=state,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    model, info = loaded
    wrong = {}
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            wrong[what] = sorted(map(str, info[what]))
    if wrong:
        raise UsageError(
            f"the weights of {spec.name!r} do not fit {spec.architecture}: "
            f"{json.dumps(wrong)[:2000]}. Take others, or mend architecture, arguments or tensors "
            f"in {spec.source}"
        )
    return model


def _transformers(spec: ViewSpec, files: dict[str, Path]) -> tuple[nn.Module, Features]:
    """transformers: a model class with pixels in."""
    if len(files) > len(TRANSFORMERS_FILES):
        raise _other_files(spec, files)
    model = transformers_model(spec, files)
    return model, _transformers_features(spec, model)


def _other_files(spec: ViewSpec, files: dict[str, Path]) -> UsageError:
    return UsageError(
        f"{spec.source}: transformers reads {' and '.join(TRANSFORMERS_FILES)}, so "
        f"weights.files must be these two, found {sorted(files)}"
    )


def _transformers_config(spec: ViewSpec, kind: Any, file: Path) -> Any:
    """The settings of a class of transformers. Raises UsageError where the file is of another
    one: transformers would take its own defaults for all that is called otherwise."""
    known = kind.config_class
    if known is None:
        raise UsageError(
            f"{spec.source}: {spec.architecture} is what models of transformers have in common, "
            "and none itself; write the name of one"
        )
    said = json.loads(file.read_text(encoding="utf-8"))
    if said.get("model_type") != known.model_type and known.base_config_key not in said:
        raise UsageError(
            f"{file} is of a {said.get('model_type')!r}, expected a {known.model_type!r} for "
            f"{spec.architecture}"
        )
    return known.from_pretrained(file.parent, local_files_only=True)


def _transformers_features(spec: ViewSpec, model: Any) -> Features:
    """The output that the spec names. Raises UsageError where the model has none such, or takes no
    such arguments."""
    # registers, where there are any, stand between the class token and the patches
    extra = 1 + getattr(model.config, "num_register_tokens", 0)
    outputs: dict[str, Callable[[Any], torch.Tensor]] = {
        "cls": lambda out: out.last_hidden_state[:, 0],
        "pooled": lambda out: out.pooler_output,
        "mean": lambda out: out.last_hidden_state[:, extra:].mean(1),
    }
    if spec.output not in outputs:
        raise UsageError(
            f"{spec.source}: transformers gives the outputs {', '.join(outputs)}, not "
            f"{spec.output!r}; write one of them"
        )
    if spec.output != "pooled" and not _has_class_token(model):
        raise UsageError(
            f"{spec.source}: {spec.architecture} has no class token, so that neither 'cls' nor "
            "'mean' is known of it; try output = \"pooled\""
        )
    takes = list(inspect.signature(model.forward).parameters)
    unknown = sorted(set(spec.arguments) - set(takes))
    if unknown:
        near = did_you_mean(unknown[0], takes)
        raise UsageError(
            f"{spec.source}: arguments: {spec.architecture} takes no {unknown[0]!r}{near}"
        )
    output = outputs[spec.output]
    return lambda images: output(model(pixel_values=images, **spec.arguments))


def _has_class_token(model: nn.Module) -> bool:
    names = [name for name, _ in model.named_parameters()]
    return any(name.endswith(("cls_token", "class_embedding")) for name in names)


def _not_about_weights(record: logging.LogRecord) -> bool:
    return "weights" not in record.getMessage()


BACKENDS: dict[str, Callable[[ViewSpec, dict[str, Path]], tuple[nn.Module, Features]]] = {
    "timm": load_timm,
    "open_clip": _open_clip,
    "transformers": _transformers,
}
