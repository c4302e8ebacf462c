"""The algorithm against finite differences, in float64, with plain gradient descent as the
optimiser."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from steps import PLAIN, RATE, C, E, L, U, flat, numeric_gradient, setup, unflat
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train.algorithm.cotrain import Batch, StepRule, hand_out, mct_step, supervised_step, teacher
from train.algorithm.optimise import Adam, State, average, ce, fresh, grad, inner, norm, optimise
from train.algorithm.peers import LocalPeers
from train.algorithm.probe import ALIGN, ROW, Params, Shape, forward, init, layout
from train.algorithm.rivals import Offer, mpl_step


def expected(
    states: Sequence[State], batches: Sequence[Batch], draws: Tensor, method: StepRule
) -> tuple[list[Tensor], Tensor]:
    """The step written down again from the paper, with every gradient taken by finite
    differences."""
    with torch.no_grad():
        views = range(len(states))
        at = [state.params for state in states]
        z = [forward(p, b.emb_EUD, b.keep_U) for p, b in zip(at, batches, strict=True)]
        teacher = [torch.stack([z[w] for w in views if w != v]).mean(0) for v in views]
        y = [hand_out(teacher[v], draws[v], method.temperature) for v in views]
        g = [
            numeric_gradient(
                lambda p, v=v: ce(forward(p, batches[v].emb_EUD, batches[v].keep_U), y[v]), at[v]
            )
            for v in views
        ]
        new = [unflat(flat(at[v]) - RATE * g[v], at[v]) for v in views]
        l = [
            numeric_gradient(
                lambda p, v=v: ce(
                    forward(p, batches[v].emb_ELD, batches[v].keep_L), batches[v].y_EL
                ),
                new[v],
            )
            for v in views
        ]
        if method.feedback == "exact":
            h = torch.stack([(l[v] * g[v]).sum(1) for v in views])
        else:
            h = torch.stack(
                [
                    ce(forward(at[v], batches[v].emb_ELD), batches[v].y_EL)
                    - ce(forward(new[v], batches[v].emb_ELD), batches[v].y_EL)
                    for v in views
                ]
            )

        def teach(p: Params, w: int) -> Tensor:
            own = [
                forward(p, batches[w].emb_EUD, batches[w].keep_U) if u == w else z[u] for u in views
            ]
            return sum(
                h[v] * ce(torch.stack([own[u] for u in views if u != v]).mean(0), y[v])
                for v in views
                if v != w
            )

        s = [numeric_gradient(lambda p, w=w: teach(p, w), at[w]) for w in views]
        return [flat(new[v]) - RATE * (s[v] + l[v]) for v in views], h


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("feedback", ["exact", "difference"])
def test_step_equals_the_paper_by_finite_differences(views: int, feedback: str) -> None:
    """g, t', l, h (value and sign) and s at the original parameters: all of it, since the final
    parameters depend on each."""
    states, batches, draws = setup(views)
    method = dataclasses.replace(PLAIN, feedback=feedback)
    done, told = mct_step(states, batches, draws, LocalPeers(views), method)
    h = torch.stack(told["feedback"])
    want, want_h = expected(states, batches, draws, method)
    assert h.abs().min() > 1e-6 and (h.sign() == want_h.sign()).all()
    torch.testing.assert_close(h, want_h, rtol=1e-6, atol=1e-9)
    for state, parameters in zip(done, want, strict=True):
        torch.testing.assert_close(flat(state.params), parameters, rtol=1e-6, atol=1e-8)


def test_exact_feedback_is_the_first_order_of_the_difference() -> None:
    """Along g, the labelled loss falls by rate * h: both have one sign, or the feedback would teach
    the wrong way round."""
    states, batches, draws = setup(2)
    batches = [dataclasses.replace(b, keep_U=(), keep_L=()) for b in batches]
    small = 1e-6
    gentle = StepRule(
        Adam(
            update=lambda view, g_EP: dataclasses.replace(view, flat_EP=view.flat_EP - small * g_EP)
        )
    )
    _, exact = mct_step(states, batches, draws, LocalPeers(2), gentle)
    _, fall = mct_step(
        states, batches, draws, LocalPeers(2), dataclasses.replace(gentle, feedback="difference")
    )
    for one, other in zip(exact["feedback"], fall["feedback"], strict=True):
        torch.testing.assert_close(other / small, one, rtol=1e-3, atol=1e-6)


def test_good_labels_get_positive_feedback_and_bad_ones_negative() -> None:
    """Unlabelled rows are the labelled ones; a teacher that is right (wrong) gets h > 0 (h < 0)."""
    states, batches, _ = setup(2)
    y = batches[0].y_EL
    for right in (True, False):
        target = y if right else (y + 1) % C

        class Oracle(LocalPeers):
            def exchange(self, mine: Sequence[Tensor], target: Tensor = target) -> list[Tensor]:
                return list(mine) if mine[0].is_floating_point() else [target, target]

        same = [Batch(b.emb_ELD, b.emb_ELD, y) for b in batches]
        _, told = mct_step(
            states, same, torch.full((2, E, L), 0.5, dtype=torch.float64), Oracle(2), PLAIN
        )
        assert all((h > 0).all() if right else (h < 0).all() for h in told["feedback"])


def test_without_feedback_and_pseudo_step_it_is_supervised_training_to_the_last_bit() -> None:
    states, batches, draws = setup(2)
    ablated = StepRule(feedback="none", learn=False)
    one = two = states
    for _ in range(5):
        one, told = mct_step(one, batches, draws, LocalPeers(2), ablated)
        two, _ = supervised_step(two, batches, LocalPeers(2), ablated)
        assert all((h == 0).all() for h in told["feedback"])
    for a, b in zip(one, two, strict=True):
        assert (
            torch.equal(a.flat_EP, b.flat_EP)
            and torch.equal(a.mean_EP, b.mean_EP)
            and a.steps == b.steps
        )


def test_supervised_gradient_reaches_the_optimiser() -> None:
    """With h = 0 the second step is the supervised gradient at t', not nothing."""
    states, batches, draws = setup(2)
    done, _ = mct_step(
        states,
        batches,
        draws,
        LocalPeers(2),
        dataclasses.replace(PLAIN, feedback="none", learn=False),
    )
    for state, new, b in zip(states, done, batches, strict=True):
        want = numeric_gradient(
            lambda p, b=b: ce(forward(p, b.emb_ELD, b.keep_L), b.y_EL).detach(), state.params
        )
        torch.testing.assert_close(
            flat(new.params), flat(state.params) - RATE * want, rtol=1e-6, atol=1e-8
        )


