"""How good predictions are: top-1 accuracy, negative log-likelihood, expected calibration error; per view and joint."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from train.probe import Params, forward

BINS = 15


@torch.no_grad()
def predict(params: Params, embeddings: Callable[[np.ndarray], Tensor], rows: np.ndarray, chunk: int = 4096) -> Tensor:
    """(E, n, C) float32 logits of E probes on the same `rows`; embeddings(rows) gives (n, D) standardised inputs."""
    parts = []
    for start in range(0, len(rows), chunk):
        x_nD = embeddings(rows[start:start + chunk])
        parts.append(forward(params, x_nD.expand(len(params["b0"]), -1, -1)))
    logits = torch.cat(parts, 1)
    return logits if logits.dtype == torch.float64 else logits.float()


def joint(logits_V: Sequence[Tensor]) -> Tensor:
    """The joint prediction: the sum of the views' logits."""
    return torch.stack(list(logits_V)).sum(0)


def top1_nll(logits_EnC: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean negative log-likelihood (nats), (E,) each."""
    log_p = torch.log_softmax(logits_EnC, -1)
    y_En1 = y_n.expand(len(logits_EnC), -1).unsqueeze(-1)
    return (logits_EnC.argmax(-1) == y_n).double().mean(1), -log_p.gather(-1, y_En1).double().mean((1, 2))


def ece(logits_EnC: Tensor, y_n: Tensor) -> Tensor:
    """Expected calibration error (Guo et al. 2017), 15 equal bins of confidence: (E,)."""
    confidence, prediction = torch.softmax(logits_EnC, -1).max(-1)
    correct = (prediction == y_n).double()
    bins = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
    gap = torch.zeros(len(logits_EnC), BINS, dtype=torch.float64, device=logits_EnC.device)
    gap.scatter_add_(1, bins, correct - confidence.double())
    return gap.abs().sum(1) / len(y_n)


def metrics(logits_EnC: Tensor, y_n: Tensor) -> dict[str, list[float]]:
    """top1, nll and ece, one number per experiment."""
    top1, nll = top1_nll(logits_EnC, y_n)
    return {"top1": top1.tolist(), "nll": nll.tolist(), "ece": ece(logits_EnC, y_n).tolist()}
