"""Bundled views: what they say about their models is measured. Loading: no tensor of a model is
ever left at its initial value."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from models import calibrated, images, load, pixels, randomised, same, write_spec, write_weights
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from base.errors import UsageError
from cache_specs.spec import SPECS, load_spec, view_names
from extract.config import ExtractConfig
from extract.models.backbones import load_backbone
from extract.models.leaks import refuse_labels
from extract.models.timm_backend import RESAMPLING, build_timm, timm_features, timm_filter
from extract.run import run

DESCRIBED = [name for name in view_names() if not name.startswith("tiny-")]
TIMM = [name for name in DESCRIBED if load_spec(name).backend == "timm"]
OWL = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 960,
    "patch_size": 16,
}
CONFIGS = {
    "blip": ("Blip2VisionConfig", {}),
    "align": ("AlignVisionConfig", {}),
    "owlv2": ("Owlv2VisionConfig", OWL),
    "owlv2-224": ("Owlv2VisionConfig", OWL),
    "dinov2": (
        "Dinov2WithRegistersConfig",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 518,
            "patch_size": 14,
        },
    ),
}


# --- what the bundled TOML files say


@pytest.mark.parametrize("name", view_names())
def test_the_first_line_is_the_command_with_what_a_million_images_take(name):
    first = (SPECS / f"{name}.toml").read_text().splitlines()[0]
    spec = load_spec(name)
    if name.startswith("tiny-"):
        assert first == f"# make extract VIEW={name} DATA=digits" and spec.about is None
    else:
        assert first == (
            f"# make extract VIEW={name} DATA=photos/       "
            f"{spec.width * 2e6 / 1e9:.2f} GB a million images"
        )
        assert all(
            [
                spec.about.model,
                spec.about.licence,
                spec.about.probing,
                spec.about.parameters > 1e6,
                spec.about.gmacs > 1,
            ]
        )


def test_what_is_too_alike_is_a_view_that_exists():
    for name in DESCRIBED:
        assert set(load_spec(name).about.alike) <= set(view_names()) - {name}


@pytest.mark.parametrize(
    "name", [name for name in DESCRIBED if load_spec(name).backend != "open_clip"]
)
def test_parameters_arithmetic_and_width_are_those_of_the_model(name):
    """Built without memory, on the meta device, at its full size."""
    spec = load_spec(name)
    with torch.device("meta"):
        if spec.backend == "timm":
            model = build_timm(spec)
            features = timm_features(model, spec)
        else:
            import transformers

            kind, values = CONFIGS[name]
            model = getattr(transformers, spec.architecture)._from_config(
                getattr(transformers, kind)(**values)
            )
            outputs = {
                "cls": lambda out: out.last_hidden_state[:, 0],
                "pooled": lambda out: out.pooler_output,
            }
            features = lambda x: outputs[spec.output](model(pixel_values=x, **spec.arguments))  # noqa: E731
        model.requires_grad_(False).eval()
        with FlopCounterMode(display=False) as flops:
            emb_BD = features(torch.empty(2, 3, spec.preprocess.crop, spec.preprocess.crop))
    assert emb_BD.shape == (2, spec.width)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(
        spec.about.parameters, abs=0.1e6
    )
    assert flops.get_total_flops() / 2 / 2 == pytest.approx(spec.about.gmacs * 1e9, rel=0.01)


@pytest.mark.parametrize(
    "name", [name for name in DESCRIBED if load_spec(name).backend == "open_clip"]
)
def test_open_clip_has_the_width_and_the_size(name):
    import open_clip

    spec = load_spec(name)
    config = open_clip.get_model_config(spec.architecture)
    assert config["quick_gelu"] and (
        config["vision_cfg"]["width"],
        config["vision_cfg"]["image_size"],
    ) == (spec.width, spec.preprocess.crop)


@pytest.mark.many
def test_clip_b16_is_built(tmp_path):
    import open_clip

    spec = load_spec("clip-b16")
    model = randomised(open_clip.create_model(spec.architecture, load_weights=False))
    write_weights(tmp_path, model.state_dict())
    backbone = load_backbone(spec, {spec.weights.files[0]: tmp_path / "model.safetensors"}, "cpu")
    assert sum(p.numel() for p in backbone.model.parameters()) == pytest.approx(
        spec.about.parameters, abs=0.1e6
    )
    x = pixels(224)
    with torch.inference_mode():
        emb_BD = backbone(x, exact=True)
        assert emb_BD.shape == (2, 768) and same(
            emb_BD @ model.visual.proj, model.encode_image((x / 255 - backbone.mean) / backbone.std)
        )


@pytest.mark.parametrize("name", TIMM)
def test_timm_knows_the_tag_its_repository_its_filter_and_its_head(name, monkeypatch):
    """Asked for pretrained weights, timm itself would take this repository, this filter, and a
    head that [tensors] drops."""
    import timm

    asked = {}
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained",
        lambda model, **given: asked.update(given, model=model),
    )
    spec = load_spec(name)
    arguments = {
        key: value
        for key, value in spec.arguments.items()
        if key not in ("widen", "norm_eps", *RESAMPLING)
    }
    with torch.device("meta"):
        timm.create_model(spec.architecture, pretrained=True, num_classes=0, **arguments)
    config = asked["pretrained_cfg"]
    assert asked["filter_fn"] is timm_filter(asked["model"]) and "_ft_in" not in spec.architecture
    if spec.weights.hub is not None:
        assert spec.weights.hub == config["hf_hub_id"] and spec.weights.files == (
            "model.safetensors",
        )
        if config["num_classes"]:
            heads = (
                [config["classifier"]]
                if isinstance(config["classifier"], str)
                else config["classifier"]
            )
            assert all(f"{head}.weight".startswith(spec.tensors.drop) for head in heads), (
                heads,
                spec.tensors.drop,
            )


# --- labels

LEAKS = [
    (
        {"architecture": "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k"},
        "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
    ),
    ({"architecture": "hiera_base_224.mae_in1k_ft_in1k"}, "hiera_base_224.mae_in1k_ft_in1k"),
    ({"hub": "timm/eva_giant_patch14_224.clip_ft_in1k"}, "eva_giant_patch14_224.clip_ft_in1k"),
    (
        {"hub": "timm/vit_base_patch16_clip_224.openai_ft_in12k_in1k"},
        "vit_base_patch16_clip_224.openai_ft_in12k_in1k",
    ),
    ({"architecture": "resnet50.a1_in1k"}, "resnet50.a1_in1k"),
    ({"architecture": "vit_base_patch16_224.augreg_in21k"}, "vit_base_patch16_224.augreg_in21k"),
]


@pytest.mark.parametrize(("changes", "tag"), LEAKS)
def test_weights_tuned_with_imagenets_labels_are_refused_unless_that_is_meant(
    tmp_path, changes, tag
):
    text = (SPECS / "eva02.toml").read_text()
    for key, value in changes.items():
        text = re.sub(f"^{key} = .*$", f'{key} = "{value}"', text, flags=re.MULTILINE)
    (tmp_path / "mine.toml").write_text(text)
    given = ExtractConfig(
        view=str(tmp_path / "mine.toml"),
        data="photos/",
        weights="/nowhere",
        cache=str(tmp_path / "cache"),
    )
    with pytest.raises(UsageError) as caught:
        run(given)
    message = str(caught.value)
    assert f"'mine' ({tag}) were trained with ImageNet's labels" in message and message.endswith(
        "say so: --allow-leak"
    )
    assert caught.value.exit_code == 2 and caught.value.instead == {
        "--allow-leak": ""
    }  # the command line shows the whole command
    with pytest.raises(
        UsageError, match=r"'eva02' \(big.mae_ft_in1k.safetensors\) were trained with"
    ):
        run(dataclasses.replace(given, view="eva02", weights="/in1k/big.mae_ft_in1k.safetensors"))
    with pytest.raises(UsageError, match="WEIGHTS=/nowhere"):  # the next thing that is wrong
        run(dataclasses.replace(given, allow_leak=True))


@pytest.mark.parametrize("name", [*view_names(), "mim_in22k", "in1k_ijepa", "basin1k", "mae"])
def test_no_bundled_view_is_refused_and_no_pre_training_without_labels(name):
    spec = load_spec(name if name in view_names() else "eva02")
    refuse_labels(
        spec if name in view_names() else dataclasses.replace(spec, architecture=f"vit.{name}")
    )


HEADS = [
    ("classifier.weight", (1000, 4)),
    ("head.weight", (21841, 4)),
    ("model.head.fc.weight", (1000, 4)),
    ("fc.weight", (11821, 4)),
]
NO_HEADS = [
    ("head.weight", (1024, 4)),
    ("prototypes.weight", (1000, 4)),
    ("text.attn.head_fc.weight", (1000, 4)),
    ("head.weight", (1000,)),
    ("classifier.bias", (1000,)),
]


@pytest.mark.parametrize(("name", "shape"), HEADS + NO_HEADS)
def test_a_classifier_of_imagenets_classes_among_the_tensors_is_seen(tmp_path, name, shape):
    write_weights(tmp_path, {name: torch.zeros(shape), "blocks.0.weight": torch.zeros(2, 2)})
    files = {"model.safetensors": tmp_path / "model.safetensors"}
    if (name, shape) in NO_HEADS:
        refuse_labels(load_spec("dinov2"), files=files)
        return
    with pytest.raises(
        UsageError,
        match=(
            rf"'dinov2' \({name} of {shape[0]:,} classes in model\.safetensors\) "
            r"were trained with ImageNet's labels"
        ),
    ):
        refuse_labels(load_spec("dinov2"), files=files)


def test_a_transformers_classifier_is_no_view_and_extraction_looks(tmp_path):
    """google/vit-base-patch16-224: nothing in its name says what it was trained with."""
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["ViTForImageClassification"], "model_type": "vit"})
    )
    write_weights(tmp_path, {"vit.x": torch.zeros(1)})
    spec = write_spec(
        tmp_path,
        "ViTModel",
        "cls",
        32,
        backend="transformers",
        files=("config.json", "model.safetensors"),
    )
    given = ExtractConfig(view=str(spec.source), data="photos/", cache=str(tmp_path / "cache"))
    with pytest.raises(
        UsageError,
        match=r"\(config\.json: ViTForImageClassification\) were trained with ImageNet's labels",
    ):
        run(given)
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["ViTModel"], "model_type": "vit"})
    )
    with pytest.raises(UsageError, match="photos"):
        run(given)


# --- loading: timm

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2}
FAMILIES = {
    "vit_base_patch16_clip_quickgelu_224": ("cls", 32, VIT),
    "vit_large_patch14_reg4_dinov2": ("cls", 32, VIT),
    "vit_base_patch14_dinov2": ("last4", 128, VIT),
    "vit_giant_patch14_dinov2": ("cls", 32, VIT),
    "vit_large_patch16_224": ("cls", 32, VIT),
    "vit_base_patch16_siglip_224": ("pooled", 32, VIT),
    "vit_large_patch14_reg1_tipsv2": ("cls", 32, VIT),
    "aimv2_large_patch14_224": ("mean", 32, VIT),
    "eva_giant_patch14_clip_224": ("cls", 32, VIT),
    "eva02_large_patch14_224": ("mean", 32, VIT),
    "vit_large_patch16_dinov3": ("cls", 32, VIT),
    "vit_pe_core_large_patch14_336": ("pooled", 32, VIT),
    "hiera_base_224": (
        "mean",
        128,
        {
            "img_size": [64, 64],
            "embed_dim": 16,
            "num_heads": 1,
            "stages": [1, 1, 1, 1],
            "q_pool": 2,
        },
    ),
    "swin_base_patch4_window7_224": (
        "last4",
        384,
        {
            "img_size": 64,
            "window_size": 4,
            "embed_dim": 16,
            "depths": [1, 1, 2, 2],
            "num_heads": [1, 1, 2, 2],
            "norm_eps": 1e-6,
        },
    ),
    "convnext_base": ("mean", 32, {"depths": [1, 1, 1, 1], "dims": [4, 8, 16, 32]}),
    "resnet50": ("mean", 2048, {"layers": [1, 1, 1, 1]}),
}
CROPS = {"hiera_base_224": 64, "swin_base_patch4_window7_224": 64, "convnext_base": 64}


def of_family(folder: Path, family: str, **changes):
    """(spec, the library's own model with every tensor drawn anew); its weights are written."""
    output, width, arguments = FAMILIES[family]
    spec = write_spec(
        folder, family, output, width, CROPS.get(family, 32), arguments=arguments, **changes
    )
    model = randomised(build_timm(spec))
    write_weights(folder, model.state_dict())
    return spec, model


@pytest.mark.parametrize("family", FAMILIES)
def test_timm_round_trip(tmp_path, family):
    """The loaded model has the checkpoint's tensors, every one, and gives what the
    library's own model gives."""
    spec, model = of_family(tmp_path, family)
    backbone = load(spec, folded=False)
    assert model.state_dict().keys() == backbone.model.state_dict().keys()
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in backbone.model.state_dict().items()
    )
    assert not any(parameter.requires_grad for parameter in backbone.parameters()) and not any(
        module.training for module in backbone.train().modules()
    )
    with torch.inference_mode():
        expected = timm_features(model, spec)(images(pixels(spec.preprocess.crop, 3)))
        assert same(backbone(pixels(spec.preprocess.crop, 3)), expected)
        emb_BD = load(spec)(pixels(spec.preprocess.crop, 3))
        assert same(emb_BD, expected)
    assert emb_BD.shape == (3, spec.width) and emb_BD.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_timm_each_tensor_that_is_missing_misshapen_or_too_many_is_named(tmp_path, family):
    spec, model = of_family(tmp_path, family)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = [
        name for name, tensor in state.items() if tensor.ndim == 1 and tensor.is_floating_point()
    ][-1]
    for change, message in (
        ({}, f"1 tensors missing ['{name}']"),
        (
            {name: state[name][:-1]},
            (
                f"1 of another shape ['{name} ({len(state[name]) - 1},), "
                f"expected ({len(state[name])},)']"
            ),
        ),
        ({name: state[name], "a.tensor.too.many": torch.zeros(3)}, "'a.tensor.too.many'"),
    ):
        write_weights(
            tmp_path, {key: tensor for key, tensor in state.items() if key != name} | change
        )
        with pytest.raises(UsageError) as caught:
            load(spec)
        assert message in str(caught.value) and "'v'" in str(caught.value)


