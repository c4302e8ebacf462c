"""Text towers give what the libraries' own zero-shot code gives, from the rows that the cache
holds, on random weights."""

import dataclasses
import json
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from models import drawn, images, pixels, randomised, write_spec, write_weights
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from base.errors import UsageError
from cache_specs.spec import Text, ViewSpec, Weights, load_spec
from cache_specs.text import ViewText
from extract.models.backbones import load_backbone
from extract.models.text import KINDS, Tower, _head_of, class_features, load_tower, tensors_of
from extract.models.weights import find_weights

CLASSES = {"cat": ["a photo of a Cat.", "a drawing of a cat"], "dog": ["a Dog!", "two dogs"]}
WORDS = ["<pad>", "<unk>", "</s>", "a", "photo", "of", "cat", "drawing", "dog", "two", "dogs"]
TEXT_CFG = {"context_length": 16, "width": 16, "heads": 2, "layers": 2}


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of a few words, as its files, which pads with 0 and ends with </s>."""
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    inner.normalizer, inner.pre_tokenizer = Lowercase(), Whitespace()
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)


def with_text(spec: ViewSpec, text: Text) -> ViewSpec:
    return dataclasses.replace(spec, text=text)


def here(spec: ViewSpec) -> dict[str, Path]:
    return {name: spec.source.parent / name for name in spec.both_towers.weights.files}


def logits(tower: Tower, emb_nD: torch.Tensor, classes: dict[str, list[str]]) -> torch.Tensor:
    """As they are made of cached rows."""
    text = ViewText(tensors_of(tower, [*classes.values()]), "", classes)
    return torch.from_numpy(text.logits(emb_nD.numpy(), [*classes]))


def one_prompt_each() -> dict[str, list[str]]:
    return {name: prompts[:1] for name, prompts in CLASSES.items()}


# --- open_clip


def clip_folder(folder: Path, **more: object) -> tuple[torch.nn.Module, ViewSpec]:
    """A small CLIP of open_clip's with drawn weights, its folder, and the view that stands before
    its projection."""
    vision = {"image_size": 32, "patch_size": 16, "width": 24, "layers": 2, "head_width": 12}
    config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": {**TEXT_CFG, "vocab_size": 49408}}
    return _folder(folder, config | more, 24)


def _folder(folder: Path, config: dict, width: int) -> tuple[torch.nn.Module, ViewSpec]:
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    randomised(model)
    with torch.no_grad():
        model.logit_scale.copy_(torch.tensor(3.1))
    write_weights(folder, model.state_dict(), "open_clip_model.safetensors")
    files = ("open_clip_config.json", "open_clip_model.safetensors")
    spec = write_spec(folder, "made", "pooled", width, backend="open_clip", files=files)
    return model, with_text(spec, Text("open_clip", "made", 16))


@pytest.mark.parametrize("output", ["pooled", "projected"])
def test_clip_is_open_clips_own_zero_shot(tmp_path: Path, output: str) -> None:
    """build_zero_shot_classifier on images; ours on rows that stand before the projection, or
    behind it."""
    model, spec = clip_folder(tmp_path)
    spec = dataclasses.replace(spec, output=output, width=24 if output == "pooled" else 20)
    tower = load_tower(spec, here(spec), "cpu")
    assert (tower.projection_DE is None) == (output == "projected") and tower.bias == 0
    templates = ["a photo of a {}.", "a {} in the snow", "{}"]
    names = ["cat", "very large dog", "sea lion"]
    weights = open_clip.build_zero_shot_classifier(
        model, SimpleTokenizer(context_length=16), names, templates
    )
    image = model.encode_image(images(pixels(batch=5)), normalize=True)
    expected = model.logit_scale.exp() * image @ weights
    emb = load_backbone(spec, here(spec), "cpu")(pixels(batch=5))
    given = {name: [one.replace("{}", name) for one in templates] for name in names}
    found = logits(tower, emb, given)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5) and expected.std() > 0.1


@pytest.mark.parametrize("kind", ["siglip", "pe"])
def test_a_tower_beside_timms_images_is_open_clips(tmp_path: Path, kind: str) -> None:
    """SigLIP: its own tokenizer, 16 tokens of padding that are read, a bias, no projection; PE: the
    head of timm's model is the projection. The view's rows are timm's."""
    trunk = "vit_pe_core_tiny_patch16_384"
    vision = {
        "image_size": 384,
        "timm_model_name": trunk,
        "timm_pool": "map",
        "timm_proj": None,
    }
    text = {**TEXT_CFG, "width": 192}
    if kind == "siglip":
        text |= {"vocab_size": len(WORDS), "no_causal_mask": True, "pool_type": "last"}
        vision["timm_proj"] = "none"
        more = {"init_logit_bias": -10, "embed_dim": 192}
    else:
        text |= {"vocab_size": 49408}
        more = {"embed_dim": 40}
    config = {"custom_text": True, "vision_cfg": vision, "text_cfg": text, **more}
    model, spec = _folder(tmp_path, config, 192)
    given = spec.text
    assert given is not None
    if kind == "siglip":
        write_tokenizer(tmp_path)
        listed = (*spec.weights.files, "tokenizer.json", "tokenizer_config.json")
        weights = Weights(listed, path=".")
        given = dataclasses.replace(given, clean="canonicalize", weights=weights)
        tokens = HFTokenizer(str(tmp_path), 16, clean="canonicalize")
        assert (tokens(["a cat"])[0] == torch.tensor([3, 6, 2, *[0] * 13])).all()
    else:
        tokens = SimpleTokenizer(context_length=16)
    whole = dataclasses.replace(with_text(spec, given), width=192 if kind == "siglip" else 40)
    spec = dataclasses.replace(with_text(spec, given), backend="timm")
    tower = load_tower(spec, here(spec), "cpu")
    texts = tokens([prompts[0] for prompts in CLASSES.values()])
    image = images(pixels(384, batch=2))
    expected, _ = model.get_logits(image, texts)
    emb = model.visual.trunk.forward_head(model.visual.trunk.forward_features(image), True)
    found = logits(tower, emb.detach(), one_prompt_each())
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5) and expected.std() > 0.01
    # a view of open_clip's is the whole tower, with its head
    beside = load_tower(whole, here(whole), "cpu")
    found = logits(beside, model.visual(image).detach(), one_prompt_each())
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5) and beside.projection_DE is None
    if kind == "siglip":
        assert tower.projection_DE is None and tower.bias == model.logit_bias.item() != 0
    else:
        assert tower.projection_DE is not None and tower.bias == 0


