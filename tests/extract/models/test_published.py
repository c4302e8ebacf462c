"""What was published with each model, written down a second time: which pixels belong to which
view, and where its authors' file lies."""

import dataclasses

import pytest
import torch
from models import load, write_spec, write_weights
from published import PIXELS

from base.errors import UsageError
from cache_specs.spec import load_spec, view_names
from extract.trial import refuse_unusable

URLS = {
    "swav": "deepcluster/swav_RN50w4_400ep_pretrain.pth.tar",
    "swav-rn50": "deepcluster/swav_800ep_pretrain.pth.tar",
    **dict.fromkeys(
        ("esvit", "esvit-last4"),
        "bl_lr0.0005_nodes4_gpu16_bs8_multicrop_epoch300_dino_aug_window14_lv/"
        "continued_from_epoch0200_dense_norm_true/checkpoint_best.pth",
    ),
}


def test_each_view_has_the_pixels_that_its_model_was_trained_with() -> None:
    assert set(PIXELS) == {name for name in view_names() if not name.startswith("tiny-")}
    for name, expected in PIXELS.items():
        prep = load_spec(name).preprocess
        assert (
            prep.resize_rule,
            prep.resize,
            prep.crop,
            prep.interpolation,
            prep.mean,
            prep.std,
        ) == expected and prep.antialias, name


def test_the_authors_files_are_the_published_ones() -> None:
    assert {name for name in view_names() if load_spec(name).weights.url} == set(URLS)
    for name, end in URLS.items():
        assert load_spec(name).weights.url.endswith(end)


def small(tmp_path, kind: str, **settings: object):
    import transformers

    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    config = {
        "ViTMAEModel": transformers.ViTMAEConfig,
        "SiglipVisionModel": transformers.SiglipVisionConfig,
        "Dinov2Model": transformers.Dinov2Config,
    }[kind]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config(**shape))
    model.config.save_pretrained(tmp_path)
    write_weights(tmp_path, model.state_dict())
    return write_spec(
        tmp_path,
        kind,
        backend="transformers",
        files=("config.json", "model.safetensors"),
        **{"output": "cls", "width": 32, **settings},
    )


def test_a_model_that_masks_its_input_is_no_view(tmp_path) -> None:
    spec = small(tmp_path, "ViTMAEModel")
    with pytest.raises(UsageError, match="gives other embeddings for the same pixels each time"):
        refuse_unusable(spec, load(spec), "cpu")


def test_a_model_without_a_class_token_has_no_cls(tmp_path) -> None:
    for output in ("cls", "mean"):
        spec = small(tmp_path, "SiglipVisionModel", output=output)
        with pytest.raises(UsageError, match="SiglipVisionModel has no class token"):
            load(spec)
    refuse_unusable(
        dataclasses.replace(spec, output="pooled"),
        load(dataclasses.replace(spec, output="pooled")),
        "cpu",
    )


def test_arguments_that_the_model_does_not_take_and_pixels_that_it_cannot(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"Dinov2Model takes no 'nonsense'"):
        load(small(tmp_path, "Dinov2Model", arguments={"nonsense": 1}))
    spec = small(tmp_path, "SiglipVisionModel", output="pooled", crop=48)
    with pytest.raises(
        UsageError,
        match=r"fails on 48 x 48 pixels with the output 'pooled': .*Look at preprocess.crop",
    ):
        refuse_unusable(spec, load(spec), "cpu")


def test_a_config_of_another_model_is_refused(tmp_path) -> None:
    """Its heads, activation and epsilon would change no shape, and no error would be seen."""
    import json

    spec = small(tmp_path, "Dinov2Model")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(
        UsageError, match=r"config.json is of a 'clip', expected a 'dinov2' for Dinov2Model"
    ):
        load(spec)


@pytest.mark.parametrize(
    "name",
    ["checkpoint_path", "pretrained", "pretrained_cfg_overlay", "num_classes", "global_pool"],
)
def test_arguments_of_timm_that_would_go_round_the_spec_are_refused(tmp_path, name: str) -> None:
    spec = write_spec(tmp_path, "vit_tiny_patch16_224", "cls", 192, arguments={name: "x"})
    write_weights(tmp_path, {"x": torch.zeros(1)})
    with pytest.raises(
        UsageError, match=f"arguments: '{name}' is decided by the spec's output, width and weights"
    ):
        load(spec)
