"""A live view that is dealt out: for a model of each library what it was, in one process of a group
of one; test_processes.py has two."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from test_thaw import bundled, live_of, modes, shown, spec, stirred  # noqa: F401  spec: a fixture
from torch import nn

from cache_specs.spec import ViewSpec
from train.finetune.config import FinetuneConfig
from train.finetune.live import Live, Needs, needs_of
from train.finetune.shards import can_be_dealt_out, deal_out, own_part, put_together, with_part
from train.finetune.thaw import blocks_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients_of(live: Live, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    live(pixels).square().sum().backward()
    named = live.named().items()
    return {name: own_part(p.grad) for name, p in named if p.grad is not None}


@pytest.mark.parametrize("forgets", [False, True])
def test_it_is_what_it_was(spec: ViewSpec, forgets: bool) -> None:  # noqa: F811
    """Logits, gradients, values; blocks that forget what is inside, too."""
    for mode in modes(spec):
        lives = [live_of(spec) for _ in range(2)]
        for live in lives:
            live.thaw(FinetuneConfig(mode=mode, checkpointing=forgets))
            stirred(live)
        plain, dealt = lives
        deal_out(dealt, CPU, 1)
        with torch.no_grad():
            close(dealt(shown(spec)), plain(shown(spec)))
        grads, expected = (gradients_of(live, shown(spec)) for live in (dealt, plain))
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            close(grad, expected[name])
        values = put_together(dealt)
        assert list(values) == list(plain.named())
        for name, value in plain.named().items():
            assert torch.equal(values[name], value), name


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_part_is_the_memory_of_the_whole(spec: ViewSpec) -> None:  # noqa: F811
    live = live_of(spec)
    live.thaw(FinetuneConfig(mode="norms"))
    deal_out(live, CPU, 1)
    parameter = live.head.bias
    with torch.no_grad():
        own_part(parameter).fill_(7)
    assert put_together(live)["head.bias"].eq(7).all()
    other = with_part(parameter, torch.arange(3.0))
    assert type(other) is type(parameter.data)
    assert torch.equal(own_part(other), torch.arange(3.0))
    assert torch.equal(own_part(torch.ones(2)), torch.ones(2))


def test_what_each_process_needs(spec: ViewSpec) -> None:  # noqa: F811
    """Its part, and for a moment two blocks and what belongs to none, with their gradients, and a
    buffer for these; what is left behind once is not shared."""
    live = live_of(spec)
    live.thaw(FinetuneConfig(mode="full"))
    needs = needs_of(live, shown(spec, 2))
    numbers = sorted(sum(p.numel() for p in b.parameters()) for b in blocks_of(live.backbone.model))
    whole = sum(p.numel() for p in live.parameters())
    assert needs.at_once == 16 * (whole - sum(numbers[:-2])) and needs.weights == 4 * whole
    part = needs.dealt_out(4)
    assert part.weights == whole + needs.at_once
    assert part.learnt == -(-whole // 4)
    assert (part.image, part.once) == (needs.image, needs.once)
    assert Needs(7, 3, 5, 9, 2).dealt_out(2) == Needs(6, 2, 5, 9, 2)


def test_nobody_holds_what_was_dealt_out(spec: ViewSpec) -> None:  # noqa: F811
    """Else all of it would lie on each device: the parameters of before are gone."""
    live = live_of(spec)
    live.thaw(FinetuneConfig(mode="norms"))
    before = [weakref.ref(parameter) for parameter in live.parameters()]
    deal_out(live, CPU, 1)
    gc.collect()
    assert not [one for one in before if one() is not None]


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))


def test_what_fsdp_cannot_cut_is_not_dealt_out() -> None:
    live = live_of(bundled("tiny-clip"))
    assert can_be_dealt_out(live)
    live.body.scalar = Scalar()
    assert not can_be_dealt_out(live)
    tied = live_of(bundled("tiny-clip"))
    tied.body.other = nn.Linear(3, 3)
    tied.body.again = nn.Linear(3, 3)
    tied.body.again.weight = tied.body.other.weight
    assert not can_be_dealt_out(tied)
