"""What learns, for a model of each library: which parameters, at which rate, and that what is
written in the end is one model that gives what was tuned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from models import load, pixels, randomised, same, write_spec, write_weights
from torch import nn

from base.errors import IntegrityError, UsageError
from cache_specs.spec import SPECS, Tuned, ViewSpec, load_spec
from cache_specs.tuned import digest
from extract.data.datasets import Dataset
from extract.models.backbones import Backbone
from extract.models.timm_backend import build_timm
from extract.originals import Originals
from train.finetune import keep
from train.finetune.config import FinetuneConfig
from train.finetune.live import Live, needs_of
from train.finetune.thaw import LowRank, forget_inside, merge, thaw

BUNDLED = ("tiny-clip", "tiny-dinov2")
TIMM = {
    "vit": ("vit_tiny_patch16_224", "cls", 192, {"img_size": 32, "depth": 3}),
    "eva": ("eva02_tiny_patch14_224", "mean", 192, {"img_size": 28, "depth": 2}),
    "resnet": ("resnet10t", "pooled", 512, {}),
}


def bundled(name: str) -> ViewSpec:
    return load_spec(name)


def files_of(spec: ViewSpec) -> dict[str, Path]:
    folder = spec.source.parent / (spec.weights.path or ".")
    return {name: folder / name for name in spec.weights.files}


def of_timm(folder: Path, name: str) -> ViewSpec:
    """A view of timm with drawn weights in `folder`."""
    architecture, output, width, arguments = TIMM[name]
    crop = arguments.get("img_size", 32)
    spec = write_spec(folder, architecture, output, width, crop, arguments=arguments, name=name)
    write_weights(folder, randomised(build_timm(spec)).state_dict())
    return spec


@pytest.fixture(params=[*BUNDLED, *TIMM])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> ViewSpec:
    if request.param in BUNDLED:
        return bundled(request.param)
    return of_timm(tmp_path, request.param)


def backbone_of(spec: ViewSpec) -> Backbone:
    from extract.models.backbones import load_backbone

    return load_backbone(spec, files_of(spec), "cpu", folded=False)


def live_of(spec: ViewSpec, classes: int = 3) -> Live:
    torch.manual_seed(0)
    width = spec.width
    return Live(
        backbone_of(spec), nn.Linear(width, classes), (np.zeros(width), np.full(width, 2.0))
    )


def shown(spec: ViewSpec, count: int = 4) -> torch.Tensor:
    return pixels(spec.preprocess.crop, count)


def modes(spec: ViewSpec) -> list[str]:
    return ["norms", "full"] if spec.name == "resnet" else ["lora", "norms", "full"]


def stirred(live: Live) -> None:
    """As after some steps."""
    with torch.no_grad():
        for number, parameter in enumerate(live.named().values()):
            generator = torch.Generator().manual_seed(number)
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def test_before_a_step_the_live_view_is_the_frozen_one(spec: ViewSpec) -> None:
    frozen = backbone_of(spec)(shown(spec))
    for mode in modes(spec):
        live = live_of(spec)
        live.thaw(FinetuneConfig(mode=mode))
        with torch.no_grad():
            assert torch.equal(live.backbone(shown(spec)), frozen)
            assert torch.equal(live(shown(spec)), live.head(frozen / 2))


def test_what_does_not_learn_has_no_gradient(spec: ViewSpec) -> None:
    for mode in modes(spec):
        live = live_of(spec)
        before = {name: value.clone() for name, value in live.backbone.model.state_dict().items()}
        live.thaw(FinetuneConfig(mode=mode))
        live(shown(spec)).square().sum().backward()
        learning = {id(parameter) for parameter in live.named().values()}
        for name, parameter in live.named_parameters():
            assert (parameter.grad is not None) <= (id(parameter) in learning), name
            assert parameter.requires_grad == (id(parameter) in learning), name
        moved = [p for p in live.named().values() if p.grad is not None and p.grad.abs().sum() > 0]
        assert len(moved) > len(learning) / 3
        # the statistics of BatchNorm among them
        after = live.backbone.model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before.keys() & after.keys())


def test_it_stays_in_eval_mode(spec: ViewSpec) -> None:
    live = live_of(spec)
    live.thaw(FinetuneConfig(mode="full"))
    live.train()
    assert not any(module.training for module in live.backbone.modules())


@pytest.mark.parametrize("name", [*BUNDLED, "vit", "eva"])
def test_lora_is_on_queries_keys_and_values_alone(name: str, tmp_path: Path) -> None:
    spec = bundled(name) if name in BUNDLED else of_timm(tmp_path, name)
    model = backbone_of(spec).model
    learnt = thaw(model, FinetuneConfig(rank=3))
    blocks = {"tiny-clip": 3, "tiny-dinov2": 3, "vit": 3, "eva": 2}[name]
    width = {"tiny-clip": 128, "tiny-dinov2": 128, "vit": 192, "eva": 192}[name]
    assert sum(one.parameter.numel() for one in learnt) == blocks * 3 * 2 * 3 * width
    assert all(one.parameter.requires_grad for one in learnt)
    frozen = [p for n, p in model.named_parameters() if not n.endswith(("a_PRI", "b_POR"))]
    assert not any(parameter.requires_grad for parameter in frozen)


def test_a_low_rank_sum_is_what_the_formula_says() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator)
    low = LowRank(weight, 3, 2, 4.0, generator)
    assert torch.equal(low(weight), weight)
    with torch.no_grad():
        low.b_POR.normal_(generator=generator)
    expected = weight.clone()
    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        expected[rows] += 4.0 / 2 * low.b_POR[part] @ low.a_PRI[part]
    assert torch.allclose(low(weight), expected, atol=1e-6)


def test_two_models_of_one_seed_begin_alike_and_of_another_do_not() -> None:
    spec = bundled("tiny-clip")
    drawn = []
    for seeds in ("0", "0", "1"):
        learnt = thaw(backbone_of(spec).model, FinetuneConfig(seeds=seeds))
        drawn.append(torch.cat([one.parameter.flatten() for one in learnt]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_merged_it_gives_the_same(spec: ViewSpec) -> None:
    for mode in modes(spec):
        live = live_of(spec)
        names = {*live.backbone.model.state_dict()}
        live.thaw(FinetuneConfig(mode=mode, rank=4))
        frozen = live.backbone(shown(spec)).detach()
        stirred(live)
        with torch.no_grad():
            tuned = live.backbone(shown(spec))
        assert (tuned - frozen).norm() > 1e-3 * frozen.norm()
        merge(live.backbone.model)
        assert {*live.backbone.model.state_dict()} == names
        with torch.no_grad():
            assert same(live.backbone(shown(spec)), tuned, 1e-5)


def test_blocks_learn_the_slower_the_lower_they_are(tmp_path: Path) -> None:
    spec = of_timm(tmp_path, "vit")
    learnt = thaw(backbone_of(spec).model, FinetuneConfig(mode="full", layer_decay=0.5))
    scale = {one.name: one.scale for one in learnt}
    assert scale["norm.weight"] == 1
    assert scale["blocks.2.mlp.fc1.weight"] == scale["blocks.2.norm1.bias"] == 0.5
    assert scale["blocks.0.attn.qkv.weight"] == 0.125
    assert scale["patch_embed.proj.weight"] == scale["cls_token"] == 0.0625
    decays = {one.name: one.decays for one in learnt}
    assert decays["blocks.0.attn.qkv.weight"] and not decays["blocks.0.norm1.weight"]
    assert {*scale} == {name for name, _ in backbone_of(spec).model.named_parameters()}


def test_a_model_without_attention_is_told_what_to_take(tmp_path: Path) -> None:
    model = backbone_of(of_timm(tmp_path, "resnet")).model
    with pytest.raises(UsageError, match="no projections of queries") as told:
        thaw(model, FinetuneConfig())
    assert told.value.instead == {"MODE": "norms"}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", [*BUNDLED, "vit"])
def test_forgetting_costs_time_and_changes_no_gradient(name: str, tmp_path: Path) -> None:
    spec = bundled(name) if name in BUNDLED else of_timm(tmp_path, name)
    gradients, needs = [], []
    for forgets in (False, True):
        live = live_of(spec)
        live.thaw(FinetuneConfig(checkpointing=forgets))
        needs.append(needs_of(live, shown(spec)))
        live(shown(spec)).square().sum().backward()
        gradients.append([p.grad for p in live.named().values() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))
    assert needs[1].image < needs[0].image and needs[1].learnt == needs[0].learnt


def test_forgetting_leaves_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread draws pictures from it meanwhile, so that not even a state that is put back
    would do."""
    live = live_of(bundled("tiny-clip"))
    live.thaw(FinetuneConfig(checkpointing=True))

    def never(*given: object, **more: object) -> None:
        raise AssertionError("the generator's state was set")

    monkeypatch.setattr(torch, "set_rng_state", never)
    live(shown(bundled("tiny-clip"))).square().sum().backward()