def test_inputs_are_not_changed() -> None:
    states, batches, draws = setup(2)
    offers = [Offer(b.emb_EUD, b.emb_ELD, b.y_EL) for b in batches]

    def parts() -> list[Tensor]:
        return [p.clone() for s in states for p in (s.flat_EP, s.mean_EP, s.square_EP)]

    # after a step, whose moments are not zero
    states, _ = supervised_step(states, batches, LocalPeers(2), StepRule())
    before = parts()
    for learn in (True, False):
        mct_step(states, batches, draws, LocalPeers(2), StepRule(learn=learn))
    mpl_step(states, offers, draws, LocalPeers(2), StepRule())
    supervised_step(states, batches, LocalPeers(2), StepRule())
    for old, now in zip(before, parts(), strict=True):
        assert torch.equal(old, now)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_an_experiment_among_others_is_what_it_is_alone_to_the_last_bit(
    views: int, dtype: torch.dtype
) -> None:
    """Each with its own learning rate, weight decay and temperature; on the CPU in float32 too."""
    states, batches, draws = setup(views, dtype=dtype)
    lr, decay, cool = (
        torch.tensor([1e-3, 3e-2], dtype=dtype),
        torch.tensor([0.0, 0.1], dtype=dtype),
        torch.tensor([1.0, 0.3], dtype=torch.float64),
    )

    def take(steps: int, pick: slice) -> list[State]:
        now = [State(s.layout, s.flat_EP[pick], s.mean_EP[pick], s.square_EP[pick]) for s in states]
        mine = [
            Batch(
                b.emb_EUD[pick],
                b.emb_ELD[pick],
                b.y_EL[pick],
                [k[pick] for k in b.keep_U],
                [k[pick] for k in b.keep_L],
            )
            for b in batches
        ]
        method = StepRule(Adam(lr[pick], decay=decay[pick]), temperature=cool[pick])
        for _ in range(steps):
            now, _ = (
                mct_step(now, mine, draws[:, pick], LocalPeers(views), method)
                if views > 1
                else supervised_step(now, mine, LocalPeers(views), method)
            )
        return now

    for both, one in zip(take(5, slice(None)), take(5, slice(1, 2)), strict=True):
        assert torch.equal(both.flat_EP[1:], one.flat_EP)
        assert torch.equal(both.square_EP[1:], one.square_EP)