BUNDLED = {  # view: width of its rows and of the space; tokens; has it a bias
    "clip": (1024, 768, 77, False),
    "clip-b16": (768, 512, 77, False),
    "metaclip2": (1280, 1024, 77, False),
    "pe-core": (1024, 1024, 32, False),
    "siglip": (768, 768, 64, True),
    "siglip2": (1152, 1152, 64, True),
}


@pytest.mark.parametrize("view", BUNDLED)
def test_the_bundled_views_fit_open_clips_models_at_real_size(view: str) -> None:
    """Shapes alone: what their rows pass through leads to where the texts are."""
    spec, (width, space, context, biased) = load_spec(view), BUNDLED[view]
    assert spec.text is not None and (spec.width, spec.text.context) == (width, context)
    with torch.device("meta"):
        model = open_clip.create_model(spec.text.architecture, load_weights=False, device="meta")
    projection, _ = _head_of(spec, model.visual)
    assert (projection is None) == ("siglip" in view)
    assert projection is None or projection.shape == (width, space)
    text = getattr(model, "text", model)
    assert text.context_length == context
    assert (getattr(model, "logit_bias", None) is not None) == biased
    tokens = torch.zeros(1, context, dtype=torch.long, device="meta")
    assert model.encode_text(tokens).shape == (1, space)


def test_tiny_clip_has_its_trained_tower() -> None:
    """The bundled file: its words are its captions'; a text is found by its own drawing's."""
    spec = load_spec("tiny-clip")
    tower = load_tower(spec, find_weights(spec.both_towers, None)[0], "cpu")
    assert 10 < tower.scale < 20 and tower.projection_DE is not None
    one, same, other = class_features(tower, [["small g, bold"], ["SMALL G bold"], ["capital w"]])
    assert torch.equal(one, same) and one @ other < 0.9
    with pytest.raises(UsageError, match=r"'smal' of 'a smal g' is none of them; did you mean 'sm"):
        tower.encode(["a smal g"])
    with pytest.raises(UsageError, match=r"594 words alone, and '7' of '7' is none of them\."):
        tower.encode(["7"])
    long = " ".join(["small"] * 40)
    assert torch.equal(tower.encode([long]), tower.encode([" ".join(["small"] * 19)]))


def test_classes_are_means_of_unit_rows() -> None:
    """In batches, whatever their sizes are."""
    rows = torch.randn(600, 7, generator=torch.Generator().manual_seed(0)) * 5
    asked = []

    def encode(texts: list[str]) -> torch.Tensor:
        asked.append(len(texts))
        return rows[[int(text) for text in texts]]

    prompts = [[str(i) for i in range(599)], ["599"]]
    found = class_features(Tower(encode, 1.0, 0.0), prompts)
    assert asked == [256, 256, 88]
    assert torch.allclose(found[0], normalize(normalize(rows[:599], dim=1).mean(0), dim=0))
    assert torch.allclose(found[1], normalize(rows[599], dim=0))


