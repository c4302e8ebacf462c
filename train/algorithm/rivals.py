"""The steps of the methods that co-training is compared with. Same probes, batches, optimiser and
signature as train/algorithm/cotrain.py.

pseudo_step      labelled rows plus rows with labels from a table: self-training and (classical)
                 co-training
fixmatch_step    FixMatch (Sohn et al. 2020), with FreeMatch's (Wang et al. 2023) or SoftMatch's
                 (Chen et al. 2023) weighting
mpl_step         Meta Pseudo Labels (Pham et al. 2021): one view, a teacher and a student
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softmax

from train.algorithm.cotrain import Batch, StepRule, Told, feedback, hand_out, temperature_of
from train.algorithm.optimise import State, ce, detached, grad, optimise, total
from train.algorithm.peers import Peers
from train.algorithm.probe import Params

# of the moving averages of FreeMatch and SoftMatch, which have 0.999 for a million steps
MOMENTUM = 0.99
NONE = torch.empty(0)


@dataclass(frozen=True)
class Offer(Batch):
    """A batch with what the rivals want: strong_EUD, the unlabelled rows with noise; given_WEU,
    labels of W teachers, -1 where they give none."""

    strong_EUD: Tensor = field(default=NONE)
    given_WEU: Tensor = field(default=NONE)


@dataclass(frozen=True)
class Rival(StepRule):
    """rule: how FixMatch weighs a pseudo-label; threshold: the confidence that counts under
    `fixed`."""

    rule: Literal["fixed", "freematch", "softmatch"] = "fixed"
    threshold: float = 0.95


def pseudo_step(
    views: Sequence[State],
    batches: Sequence[Offer],
    draws_VEU: Tensor,
    peers: Peers,
    method: StepRule,
) -> tuple[list[State], Told]:
    """t <- step(t, grad [CE(f(L), y) + mean over the teachers and rows of CE(f(U), their label)]);
    a row without a label counts as zero."""
    losses = [functools.partial(_of_labels, b.given_WEU) for b in batches]
    done, told = _step(views, batches, losses, peers, method)
    return done, told | {"given": [b.given_WEU for b in batches]}


def _of_labels(given_WEU: Tensor, logits: Tensor) -> Tensor:
    """The loss (E,) of one view's logits, the mean over the teachers."""
    losses = []
    for y_EU in given_WEU:
        losses.append(ce(logits, y_EU.clamp_min(0), (y_EU >= 0).to(logits.dtype)))
    return total(losses) / len(losses)


def fixmatch_step(
    views: Sequence[State], batches: Sequence[Offer], draws_VEU: Tensor, peers: Peers, method: Rival
) -> tuple[list[State], Told]:
    """t <- step(t, grad [CE(f(L), y) + mean of w * CE(f(U + noise), argmax f(U))], w: 1 where f(U),
    without noise or dropout, is sure enough."""
    memories, losses, labels, weights = [], [], [], []
    for view, b in zip(views, batches, strict=True):
        with torch.no_grad():
            p_EUC = softmax(view.logits(b.emb_EUD).double(), -1)
        memory, y, weight = weigh(p_EUC, view.memory, peers, method)
        memories.append(memory)
        labels.append(y)
        weights.append(weight)
        losses.append(functools.partial(ce, y_EB=y, weight_EB=weight.to(b.emb_EUD.dtype)))
    noisy = [replace(b, emb_EUD=b.strong_EUD) for b in batches]
    done, told = _step(views, noisy, losses, peers, method)
    new = [replace(view, memory=memory) for view, memory in zip(done, memories, strict=True)]
    return new, told | {"given": labels, "weight": weights}