@pytest.mark.parametrize("feedback", ["exact", "difference"])
@pytest.mark.parametrize("members", [1, 3])
def test_a_batch_in_chunks_gives_the_step_of_the_whole_batch(feedback: str, members: int) -> None:
    states, batches, draws = setup(2, members=members)
    whole, told = mct_step(states, batches, draws, LocalPeers(2), StepRule(Adam(1e-2), feedback))
    chunks, told_too = mct_step(
        states, batches, draws, LocalPeers(2), StepRule(Adam(1e-2), feedback, chunk=2)
    )
    for name, values in told.items():
        torch.testing.assert_close(told_too[name], values, rtol=1e-6, atol=1e-12)
    for one, other in zip(whole, chunks, strict=True):
        torch.testing.assert_close(flat(one.params), flat(other.params), rtol=1e-6, atol=1e-12)


class Replicas(LocalPeers):
    """Two replicas of all views, taking turns: `average` waits for the other's value."""

    def __init__(self, count: int, replica: int, meet: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__(count)
        self.replica, self.replicas, self.meet = replica, 2, meet

    def average(self, value: Tensor) -> Tensor:
        return self.meet(self.replica, value)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("feedback", ["exact", "difference"])
def test_replicas_with_halves_of_a_batch_take_the_step_of_the_whole(
    views: int, feedback: str
) -> None:
    states, batches, draws = setup(views, rows=(8, 6))
    whole, told = mct_step(
        states, batches, draws, LocalPeers(views), StepRule(Adam(1e-2), feedback)
    )
    barrier, values = threading.Barrier(2, timeout=30), [torch.empty(0)] * 2

    def meet(replica: int, mine: Tensor) -> Tensor:
        values[replica] = mine
        barrier.wait()
        mean = (values[0] + values[1]) / 2
        barrier.wait()
        return mean

    def half(replica: int) -> tuple[list[State], dict]:
        u, l = slice(4 * replica, 4 * replica + 4), slice(3 * replica, 3 * replica + 3)
        mine = [
            Batch(
                b.emb_EUD[:, u],
                b.emb_ELD[:, l],
                b.y_EL[:, l],
                [k[:, u] for k in b.keep_U],
                [k[:, l] for k in b.keep_L],
            )
            for b in batches
        ]
        return mct_step(
            states,
            mine,
            draws[:, :, u],
            Replicas(views, replica, meet),
            StepRule(Adam(1e-2), feedback),
        )

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(half, (0, 1)))
    for replica in (0, 1):
        torch.testing.assert_close(
            done[replica][1]["feedback"], told["feedback"], rtol=1e-9, atol=1e-12
        )
        for one, other in zip(whole, done[replica][0], strict=True):
            torch.testing.assert_close(flat(one.params), flat(other.params), rtol=1e-9, atol=1e-12)