def test_timm_no_tensor_at_all_may_be_missing(tmp_path):
    spec, model = of_family(tmp_path, "vit_base_patch14_dinov2")
    state = model.state_dict()
    for name in state:
        write_weights(tmp_path, {key: tensor for key, tensor in state.items() if key != name})
        with pytest.raises(UsageError, match=re.escape(f"1 tensors missing ['{name}']")):
            load(spec)


@pytest.mark.parametrize(
    ("family", "leftover"),
    [
        ("vit_base_patch14_dinov2", "mask_token"),
        ("vit_base_patch14_dinov2", "head.weight"),
        ("vit_large_patch16_224", "decoder_blocks.0.norm1.weight"),
        ("vit_large_patch16_224", "pre_logits.fc.weight"),
        ("swin_base_patch4_window7_224", "layers.0.blocks.0.attn_mask"),
        ("hiera_base_224", "decoder_pos_embed"),
        ("eva02_large_patch14_224", "mask_token"),
        ("eva02_large_patch14_224", "lm_head.weight"),
        ("vit_large_patch16_dinov3", "rope_embed.periods"),
        ("convnext_base", "projectors.a"),
        ("resnet50", "prototypes.weight"),
    ],
)
def test_timm_what_is_left_over_is_named_in_drop_or_an_error(tmp_path, family, leftover):
    """Also where the family's own filter would take it away in silence."""
    spec, model = of_family(tmp_path, family)
    tensor = torch.zeros(1, 1, 32)
    write_weights(tmp_path, model.state_dict() | {leftover: tensor})
    with pytest.raises(UsageError) as caught:
        load(spec)
    assert leftover in str(caught.value)
    spec, model = of_family(tmp_path, family, drop=[leftover])
    write_weights(tmp_path, model.state_dict() | {leftover: tensor})
    with torch.inference_mode():
        assert same(
            load(spec)(pixels(spec.preprocess.crop)),
            timm_features(model, spec)(images(pixels(spec.preprocess.crop))),
        )