# --- transformers


def transformers_model(kind: str) -> torch.nn.Module:
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    more: dict[str, object] = {}
    if kind == "CLIPModel":
        more = {"projection_dim": 20}
    if kind == "Siglip2Model":
        vision = {k: v for k, v in vision.items() if k != "image_size"} | {"num_patches": 4}
    if kind == "AlignModel":
        more = {"projection_dim": 32}
        vision = {
            "image_size": 32,
            "hidden_dim": 32,
            "width_coefficient": 0.1,
            "depth_coefficient": 0.1,
        }
    config = getattr(transformers, kind).config_class(
        text_config=text, vision_config=vision, **more
    )
    return randomised(getattr(transformers, kind)(config))


def of_images(kind: str, model: torch.nn.Module) -> tuple[dict, torch.Tensor]:
    """What a whole model is given of 3 images, and what the view's output is of them."""
    if kind == "Siglip2Model":
        given = {
            "pixel_values": drawn("patches", (3, 4, 16 * 16 * 3)),
            "pixel_attention_mask": torch.ones(3, 4, dtype=torch.long),
            "spatial_shapes": torch.tensor([[2, 2]] * 3),
        }
        out = model.vision_model(
            given["pixel_values"], given["pixel_attention_mask"], given["spatial_shapes"]
        )
    else:
        given = {"pixel_values": images(pixels(batch=3))}
        out = model.vision_model(given["pixel_values"])
    pooled = out.last_hidden_state[:, 0] if KINDS[kind].output == "cls" else out.pooler_output
    return given, pooled


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_of_transformers_is_its_models_forward(tmp_path: Path, kind: str) -> None:
    model = transformers_model(kind)
    with torch.no_grad():
        if hasattr(model, "temperature"):
            model.temperature.fill_(0.2)
        else:
            model.logit_scale.fill_(2.5)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-3.5)
    model.config.save_pretrained(tmp_path)
    write_weights(tmp_path, model.state_dict())
    write_tokenizer(tmp_path)
    listed = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    pair = ("config.json", "model.safetensors")
    given, emb = of_images(kind, model)
    output, width = KINDS[kind].output, emb.shape[1]
    spec = write_spec(tmp_path, "v", output, width, backend="transformers", files=pair)
    spec = with_text(spec, Text("transformers", kind, 16, Weights(listed, path=".")))
    tower = load_tower(spec, here(spec), "cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompts = [prompts[0] for prompts in CLASSES.values()]
    # the attention mask is what CLIP's, ALIGN's and TIPSv2's processors give, SigLIP's does not
    words = tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    mask = {} if "Siglip" in kind else {"attention_mask": words["attention_mask"]}
    with torch.no_grad():
        expected = model(input_ids=words["input_ids"], **mask, **given).logits_per_image
    found = logits(tower, emb.detach(), one_prompt_each())
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5), (found, expected)
    assert expected.std() > 0.01 and (tower.projection_DE is not None) == (kind == "CLIPModel")


# --- what is refused


@pytest.mark.parametrize("output", ["mean", "cls", "last4"])
def test_what_stands_elsewhere_is_refused_by_name(tmp_path: Path, output: str) -> None:
    _, spec = clip_folder(tmp_path)
    spec = dataclasses.replace(spec, output=output)
    if output == "cls":  # of CLIP's own tower that is what is pooled
        assert load_tower(spec, here(spec), "cpu").projection_DE is not None
        return
    told = f"holds, output = '{output}': made compares what follows from 'pooled' or 'cls' alone"
    with pytest.raises(UsageError, match=told) as error:
        load_tower(spec, here(spec), "cpu")
    assert error.value.instead == {"CLASSES": None}


def test_a_model_of_another_width_or_kind_is_refused(tmp_path: Path) -> None:
    _, spec = clip_folder(tmp_path)
    wide = dataclasses.replace(spec, width=25)
    with pytest.raises(UsageError, match="projects 24 numbers an image, and the view has width ="):
        load_tower(wide, here(wide), "cpu")
    whole = dataclasses.replace(wide, output="projected")
    with pytest.raises(UsageError, match="compares 20 numbers an image, and the view has width = "):
        load_tower(whole, here(whole), "cpu")
    (tmp_path / "config.json").write_text("{}")
    pair = Weights(("config.json", "open_clip_model.safetensors"), path=".")
    odd = with_text(spec, Text("transformers", "ClipModel", 16, pair))
    with pytest.raises(UsageError, match="'ClipModel' is not known to compare images and texts"):
        load_tower(odd, here(odd), "cpu")