def weigh(
    p_EUC: Tensor, memory: Params, peers: Peers, method: Rival
) -> tuple[Params, Tensor, Tensor]:
    """The moving averages after this batch, the pseudo-labels and their weights, (E, U) each.

    freematch: 1 where the confidence reaches tau * p_c / max p, tau and p_c being moving averages
    of the confidence and of the probabilities.
    softmatch: exp(-(max(mu - confidence, 0))^2 * 2 / sigma^2), a Gaussian cut off above the moving
    average mu (2 sigma, as published).
    """
    confidence_EU, y_EU = p_EUC.max(-1)
    if method.rule == "fixed":
        return {}, y_EU, (confidence_EU >= method.threshold).double()
    classes = p_EUC.shape[-1]
    batch = {"mu": confidence_EU.mean(1), "square": confidence_EU.square().mean(1)}
    now = {name: peers.average(value) for name, value in (batch | {"p": p_EUC.mean(1)}).items()}
    start = {
        "mu": torch.full_like(now["mu"], 1 / classes),
        "square": torch.full_like(now["mu"], 1 / classes**2 + 1),
        "p": torch.full_like(now["p"], 1 / classes),
    }
    known = {**start, **memory}
    memory = {name: torch.lerp(value, known[name], MOMENTUM) for name, value in now.items()}
    mu_E1 = memory["mu"].unsqueeze(-1)
    if method.rule == "freematch":
        least_EC = mu_E1 * memory["p"] / memory["p"].amax(-1, keepdim=True)
        return memory, y_EU, (confidence_EU >= least_EC.gather(-1, y_EU)).double()
    variance_E = (memory["square"] - memory["mu"].square()).clamp_min(1e-12)
    below_EU = (mu_E1 - confidence_EU).clamp_min(0)
    return memory, y_EU, torch.exp(-2 * below_EU.square() / variance_E.unsqueeze(-1))


def _step(
    views: Sequence[State],
    batches: Sequence[Batch],
    losses: Sequence[Callable[[Tensor], Tensor]],
    peers: Peers,
    method: StepRule,
) -> tuple[list[State], Told]:
    """One optimiser step of each view on CE(f(L), y) + its loss of f(U)."""
    done: list[State] = []
    losses_L: list[Tensor] = []
    losses_U: list[Tensor] = []
    for view, b, loss in zip(views, batches, losses, strict=True):
        loss_L = ce(view.logits(b.emb_ELD, b.keep_L, method.chunk), b.y_EL)
        loss_U = loss(view.logits(b.emb_EUD, b.keep_U, method.chunk))
        done.append(optimise(view, peers.average(grad(loss_L + loss_U, view)), method.adam))
        losses_L.append(loss_L.detach())
        losses_U.append(loss_U.detach())
    return done, {"labelled": losses_L, "unlabelled": losses_U}


def mpl_step(
    views: Sequence[State],
    batches: Sequence[Batch],
    draws_VEU: Tensor,
    peers: Peers,
    method: StepRule,
) -> tuple[list[State], Told]:
    """views: [student, teacher] on the same embeddings. The student learns from the teacher's
    labels; the teacher from the feedback and the labels.

    The student's fine-tuning on the labelled rows, which the paper does at the end, is folded into
    each step, as in co-training.
    """
    student, teacher = views
    b, b_t = batches
    z_t = teacher.logits(b_t.emb_EUD, b_t.keep_U, method.chunk)
    y_EU = hand_out(z_t.detach(), draws_VEU[0], temperature_of(method, 0))
    loss_U = ce(student.logits(b.emb_EUD, b.keep_U, method.chunk), y_EU)
    g = grad(loss_U, student)
    learnt = optimise(student, g, method.adam)
    loss_L = ce(learnt.logits(b.emb_ELD, b.keep_L, method.chunk), b.y_EL)
    l = grad(loss_L, learnt)
    h = feedback(student, learnt, g, l, b, peers, method)
    loss_T = ce(teacher.logits(b_t.emb_ELD, b_t.keep_L, method.chunk), b_t.y_EL)
    t = grad(h * ce(z_t, y_EU) + loss_T, teacher)
    return [optimise(learnt, l, method.adam, own=True), optimise(teacher, t, method.adam)], {
        "unlabelled": detached([loss_U, loss_U]),
        "feedback": [h, h],
        "given": [y_EU] * 2,
        "labelled": detached([loss_L, loss_T]),
    }