@pytest.mark.parametrize(
    ("family", "registers"), [("vit_base_patch14_dinov2", 0), ("vit_large_patch14_reg4_dinov2", 4)]
)
def test_timm_a_position_table_of_a_larger_grid_is_resampled_as_timm_does_it(
    tmp_path, family, registers
):
    """DINOv2's are of 518 pixels, the view's of 224."""
    import timm

    large = randomised(timm.create_model(family, num_classes=0, **VIT | {"img_size": 72}))
    write_weights(tmp_path, large.state_dict())
    spec = write_spec(tmp_path, family, "cls", 32, arguments=VIT)
    backbone = load(spec)
    itself = timm.create_model(
        family,
        pretrained=True,
        num_classes=0,
        global_pool="token",
        **VIT,
        pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors")},
    ).eval()
    assert (
        large.pos_embed.shape[1] - backbone.model.pos_embed.shape[1] == 9**2 - 4**2
        and backbone.model.num_reg_tokens == registers
    )
    with torch.inference_mode():
        assert same(backbone(pixels()), itself(images(pixels())))


def test_timm_a_checkpoint_of_another_patch_size_is_no_silent_fit(tmp_path):
    """timm would resample the patches' filters too: that is another model."""
    import timm

    write_weights(
        tmp_path,
        randomised(
            timm.create_model("vit_base_patch14_dinov2", num_classes=0, **VIT | {"patch_size": 16})
        ).state_dict(),
    )
    with pytest.raises(
        UsageError,
        match=(
            r"1 of another shape \['patch_embed\.proj\.weight "
            r"\(32, 3, 16, 16\), expected \(32, 3, 8, 8\)'\]"
        ),
    ):
        load(write_spec(tmp_path, "vit_base_patch14_dinov2", "cls", 32, arguments=VIT))


