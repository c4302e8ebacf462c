"""Text towers: texts -> vectors in the space of a view's image features, as the model's authors
make them.

    load_tower(spec, files, device)        the tower of spec.text, and how it compares
    class_features(tower, prompts)         (C, E) unit rows, the mean over each class's prompts
    tensors_of(tower, prompts)             what is kept of both

logits = scale * unit(image) @ unit(text).T + bias, where image is the view's embedding, brought
there by the model's own linear projection if the embedding stands before it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from base.errors import UNKNOWN, UsageError, did_you_mean, nearest
from cache_specs.spec import ViewSpec
from extract.models.backbones import open_clip_model, transformers_model
from extract.models.checkpoint import safetensors_of

BATCH = 256  # texts
Encode = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Tower:
    """encode: texts -> (n, E) float32 features, not normed. projection_DE, offset_E: of the view's
    embedding; None where there is none before the comparison."""

    encode: Encode
    scale: float
    bias: float
    projection_DE: Tensor | None = None
    offset_E: Tensor | None = None


def load_tower(spec: ViewSpec, files: Mapping[str, Path], device: str) -> Tower:
    """files: of spec.both_towers. Raises UsageError where they do not fit, or the view's output is
    not where the model compares, nor before a linear projection to there."""
    assert spec.text is not None, f"{spec.source} has no text tower"
    safetensors_of(spec.both_towers, dict(files))
    tower = TOWERS[spec.text.backend](spec, dict(files), device)
    if tower.projection_DE is None:
        with torch.inference_mode():
            _refuse_width(spec, "compares", tower.encode(["a"]).shape[1])
    return tower


@torch.inference_mode()
def class_features(tower: Tower, prompts: Sequence[Sequence[str]]) -> Tensor:
    """(C, E) float32: of each class its prompts' features, each of length 1, their mean, and that
    of length 1 again."""
    texts = [text for own in prompts for text in own]
    encoded = [tower.encode(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
    feature_nE = normalize(torch.cat(encoded), dim=-1)
    means = [part.mean(0) for part in feature_nE.split([len(own) for own in prompts])]
    return normalize(torch.stack(means), dim=-1).cpu()


def tensors_of(tower: Tower, prompts: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """What is kept beside a view (cache_specs/text.py): of the classes with these prompts, and of
    how they are compared."""
    found = {"classes": class_features(tower, prompts).numpy()}
    for name in ("scale", "bias"):
        found[name] = np.array(getattr(tower, name), np.float32)
    for name, tensor in (("projection", tower.projection_DE), ("offset", tower.offset_E)):
        if tensor is not None:
            found[name] = tensor.cpu().numpy()
    return found


# --- open_clip


def _open_clip(spec: ViewSpec, files: dict[str, Path], device: str) -> Tower:
    model: Any = open_clip_model(spec.both_towers, files).eval().requires_grad_(False)
    head = _head_of(spec, model.visual)
    del model.visual  # the images are embedded already
    model, tokens = model.to(device), _open_clip_tokens(spec, files)

    def encode(texts: Sequence[str]) -> Tensor:
        return model.encode_text(tokens(texts).to(device)).float()

    bias = getattr(model, "logit_bias", None)
    scale = model.logit_scale.exp().item()
    return Tower(encode, scale, 0.0 if bias is None else bias.item(), *head)


def _head_of(spec: ViewSpec, visual: Any) -> tuple[Tensor | None, Tensor | None]:
    """What stands between the view's output and the comparison, (D, E) and (E)."""
    if spec.output == "projected":
        return None, None
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        # the class token is what is pooled, unless it is pooled otherwise
        token = getattr(visual, "pool_type", "") == "tok" and visual.attn_pool is None
        _refuse_output(spec, ("pooled", "cls") if token else ("pooled",))
        return _fitting(spec, visual.proj, None)
    if spec.backend == "open_clip" and spec.output == "pooled":
        return None, None  # the view is this tower as a whole
    # a model of timm's compares what its own head gives; what open_clip adds may not be linear
    own = hasattr(visual, "trunk") and not len(visual.head)
    _refuse_output(spec, ("pooled",) if own else ("projected",))
    head = visual.trunk.get_classifier()
    if isinstance(head, nn.Linear):
        return _fitting(spec, head.weight.T, head.bias)
    return None, None


def _open_clip_tokens(spec: ViewSpec, files: Mapping[str, Path]) -> Encode:
    """open_clip's own tokenizer, or the one whose files are beside the weights; of a bundled model
    its words."""
    from open_clip import tokenizer  # noqa: PLC0415  seconds

    text = spec.text
    assert text is not None, spec.source
    if "tokenizer.json" in files:
        folder = str(files["tokenizer.json"].parent)
        kind: Any = tokenizer.HFTokenizer
        return kind(folder, text.context, clean=text.clean, local_files_only=True)
    if "open_clip_config.json" in files:
        said = json.loads(files["open_clip_config.json"].read_text(encoding="utf-8"))
        if "tiny_vocabulary" in said:
            return _words_of(spec, said["tiny_vocabulary"], text.context)
    simple: Any = tokenizer.SimpleTokenizer
    return simple(context_length=text.context, clean=text.clean)


