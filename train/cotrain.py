"""Meta Co-Training (arXiv 2311.18083): one step, for V views and E independent experiments.

The views are probes f_v with parameters t_v on embeddings of the same images. On U unlabelled rows the other views, as teachers,
hand labels to the student v; v learns from them; what that did to v's loss on L labelled rows tells the teachers how good their
labels were. Everything is a pure function of (state, batch). Axes stand in the names: E experiments, U and L rows, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from train.peers import Peers
from train.probe import Params, forward


@dataclass(frozen=True)
class State:
    """One view: parameters and Adam's moments (dicts of (E, ...) tensors) and the number of Adam steps taken."""

    params: Params
    mean: Params
    square: Params
    steps: int


@dataclass(frozen=True)
class Batch:
    """One view's rows of one step: embeddings (E, U, D) and (E, L, D), labels (E, L) int64, dropout factors of either forward."""

    emb_EUD: Tensor
    emb_ELD: Tensor
    y_EL: Tensor
    keep_U: Sequence[Tensor] = ()
    keep_L: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Method:
    """The settings of the step. feedback `none` (h = 0) and learn=False (t' = t) are ablations; both together is supervised training."""

    lr: float = 1e-3
    clip: float = 1.0
    feedback: Literal["exact", "difference", "none"] = "exact"
    pseudo: Literal["sample", "argmax"] = "sample"
    temperature: float = 1.0
    learn: bool = True
    update: Callable[..., State] | None = None      # another optimiser step than Adam; the tests use plain gradient descent


def supervised_step(views: Sequence[State], batches: Sequence[Batch], method: Method) -> list[State]:
    """Each view by itself: t <- step(t, grad CE(f(L), y))."""
    return [optimise(view, grad(ce(forward(view.params, b.emb_ELD, b.keep_L), b.y_EL), view.params)[0], method)
            for view, b in zip(live(views), batches, strict=True)]


def mct_step(views: Sequence[State], batches: Sequence[Batch], draws_VEU: Tensor, peers: Peers, method: Method) -> tuple[list[State], Tensor]:
    """One step of this process's views -> (their new states, the feedback h of all V views as (V, E)).

    draws_VEU: uniforms in [0, 1) that decide the sampled labels of every view; `peers` brings in the views of other processes.
    """
    views = live(views)

    # 1 label: every view predicts U; the teacher of v is the softmax of the mean of the other views' logits
    z = [forward(view.params, b.emb_EUD, b.keep_U) for view, b in zip(views, batches, strict=True)]
    z_V = peers.exchange([logits.detach() for logits in z])
    y_V = [hand_out(others(z_V, v).float(), draws_VEU[v], method) for v in range(peers.count)]

    # 2 learn: each student steps on the labels it was given
    g = [grad(ce(logits, y_V[v]), view.params, keep_graph=True)[0] for v, logits, view in zip(peers.mine, z, views, strict=True)]
    learnt = [optimise(view, g_v, method) if method.learn else view for view, g_v in zip(views, g, strict=True)]

    # 3 look: what that did on labelled rows is the feedback h, one number a view and experiment
    l, h = [], []
    for view, new, g_v, b in zip(views, learnt, g, batches, strict=True):
        l_v, _ = grad(ce(forward(new.params, b.emb_ELD, b.keep_L), b.y_EL), new.params)
        l.append(l_v)
        h.append(feedback(method, view, new, g_v, l_v, b))
    h_V = peers.exchange(h)

    # 4 teach: at the original t, each teacher w makes the labels that helped (h > 0) more likely, the others less
    done = []
    for w, z_w, view, new, l_w in zip(peers.mine, z, views, learnt, l, strict=True):
        seen = [*z_V[:w], z_w, *z_V[w + 1:]]                        # w's own logits carry its gradient
        loss_E = sum(h_V[v] * ce(others(seen, v), y_V[v]) for v in range(peers.count) if v != w)
        s_w, _ = grad(loss_E, view.params)
        done.append(optimise(new, {name: s_w[name] + l_w[name] for name in s_w}, method))
    return done, torch.stack(list(h_V))