def test_timm_a_masked_modelling_checkpoint_of_eva02_loads(tmp_path):
    """Its last norm is called norm and it has a mask token and a head of the codebook; the view's
    [tensors] bring it to timm's names."""
    tensors = load_spec("eva02").tensors
    spec, model = of_family(
        tmp_path, "eva02_large_patch14_224", drop=tensors.drop, rename=tensors.rename
    )
    state = {
        name.replace("fc_norm.", "norm."): tensor for name, tensor in model.state_dict().items()
    }
    assert "norm.weight" in state
    for extra in (
        {
            "mask_token": torch.zeros(1, 1, 32),
            "lm_head.weight": torch.zeros(8, 32),
            "lm_head.bias": torch.zeros(8),
        },
        {},
    ):
        write_weights(tmp_path, state | extra)
        with torch.inference_mode():
            assert same(load(spec)(pixels()), model(images(pixels())))


def test_timm_a_width_that_is_not_the_models_is_an_error(tmp_path):
    spec, _ = of_family(tmp_path, "vit_base_patch14_dinov2")
    with pytest.raises(UsageError, match=r"v\.toml: width = 999, but the model gives \(128,\)"):
        load(dataclasses.replace(spec, width=999))(pixels())


@pytest.mark.filterwarnings("ignore")
def test_timm_a_swin_of_another_window_is_no_silent_fit(tmp_path):
    """timm would resample its position biases: EsViT has models of window 7 and of window 14."""
    import timm

    arguments = {
        key: value
        for key, value in FAMILIES["swin_base_patch4_window7_224"][2].items()
        if key != "norm_eps"
    }
    spec, _ = of_family(tmp_path, "swin_base_patch4_window7_224")
    write_weights(
        tmp_path,
        randomised(
            timm.create_model(
                "swin_base_patch4_window7_224", num_classes=0, **arguments | {"window_size": 2}
            )
        ).state_dict(),
    )
    with pytest.raises(
        UsageError,
        match=(
            r"of another shape \['layers\.0\.blocks\.0\.attn\.relative_position_bias_table "
            r"\(9, 1\), expected \(49, 1\)'"
        ),
    ):
        load(spec)


