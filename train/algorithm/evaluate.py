"""How good predictions are: top-1 accuracy, balanced accuracy, macro F1, negative log-likelihood,
expected calibration error; per view and joint."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot, softmax

from train.algorithm.probe import Params, forward

BINS = 15  # of confidence
# 0.03 to 32, each 12 % above the last
TEMPERATURES = torch.logspace(-1.5, 1.5, 61, base=10, dtype=torch.float64)
POOL = 4_096  # labelled rows at most, to which the weights of the pool are fitted
NEWTON = 50  # steps at most
ROWS = 65_536  # whose entropy is computed at a time
# of the pool: the weights of all probes (of very many labels) and of all graphs together where
# nobody judges, and twice the nats that a weight which is 1 beside its usual one has to gain
USUAL_PROBES, USUAL_GRAPHS, SHRINK = 0.5, 1.5, 4.0
ALONE = 0.1  # of the graphs' weight: what those of single views have, where there are several


@torch.no_grad()
def predict(
    params: Params, embeddings: Callable[[np.ndarray], Tensor], rows: np.ndarray, chunk: int = 4096
) -> Tensor:
    """(E, n, C) float32 logits of E probes on `rows`, (n,) the same or (E, n) for each its own;
    embeddings(rows) gives (…, n, D) standardised inputs."""
    parts = []
    for start in range(0, max(1, rows.shape[-1]), chunk):
        parts.append(_forward(params, embeddings, rows[..., start : start + chunk]))
    logits = torch.cat(parts, 1)
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def choices(
    params: Params, embeddings: Callable[[np.ndarray], Tensor], rows: np.ndarray, chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """The first choice, (E, n) int64, and its probability, (E, n): what `predict` would give,
    without (E, n, C) in memory."""
    probabilities, firsts = [], []
    for start in range(0, len(rows), chunk):
        logits = _forward(params, embeddings, rows[start : start + chunk]).float()
        values, indices = softmax(logits, -1).max(-1)
        probabilities.append(values)
        firsts.append(indices)
    return torch.cat(firsts, 1), torch.cat(probabilities, 1)


def _forward(
    params: Params, embeddings: Callable[[np.ndarray], Tensor], rows: np.ndarray
) -> Tensor:
    return forward(params, embeddings(rows).expand(len(params["b0"]), -1, -1))


def joint(logits_V: Sequence[Tensor], rule: str = "logit-sum") -> Tensor:
    """The joint prediction of V views, (E, n, C), as log-scores whose softmax is its distribution.

    logit-sum           the sum of the logits (the paper's)
    product             the product of the probabilities: the same distribution, since a softmax
                        forgets what is common to all classes
    mean-probability    the mean of the probabilities
    vote                one vote a view for its first choice; ties go to the higher mean probability
    """
    logits = torch.stack(list(logits_V))
    if rule == "logit-sum":
        return logits.sum(0)
    if rule == "product":
        return log_softmax(logits, -1).sum(0)
    mean = softmax(logits, -1).mean(0)
    if rule == "mean-probability":
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    votes = one_hot(logits.argmax(-1), logits.shape[-1]).to(mean.dtype).mean(0)
    return (0.999 * votes + 0.001 * mean).clamp_min(torch.finfo(mean.dtype).tiny).log()


def pooled(scores_MEnC: Tensor, weight_ME: Tensor) -> Tensor:
    """The weighted product of M experts' distributions, (E, n, C) float64 log-scores: a logarithmic
    opinion pool (Genest & Zidek 1986)."""
    return (weight_ME[:, :, None, None] * log_softmax(scores_MEnC.double(), -1)).sum(0)


def usual_pool(probes: int, labels: float, names_NE: Tensor, shares_GE: Tensor) -> Tensor:
    """(M, E) float64 weights of `pooled` where nobody judges: of the probes, the class names (N is
    1 or 0) and the graphs. labels: of a class, on average; one teaches probes nothing that graphs
    do not know better. shares_GE: of the graphs in what they weigh together, columns of sum 1."""
    each = USUAL_PROBES * max(0.0, 1 - 1 / labels) / max(1, probes)
    of_probes = shares_GE.new_full((probes, shares_GE.shape[1]), each)
    return torch.cat([of_probes, names_NE, USUAL_GRAPHS * shares_GE])


def certainty(p_nC: np.ndarray) -> float:
    """How sure distributions are, 0 to 1: 1 - their mean entropy, divided by the largest. No label
    is asked: where the labels of several classes reach the same rows, as in a view that knows
    little of them, nobody is sure."""
    n, classes = p_nC.shape
    if classes == 1 or n == 0:
        return 1.0
    entropy = 0.0
    for first in range(0, n, ROWS):
        part = p_nC[first : first + ROWS].astype(np.float64)
        entropy -= float((part * np.log(np.maximum(part, np.finfo(np.float64).tiny))).sum())
    return max(0.0, 1 - entropy / (n * np.log(classes)))


def shares_of(sure_V: Sequence[float]) -> Tensor:
    """(V,) float64 of sum 1: of views, by the square of their graphs' certainty."""
    square_V = torch.tensor(sure_V, dtype=torch.float64).square()
    if not square_V.any():
        square_V = torch.ones_like(square_V)
    return square_V / square_V.sum()


def shares_of_graphs(sure_V: Sequence[float]) -> Tensor:
    """(G,) float64 of sum 1: of the views' own graphs, and of the one of all side by side, in which
    each view has its share already."""
    if len(sure_V) == 1:
        return torch.ones(1, dtype=torch.float64)
    return torch.cat([ALONE * shares_of(sure_V), torch.tensor([1 - ALONE], dtype=torch.float64)])


def fit_pool(scores_MEnC: Tensor, y_En: Tensor, start_ME: Tensor, usual_ME: Tensor) -> Tensor:
    """(M, E) float64 weights >= 0 of `pooled` with the lowest NLL on these labelled rows (at most
    POOL of them, evenly spaced), (n,) the same or (E, n) for each experiment its own.

    An expert that knows nothing gets 0, and two that know the same share. The fewer rows there are,
    the nearer they stay to usual_ME: a Gaussian prior. One experiment after the other: a batched
    solver adds up in another order.
    """
    if not y_En.shape[-1]:
        return usual_ME.to(start_ME).clone()
    every = -(-y_En.shape[-1] // POOL)
    log_p = log_softmax(scores_MEnC[:, :, ::every].double(), -1)
    y_En = y_En[..., ::every].expand(start_ME.shape[1], -1)
    found = []
    for e in range(start_ME.shape[1]):
        usual_M = usual_ME[:, e].to(log_p)
        found.append(_fit_pool(log_p[:, e], y_En[e], start_ME[:, e].double(), usual_M))
    return torch.stack(found, 1)


def _fit_pool(log_p_MnC: Tensor, y_n: Tensor, weight_M: Tensor, usual_M: Tensor) -> Tensor:
    """The NLL and the prior are convex in the weights: Newton's method on those that are not held
    at 0, damped until a step helps."""
    experts, n, _ = log_p_MnC.shape
    told_Mn = log_p_MnC.gather(-1, y_n.expand(experts, -1).unsqueeze(-1)).squeeze(-1)
    eye = torch.eye(experts, dtype=torch.float64, device=weight_M.device)
    shrink = SHRINK / n

    def loss(w_M: Tensor, z_nC: Tensor) -> Tensor:
        return (z_nC.logsumexp(-1) - w_M @ told_Mn).mean() + shrink / 2 * (
            w_M - usual_M
        ).square().sum()

    def mixed(w_M: Tensor) -> Tensor:
        return (w_M @ log_p_MnC.flatten(1)).view(n, -1)

    z_nC = mixed(weight_M)
    now = loss(weight_M, z_nC)
    damping = 1e-3
    for _ in range(NEWTON):
        p_log_p = softmax(z_nC, -1) * log_p_MnC
        mean_Mn = p_log_p.sum(-1)
        slope = (mean_Mn - told_Mn).mean(-1) + shrink * (weight_M - usual_M)
        square = p_log_p.flatten(1) @ log_p_MnC.flatten(1).T
        second = (square - mean_Mn @ mean_Mn.T) / n + shrink * eye
        free = ((weight_M > 0) | (slope < 0)).double()
        damped = torch.diag(damping * second.diagonal() + 1 - free)
        second = second * free * free.unsqueeze(1) + damped
        trial = (weight_M - torch.linalg.solve(second, slope * free)).clamp_min(0)
        z_trial = mixed(trial)
        then = loss(trial, z_trial)
        if then < now:
            step = now - then
            weight_M, z_nC, now = trial, z_trial, then
            damping /= 4
            if step < 1e-12:
                break
        elif damping > 1e6:
            break
        else:
            damping *= 8
    return weight_M


def top1_nll(logits_EnC: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean negative log-likelihood (nats), (E,) each."""
    log_p = log_softmax(logits_EnC, -1)
    y_En1 = y_n.expand(len(logits_EnC), -1).unsqueeze(-1)
    top1 = (logits_EnC.argmax(-1) == y_n).double().mean(1)
    return top1, -log_p.gather(-1, y_En1).double().mean((1, 2))


def ece(logits_EnC: Tensor, y_n: Tensor) -> Tensor:
    """Expected calibration error (Guo et al. 2017), 15 equal bins of confidence: (E,)."""
    confidence, prediction = softmax(logits_EnC, -1).max(-1)
    correct = (prediction == y_n).double()
    bins = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
    gap = torch.zeros(len(logits_EnC), BINS, dtype=torch.float64, device=logits_EnC.device)
    gap.scatter_add_(1, bins, correct - confidence.double())
    return gap.abs().sum(1) / y_n.shape[-1]


def class_scores(pred_En: Tensor, y_n: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Balanced accuracy and macro F1, (E,) float64 each, of the classes alike, whatever their sizes
    are: the mean recall of the classes that y_n has, and the mean F1 of those that y_n has or that
    are predicted. Those are scikit-learn's conventions."""
    y_En = y_n.expand(len(pred_En), -1)

    def counts(class_En: Tensor, weight_En: Tensor) -> Tensor:
        zeros = torch.zeros(len(class_En), classes, dtype=torch.float64, device=class_En.device)
        return zeros.scatter_add_(1, class_En, weight_En)

    right_En = (pred_En == y_En).double()
    right_EC, there_EC = counts(y_En, right_En), counts(y_En, torch.ones_like(right_En))
    either_EC = there_EC + counts(pred_En, torch.ones_like(right_En))
    recall_EC = right_EC / there_EC.clamp_min(1)
    f1_EC = 2 * right_EC / either_EC.clamp_min(1)
    return recall_EC.sum(1) / (there_EC > 0).sum(1), f1_EC.sum(1) / (either_EC > 0).sum(1)


def judged(logits_EnC: Tensor, y_n: Tensor, by: str) -> dict[str, Tensor]:
    """top1 and nll, (E,) each, and `by`, one of top1, balanced and f1, by which is chosen."""
    top1, nll = top1_nll(logits_EnC, y_n)
    found = {"top1": top1, "nll": nll}
    if by != "top1":
        of_classes = class_scores(logits_EnC.argmax(-1), y_n, logits_EnC.shape[-1])
        found |= {by: dict(zip(("balanced", "f1"), of_classes, strict=True))[by]}
    return found


def share_right(pred_n: np.ndarray, y_n: np.ndarray, classes: int, by: str) -> float:
    """`by`, one of top1, balanced and f1, of first choices."""
    if by == "top1":
        return float((pred_n == y_n).mean())
    pred_1n = torch.from_numpy(pred_n.astype(np.int64)).unsqueeze(0)
    of_classes = class_scores(pred_1n, torch.from_numpy(y_n.astype(np.int64)), classes)
    return float(of_classes[0 if by == "balanced" else 1])


def metrics(logits_EnC: Tensor, y_n: Tensor) -> dict[str, list[float]]:
    """top1, balanced, f1, nll and ece, one number per experiment."""
    top1, nll = top1_nll(logits_EnC, y_n)
    balanced, f1 = class_scores(logits_EnC.argmax(-1), y_n, logits_EnC.shape[-1])
    found = {"top1": top1, "balanced": balanced, "f1": f1, "nll": nll}
    return {name: each.tolist() for name, each in found.items()} | {
        "ece": ece(logits_EnC, y_n).tolist()
    }


def calibrate(logits_EnC: Tensor, y_n: Tensor) -> Tensor:
    """(E,) float64: the temperature, of a grid of 61, at which the softmax has the lowest NLL on
    these labelled rows (Guo et al. 2017)."""
    losses = [top1_nll(logits_EnC.double() / t, y_n)[1] for t in TEMPERATURES.tolist()]
    nll_TE = torch.stack(losses)
    return TEMPERATURES.to(nll_TE.device)[nll_TE.argmin(0)]
