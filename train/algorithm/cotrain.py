"""Meta Co-Training (arXiv 2311.18083): one step, for V views and E independent experiments.

The views are probes f_v with parameters t_v on embeddings of the same images. On U unlabelled rows
the other views, as teachers, hand labels to the student v; v learns from them; what that did to v's
loss on L labelled rows tells the teachers how good their labels were. Everything is a pure function
of (state, batch). Axes stand in the names: E experiments, U and L rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from train.algorithm.optimise import (
    Adam,
    State,
    ce,
    detached,
    grad,
    inner,
    optimise,
    per_experiment,
    total,
)
from train.algorithm.peers import Peers

# What a step says of itself: losses of this process's views, feedback of all views, (E,) each;
# labels given, (E, U).
Told = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Batch:
    """One view's rows of one step: embeddings (E, U, D) and (E, L, D), or of a live view pixels
    (1, U, 3, S, S) and (1, L, 3, S, S); labels (E, L) int64, dropout factors of either forward;
    anchor_VEUC: what else each student's teacher knows of the unlabelled rows, log-probabilities
    that are added to its own."""

    emb_EUD: Tensor
    emb_ELD: Tensor
    y_EL: Tensor
    keep_U: Sequence[Tensor] = ()
    keep_L: Sequence[Tensor] = ()
    anchor_VEUC: Sequence[Tensor] = ()


@dataclass(frozen=True)
class StepRule:
    """The settings of the step. temperature: of the teachers, a number, (E,), or (V, E) for each
    student's teacher; 0 is argmax.

    feedback `none` (h = 0), learn=False (t' = t) and supervised=0 are ablations; the first two
    together are supervised training. trust: (V, V, E), how much the word of each view w counts in
    the teacher of v, trust[v, w]; None: all alike, as in the paper. chunk: rows a forward keeps in
    memory (see `forward`).
    """

    adam: Adam = field(default_factory=Adam)
    feedback: Literal["exact", "difference", "none"] = "exact"
    temperature: float | Tensor = 1.0
    learn: bool = True
    supervised: float = 1.0
    trust: Tensor | None = None
    chunk: int = 0


def supervised_step(
    views: Sequence[State], batches: Sequence[Batch], peers: Peers, method: StepRule
) -> tuple[list[State], Told]:
    """Each view by itself: t <- step(t, grad CE(f(L), y))."""
    loss_L = losses_L(views, batches, method)
    l = gradients(loss_L, views, peers)
    done = [optimise(view, l_v, method.adam) for view, l_v in zip(views, l, strict=True)]
    return done, {"labelled": detached(loss_L)}


def mct_step(
    views: Sequence[State],
    batches: Sequence[Batch],
    draws_VEU: Tensor,
    peers: Peers,
    method: StepRule,
) -> tuple[list[State], Told]:
    """One step of this process's views -> their new states, and the losses and the feedback h.

    draws_VEU: uniforms in [0, 1) that decide the sampled labels of every view. `peers` brings in
    the views of other processes, and averages over the processes that share a view, each with other
    rows.
    """
    anchor = batches[0].anchor_VEUC

    # 1 label: every view predicts U; the teacher of v is the softmax of the mean of the other
    # views' logits (see `teacher`)
    z = []
    for view, b in zip(views, batches, strict=True):
        z.append(view.logits(b.emb_EUD, b.keep_U, method.chunk))
    y_V, z_V = label(detached(z), draws_VEU, anchor, peers, method)

    # 2 learn: each student steps on the labels it was given
    loss_U = [ce(logits, y_V[v]) for v, logits in zip(peers.mine, z, strict=True)]
    g = gradients(loss_U, views, peers, keep_graph=True)
    learnt = views
    if method.learn:
        learnt = [optimise(t, g_v, method.adam) for t, g_v in zip(views, g, strict=True)]

    # 3 look: what that did on labelled rows is the feedback h, one number a view and experiment
    loss_L = losses_L(learnt, batches, method)
    l = gradients(loss_L, learnt, peers)
    h = []
    for old, new, g_v, l_v, b in zip(views, learnt, g, l, batches, strict=True):
        h.append(feedback(old, new, g_v, l_v, b, peers, method))
    h_V = peers.exchange(h)

    # 4 teach: at the original t, each teacher w makes the labels that helped (h > 0) more likely,
    # the others less
    done = []
    for w, z_w, old, new, l_w in zip(peers.mine, z, views, learnt, l, strict=True):
        seen = [*z_V[:w], z_w, *z_V[w + 1 :]]  # w's own logits carry its gradient
        s_w = peers.average(grad(taught(w, seen, y_V, h_V, anchor, method), old))
        both = torch.add(s_w, l_w, alpha=method.supervised)
        done.append(optimise(new, both, method.adam, own=method.learn))
    return done, {
        "unlabelled": detached(loss_U),
        "labelled": detached(loss_L),
        "feedback": list(h_V),
        "given": [y_V[v] for v in peers.mine],
    }


def taught(
    w: int,
    z_V: Sequence[Tensor],
    y_V: Sequence[Tensor],
    h_V: Sequence[Tensor],
    anchor: Sequence[Tensor],
    method: StepRule,
) -> Tensor:
    """(E,): h_v CE(mean of the teachers' logits, y_v), added up over w's students v."""
    losses = []
    for v, (h_E, y_EU) in enumerate(zip(h_V, y_V, strict=True)):
        if v != w:
            losses.append(h_E * ce(teacher(z_V, v, anchor, method.trust), y_EU))
    return total(losses)


def losses_L(views: Sequence[State], batches: Sequence[Batch], method: StepRule) -> list[Tensor]:
    """CE(f_v(L_v; t_v), y) of each view, (E,) each."""
    found = []
    for view, b in zip(views, batches, strict=True):
        found.append(ce(view.logits(b.emb_ELD, b.keep_L, method.chunk), b.y_EL))
    return found


def gradients(
    losses: Sequence[Tensor], views: Sequence[State], peers: Peers, keep_graph: bool = False
) -> list[Tensor]:
    """Of each view's loss for its own parameters, over all processes that share the view."""
    found = []
    for loss_E, view in zip(losses, views, strict=True):
        found.append(peers.average(grad(loss_E, view, keep_graph)))
    return found


def label(
    z: Sequence[Tensor], draws_VEU: Tensor, anchor: Sequence[Tensor], peers: Peers, method: StepRule
) -> tuple[list[Tensor], list[Tensor]]:
    """The labels (E, U) that every view is given, and all views' logits; with two views the labels
    alone need to travel."""
    if peers.count == 2:
        made = []
        for w, z_w in zip(peers.mine, z, strict=True):
            v = 1 - w
            logits_EUC = teacher([z_w, z_w], v, anchor, method.trust)
            made.append(hand_out(logits_EUC, draws_VEU[v], temperature_of(method, v)))
        by_V = peers.exchange(made)
        return [by_V[1], by_V[0]], list(by_V)  # in `teach` a view then sees its own logits alone
    z_V, y_V = peers.exchange(z), []
    for v in range(peers.count):
        logits_EUC = teacher(z_V, v, anchor, method.trust)
        y_V.append(hand_out(logits_EUC, draws_VEU[v], temperature_of(method, v)))
    return y_V, z_V


def teacher(
    z_V: Sequence[Tensor],
    v: int,
    anchor_VEUC: Sequence[Tensor] = (),
    trust_VVE: Tensor | None = None,
) -> Tensor:
    """The logits of v's teacher: the mean of those of all views but v; with `trust` their weighted
    log-probabilities, and the anchor's."""
    rest = [w for w in range(len(z_V)) if w != v]
    if trust_VVE is None:
        return torch.stack([z_V[w] for w in rest]).mean(0)
    words = []
    for w in rest:
        log_p_EUC = log_softmax(z_V[w], -1)
        words.append(per_experiment(trust_VVE[v, w], log_p_EUC) * log_p_EUC)
    if len(anchor_VEUC):
        words.append(anchor_VEUC[v])
    return total(words)


def hand_out(logits_EUC: Tensor, draw_EU: Tensor, temperature: float | Tensor) -> Tensor:
    """Hard labels (E, U) of a teacher: sampled from its tempered softmax by inverting the
    cumulative sum."""
    z = logits_EUC.double()
    z = z - z.amax(-1, keepdim=True)
    if isinstance(temperature, Tensor):
        cool = per_experiment(temperature, z).clamp_min(1e-12)
    else:
        cool = max(temperature, 1e-12)
    below = softmax(z / cool, -1).cumsum(-1) < draw_EU.unsqueeze(-1)
    return below.sum(-1).clamp_max(z.shape[-1] - 1)


def temperature_of(method: StepRule, v: int) -> float | Tensor:
    """That of v's teacher: a number, or (E,)."""
    given = method.temperature
    return given[v] if isinstance(given, Tensor) and given.dim() == 2 else given


def feedback(
    old: State, new: State, g: Tensor, l: Tensor, b: Batch, peers: Peers, method: StepRule
) -> Tensor:
    """h (E,): `exact` <l, g>, the first-order fall of the labelled loss along g; `difference` the
    actual fall, in eval mode."""
    if method.feedback == "exact":
        return inner(l, g)
    if method.feedback == "difference":
        with torch.no_grad():
            before = ce(old.logits(b.emb_ELD), b.y_EL)
            after = ce(new.logits(b.emb_ELD), b.y_EL)
        return peers.average(before - after)
    return torch.zeros(len(b.y_EL), dtype=b.emb_ELD.dtype, device=b.emb_ELD.device)