@pytest.mark.parametrize(
    "family", ["resnet50", "convnext_base", "vit_large_patch16_224", "swin_base_patch4_window7_224"]
)
def test_convolutional_models_compute_channels_last_and_give_the_same_bytes_each_time(
    tmp_path, family
):
    spec, model = of_family(tmp_path, family)
    x = pixels(spec.preprocess.crop, 3)
    if family == "resnet50":
        write_weights(tmp_path, calibrated(model, images(pixels(32, 8, seed=1))).state_dict())
    last = {"resnet50", "convnext_base"}
    seen = []
    backbone = load(spec)
    [first, *_] = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    first.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.inference_mode():
        emb_BD = backbone(x)
        assert (
            seen == [family in last]
            and torch.equal(emb_BD, backbone(x))
            and torch.equal(emb_BD, load(spec)(x))
        )
        assert same(emb_BD, timm_features(model, spec)(images(x)))


def test_timm_a_checkpoint_that_the_familys_filter_chokes_on_is_an_error_of_ours(tmp_path):
    of_family(tmp_path, "vit_base_patch14_dinov2")
    with pytest.raises(
        UsageError, match=r"the weights of 'v' are not of the kind of convnext_base"
    ):
        load(
            write_spec(
                tmp_path, "convnext_base", "mean", 32, arguments=FAMILIES["convnext_base"][2]
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "vit_bsae_patch14_dinov2"},
            (
                "timm has no architecture 'vit_bsae_patch14_dinov2'; "
                "did you mean 'vit_base_patch14_dinov2'"
            ),
        ),
        (
            {"architecture": "vit_base_patch14_dinov2.nonsense"},
            "timm cannot build vit_base_patch14_dinov2.nonsense",
        ),
        (
            {"arguments": {"nonsense": 3}},
            "timm cannot build vit_base_patch14_dinov2 with output 'last4' and {'nonsense': 3}",
        ),
        (
            {"architecture": "convnext_base", "arguments": FAMILIES["convnext_base"][2]},
            "convnext_base has no output 'last4'",
        ),
        (
            {
                "architecture": "convnext_base",
                "arguments": FAMILIES["convnext_base"][2],
                "output": "cls",
            },
            "timm cannot build convnext_base with output 'cls'",
        ),
        (
            {
                "architecture": "swin_base_patch4_window7_224",
                "arguments": FAMILIES["swin_base_patch4_window7_224"][2],
                "output": "cls",
            },
            "timm cannot build",
        ),
        ({"architecture": "vit_base_patch16_siglip_224", "output": "cls"}, "timm cannot build"),
        (
            {"architecture": "vit_base_patch16_siglip_224"},
            "vit_base_patch16_siglip_224 has no output 'last4'",
        ),
        (
            {"architecture": "vit_large_patch16_224", "arguments": {**VIT, "widen": 2}},
            "timm cannot build",
        ),
        (
            {"architecture": "resnet18d", "output": "mean", "arguments": {"widen": 2}},
            "resnet18d has no convolution layer1.0.downsample.0, whose input could be widened",
        ),
    ],
)
def test_timm_what_cannot_be_built_is_named(tmp_path, changes, message):
    spec, _ = of_family(tmp_path, "vit_base_patch14_dinov2")
    with pytest.raises(UsageError) as caught:
        load(dataclasses.replace(spec, **changes))
    assert message in str(caught.value)