def others(z_V: Sequence[Tensor], v: int) -> Tensor:
    """The mean of the logits of all views but v."""
    rest = [z for w, z in enumerate(z_V) if w != v]
    return torch.stack(rest).mean(0)


def hand_out(logits_EUC: Tensor, draw_EU: Tensor, method: Method) -> Tensor:
    """Hard labels (E, U) of a teacher: sampled from its (tempered) softmax by inverting the cumulative sum, or its argmax."""
    if method.pseudo == "argmax":
        return logits_EUC.argmax(-1)
    cumulative = softmax(logits_EUC.double() / method.temperature, -1).cumsum(-1)
    return (cumulative < draw_EU.unsqueeze(-1)).sum(-1).clamp_max(logits_EUC.shape[-1] - 1)


def feedback(method: Method, old: State, new: State, g: Params, l: Params, b: Batch) -> Tensor:
    """h (E,): `exact` <l, g>, the first-order fall of the labelled loss along g; `difference` the actual fall, in eval mode."""
    if method.feedback == "exact":
        return sum((l[name] * g[name]).flatten(1).sum(1) for name in g)
    if method.feedback == "difference":
        with torch.no_grad():
            return ce(forward(old.params, b.emb_ELD), b.y_EL) - ce(forward(new.params, b.emb_ELD), b.y_EL)
    return torch.zeros(len(b.y_EL), dtype=b.emb_ELD.dtype, device=b.emb_ELD.device)


def ce(logits_EBC: Tensor, y_EB: Tensor) -> Tensor:
    """Cross-entropy, the mean over the rows: (E,)."""
    return -log_softmax(logits_EBC if logits_EBC.dtype == torch.float64 else logits_EBC.float(), -1).gather(-1, y_EB.unsqueeze(-1)).mean((1, 2))


def grad(loss_E: Tensor, params: Params, keep_graph: bool = False) -> tuple[Params, Tensor]:
    """The gradient of each experiment's loss for its own parameters, and the losses. The experiments do not mix: their sum's gradient is theirs."""
    return dict(zip(params, torch.autograd.grad(loss_E.sum(), list(params.values()), retain_graph=keep_graph), strict=True)), loss_E.detach()


def optimise(view: State, gradient: Params, method: Method) -> State:
    """One step of Adam (Kingma & Ba 2015; betas 0.9, 0.999; eps 1e-8) on the gradient clipped to norm `clip`, per experiment."""
    if method.update is not None:
        return method.update(view, gradient)
    norm_E = sum(g.flatten(1).square().sum(1) for g in gradient.values()).sqrt()
    scale_E = (method.clip / (norm_E + 1e-6)).clamp_max(1.0)
    steps, new, mean, square = view.steps + 1, {}, {}, {}
    for name, g in gradient.items():
        g = g * scale_E.view(-1, *[1] * (g.dim() - 1))
        mean[name] = torch.lerp(view.mean[name], g, 0.1)
        square[name] = torch.lerp(view.square[name], g * g, 0.001)
        denominator = (square[name] / (1 - 0.999**steps)).sqrt() + 1e-8
        new[name] = (view.params[name] - method.lr / (1 - 0.9**steps) * mean[name] / denominator).detach().requires_grad_()
    return State(new, mean, square, steps)


def live(views: Sequence[State]) -> list[State]:
    """The same states with parameters that autograd follows."""
    return [State({name: p.detach().requires_grad_() for name, p in view.params.items()}, view.mean, view.square, view.steps) for view in views]


def fresh(params: Params) -> State:
    """A state before its first step."""
    return State(params, {name: torch.zeros_like(p) for name, p in params.items()}, {name: torch.zeros_like(p) for name, p in params.items()}, 0)
