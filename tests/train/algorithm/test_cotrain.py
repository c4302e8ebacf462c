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

from train.algorithm.cotrain import Batch, StepRule, hand_out, mct_step, supervised_step, teacher
from train.algorithm.optimise import Adam, State, ce, live, optimise
from train.algorithm.peers import LocalPeers
from train.algorithm.probe import Params, forward


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
            update=lambda view, g: State(
                {n: (view.params[n] - small * g[n]).detach() for n in g}, {}, {}, 0
            )
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
            torch.equal(flat(a.params), flat(b.params))
            and torch.equal(flat(a.mean), flat(b.mean))
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
    before = [flat(state.params).clone() for state in states]
    mct_step(states, batches, draws, LocalPeers(2), StepRule())
    supervised_step(states, batches, LocalPeers(2), StepRule())
    assert all(
        torch.equal(flat(state.params), old) for state, old in zip(states, before, strict=True)
    )


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
        now = [
            State(
                *({n: p[pick] for n, p in part.items()} for part in (s.params, s.mean, s.square)),
                s.steps,
            )
            for s in states
        ]
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
        assert torch.equal(flat(both.params)[1:], flat(one.params)) and torch.equal(
            flat(both.square)[1:], flat(one.square)
        )


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

    def __init__(
        self, count: int, replica: int, meet: Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
    ) -> None:
        super().__init__(count)
        self.replica, self.replicas, self.meet = replica, 2, meet

    def average(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.meet(self.replica, values)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("feedback", ["exact", "difference"])
def test_replicas_with_halves_of_a_batch_take_the_step_of_the_whole(
    views: int, feedback: str
) -> None:
    states, batches, draws = setup(views, rows=(8, 6))
    whole, told = mct_step(
        states, batches, draws, LocalPeers(views), StepRule(Adam(1e-2), feedback)
    )
    barrier, values = threading.Barrier(2, timeout=30), [{}, {}]

    def meet(replica: int, mine: dict[str, Tensor]) -> dict[str, Tensor]:
        values[replica] = mine
        barrier.wait()
        mean = {name: (values[0][name] + values[1][name]) / 2 for name in mine}
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
        parameters = {n: p[e : e + 1].clone().requires_grad_() for n, p in view.params.items()}
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
            mine = live(mine)
            loss = ce(forward(mine.params, b.emb_ELD * (step + 1)), b.y_EL)
            g = dict(
                zip(
                    mine.params,
                    torch.autograd.grad(loss.sum(), list(mine.params.values())),
                    strict=True,
                )
            )
            mine = optimise(mine, g, Adam(1e-2, 0.3, decay))
        torch.testing.assert_close(
            flat(mine.params)[e : e + 1], flat(parameters), rtol=1e-9, atol=1e-12
        )


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