# --- loading: transformers

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SEEN = {**SMALL, "image_size": 32, "patch_size": 8, "initializer_range": 0.02}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 20}
QFORMER = {**TEXT, "encoder_hidden_size": 16, "use_qformer_text_input": True}


def full_model(name: str) -> nn.Module:
    """The class whose checkpoint is on the hub, text part and heads included, small."""
    import transformers as t

    if name == "blip":
        return t.Blip2ForImageTextRetrieval(
            t.Blip2Config(
                vision_config=SEEN,
                qformer_config=QFORMER,
                num_query_tokens=4,
                image_text_hidden_size=8,
            )
        )
    if name == "align":
        small = {
            "image_size": 64,
            "width_coefficient": 0.1,
            "depth_coefficient": 0.1,
            "hidden_dim": 16,
        }
        return t.AlignModel(t.AlignConfig(text_config=TEXT, vision_config=small, projection_dim=16))
    return t.Owlv2ForObjectDetection(
        t.Owlv2Config(text_config=TEXT, vision_config=SEEN, projection_dim=8)
    )


@pytest.fixture(scope="module", params=["blip", "align", "owlv2"])
def tower(request, tmp_path_factory):
    """(view, the full model with every tensor drawn anew, the folder it saved itself to)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = randomised(full_model(request.param))
    if request.param == "align":
        calibrated(model.vision_model, images(pixels(64, 16, seed=1)))
    model.save_pretrained(folder)
    return request.param, model, folder


def vision(name: str, model: nn.Module) -> nn.Module:
    """Its tower; OWLv2's vision class keeps it as a part, named vision_model."""
    if name != "owlv2":
        return model.vision_model
    import transformers

    alone = transformers.Owlv2VisionModel(model.config.vision_config)
    alone.vision_model = model.owlv2.vision_model
    return alone.eval()


