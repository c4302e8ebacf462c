"""The rivals' steps, written down again from their papers, every gradient by finite differences."""

import dataclasses

import pytest
import torch
from steps import PLAIN, RATE, C, E, U, flat, numeric_gradient, setup, unflat
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from train.algorithm.cotrain import Batch, hand_out
from train.algorithm.optimise import Adam, State
from train.algorithm.peers import LocalPeers
from train.algorithm.probe import Params, forward
from train.algorithm.rivals import MOMENTUM, Offer, Rival, fixmatch_step, mpl_step, pseudo_step


def nll(logits_EBC: Tensor, y_EB: Tensor) -> Tensor:
    """Of each row, (E, B)."""
    return -log_softmax(logits_EBC, -1).gather(-1, y_EB.unsqueeze(-1)).squeeze(-1)


def on_labels(p: Params, b: Batch) -> Tensor:
    return nll(forward(p, b.emb_ELD, b.keep_L), b.y_EL).mean(1)


def offers(batches: list[Batch]) -> list[Offer]:
    """With noise, and the labels of two teachers, of whom one gives few."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for b in batches:
        y_WEU = torch.randint(C, (2, E, U), generator=generator)
        y_WEU[1, :, 2:] = -1
        noise = torch.randn(b.emb_EUD.shape, generator=generator, dtype=torch.float64)
        strong_EUD = b.emb_EUD + noise
        fields = {field.name: getattr(b, field.name) for field in dataclasses.fields(Batch)}
        made.append(Offer(**fields, strong_EUD=strong_EUD, given_WEU=y_WEU))
    return made


def descended(params: Params, loss: object) -> Tensor:
    return flat(params) - RATE * numeric_gradient(loss, params)


def same(states: list[State], want: list[Tensor]) -> None:
    for state, flat_EP in zip(states, want, strict=True):
        torch.testing.assert_close(flat(state.params), flat_EP, rtol=1e-6, atol=1e-8)


def test_pseudo_step_is_the_mean_over_teachers_and_rows() -> None:
    states, batches, draws = setup(2)
    given = offers(batches)
    done, told = pseudo_step(states, given, draws, LocalPeers(2), PLAIN)
    want = []
    for state, b in zip(states, given, strict=True):

        def loss(p: Params, b: Offer = b) -> Tensor:
            logits = forward(p, b.emb_EUD, b.keep_U)
            all_given = nll(logits, b.given_WEU[0]).mean(1)
            few = nll(logits[:, :2], b.given_WEU[1, :, :2]).sum(1) / U  # the rest counts as zero
            return on_labels(p, b) + (all_given + few) / 2

        want.append(descended(state.params, loss))
    same(done, want)
    assert torch.equal(told["given"][1], given[1].given_WEU)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("rule", ["fixed", "freematch", "softmatch"])
def test_fixmatch_step_is_the_papers(rule: str, known: bool) -> None:
    """Three steps, so that the moving averages are read, too; known: from averages that tell the
    rows apart."""
    states, batches, draws = setup(1)
    [b] = offers(batches)
    method = Rival(Adam(update=PLAIN.adam.update), rule=rule, threshold=0.6)
    mu_E = torch.full((E,), 1 / C, dtype=torch.float64)
    square_E = torch.full((E,), 1 / C**2 + 1, dtype=torch.float64)
    p_EC = torch.full((E, C), 1 / C, dtype=torch.float64)
    if known:
        sure_EU = softmax(forward(states[0].shown, b.emb_EUD), -1).amax(-1)
        mu_E, square_E = sure_EU.mean(1), sure_EU.square().mean(1)
        p_EC = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * E, dtype=torch.float64)
        states[0] = dataclasses.replace(
            states[0], memory={"mu": mu_E, "square": square_E, "p": p_EC}
        )
        method = dataclasses.replace(method, threshold=float(mu_E.mean()))
    seen = []
    for _ in range(3):
        params = states[0].shown
        sure_EUC = softmax(forward(params, b.emb_EUD), -1)
        top_EU, y_EU = sure_EUC.max(-1)
        mu_E = MOMENTUM * mu_E + (1 - MOMENTUM) * top_EU.mean(1)
        square_E = MOMENTUM * square_E + (1 - MOMENTUM) * (top_EU**2).mean(1)
        p_EC = MOMENTUM * p_EC + (1 - MOMENTUM) * sure_EUC.mean(1)
        weight_EU = torch.zeros(E, U, dtype=torch.float64)
        for e in range(E):
            for u in range(U):
                own = p_EC[e, y_EU[e, u]] / p_EC[e].max()
                far = max(0.0, float(mu_E[e] - top_EU[e, u]))
                weight_EU[e, u] = {
                    "fixed": float(top_EU[e, u] >= method.threshold),
                    "freematch": float(top_EU[e, u] >= mu_E[e] * own),
                    # exp(-(far^2) / (2 (sigma / 2)^2)): the published code's two sigma
                    "softmatch": float(torch.exp(-2 * far**2 / (square_E[e] - mu_E[e] ** 2))),
                }[rule]

        def loss(p: Params, y_EU: Tensor = y_EU, weight_EU: Tensor = weight_EU) -> Tensor:
            noisy = nll(forward(p, b.strong_EUD, b.keep_U), y_EU)
            return on_labels(p, b) + (weight_EU * noisy).mean(1)

        want = descended(params, loss)
        states, told = fixmatch_step(states, [b], draws, LocalPeers(1), method)
        same(states, [want])
        torch.testing.assert_close(told["weight"][0], weight_EU, rtol=1e-9, atol=1e-12)
        if rule != "fixed":
            for name, value in {"mu": mu_E, "square": square_E, "p": p_EC}.items():
                torch.testing.assert_close(states[0].memory[name], value)
        seen.append(weight_EU)
    assert not known or torch.stack(seen).unique().numel() > 1  # the rule did tell rows apart


@pytest.mark.parametrize("feedback", ["exact", "difference"])
def test_mpl_step_is_the_papers(feedback: str) -> None:
    """The student steps on the teacher's labels; the teacher on h CE(its logits, its labels) and
    the labelled rows, h being what the labels did to the student's labelled loss."""
    states, batches, draws = setup(1)
    other, _, _ = setup(1, seed=3)
    student, teacher, b = states[0].shown, other[0].shown, batches[0]
    method = dataclasses.replace(PLAIN, feedback=feedback)
    done, told = mpl_step([states[0], other[0]], [b, b], draws, LocalPeers(2), method)
    y_EU = hand_out(forward(teacher, b.emb_EUD, b.keep_U), draws[0], 1.0)

    def learn(p: Params) -> Tensor:
        return nll(forward(p, b.emb_EUD, b.keep_U), y_EU).mean(1)

    g_EP = numeric_gradient(learn, student)
    learnt = unflat(flat(student) - RATE * g_EP, student)
    l_EP = numeric_gradient(lambda p: on_labels(p, b), learnt)
    h_E = (l_EP * g_EP).sum(1)
    if feedback == "difference":
        plain = dataclasses.replace(b, keep_L=())
        h_E = on_labels(student, plain) - on_labels(learnt, plain)

    def teach(p: Params) -> Tensor:
        z_EUC = forward(p, b.emb_EUD, b.keep_U)
        return h_E * nll(z_EUC, y_EU).mean(1) + on_labels(p, b)

    assert h_E.abs().min() > 1e-6
    torch.testing.assert_close(told["feedback"][0], h_E, rtol=1e-6, atol=1e-9)
    same(done, [flat(learnt) - RATE * l_EP, descended(teacher, teach)])
