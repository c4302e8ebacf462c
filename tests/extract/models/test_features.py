"""What is special to a family: the outputs that its view has besides, what must be seen to
differ, its authors' own layout.

That each view gives what an independent implementation gives is in test_references.py; the models
are those of references.py."""

import argparse
import dataclasses

import pytest
import torch
from models import images, load, pixels, same, unpickle_here, write_spec, write_weights
from references import (
    EVA02_TIMM,
    REFERENCES,
    SMALL_SWIN,
    Reference,
    normalised,
    renamed,
    swin_means,
    swin_state,
    written,
)

from base.errors import UsageError
from cache_specs.spec import load_spec
from extract.config import ConvertConfig
from extract.models.backbones import Backbone, load_backbone
from extract.models.convert import convert
from extract.models.weights import find_weights

HF_FILES = ("config.json", "model.safetensors")
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2}


def variant(reference: Reference, folder, **changes) -> Backbone:
    """The view with another output or other arguments, from the same checkpoint."""
    return load_backbone(
        dataclasses.replace(reference.spec, **changes), written(reference, folder), "cpu"
    )


# --- CLIP


def test_clip_is_projected_by_its_projection_and_is_the_same_in_timm_where_another_gelu_is_seen(
    tmp_path,
):
    reference, x = REFERENCES["clip"]("clip", False), pixels()
    given = {
        "arguments": VIT,
        "drop": [
            *{name.split(".")[0] for name in reference.state if not name.startswith("visual.")},
            "visual.proj",
        ],
    }
    write_weights(tmp_path, reference.state)
    in_timm, exact = (
        load(write_spec(tmp_path, f"vit_base_patch16_clip_{name}", "cls", 32, **given, name=name))
        for name in ("quickgelu_224", "224")
    )
    with torch.inference_mode():
        expected = reference.forward(images(x))
        assert same(in_timm(x), expected) and (exact(x) - expected).norm() > 1e-3 * expected.norm()
        assert same(
            variant(reference, tmp_path, output="projected", width=16)(x, exact=True),
            reference.forward(normalised("clip", x)) @ reference.state["visual.proj"],
        )


# --- DINOv2


@pytest.mark.parametrize("view", ["dinov2-b14", "dinov2-g14"])
def test_dinov2_has_the_last_four_class_tokens_and_transformers_reads_its_own_checkpoint(
    tmp_path, view
):
    reference, x = REFERENCES[view](view, False), pixels()
    reference.model.save_pretrained(tmp_path / "hf")
    theirs = load(
        write_spec(
            tmp_path / "hf", "Dinov2Model", "cls", 32, backend="transformers", files=HF_FILES
        )
    )
    with torch.inference_mode():
        assert same(theirs(x), reference.forward(images(x)))
        last4 = variant(reference, tmp_path, output="last4", width=128)(x, exact=True)
        states = reference.model(normalised(view, x), output_hidden_states=True).hidden_states
        assert same(
            last4, torch.cat([reference.model.layernorm(state)[:, 0] for state in states[-4:]], 1)
        )


def test_a_table_of_positions_is_resampled_as_the_view_says(tmp_path):
    """With random tables another rule is seen; a model without a table is told so."""
    reference, x = REFERENCES["tipsv2"]("tipsv2", False), pixels()
    with torch.inference_mode():
        ours, other = (
            variant(reference, tmp_path, arguments=reference.spec.arguments | rule)(x, exact=True)
            for rule in ({}, {"interpolation": "bicubic"})
        )
        assert (ours - other).norm() > 1e-3 * ours.norm()
    swav = REFERENCES["swav-rn50"]("swav-rn50", False)
    for rule in ({"antialias": False}, {"interpolate_offset": 0.1}):
        with pytest.raises(
            UsageError,
            match=f"resnet50 has no table of positions to resample; leave out '{min(rule)}'",
        ):
            variant(swav, tmp_path, arguments=swav.spec.arguments | rule)


def test_the_mean_of_the_patches_leaves_out_the_class_token_and_the_registers(tmp_path):
    reference, x = REFERENCES["dinov2"]("dinov2", False), pixels()
    mean = variant(reference, tmp_path, output="mean")
    with torch.inference_mode():
        tokens = mean.model(normalised("dinov2", x)).last_hidden_state
        assert tokens.shape == (2, 1 + 4 + 16, 32) and same(
            mean(x, exact=True), tokens[:, 5:].mean(1)
        )
    tips = REFERENCES["tipsv2"]("tipsv2", False)
    mean = variant(
        tips,
        tmp_path,
        output="mean",
        tensors=dataclasses.replace(tips.spec.tensors, rename={r"^norm\.": "fc_norm."}),
    )
    with torch.inference_mode():
        tokens = mean.model.forward_features(normalised("tipsv2", x))
        assert tokens.shape == (2, 1 + 1 + 16, 32) and same(
            mean(x, exact=True), mean.model.fc_norm(tokens[:, 2:].mean(1))
        )


# --- SigLIP, AIMv2, Hiera, EVA-02


@pytest.mark.parametrize("view", ["siglip", "siglip2"])
def test_the_siglip_views_have_the_gelu_that_they_were_trained_with(tmp_path, view):
    assert load_spec(view).arguments == {"act_layer": "gelu_tanh"}
    reference, x = REFERENCES[view](view, False), pixels()
    exact = variant(
        reference,
        tmp_path,
        arguments={
            key: value for key, value in reference.spec.arguments.items() if key != "act_layer"
        },
    )
    with torch.inference_mode():
        expected = reference.forward(normalised(view, x))
        assert (exact(x, exact=True) - expected).norm() > 5e-5 * expected.norm(), (
            "timm's own GELU is the exact one"
        )