def small_spec(name: str, folder: Path, **changes):
    """The bundled view with the small model's size."""
    spec = load_spec(name)
    crop = 64 if name == "align" else 32
    prep = dataclasses.replace(
        spec.preprocess, resize=crop, crop=crop, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    return dataclasses.replace(
        spec,
        preprocess=prep,
        width=32 if name == "align" else 16,
        source=folder / f"{name}.toml",
        compute_dtype="float32",
        **changes,
    )


def test_transformers_the_towers_of_full_models_load_with_every_tensor(tower):
    """Names and config.json as the full class itself writes them; all that is left
    over is in the view's `drop`."""
    name, model, folder = tower
    spec = small_spec(name, folder)
    backbone = load(spec, folded=False)
    ours, theirs = backbone.model.state_dict(), vision(name, model).state_dict()
    assert ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[key]) for key, tensor in ours.items()
    )
    x = pixels(spec.preprocess.crop)
    with torch.inference_mode():
        expected = vision(name, model)(pixel_values=images(x)).pooler_output
        assert same(backbone(x), expected) and same(load(spec)(x), expected)


def test_transformers_without_the_renaming_it_is_refused_not_random(tower):
    name, _, folder = tower
    spec = small_spec(name, folder)
    blind = dataclasses.replace(spec.tensors, rename={})
    with (
        contextlib.nullcontext()
        if name == "owlv2"
        else pytest.raises(UsageError, match=r"do not fit .*missing_keys")
    ):  # OWLv2's prefix its own class knows
        load(dataclasses.replace(spec, tensors=blind))


def test_transformers_what_is_left_over_must_be_named(tower):
    name, _, folder = tower
    spec = small_spec(name, folder)
    for left in spec.tensors.drop:
        less = tuple(other for other in spec.tensors.drop if other != left)
        used = any(
            key.startswith(left) and not key.startswith(less) for key in tower[1].state_dict()
        )
        with (
            pytest.raises(UsageError, match=r"unexpected_keys")
            if used
            else contextlib.nullcontext()
        ):
            load(dataclasses.replace(spec, tensors=dataclasses.replace(spec.tensors, drop=less)))


