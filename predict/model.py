"""What a trained model is and says: views, probes, graphs, pool, temperature -> probabilities.
Knows neither runs nor files; see predict/from_run.py.

Read `Model.scores`, then `Model.log_probabilities`.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize, softmax

from base.errors import DataQualityError, UsageError
from cache_specs.text import SHORTEST
from train.algorithm.evaluate import TEMPERATURES, joint, pooled
from train.algorithm.neighbours import Index
from train.algorithm.probe import Params, forward
from train.algorithm.propagation import log_said, said
from train.data.feed import Input
from train.data.graph import EXACT
from train.data.names import NAMES, balanced
from train.data.towers import LEAST

# The distance, of rows of length 1, within which an image is a node: the noise of float16 is a
# tenth of that.
SAME = 1e-2
TIE = 1e-13  # of two nodes equally near the earlier one comes first, here as in ONNX
CHUNK, CELLS = 4_096, 2**25  # rows at a time, and rows times nodes
FAR = 0.1  # of the chance that an image seems strange: the part of being far from all nodes
FITTED = 8_192  # validation rows, evenly spaced, for the temperature
FLOOR = math.log(torch.finfo(torch.float32).tiny)  # of log-probabilities: -87.3


@dataclass(frozen=True)
class ViewRecord:
    """One view as it was when the model was trained: its declared spec, the hash of its weights,
    its TOML file, the images of a batch, and the commit of the hub, where the weights are its."""

    name: str
    width: int
    spec: dict[str, Any]
    weights_sha256: str
    spec_file: str
    batch: int
    weights_commit: str = ""


@dataclass(frozen=True, eq=False)
class Opinions:
    """Of n images. joint_nC: float32 probabilities, the geometric mean over the seeds at the
    temperature; views_VnC: each view's own, the mean over the seeds, as its probes give them (V = 0
    where one probe reads all views); agreement_n: the share of the views whose first choice is the
    joint's, NaN where V = 0."""

    joint_nC: np.ndarray
    views_VnC: np.ndarray
    agreement_n: np.ndarray

    @property
    def choice_n(self) -> np.ndarray:
        return self.joint_nC.argmax(1)

    @property
    def confidence_n(self) -> np.ndarray:
        return self.joint_nC.max(1)

    @property
    def second(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) the second choice, and its probability."""
        rows = np.arange(len(self.joint_nC))
        others_nC = self.joint_nC.copy()
        others_nC[rows, self.choice_n] = -1
        second_n = others_nC.argmax(1)
        return second_n, others_nC[rows, second_n]

    @property
    def margin_n(self) -> np.ndarray:
        """The first minus the second probability."""
        top2 = np.partition(self.joint_nC, -2, 1)[:, -2:]
        return top2[:, 1] - top2[:, 0]


def opinions_of(joint_nC: np.ndarray, views_VnC: np.ndarray) -> Opinions:
    agreement_n = np.full(len(joint_nC), np.nan, np.float32)
    if len(views_VnC):
        agrees_Vn = views_VnC.argmax(2) == joint_nC.argmax(1)
        agreement_n = agrees_Vn.mean(0, dtype=np.float32)
    return Opinions(joint_nC, views_VnC, agreement_n)


class Places(NamedTuple):
    """The nearest nodes of images, (n, k), nearest first; which images are no nodes; the cosine
    with the nearest, (n,) float64."""

    near_nk: Tensor
    others_R: Tensor
    likeness_n: Tensor


class Sight(NamedTuple):
    """Of one seed, float32: how much of the labels reaches the nodes; ascending how much reaches
    the rows that judged, by trainings that did not know their labels, and the cosine of each node
    with the nearest other one."""

    reach_M: Tensor
    reached_n: Tensor
    apart_n: Tensor


def share_below(known_n: Tensor, values: Tensor) -> Tensor:
    """float64: of the known ones, ascending, the share that is no larger, each value counted as one
    of them."""
    below = torch.searchsorted(known_n, values.to(known_n).contiguous(), right=True)
    return (1 + below.double()) / (1 + len(known_n))


@dataclass(frozen=True, eq=False)
class Expert:
    """What label propagation on the views `views`, side by side, knows. nodes_MD: float32 rows of
    length 1; member_EM: which of them are nodes of each seed's graph; told_EMC: float32, what these
    know; neighbours_E: the number of nearest nodes that speak for another image. factor_ED: float32
    to stretch the rows by for each seed, so that its views have the shares that they had in its
    graph. sights_E: what tells how familiar an image is, where it is known."""

    views: list[int]
    nodes_MD: Tensor
    member_EM: Tensor
    told_EMC: Tensor
    neighbours_E: list[int]
    factor_ED: Tensor
    sights_E: list[Sight] = field(default_factory=list)

    @functools.cached_property
    def groups(self) -> list[list[int]]:
        """The seeds, together those of the same factors."""
        groups: dict[bytes, list[int]] = {}
        for e, factor_D in enumerate(self.factor_ED.cpu().numpy()):
            groups.setdefault(factor_D.tobytes(), []).append(e)
        return list(groups.values())

    def offset(self, e: int, nodes_MD: Tensor) -> Tensor:
        """(M,) what is added to a node's likeness: half of its squared length, and its order."""
        order_M = torch.arange(len(nodes_MD), dtype=torch.float64, device=nodes_MD.device)
        offset_M = -nodes_MD.square().sum(1) / 2 - TIE * order_M
        return torch.where(self.member_EM[e], offset_M, -torch.inf)

    @functools.cached_property
    def indices(self) -> list[Index]:
        """Of the nodes for each of `groups`, where these are too many to be compared with every
        image, and those of all seeds; else none."""
        large = len(self.nodes_MD) > EXACT and self.nodes_MD.device.type == "cpu"
        if not large or not bool(self.member_EM.all()):
            return []
        most = max(self.neighbours_E)
        return [Index(self.nodes_MD * self.factor_ED[group[0]], most) for group in self.groups]

    def __call__(self, x_V: Sequence[Tensor]) -> Tensor:
        """(n, D_v) standardised embeddings of all views -> (E, n, C) float32 log-probabilities."""
        return log_said(self._said(x_V, self.told_EMC))

    def familiar(self, x_V: Sequence[Tensor]) -> Tensor | None:
        """(n,) float64: the share of the rows that judged which the labels reach no better, the row
        itself among them, a conformal p-value (Shafer & Vovk 2008); of an image that is no node
        also of the nodes that are no nearer to the others. Of these two the lesser counts, divided
        by its part of the chance, 1 - FAR and FAR (a weighted Bonferroni correction). Of several
        seeds the median, which is seldom very small where they differ. None where nobody
        judged."""
        if not self.sights_E:
            return None
        shares = []
        near_E = self._near(x_V)
        for e, sight in enumerate(self.sights_E):
            near_nk, others_R, likeness_n = near_E[e]
            reach_n = said(sight.reach_M.unsqueeze(-1), near_nk, others_R)[:, 0]
            share_n = share_below(sight.reached_n, reach_n)
            far_R = share_below(sight.apart_n, likeness_n[others_R])
            both_R = torch.minimum(share_n[others_R] / (1 - FAR), far_R / FAR)
            share_n[others_R] = both_R.clamp_max(1)
            shares.append(share_n)
        return torch.stack(shares).quantile(0.5, 0)

    def _said(self, x_V: Sequence[Tensor], told_EMC: Tensor) -> list[Tensor]:
        """What nodes that know this say of images, for each seed."""
        near_E = self._near(x_V)
        found = []
        for e, told_MC in enumerate(told_EMC):
            near_nk, others_R, _ = near_E[e]
            found.append(said(told_MC, near_nk, others_R))
        return found

    def _near(self, x_V: Sequence[Tensor]) -> dict[int, Places]:
        """The nearest nodes of images for each seed."""
        x_nD = side_by_side([x_V[view] for view in self.views])
        found: dict[int, Places] = {}
        for number, group in enumerate(self.groups):
            factor_D = self.factor_ED[group[0]]
            if self.indices:
                found |= self._by_index(number, x_nD * factor_D, self.nodes_MD * factor_D)
            else:
                found |= self._compared(x_nD * factor_D, self.nodes_MD * factor_D, group)
        return found

    def _compared(self, x_nD: Tensor, nodes_MD: Tensor, group: Sequence[int]) -> dict[int, Places]:
        x_nD, nodes_MD = x_nD.double(), nodes_MD.double()
        likeness_nM, length_n = x_nD @ nodes_MD.T, x_nD.square().sum(1)
        found = {}
        for e in group:
            # the largest: half of |x|^2 minus the squared distance
            near = (likeness_nM + self.offset(e, nodes_MD)).topk(self.neighbours_E[e])
            distance_n = length_n - 2 * near.values[:, 0]
            others_R = torch.nonzero(distance_n >= SAME**2).flatten()
            found[e] = Places(near.indices, others_R, 1 - distance_n / 2)
        return found

    def _by_index(self, number: int, x_nD: Tensor, nodes_MD: Tensor) -> dict[int, Places]:
        near_nk = self.indices[number](x_nD, max(self.neighbours_E))[1]
        distance_n = (x_nD - nodes_MD[near_nk[:, 0]]).square().sum(1).double()
        others_R = torch.nonzero(distance_n >= SAME**2).flatten()
        found = {}
        for e in self.groups[number]:
            own_nk = near_nk[:, : self.neighbours_E[e]]
            found[e] = Places(own_nk, others_R, 1 - distance_n / 2)
        return found