def test_a_rank_that_no_weights_have_is_refused() -> None:
    with pytest.raises(UsageError, match="--rank 200 must be at most 128"):
        thaw(backbone_of(bundled("tiny-clip")).model, FinetuneConfig(rank=200))


def test_the_blocks_of_each_stage_are_found(tmp_path: Path) -> None:
    """Of a Swin transformer, and not the stages."""
    arguments = {"img_size": 32, "window_size": 4, "depths": [2, 3, 2], "num_heads": [2, 2, 2]}
    more = {"embed_dim": 16, "patch_size": 2}
    spec = write_spec(
        tmp_path, "swin_tiny_patch4_window7_224", "pooled", 64, 32, arguments={**arguments, **more}
    )
    model = build_timm(spec)
    assert forget_inside(model) == 7


def test_the_blocks_are_found(tmp_path: Path) -> None:
    assert forget_inside(backbone_of(of_timm(tmp_path, "vit")).model) == 3
    assert forget_inside(backbone_of(bundled("tiny-clip")).model) == 3
    assert forget_inside(backbone_of(bundled("tiny-dinov2")).model) == 3


def test_memory_grows_with_images_and_weights(spec: ViewSpec) -> None:
    live = live_of(spec)
    live.thaw(FinetuneConfig(mode="full"))
    few, more = needs_of(live, shown(spec, 2)), needs_of(live, shown(spec, 6))
    whole = sum(p.numel() for p in live.parameters())
    assert few.learnt == more.learnt == whole
    assert 4 * whole <= few.weights < 4 * whole + 3 * few.image
    assert few.weights == pytest.approx(more.weights, rel=0.05)
    assert few.image == pytest.approx(more.image, rel=0.05)