def _words_of(spec: ViewSpec, vocabulary: Sequence[str], context: int) -> Encode:
    """token = place of the word; 0 pads, the last one ends."""
    place = {word: number for number, word in enumerate(vocabulary)}

    def tokens(texts: Sequence[str]) -> Tensor:
        found = torch.zeros(len(texts), context, dtype=torch.long)
        for row, text in zip(found, texts, strict=True):
            words = text.lower().replace(",", " ").split()
            for word in words:
                if word not in place:
                    raise _unknown_word(spec, word, text, place)
            numbers = [place[word] for word in words][: context - 1] + [len(place) - 1]
            row[: len(numbers)] = torch.tensor(numbers)
        return found

    return tokens


def _unknown_word(spec: ViewSpec, word: str, text: str, known: Mapping[str, int]) -> UsageError:
    near = nearest(word, known)
    told = f"; did you mean {near!r}" if near else ""
    return UsageError(
        f"the view {spec.name!r} knows {len(known) - 2:,} words alone, and {word!r} of {text!r} is "
        f"none of them{told}. Describe the class in those (tiny_vocabulary of "
        "open_clip_config.json, beside its weights), in a file: CLASSES=names.txt",
        instead={"CLASSES": UNKNOWN},
    )


# --- transformers


@dataclass(frozen=True)
class Kind:
    """A class with both towers: the output of a view that stands where it compares, or before
    `projection`. mask: whether its text tower is told which tokens pad."""

    output: str = "pooled"
    projection: str = ""
    mask: bool = True


KINDS = {
    "CLIPModel": Kind(projection="visual_projection"),
    "SiglipModel": Kind(mask=False),  # trained on the padding, too
    "Siglip2Model": Kind(mask=False),
    "AlignModel": Kind(),
    "Tipsv2Model": Kind("cls"),
}


def _transformers(spec: ViewSpec, files: dict[str, Path], device: str) -> Tower:
    import transformers  # noqa: PLC0415  seconds

    text = spec.text
    assert text is not None, spec.source
    if text.architecture not in KINDS:
        near = did_you_mean(text.architecture, KINDS)
        raise UsageError(
            f"{spec.source}: text: of transformers' classes {text.architecture!r} is not known to "
            f"compare images and texts here{near}"
        )
    kind = KINDS[text.architecture]
    _refuse_output(spec, (kind.output,))
    model = transformers_model(spec.both_towers, files).eval().requires_grad_(False)
    head: tuple[Tensor | None, Tensor | None] = (None, None)
    if kind.projection:
        head = _fitting(spec, model.get_submodule(kind.projection).weight.T, None)
    model.to(device)
    folder = str(files["config.json"].parent)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    padded = {"padding": "max_length", "max_length": text.context, "truncation": True}

    def encode(texts: Sequence[str]) -> Tensor:
        given = tokenizer([*texts], return_tensors="pt", **padded).to(device)
        mask = {"attention_mask": given["attention_mask"]} if kind.mask else {}
        return model.get_text_features(given["input_ids"], **mask).pooler_output.float()

    if hasattr(model, "temperature"):
        scale = 1 / model.temperature.item()
    else:
        scale = model.logit_scale.exp().item()
    bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
    return Tower(encode, scale, bias, *head)


# --- both


def _fitting(
    spec: ViewSpec, projection_DE: Tensor, offset_E: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    _refuse_width(spec, "projects", projection_DE.shape[0])
    return projection_DE.detach().float(), None if offset_E is None else offset_E.detach().float()


def _refuse_width(spec: ViewSpec, does: str, found: int) -> None:
    if found != spec.width:
        raise UsageError(
            f"{spec.source}: text: {spec.both_towers.architecture} {does} {found} numbers an "
            f"image, and the view has width = {spec.width}; name the model that the view is of"
        )


def _refuse_output(spec: ViewSpec, fitting: tuple[str, ...]) -> None:
    if spec.output not in fitting:
        raise UsageError(
            f"the text tower of {spec.name!r} cannot be compared with what its cache holds, "
            f"output = {spec.output!r}: {spec.both_towers.architecture} compares what follows from "
            f"{' or '.join(map(repr, fitting))} alone. Take a view with that output, or leave "
            "CLASSES out",
            instead={"CLASSES": None},
        )


TOWERS = {"open_clip": _open_clip, "transformers": _transformers}