@dataclass(frozen=True, eq=False)
class ClassNames:
    """What the names of the classes say (train/data/names.py). towers: of each view that has them,
    by its number, the tensors of cache_specs/text.py; bias_EC: float32, each seed's constants."""

    towers: dict[int, Params]
    bias_EC: Tensor

    @classmethod
    def of(cls, tensors: Params) -> "ClassNames | None":
        """Those among the tensors of a run or a model: names.bias, names.VIEW.KEY."""
        if NAMES + "bias" not in tensors:
            return None
        towers: dict[int, Params] = {}
        for key, value in tensors.items():
            view, dot, part = key.removeprefix(NAMES).partition(".")
            if key.startswith(NAMES) and dot:
                towers.setdefault(int(view), {})[part] = value
        return cls(dict(sorted(towers.items())), tensors[NAMES + "bias"])

    @property
    def tensors(self) -> Params:
        """`of`, back."""
        found = {NAMES + "bias": self.bias_EC}
        for view, text in self.towers.items():
            for part, value in text.items():
                found[f"{NAMES}{view}.{part}"] = value
        return found

    def __call__(self, emb_V: Sequence[np.ndarray]) -> Tensor:
        """(n, D_v) embeddings of all views -> (E, n, C) float32 log-probabilities."""
        said_T = []
        for view, text in self.towers.items():
            x_nD = torch.from_numpy(emb_V[view]).to(self.bias_EC.device).float()
            if "projection" in text:
                x_nD = x_nD @ text["projection"]
            if "offset" in text:
                x_nD = x_nD + text["offset"]
            x_nD = normalize(x_nD, dim=1, eps=SHORTEST)
            logits_nC = text["scale"] * (x_nD @ text["classes"].T) + text["bias"]
            said_T.append(softmax(logits_nC.double(), -1))
        log_p_nC = torch.stack(said_T).mean(0).clamp_min(LEAST).log().float()
        return balanced(log_p_nC.expand(len(self.bias_EC), -1, -1), self.bias_EC)


