"""Live backbones that teach each other: `make finetune VIEWS=a,b`. The oracles: torch's AdamW, an
uninterrupted run, and the same run with other hidden labels."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import config
from safetensors.torch import load_file
from test_finetune import VIEWS, asked, begun, outcome, run, trained
from torch import Tensor, nn

from base.errors import UsageError
from cache_specs.spec import SPECS, load_spec
from extract.run import run as extract
from train.algorithm.optimise import fresh
from train.finetune import keep
from train.finetune.config import FinetuneConfig
from train.finetune.ground import HOLES, LIBRARIES, made, read, wanted
from train.finetune.live import BODY
from train.finetune.together import Together, adamw
from train.run.reading import read as read_ground


def both(cache: Path, folder: Path, **changes: object) -> FinetuneConfig:
    settings = asked(cache, folder, view="", views=",".join(VIEWS), batch=6, run="both")
    return dataclasses.replace(settings, **changes)


def work_of(settings: FinetuneConfig) -> Together:
    work, _ = made(read(settings))
    assert isinstance(work, Together)
    return work


def test_a_step_is_that_of_torchs_adamw() -> None:
    """Each parameter at its own rate and decay; the gradient is clipped as a whole."""
    generator = torch.Generator().manual_seed(0)
    sizes, rates, decays = {"a": (3, 4), "b": (5,)}, {"a": 1e-2, "b": 3e-3}, {"a": 0.1, "b": 0.0}
    first = {name: torch.randn(1, *size, generator=generator) for name, size in sizes.items()}
    state = fresh(first)
    flat = state.layout.flat
    memory = {
        "rate": flat({name: torch.full_like(p, rates[name]) for name, p in first.items()}),
        "decay": flat({name: torch.full_like(p, decays[name]) for name, p in first.items()}),
    }
    state = dataclasses.replace(state, memory=memory)
    oracle = {name: nn.Parameter(p[0].clone()) for name, p in first.items()}
    groups = [
        {"params": [p], "lr": rates[name], "weight_decay": decays[name]}
        for name, p in oracle.items()
    ]
    adam = torch.optim.AdamW(groups)
    for number in range(5):
        drawn = {name: torch.randn(1, *size, generator=generator) for name, size in sizes.items()}
        factor = 0.5 + 0.1 * number
        for group, name in zip(adam.param_groups, oracle, strict=True):
            group["lr"] = factor * rates[name]
        for name, p in oracle.items():
            p.grad = drawn[name][0].clone()
        nn.utils.clip_grad_norm_(oracle.values(), 1.0)
        adam.step()
        state = adamw(state, flat(drawn), factor, 1.0)
    for name, p in oracle.items():
        torch.testing.assert_close(state.params[name][0], p)


def test_each_parameter_learns_at_its_own_rate(digits: Path, tmp_path: Path) -> None:
    work = work_of(both(digits, tmp_path, mode="full", lr=1e-3, head_lr=2e-2, weight_decay=0.5))
    for live, state in zip(work.lives, work.states, strict=True):
        rate, decay = (state.layout.named(state.memory[kind]) for kind in ("rate", "decay"))
        assert float(rate["w0"].unique()) == float(rate["b0"].unique()) == pytest.approx(2e-2)
        assert float(decay["w0"].unique()) == 0.5 and float(decay["b0"].unique()) == 0
        names = {id(p): name for name, p in live.body.named_parameters()}
        assert len(live.learnt) == sum(BODY in name for name in rate)
        for one in live.learnt:
            own = rate[BODY + names[id(one.parameter)]]
            assert float(own.unique()) == pytest.approx(1e-3 * one.scale)


def test_before_a_step_the_states_are_the_live_views(digits: Path, tmp_path: Path) -> None:
    work = work_of(both(digits, tmp_path))
    for live, shown, state in zip(work.lives, work.pictures, work.states, strict=True):
        pixels = shown.as_extracted(range(5))
        with torch.no_grad():
            logits = state.forward(state.params, pixels[None], (), 0)[0]
            torch.testing.assert_close(logits, live(pixels))


def learnt(work: Together, steps: int = 3) -> list[Tensor]:
    for step in range(steps):
        assert np.isfinite(work.learn(work.batch(step)))
    return [state.flat_EP for state in work.states]


def test_what_learnt_is_written_down(digits: Path, tmp_path: Path) -> None:
    """Not the zeros that it began as."""
    folder = run(both(digits, tmp_path, lr=1e-2))
    for view in VIEWS:
        learnt = load_file(folder / f"both-{view}.learnt.safetensors")
        factors = [value for name, value in learnt.items() if name.endswith(".b")]
        assert len(factors) >= 3 and all(value.norm() > 0 for value in factors)


def test_the_models_stay_whole(digits: Path, tmp_path: Path) -> None:
    """After steps, what learns are parameters of the model as before."""
    work = work_of(both(digits, tmp_path, mode="norms"))
    before = [{name: id(p) for name, p in live.named_parameters()} for live in work.lives]
    learnt(work, 2)
    assert [{name: id(p) for name, p in live.named_parameters()} for live in work.lives] == before
    work.show()
    for live, state in zip(work.lives, work.states, strict=True):
        own = {id(p) for p in live.parameters()}
        assert all(id(one.parameter) in own for one in live.learnt)
        pixels = work.pictures[work.lives.index(live)].as_extracted(range(3))
        with torch.no_grad():
            logits = state.forward(state.shown, pixels[None], (), 0)[0]
            torch.testing.assert_close(logits, live(pixels))


def test_hidden_labels_teach_nothing(digits: Path, tmp_path: Path) -> None:
    """What is unlabelled may have any label: the same bytes."""
    settings = both(digits, tmp_path)
    expected = learnt(work_of(settings))
    ground = read(settings)
    label_N = ground.cache.items.label.copy()
    hidden = np.setdiff1d(np.arange(len(label_N)), ground.split.labelled)
    label_N[hidden] = (label_N[hidden] + 3) % 10
    items = dataclasses.replace(ground.cache.items, label=label_N)
    cache = dataclasses.replace(ground.cache, items=items)
    work, _ = made(dataclasses.replace(ground, cache=cache))
    assert isinstance(work, Together)
    for one, other in zip(learnt(work), expected, strict=True):
        assert torch.equal(one, other)


def test_the_unlabelled_images_do_teach(digits: Path, tmp_path: Path) -> None:
    work, other = work_of(both(digits, tmp_path)), work_of(both(digits, tmp_path))
    other.rows_U.pool = other.rows_U.pool[::-1].copy()
    for one, another in zip(learnt(work), learnt(other), strict=True):
        assert not torch.equal(one, another)


def test_in_parts_it_learns_nearly_the_same(digits: Path, tmp_path: Path) -> None:
    whole, parts = work_of(both(digits, tmp_path)), work_of(both(digits, tmp_path, chunk=4))
    for one, other in zip(learnt(whole), learnt(parts), strict=True):
        assert (one - other).abs().max() < 2e-3 * one.abs().max()


def test_it_writes_a_view_of_each_and_goes_on_to_the_same_bytes(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = both(digits, tmp_path / "whole", ema=0.5)
    whole = run(settings)
    stopped = dataclasses.replace(settings, runs=str(tmp_path / "parts"))
    begun(stopped, monkeypatch, 3, "stopped", Together)
    assert not keep.is_tuned(tmp_path / "parts" / "both")
    parts = run(stopped)
    assert outcome(parts) == outcome(whole)
    for view in VIEWS:
        spec = load_spec(str(whole / f"both-{view}.toml"))
        assert spec.tuned is not None and spec.tuned.labels == 20
        (other,) = set(VIEWS) - {view}
        assert spec.tuned.settings["with"] == [other]
    assert run(settings) == whole  # is shown, and not repeated


def test_what_comes_out_is_embedded_and_trained_on(digits: Path, tmp_path: Path) -> None:
    import shutil

    folder, cache = run(both(digits, tmp_path)), tmp_path / "cache"
    shutil.copytree(digits, cache)
    for view in VIEWS:
        toml = str(folder / f"both-{view}.toml")
        extract(config(Path("digits"), cache, view=toml, batch=64, shard_rows=512), {})
    names = ",".join(f"both-{view}" for view in VIEWS)
    ground, splits, _ = read_ground(trained(cache, views=names))
    assert set(ground.seen) == {*names.split(",")} and len(splits[0].labelled) == 20


def test_memory_is_that_of_all_views_and_both_kinds_of_images(digits: Path, tmp_path: Path) -> None:
    settings = both(digits, tmp_path, batch=32)
    _, needs = made(read(settings))
    fixed = sum(LIBRARIES + one.weights + one.once + 60 * one.learnt for one in needs)
    images = 64 * sum(one.image for one in needs)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert wanted(settings, needs, 32, gpu) == fixed + images
    assert wanted(settings, needs, 32, cpu) == fixed + round(HOLES * images)
    for device in (cpu, gpu):
        assert wanted(settings, needs, 8, device) == fixed + 8 * max(one.image for one in needs)


@pytest.mark.parametrize(
    ("changes", "told", "instead"),
    [
        ({"view": "tiny-clip"}, "take one of the two", {"VIEW": None}),
        ({"views": "a,b,a"}, "name each view once", {"VIEWS": "a,b"}),
        ({"views": "", "view": "a,b"}, "are several views", {"VIEW": None, "VIEWS": "a,b"}),
        ({"mixup": 0.2}, "--mixup is of one view alone", {}),
        ({"checkpointing": True}, "--checkpointing is of one view alone", {}),
    ],
)
def test_words_that_do_not_go_together(changes: dict, told: str, instead: dict) -> None:
    settings = FinetuneConfig(views="tiny-clip,tiny-dinov2", data="digits")
    with pytest.raises(UsageError, match=told) as error:
        dataclasses.replace(settings, **changes).check()
    assert error.value.instead == instead


def test_weights_of_several_views_lie_under_their_names(digits: Path, tmp_path: Path) -> None:
    from shutil import copytree

    with pytest.raises(UsageError, match="none is there"):
        read(both(digits, tmp_path, weights=str(tmp_path)))
    for view in VIEWS:
        copytree(SPECS / "weights" / view, tmp_path / view)
    ground = read(both(digits, tmp_path, weights=str(tmp_path)))
    for view, original in zip(VIEWS, ground.originals, strict=True):
        assert {path.parent for path in original.files.values()} == {tmp_path / view}


def test_without_unlabelled_images_nobody_teaches(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leaves no unlabelled image, by which views teach"):
        read(both(digits, tmp_path, labels="all"))