def test_two_views_exchange_labels_and_three_exchange_logits_never_inputs() -> None:
    for views, kinds in (
        (2, [(torch.int64, (E, U)), (torch.float64, (E,))]),
        (3, [(torch.float64, (E, U, C)), (torch.float64, (E,))]),
    ):
        sent = []

        class Spy(LocalPeers):
            def exchange(self, mine: Sequence[Tensor], sent: list = sent) -> list[Tensor]:
                sent.append((mine[0].dtype, tuple(mine[0].shape)))
                return super().exchange(mine)

        states, batches, draws = setup(views)
        mct_step(states, batches, draws, Spy(views), PLAIN)
        assert sent == kinds


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_equals_torch(decay: float) -> None:
    """Per experiment: clip_grad_norm_ and torch.optim.AdamW (which without decay is Adam) as the
    oracle."""
    states, batches, _ = setup(1)
    view = states[0]
    for e in range(E):
        parameters = {n: p[e : e + 1].clone().requires_grad_() for n, p in view.shown.items()}
        oracle = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=decay)
        mine = view
        for step in range(6):
            b = batches[0]
            oracle.zero_grad()
            ce(
                forward(parameters, b.emb_ELD[e : e + 1] * (step + 1)), b.y_EL[e : e + 1]
            ).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 0.3)
            oracle.step()
            loss = ce(forward(mine.params, b.emb_ELD * (step + 1)), b.y_EL)
            adam = Adam(1e-2, 0.3, decay)
            mine = optimise(mine, grad(loss, mine), adam, own=step % 2 == 1)
        torch.testing.assert_close(
            flat(mine.params)[e : e + 1], flat(parameters), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("members", [1, 3])
def test_parameters_lie_in_one_tensor_and_come_back(members: int) -> None:
    """Odd sizes: 5 classes, 7 hidden values. Each is there, alone, at an aligned place."""
    params = init((0, 1), 0, 9, 5, Shape(7, 2, members), torch.float32)
    where = layout(params)
    flat_EP = where.flat(params)
    named = where.named(flat_EP)
    assert list(named) == list(params)
    for name, p in params.items():
        assert torch.equal(named[name], p)
        assert named[name].storage_offset() % ALIGN == 0
    assert flat_EP.shape == (2, -(-sum(where.sizes) // ROW) * ROW)
    assert int((flat_EP != 0).sum()) == sum(int((p != 0).sum()) for p in params.values())


def test_what_lies_between_parameters_stays_zero() -> None:
    states, batches, draws = setup(2)
    for _ in range(3):
        states, _ = mct_step(states, batches, draws, LocalPeers(2), StepRule(Adam(decay=0.1)))
    for state in states:
        for part in (state.flat_EP, state.mean_EP, state.square_EP):
            assert torch.equal(state.layout.flat(state.layout.named(part)), part)
        assert state.flat_EP[:, -1].tolist() == [0.0] * E


def test_the_sums_over_a_row_are_the_same_whatever_the_threads_and_other_rows() -> None:
    g_EP = torch.randn(2, 300 * ROW, generator=torch.Generator().manual_seed(0))
    want_E = g_EP.double().square().sum(1)
    torch.testing.assert_close(norm(g_EP), want_E.sqrt().float())
    torch.testing.assert_close(inner(g_EP, g_EP), want_E.float())
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            for rows in (slice(2), slice(1, 2)):
                of_both = norm(g_EP[rows])[-1], inner(g_EP[rows], g_EP[rows])[-1]
                found.append([float(value) for value in of_both])
    finally:
        torch.set_num_threads(before)
    assert found == found[:1] * 8


def test_the_moving_average_equals_torchs() -> None:
    """torch.optim.swa_utils as the oracle, with the decay that grows with the steps."""
    state = fresh({"w0": torch.zeros(1, 3, dtype=torch.float64)})
    module = torch.nn.Linear(3, 1, bias=False).double()
    wanted = None
    for step in range(5):
        value = torch.full((1, 3), float(step + 1), dtype=torch.float64)
        state = dataclasses.replace(state, flat_EP=state.layout.flat({"w0": value}), steps=step)
        decay = min(0.2, (1 + step) / (10 + step))
        module.weight.data = value
        if wanted is None:
            wanted = AveragedModel(module, multi_avg_fn=lambda *_: None)
        wanted.multi_avg_fn = get_ema_multi_avg_fn(decay)
        wanted.update_parameters(module)
        state = average(state, 0.2)
        torch.testing.assert_close(state.shown["w0"], wanted.module.weight.data)


def test_sampled_labels_follow_the_teacher() -> None:
    """Frequencies of 40,000 draws against the tempered softmax: chi-square below its 0.999 quantile
    (7 degrees: 24.3)."""
    logits = torch.linspace(-2, 1.5, 8, dtype=torch.float64)
    for temperature in (1.0, 0.5):
        draws = torch.from_numpy(np.random.default_rng(0).random((1, 40_000)))
        y = hand_out(logits.expand(1, 40_000, 8), draws, temperature)
        p = torch.softmax(logits / temperature, -1)
        counts = torch.bincount(y.flatten(), minlength=8).double()
        assert ((counts - 40_000 * p) ** 2 / (40_000 * p)).sum() < 24.3
    assert (hand_out(logits.expand(1, 40_000, 8), draws, 0.0) == 7).all() and (
        hand_out(logits.expand(1, 9, 8), draws[:, :9], torch.zeros(1)) == 7
    ).all()


def test_sampling_never_leaves_the_classes() -> None:
    """The ends of [0, 1), and float32 logits whose cumulative sum ends below 1."""
    logits = torch.randn(1, 500, 1000, generator=torch.Generator().manual_seed(0))
    for value in (0.0, float(np.nextafter(1, 0))):
        y = hand_out(logits, torch.full((1, 500), value, dtype=torch.float64), 1.0)
        assert int(y.min()) >= 0 and int(y.max()) < 1000


def test_teacher_of_a_view_is_the_mean_of_the_others() -> None:
    z = [torch.full((1, 1, 2), float(v)) for v in (1, 2, 6)]
    assert [float(teacher(z, v).mean()) for v in range(3)] == [4.0, 3.5, 1.5]
