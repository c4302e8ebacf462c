"""A live view is a view: the step of co-training takes its forward, and knows no difference. The
oracle: the step on cached embeddings, and finite differences."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, importing
from models import pixels
from test_thaw import backbone_of, bundled, of_timm
from torch import Tensor

from train.algorithm import probe
from train.algorithm.cotrain import Batch, StepRule, mct_step, supervised_step
from train.algorithm.optimise import Adam, State, ce, fresh
from train.algorithm.peers import LocalPeers, Peers
from train.algorithm.probe import Shape
from train.finetune.config import FinetuneConfig
from train.finetune.live import BODY, Body, forward_of, params_of
from train.finetune.thaw import thaw

NAMES, CLASSES, U, L = ("tiny-clip", "tiny-dinov2"), 3, 6, 4


def body_of(name: str, folder: Path, mode: str = "") -> Body:
    spec = bundled(name) if name in NAMES else of_timm(folder, name)
    body = Body(backbone_of(spec), (np.full(spec.width, 0.1), np.full(spec.width, 2.0)))
    if mode:
        thaw(body.backbone.model, FinetuneConfig(mode=mode))
    return body


def probe_of(body: Body, dtype: torch.dtype, layers: int = 1) -> probe.Params:
    return probe.init([0], 0, len(body.mean_D), CLASSES, Shape(8, layers), dtype)


def shown(body: Body, count: int, seed: int) -> Tensor:
    side = {"tiny-clip.toml": 28, "tiny-dinov2.toml": 24}.get(body.backbone.origin.name, 32)
    return pixels(side, count, seed)


def labels(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CLASSES, (1, count), generator=generator)


def dropped(count: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(1, count, 8, generator=generator) > 0.2).to(dtype) / 0.8]


@pytest.mark.parametrize("feedback", ["exact", "difference", "none"])
def test_with_a_frozen_body_the_step_is_that_on_the_cache_to_the_last_bit(
    feedback: str, tmp_path: Path
) -> None:
    dtype = torch.float64
    draws = torch.rand(2, 1, U, dtype=dtype, generator=torch.Generator().manual_seed(5))
    cached, live, batches, pictures = [], [], [], []
    for number, name in enumerate(NAMES):
        body = body_of(name, tmp_path)
        params = probe_of(body, dtype)
        cached.append(fresh(params))
        live.append(fresh(params_of(body, params), forward_of(body)))
        seen_U, seen_L = shown(body, U, number), shown(body, L, 9 + number)
        with torch.no_grad():
            emb = [body(seen)[None].to(dtype) for seen in (seen_U, seen_L)]
        rest = labels(L, 7), dropped(U, number, dtype), dropped(L, 3 + number, dtype)
        batches.append(Batch(*emb, *rest))
        pictures.append(Batch(seen_U[None], seen_L[None], *rest))
    rule, peers = StepRule(Adam(1e-2), feedback, temperature=0.5), LocalPeers(2)
    for _ in range(3):
        cached, told = mct_step(cached, batches, draws, peers, rule)
        live, told_live = mct_step(live, pictures, draws, peers, rule)
        for key, values in told.items():
            assert all(map(torch.equal, values, told_live[key])), key
    for one, other in zip(cached, live, strict=True):
        assert torch.equal(one.flat_EP, other.flat_EP)


@pytest.mark.parametrize("mode", ["lora", "norms", "full"])
@pytest.mark.parametrize("name", [*NAMES, "vit"])
def test_the_body_learns_with_the_gradient_of_the_whole(
    mode: str, name: str, tmp_path: Path
) -> None:
    """Along a random direction of all parameters, in float64."""
    body = body_of(name, tmp_path, mode)
    params = params_of(body, probe_of(body, torch.float32))
    state = fresh(params, forward_of(body))
    assert sum(BODY in key for key in params) == sum(p.requires_grad for p in body.parameters())
    seen, y_EL = shown(body, L, 0)[None], labels(L, 1)
    plain = StepRule(Adam(update=descend(1.0)))
    (done,), _ = supervised_step([state], [Batch(seen[:, :0], seen, y_EL)], LocalPeers(1), plain)
    g_EP = state.flat_EP - done.flat_EP
    where = torch.randn(g_EP.shape, generator=torch.Generator().manual_seed(2)) * (g_EP != 0)
    where = where + g_EP / g_EP.norm() * where.norm()
    step = 1e-2 / float(where.norm())

    def loss(flat_EP: Tensor) -> float:
        with torch.no_grad():
            return float(ce(state.forward(state.layout.named(flat_EP), seen, (), 0), y_EL))

    numeric = (loss(state.flat_EP + step * where) - loss(state.flat_EP - step * where)) / (2 * step)
    assert numeric == pytest.approx(float((g_EP * where).sum()), rel=0.02)
    own = {key for key in params if BODY in key}
    moved = {key for key in own if not torch.equal(done.params[key], state.params[key])}
    assert len(moved) > len(own) / 3


def descend(rate: float):
    def update(view: State, g_EP: Tensor) -> State:
        return fresh(view.layout.named(view.flat_EP - rate * g_EP), view.forward)

    return update


@pytest.mark.parametrize("feedback", ["exact", "difference"])
def test_two_live_views_teach_each_other_and_chunks_change_nothing(
    feedback: str, tmp_path: Path
) -> None:
    results = []
    for chunk in (0, 4):
        states, batches = [], []
        for number, name in enumerate(NAMES):
            body = body_of(name, tmp_path, "full")
            params = params_of(body, probe_of(body, torch.float32))
            states.append(fresh(params, forward_of(body)))
            seen = shown(body, U, number)[None], shown(body, L, 9)[None]
            keep = dropped(U, number, torch.float32), dropped(L, 4, torch.float32)
            batches.append(Batch(*seen, labels(L, 7), *keep))
        draws = torch.rand(2, 1, U, generator=torch.Generator().manual_seed(5)).double()
        rule = StepRule(Adam(update=descend(0.1)), feedback, chunk=chunk)
        done, told = mct_step(states, batches, draws, LocalPeers(2), rule)
        assert all(h.abs() > 0 for h in told["feedback"])
        results.append((told, [state.flat_EP for state in done]))
    (told, whole), (told_too, chunks) = results
    for key in ("labelled", "unlabelled", "given"):
        for one, other in zip(told[key], told_too[key], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for one, other in zip(whole, chunks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def both(folder: Path) -> tuple[list[State], list[Batch], Tensor]:
    """Two live views whose norms learn, and their rows."""
    states, batches = [], []
    for number, name in enumerate(NAMES):
        body = body_of(name, folder, "norms")
        states.append(fresh(params_of(body, probe_of(body, torch.float32)), forward_of(body)))
        seen = shown(body, U, number)[None], shown(body, L, 9)[None]
        keep = dropped(U, number, torch.float32), dropped(L, 4, torch.float32)
        batches.append(Batch(*seen, labels(L, 7), *keep))
    draws = torch.rand(2, 1, U, generator=torch.Generator().manual_seed(5)).double()
    return states, batches, draws


def three_steps(peers: Peers, folder: Path) -> list[Tensor]:
    """Of the views of this process."""
    states, batches, draws = both(folder)
    mine, own = [states[v] for v in peers.mine], [batches[v] for v in peers.mine]
    for _ in range(3):
        mine, _ = mct_step(mine, own, draws, peers, StepRule(Adam(1e-3), temperature=0.5))
    return [state.flat_EP for state in mine]


RANK = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from test_live import three_steps
from train.algorithm.peers import GroupPeers
peers = GroupPeers(2, torch.device("cpu"))
folder = Path(sys.argv[1])
torch.save(three_steps(peers, folder)[0], folder / f"{peers.rank}.pt")
peers.close()
"""


@pytest.mark.many
def test_two_ranks_with_a_live_view_each_are_one_process_to_the_last_bit(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in ("0", "1"):
        where = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        paths = (ROOT, ROOT / "tests", Path(__file__).parent)
        env = importing(*paths, OMP_NUM_THREADS="1", **where)
        ranks.append(subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path)], env=env))
    assert [one.wait(200) for one in ranks] == [0, 0]
    whole = three_steps(LocalPeers(2), tmp_path)
    for rank, expected in enumerate(whole):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found, expected)