def test_transformers_each_tensor_that_is_missing_or_misshapen_is_named(tower, tmp_path):
    import shutil

    from safetensors.torch import load_file

    name, model, folder = tower
    state = load_file(folder / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    spec = small_spec(name, tmp_path)
    prefix = "owlv2." if name == "owlv2" else "vision_model."
    keys = sorted(
        key
        for key in state
        if key.startswith((prefix + "vision_model.") if name == "owlv2" else prefix)
    )
    assert len(keys) == len(vision(name, model).state_dict())
    for key in keys[:: len(keys) // 12]:
        for change in ({}, {key: torch.zeros(*state[key].shape, 2)}):
            write_weights(
                tmp_path,
                {other: tensor for other, tensor in state.items() if other != key} | change,
            )
            with pytest.raises(UsageError, match=re.escape(key.removeprefix(prefix))):
                load(spec)


HF = {
    "Dinov2WithRegistersModel": (
        "Dinov2WithRegistersConfig",
        {**SEEN, "num_register_tokens": 4},
        ("cls", "pooled", "mean"),
    ),
    "Dinov2Model": ("Dinov2Config", SEEN, ("cls", "pooled", "mean")),
    "SiglipVisionModel": ("SiglipVisionConfig", SEEN, ("pooled",)),
    "CLIPVisionModel": ("CLIPVisionConfig", SEEN, ("cls", "pooled")),
}


@pytest.mark.parametrize("kind", HF)
def test_transformers_round_trip(tmp_path, kind):
    import transformers

    config, values, outputs = HF[kind]
    model = randomised(getattr(transformers, kind)(getattr(transformers, config)(**values)))
    model.save_pretrained(tmp_path)
    for output in outputs:
        backbone = load(
            write_spec(
                tmp_path,
                kind,
                output,
                16,
                backend="transformers",
                files=["config.json", "model.safetensors"],
            )
        )
        ours = backbone.model.state_dict()
        assert ours.keys() == model.state_dict().keys() and all(
            torch.equal(tensor, ours[key]) for key, tensor in model.state_dict().items()
        )
        with torch.inference_mode():
            out = model(images(pixels()))
            first = 1 + values.get("num_register_tokens", 0)
            expected = {
                "cls": out.last_hidden_state[:, 0],
                "pooled": out.pooler_output,
                "mean": out.last_hidden_state[:, first:].mean(1),
            }[output]
            assert same(backbone(pixels()), expected)


def test_transformers_half_precision_checkpoints_become_float32(tmp_path):
    import transformers

    model = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**SEEN)))
    model.half().save_pretrained(tmp_path)
    backbone = load(
        write_spec(
            tmp_path,
            "Dinov2Model",
            "cls",
            16,
            backend="transformers",
            files=["config.json", "model.safetensors"],
        )
    )
    assert {tensor.dtype for tensor in backbone.model.state_dict().values()} == {torch.float32}
    with torch.inference_mode():
        assert same(backbone(pixels()), model.float()(images(pixels())).last_hidden_state[:, 0])


def test_transformers_mistakes_are_named(tmp_path, tower):
    name, _, folder = tower
    spec = small_spec(name, folder)
    with pytest.raises(UsageError, match=r"gives the outputs cls, pooled, mean, not 'last4'"):
        load(dataclasses.replace(spec, output="last4"))
    with pytest.raises(UsageError, match=r"transformers has no model class 'Blip2VisonModel'"):
        load(dataclasses.replace(spec, architecture="Blip2VisonModel"))
    with pytest.raises(UsageError, match=r"PreTrainedModel is what models .* have in common"):
        load(dataclasses.replace(spec, architecture="PreTrainedModel"))
    with pytest.raises(UsageError, match=r"width = 17, but the model gives"):
        load(dataclasses.replace(spec, width=17))(pixels(spec.preprocess.crop))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        load_backbone(
            spec,
            {
                "config.json": tmp_path / "config.json",
                "model.safetensors": folder / "model.safetensors",
            },
            "cpu",
        )