def factors(share_EV: Sequence[Sequence[float]], widths: Sequence[int]) -> Tensor:
    """(E, D) float32: what stretches rows that are side by side with equal shares, so that the
    views have these."""
    rows = []
    for share_V in share_EV:
        stretch_V = [(share * len(widths)) ** 0.5 for share in share_V]
        rows.append(np.repeat(np.array(stretch_V, np.float32), widths))
    return torch.from_numpy(np.stack(rows))


def side_by_side(x_V: Sequence[Tensor]) -> Tensor:
    """(n, D) float32 rows of length 1, each view with the same share in it."""
    unit_V = []
    for x_nD in x_V:
        length_n1 = x_nD.norm(dim=1, keepdim=True)
        unit_V.append(x_nD / torch.where(length_n1 == 0, 1, length_n1))
    return torch.cat(unit_V, 1).float() * len(x_V) ** -0.5


@dataclass(frozen=True, eq=False)
class Model:
    """probes: of each view (of a single one that reads all of them, for concat) the tensors of the
    run's file: `joint.*` (E, …) parameters for the joint, the same without the prefix for the
    view's own opinion, and the input's mean and deviation. weight_ME: of the pool, where there are
    experts: probes, class names where `named` has them, graphs. about: what the run's summary says
    of the method, with the rest of what a reader of the model wants to know."""

    views: list[ViewRecord]
    classes: list[str]
    method: str
    seeds: list[int]
    rule: str
    probes: list[Params]
    experts: list[Expert]
    weight_ME: Tensor | None
    temperature: float
    about: dict[str, Any]
    named: ClassNames | None = None

    @property
    def names(self) -> list[str]:
        return [view.name for view in self.views]

    @property
    def widths(self) -> list[int]:
        return [view.width for view in self.views]

    def __call__(self, emb_V: Sequence[np.ndarray]) -> Opinions:
        """(n, D_v) embeddings, float16 or float32, one array a view in the order of `names`. Raises
        UsageError for other shapes, DataQualityError for rows that are not finite, or so large that
        the probabilities are not."""
        joints, views = [], []
        for rows in self._chunks(emb_V):
            log_views_VnC, log_joint_nC = self.log_probabilities(*self.scores(rows))
            joints.append(log_joint_nC.exp().float().cpu().numpy())
            views.append(log_views_VnC.exp().float().cpu().numpy())
        joint_nC, views_VnC = np.concatenate(joints), np.concatenate(views, 1)
        bad = int((~np.isfinite(joint_nC).all(1)).sum())
        if bad:
            raise DataQualityError(
                f"the model gives no probabilities of {bad} of {len(joint_nC)} rows, since their "
                "numbers are too large. Give embeddings like those that it was trained on, of "
                f"{', '.join(self.names)}"
            )
        return opinions_of(joint_nC, views_VnC)

    @torch.no_grad()
    def familiar(self, emb_V: Sequence[np.ndarray]) -> np.ndarray | None:
        """(n,) float32: of each image the share of the labelled ones that the labels reach no
        better (`Expert.familiar` on all views); None where there is no graph, or nobody judged.
        Raises as __call__ does."""
        if not self.experts:
            return None
        found = []
        for rows in self._chunks(emb_V):
            each = self.experts[-1].familiar(self._inputs(rows))
            if each is None:
                return None
            found.append(each.float().cpu().numpy())
        return np.concatenate(found)

    def _inputs(self, emb_V: Sequence[np.ndarray]) -> list[Tensor]:
        """What each probe reads, standardised."""
        groups = [list(emb_V)] if self.method == "concat" else [[emb_nD] for emb_nD in emb_V]
        every = np.arange(len(emb_V[0]))
        found = []
        for group, probe in zip(groups, self.probes, strict=True):
            found.append(Input(group, probe["input_mean"], probe["input_std"])(every))
        return found

    @torch.no_grad()
    def scores(self, emb_V: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(V, E, n, C) logits of each view's own probes, and (E, n, C) log-scores of the joint
        without its temperature; all rows at once."""
        x_V, own_V = self._inputs(emb_V), []
        for x_nD, probe in zip(x_V, self.probes, strict=True):
            own_V.append(_logits({key: probe[key] for key in of_joint(probe)}, x_nD))
        if self.method == "concat":
            return own_V[0].new_empty(0, *own_V[0].shape), own_V[0]
        fused_V = []
        for probe, x_nD in zip(self.probes, x_V, strict=True):
            fused_V.append(_logits(of_joint(probe), x_nD))
        if self.weight_ME is None:
            return torch.stack(own_V), joint(fused_V, self.rule)
        told_F = self._fixed(emb_V, x_V)
        pool = torch.stack([*fused_V, *[said.to(fused_V[0].dtype) for said in told_F]])
        return torch.stack(own_V), pooled(pool, self.weight_ME)

    def _fixed(self, emb_V: Sequence[np.ndarray], x_V: Sequence[Tensor]) -> list[Tensor]:
        """What the experts say that have not learnt: class names, graphs. x_V: standardised."""
        named = [self.named(emb_V)] if self.named else []
        return [*named, *[expert(x_V) for expert in self.experts]]

    def log_probabilities(self, views_VEnC: Tensor, joint_EnC: Tensor) -> tuple[Tensor, Tensor]:
        """(V, n, C) and (n, C) float64: the means over the seeds, of the joint the geometric one at
        the temperature; none below FLOOR."""
        joint_nC = log_softmax(_together(joint_EnC) / self.temperature, -1)
        return _mean(views_VEnC).clamp_min(FLOOR), joint_nC.clamp_min(FLOOR)

    def calibrated(self, emb_V: Sequence[np.ndarray], y_n: np.ndarray) -> "Model":
        """This model at the temperature, of a grid of 61, at which these labelled rows have the
        lowest loss; there is at least one. It is that of the mean over the seeds: seeds that are
        sure of different things are together too modest, which no temperature of each mends.

        The loss of a row is that of Platt (1999): the share 1 / (n + 2) of it counts as wrong, so
        that n rows without an error do not make the model infinitely sure of itself.
        """
        every = slice(None, None, -(-len(y_n) // FITTED))
        few_V = [emb_nD[every] for emb_nD in emb_V]
        parts = [self.scores(rows)[1].double().cpu() for rows in self._chunks(few_V)]
        return self.at_best(_together(torch.cat(parts, 1)), y_n[every])

    def at_best(self, log_p_nC: Tensor, y_n: np.ndarray) -> "Model":
        """`calibrated`, on (n, C) float64 log-probabilities of labelled rows at temperature 1."""
        right_n1 = torch.from_numpy(y_n.astype(np.int64))[:, None]
        doubt = 1 / (len(right_n1) + 2)
        losses = []
        for temperature in TEMPERATURES.tolist():
            told_nC = log_softmax(log_p_nC / temperature, -1)
            told_n = told_nC.gather(-1, right_n1).squeeze(-1)
            wrong_n = torch.log(-torch.expm1(told_n.clamp_max(-1e-12)))
            losses.append(-((1 - doubt) * told_n + doubt * wrong_n).mean())
        return replace(self, temperature=float(TEMPERATURES[torch.stack(losses).argmin()]))

    def _chunks(self, emb_V: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """The rows in pieces, at least one. Raises as __call__ does."""
        n = self._count(emb_V)
        compared = [len(one.nodes_MD) for one in self.experts if not one.indices]
        step = max(1, min(CHUNK, CELLS // max(compared, default=1)))
        chunks = []
        for first in range(0, max(n, 1), step):
            here = slice(first, first + step)
            chunks.append([np.ascontiguousarray(emb_nD[here]) for emb_nD in emb_V])
        return chunks

    def _count(self, emb_V: Sequence[np.ndarray]) -> int:
        """n. Raises where they are not what the model reads."""
        found = [np.shape(emb_nD) for emb_nD in emb_V]
        n = found[0][0] if found and found[0] else 0
        if found != [(n, width) for width in self.widths]:
            wanted = ", ".join(f"{view.name} (n, {view.width})" for view in self.views)
            raise UsageError(
                f"the model reads {wanted}, in this order and of the same n images; found the "
                f"shapes {', '.join(map(str, found)) or 'none'}"
            )
        for name, emb_nD in zip(self.names, emb_V, strict=True):
            bad = int((~np.isfinite(emb_nD).all(1)).sum())
            if bad:
                raise DataQualityError(
                    f"{bad} of {n} rows of the view {name!r} are not finite. Rows that could not "
                    "be embedded are NaN; leave them out, in every view: those where "
                    "np.isfinite(emb_nD).all(1) is False"
                )
        return n


def of_joint(probe: Params) -> Params:
    """The parameters that speak for a view in the joint; the same names are those of its own."""
    prefix = "joint."
    return {key[len(prefix) :]: p for key, p in probe.items() if key.startswith(prefix)}


def _logits(params: Params, x_nD: Tensor) -> Tensor:
    return forward(params, x_nD.expand(len(params["b0"]), -1, -1))


def _together(scores_EnC: Tensor) -> Tensor:
    """The mean over the seeds of the logarithms of the distributions, float64: their geometric
    mean, as `pooled` joins experts, up to what a softmax forgets."""
    return log_softmax(scores_EnC.double(), -1).mean(-3)


def _mean(scores_EnC: Tensor) -> Tensor:
    """The logarithm of the mean over the seeds of the distributions, float64."""
    log_p = log_softmax(scores_EnC.double(), -1)
    return log_p.logsumexp(-3) - math.log(log_p.shape[-3])