def test_what_is_there_once_is_not_counted_for_each_image(tmp_path: Path) -> None:
    """The sums of weights and low-rank factors, 576 x 192 a block: the first of three needs no
    gradient of its input, and so not its weights."""
    live = live_of(of_timm(tmp_path, "vit"))
    live.thaw(FinetuneConfig(mode="lora"))
    found = needs_of(live, shown(of_timm(tmp_path, "vit"), 2))
    assert found.weights == 4 * sum(p.numel() for p in live.parameters())
    assert found.once >= 4 * 2 * 576 * 192


def tuned(spec: ViewSpec, folder: Path, mode: str) -> tuple[ViewSpec, torch.Tensor]:
    """A view that was written after some learning, and what it must give."""
    live = live_of(spec)
    live.thaw(FinetuneConfig(mode=mode))
    stirred(live)
    with torch.no_grad():
        expected = live.backbone(shown(spec), exact=True)
    seen = frozenset({"0" * 64, "f" * 64})
    told = Tuned("parent-0123456789ab", mode, 2, digest(seen), {"rank": 2, "a b": [1, 2.5]})
    made = keep.tuned_spec(spec, folder / f"{folder.name}.toml", told)
    original = Originals(spec, files_of(spec), Dataset)  # type: ignore[arg-type]
    keep.write_tuned(made, original, live, shown(spec))
    return made, expected


def test_what_is_written_is_a_view_that_gives_what_was_tuned(
    spec: ViewSpec, tmp_path: Path
) -> None:
    for mode in modes(spec):
        folder = tmp_path / f"{spec.name}-{mode}"
        made, expected = tuned(spec, folder, mode)
        again = load_spec(str(folder / f"{folder.name}.toml"))
        assert again == made and again.declared() == made.declared()
        assert again.preprocess == spec.preprocess and again.text is None
        with torch.no_grad():
            found = load(again) if again.weights.path == "." else backbone_of(again)
            assert same(found(shown(spec), exact=True), expected, 1e-5)


def test_a_view_that_would_not_give_it_is_not_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, real = bundled("tiny-clip"), keep.whole_state

    def other(*given: object) -> dict[str, torch.Tensor]:
        found = real(*given)  # type: ignore[arg-type]
        found["visual.ln_post.weight"] *= 1.5
        return found

    monkeypatch.setattr(keep, "whole_state", other)
    with pytest.raises(IntegrityError, match="is not what was tuned"):
        tuned(spec, tmp_path / "a", "lora")
    assert not (tmp_path / "a" / "a").exists()


def test_the_text_tower_stays_as_it_was(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = bundled("tiny-clip")
    made, _ = tuned(spec, tmp_path / "a", "full")
    (before,) = [path for name, path in files_of(spec).items() if name.endswith(".safetensors")]
    (after,) = [path for name, path in files_of(made).items() if name.endswith(".safetensors")]
    old, new = load_file(before), load_file(after)
    assert old.keys() == new.keys()
    moved = {name for name in old if not torch.equal(old[name].float(), new[name].float())}
    assert moved and all(name.startswith("visual.") for name in moved)


def test_positions_that_were_resampled_are_not_resampled_again(tmp_path: Path) -> None:
    arguments = {"img_size": 32, "depth": 1}
    small = write_spec(tmp_path, "vit_tiny_patch16_224", "cls", 192, 32, arguments=arguments)
    write_weights(tmp_path, randomised(build_timm(small)).state_dict())
    larger = {"img_size": 48, "depth": 1, "interpolate_offset": 0.1, "antialias": False}
    spec = write_spec(tmp_path, "vit_tiny_patch16_224", "cls", 192, 48, arguments=larger)
    made, expected = tuned(spec, tmp_path / "a", "lora")
    assert made.arguments == {"img_size": 48, "depth": 1}
    assert SPECS not in made.source.parents
    with torch.no_grad():
        assert same(backbone_of(made)(shown(spec), exact=True), expected, 1e-5)