def test_aimv2_in_its_low_precision_says_nothing_and_stays_near(tmp_path):
    """torch warns, once a process unless asked, of an RMS norm that is given bfloat16 and weights
    of float32; here a warning is an error."""
    reference, x = REFERENCES["aimv2"]("aimv2", False), pixels()
    assert reference.spec.compute_dtype == "bfloat16"
    backbone = variant(reference, tmp_path)
    torch.set_warn_always(True)
    try:
        with torch.inference_mode():
            low = backbone(x)
    finally:
        torch.set_warn_always(False)
    expected = reference.forward(normalised("aimv2", x))
    assert 1e-4 < (low - expected).norm() / expected.norm() < 2e-2


def test_hiera_pools_twice_and_norms_the_mean(tmp_path):
    reference, x = REFERENCES["hiera"]("hiera", False), pixels(64)
    three = variant(reference, tmp_path, arguments=reference.spec.arguments | {"q_pool": 3})
    with torch.inference_mode():
        out = reference.model(normalised("hiera", x))
        assert out.last_hidden_state.shape == (2, 16, 128), (
            "64 pixels: 16 x 16 tokens, halved twice (224: 196)"
        )
        assert same(
            out.pooler_output, reference.model.pooler.layernorm(out.last_hidden_state.mean(1))
        )
        assert (three(x, exact=True) - out.pooler_output).norm() > 1e-3 * out.pooler_output.norm()


def test_eva02_loads_from_its_authors_names_too(tmp_path):
    """With the mask token and the head of their masked modelling, and the tables of sines
    that follow from the model."""
    reference, x = REFERENCES["eva02"]("eva02", False), pixels()
    back = (
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.fc1_x\.", ".mlp.w2."),
        (r"\.mlp\.fc2\.", ".mlp.w3."),
        (r"\.mlp\.norm\.", ".mlp.ffn_ln."),
        (r"\.([qv])_proj\.bias", r".\1_bias"),
        (r"^fc_norm\.", "norm."),
    )
    authors = renamed(reference.state, *back)
    assert renamed(authors, *EVA02_TIMM).keys() == reference.state.keys() != authors.keys()
    reference.state = authors | {
        "mask_token": torch.zeros(1, 1, 32),
        "lm_head.weight": torch.zeros(8, 32),
        "lm_head.bias": torch.zeros(8),
    }
    with torch.inference_mode():
        assert same(
            variant(reference, tmp_path)(x, exact=True), reference.forward(normalised("eva02", x))
        )


# --- convolutions


def from_authors(
    folder, monkeypatch: pytest.MonkeyPatch, reference: Reference, checkpoint: object
) -> Backbone:
    """The view, at the reference's size, from its authors' checkpoint,
    converted by `make weights`."""
    unpickle_here(monkeypatch)
    monkeypatch.setenv("COVIEW_WEIGHTS", str(folder / "weights"))
    torch.save(checkpoint, folder / "checkpoint.pth.tar")
    monkeypatch.setattr("extract.models.convert.load_spec", lambda *_: reference.spec)
    convert(ConvertConfig(view=reference.spec.name, source=str(folder / "checkpoint.pth.tar")))
    return load_backbone(reference.spec, find_weights(reference.spec, None)[0], "cpu")


@pytest.mark.parametrize("view", ["swav-rn50", "swav"])
def test_swav_from_its_authors_checkpoint_gives_a_row_alone_what_it_gives_it_in_a_batch(
    tmp_path, monkeypatch, view
):
    reference, x = REFERENCES[view](view, False), pixels(64, 3)
    backbone = from_authors(tmp_path, monkeypatch, reference, reference.state)
    with torch.inference_mode():
        assert same(backbone(x), reference.forward(normalised(view, x)))
        batch, alone = backbone.train()(x), torch.cat([backbone(x[i : i + 1]) for i in range(3)])
        assert (
            not any(module.training for module in backbone.modules())
            and same(batch, alone, 1e-5)
            and torch.equal(batch, backbone(x))
        )


def test_align_gives_a_row_alone_what_it_gives_it_in_a_batch(tmp_path):
    reference, x = REFERENCES["align"]("align", False), pixels(129, 3)
    backbone = variant(reference, tmp_path).train()
    with torch.inference_mode():
        assert same(backbone(x), torch.cat([backbone(x[i : i + 1]) for i in range(3)]))
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize("view", ["esvit", "esvit-last4"])
def test_esvit_is_the_teacher_of_its_authors_checkpoint(tmp_path, monkeypatch, view):
    reference, x = REFERENCES[view](view, False), pixels(64, 3)
    student = swin_state(SMALL_SWIN, seed=1)
    checkpoint = {
        "student": {f"module.{name}": tensor for name, tensor in student.items()},
        "epoch": 300,
        "args": argparse.Namespace(lr=1e-3, arch="swin"),
        "teacher": reference.state,
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": []},
    }
    found = from_authors(tmp_path, monkeypatch, reference, checkpoint)(x, exact=True)
    expected = reference.forward(normalised(view, x))
    assert same(found, expected)
    assert (
        found[:, -128:] - swin_means(SMALL_SWIN, student, normalised(view, x))[0]
    ).norm() > 0.1 * expected[:, -128:].norm()


# --- OWLv2


def test_owlv2_fails_at_another_size_unless_its_positions_are_interpolated(tmp_path):
    reference = REFERENCES["owlv2"]("owlv2", False)
    plain, other = (
        variant(reference, tmp_path, arguments=arguments)
        for arguments in ({}, {"interpolate_pos_encoding": True})
    )
    with torch.inference_mode():
        assert same(other(pixels(), exact=True), plain(pixels(), exact=True))
        with pytest.raises(RuntimeError, match="must match"):
            plain(pixels(64))
        assert other(pixels(64)).shape == (2, 32)
