"""A trained model applied to embeddings: the probes of all seeds, the graphs, the pool, a
temperature.

    model, cache, splits = of_run(Path("runs/demo"))
    model = open_model(Path("model"))
    model([clip_nD, dinov2_nD]).joint_nC

The first is that of a finished run and the cache that it was trained on; the second that in a
folder that `make export-model` wrote, without either; the third the probabilities of n images, of
which each view has one embedding.

The joint is the geometric mean of the seeds' distributions at one temperature, fitted on the run's
validation rows; how often it is right is counted on the test rows, by which nothing was chosen. All
seeds of a run have these rows in common. A graph (train/data/graph.py) says of an image that is no
node of it the mean of what its nearest nodes know, and of one that is, what that node knows.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from base.errors import UNKNOWN, IntegrityError, StaleError, UsageError
from base.phrase import quoted
from cache_specs import store
from cache_specs.spec import differences
from predict.bundle.folder import read_model
from predict.choose import choose_method
from predict.model import (
    FITTED,
    ClassNames,
    Expert,
    Model,
    Opinions,
    Sight,
    ViewRecord,
    factors,
    opinions_of,
    side_by_side,
)
from train.algorithm.probe import Params
from train.data.apart import apart_of, nobody
from train.data.feed import Input
from train.data.folds import splits_of
from train.data.graph import POWER, Graph, Share, equal_shares, groups_of, nodes_of
from train.data.reader import Cache, open_cache
from train.data.splits import Split, make_split, spaced
from train.data.texts import labelled_by_names, with_classes, with_texts, without_texts
from train.methods import METHODS, learns_unlabelled
from train.run.probe_files import read_tensors
from train.run.rundir import finished, keys_of, split_file
from train.run.scoring import out_of_fold
from train.run.summary import checked, read_summary

log = logging.getLogger(f"coview.{__name__}")
PRIVATE = ("views", "data", "labels")  # settings that may hold paths of this machine, or keys
__all__ = ["Model", "Opinions", "choose_method", "of_run", "open_model"]


def of_run(
    run: Path, method: str = "", device: str = "cpu", cache: Path = Path("cache")
) -> tuple[Model, Cache, list[Split]]:
    """The model of a finished run's METHOD, the cache that it was trained on and the seeds' splits.

    method "": mct-graph if it is there, else the one with the best joint on validation; the test
    split has no say. Raises UsageError (no such run, not finished, a method that keeps no model),
    StaleError (the cache or its labels are other ones), IntegrityError (a damaged probe).
    """
    run, cache = Path(run), Path(cache)
    config, summary = finished(run), read_summary(run)
    settings = config["settings"]
    method = choose_method(summary, method)
    opened = trained = _open(run, cache, config, summary["dataset"])
    if summary.get("taken"):
        opened = _named(run, opened, config)
        trained = labelled_by_names(opened)
    splits = _splits(run, trained, settings, summary)
    where, scores = torch.device(device), summary["methods"][method]
    names = ["concat"] if method == "concat" else opened.names
    probes = [_tensors(run, method, name, scores, where) for name in names]
    experts, weight_ME, pool = [], None, {}
    if METHODS[method].graphs:
        pool = _tensors(run, method, "pool", scores, where)
        experts = experts_of(trained, splits, pool, probes, where)
        weight_ME = pool["weight"]
    views = []
    for name, folder, emb_ND in zip(opened.names, opened.folders, opened.emb, strict=True):
        views.append(_view(folder, name, emb_ND.shape[1]))
    model = Model(
        views,
        opened.items.classes,
        method,
        summary["seeds"],
        summary["joint"],
        [without_said(tensors) for tensors in probes],
        experts,
        weight_ME,
        1.0,
        _about(run, settings, summary, scores),
        ClassNames.of(pool),
    )
    out = None
    if splits[0].folds:
        said = out_of_fold(METHODS[method], probes, pool, summary["joint"])
        out = left_out(said, splits, concat=method == "concat")
    return _held_out(model, opened, splits, out), opened, _seen(splits, trained.taken)


def _seen(splits: list[Split], taken: int) -> list[Split]:
    """The splits as users see them: what class names have labelled, nobody has."""
    return [_without_labels(split) for split in splits] if taken else splits


def _without_labels(split: Split) -> Split:
    every = np.union1d(split.labelled, split.unlabelled)
    return replace(split, labelled=every[:0], unlabelled=every)


def _open(run: Path, cache: Path, config: dict[str, Any], dataset: str) -> Cache:
    """What the run was trained on, with the labels of then. Raises UsageError or StaleError."""
    settings, trained_on = config["settings"], without_texts(config["fingerprints"])
    views = [name.strip() for name in settings["views"].split(",")]
    key = trained_on["items"][:8]
    folders = sorted(cache.glob(f"*-{key}/dataset.json"))
    if not folders:
        raise UsageError(
            f"RUN={run.name} was trained on {dataset}-{key}, which is not in {cache}/. Name the "
            "cache it is in: CACHE=…, or make it again: make extract "
            f"VIEW={quoted(views[0])} DATA={quoted(settings['data'])}"
        )
    # the same images may be there under another name too
    names = [path.parent.name for path in folders]
    mine = next((name for name in names if name.rpartition("-")[0] == dataset), names[0])
    opened = open_cache(cache, mine, views, labels=trained_on["labels"])
    changed = differences(trained_on, opened.fingerprints)
    if changed:
        lines = "\n  ".join(changed)
        raise StaleError(
            f"{cache / mine} is not what {run} was trained on any more:\n  {lines}\nTrain on what "
            "it is now, under another RUN, or name the cache of then with CACHE=…",
            instead={"CACHE": UNKNOWN},
        )
    return opened


def without_said(tensors: Params) -> Params:
    """What a probe is made of, without what was said out of fold."""
    return {key: value for key, value in tensors.items() if not key.endswith("said")}


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Rows that were labelled, and what trainings that did not know their labels say of them: the
    mean over the seeds that left a row out. log_joint_nC: float64, at temperature 1."""

    rows: np.ndarray
    log_joint_nC: Tensor
    views_VnC: np.ndarray

    def opinions(self, temperature: float) -> Opinions:
        joint_nC = log_softmax(self.log_joint_nC / temperature, -1).exp().float().numpy()
        return opinions_of(joint_nC, self.views_VnC)


def out_of_fold_of(run: Path, method: str, splits: Sequence[Split], device: str) -> LeftOut:
    """What a finished run's METHOD wrote down of the rows that were left out. Raises as of_run."""
    summary, where = read_summary(run), torch.device(device)
    scores, concat = summary["methods"][method], method == "concat"
    names = ["concat"] if concat else summary["views"]
    probes = [_tensors(run, method, name, scores, where) for name in names]
    pool = _tensors(run, method, "pool", scores, where) if METHODS[method].graphs else {}
    return left_out(out_of_fold(METHODS[method], probes, pool, summary["joint"]), splits, concat)


def left_out(said: Sequence[Tensor], splits: Sequence[Split], concat: bool = False) -> LeftOut:
    """said: (S, n, C) of each view and then of the joint (of a joint alone for concat)."""
    rows_Sn = np.stack([split.val for split in splits])
    rows, place_n = np.unique(rows_Sn, return_inverse=True)
    at = torch.from_numpy(place_n.ravel())
    count_n1 = torch.bincount(at, minlength=len(rows)).double()[:, None]

    def mean(each_SnC: Tensor) -> Tensor:
        flat = each_SnC.double().cpu().flatten(0, 1)
        whole = torch.zeros(len(rows), flat.shape[1], dtype=torch.float64)
        return whole.index_add(0, at, flat) / count_n1

    views = [] if concat else said[:-1]
    views_VnC = [mean(softmax(z.double(), -1)).float().numpy() for z in views]
    log_joint_nC = log_softmax(mean(log_softmax(said[-1].double(), -1)), -1)
    shape = (len(views), *log_joint_nC.shape)
    return LeftOut(rows, log_joint_nC, np.array(views_VnC, np.float32).reshape(shape))


def _held_out(
    model: Model, cache: Cache, splits: Sequence[Split], out: LeftOut | None = None
) -> Model:
    """The model at the temperature of the validation rows, and how good it is on the test rows: at
    most FITTED of each, whose images no seed has learnt from. out: labelled rows in place of
    validation rows, which tell, too, how often it is right."""
    val, test = (_not_learnt(model, cache, splits, part) for part in ("val", "test"))
    said = None
    if out is not None and len(out.rows):
        val = out.rows
        model = model.at_best(out.log_joint_nC, cache.items.label[val])
        said = out.opinions(model.temperature)
    elif len(val):
        emb_V = [emb_ND[val] for emb_ND in cache.emb]
        model = model.calibrated(emb_V, cache.items.label[val])
        said = model(emb_V)
    judged = _judged(said, cache.items.label[val])
    top1 = None
    if len(test):
        choice_n = model([emb_ND[test] for emb_ND in cache.emb]).choice_n
        top1 = float((choice_n == cache.items.label[test]).mean())
    counts = {"val": len(val), "test": len(test), "top1": top1}
    found = _counted(judged) if out is not None else None
    held_out: dict[str, Any] = {**counts, "out_of_fold": found, "judged": judged}
    return replace(model, about={**model.about, "held_out": held_out})


def _counted(judged: Sequence[tuple[float, int]]) -> dict[str, Any] | None:
    """Of how many images which share is right."""
    if not judged:
        return None
    return {"images": len(judged), "top1": float(np.mean([right for _, right in judged]))}


def _judged(said: Opinions | None, y_n: np.ndarray) -> list[tuple[float, int]]:
    """Of the images that judge how sure the model is of its word, and whether it is right."""
    if said is None:
        return []
    right_n = (said.choice_n == y_n).astype(int)
    return list(zip(said.confidence_n.tolist(), right_n.tolist(), strict=True))


def _not_learnt(model: Model, cache: Cache, splits: Sequence[Split], part: str) -> np.ndarray:
    """Rows of a part that all seeds have in common, and whose images none has learnt from."""
    labelled, seen = learnt_from(cache, splits)
    known = seen if learns_unlabelled(model.method) else labelled
    common = functools.reduce(np.intersect1d, [getattr(split, part) for split in splits])
    new = [row for row in common.tolist() if cache.items.sha256[row] not in known]
    return spaced(np.array(new, np.int64), FITTED)


def learnt_from(cache: Cache, splits: Sequence[Split]) -> tuple[set[str], set[str]]:
    """The hashes of the images that any seed knew with their labels, and of all training images."""
    found: list[set[str]] = []
    for part in ("labelled", "unlabelled"):
        rows = functools.reduce(np.union1d, [getattr(split, part) for split in splits])
        found.append({cache.items.sha256[row] for row in rows.tolist()} - {""})
    found[0].update(*cache.seen.values())  # what backbones have learnt from
    return found[0], found[0] | found[1]


def _about(
    run: Path, settings: dict[str, Any], summary: dict[str, Any], scores: dict[str, Any]
) -> dict[str, Any]:
    """What a reader of the model wants to know, without what is private."""
    about = {key: summary[key] for key in ("dataset", "labels_text", "rows", "fingerprints")}
    about["folds"], about["taken"] = summary.get("folds", 0), summary.get("taken", 0)
    if not isinstance(settings["labels"], str):
        about["labels_text"] = "a list of labelled images"
    told = {key: value for key, value in settings.items() if key not in PRIVATE}
    return {**about, "run": run.name, "scores": scores, "settings": told}


def experts_of(
    cache: Cache,
    splits: Sequence[Split],
    pool: Params,
    probes: Sequence[Params],
    device: torch.device,
) -> list[Expert]:
    """The graphs of a run with what their nodes know: as the run wrote it down, or, where that was
    too much to keep, solved again with what it chose."""
    nodes_E = [nodes_of(split) for split in splits]
    nodes = np.unique(np.concatenate(nodes_E))
    shape_EM = len(splits), len(nodes)
    found = []
    for number, group in enumerate(groups_of(len(cache.names))):
        k_E = pool["chosen.neighbours"][number].tolist()
        told_E = _kept(pool, number, nodes_E)
        if told_E is None:
            _refuse_other_links(pool)
            settled = list(zip(k_E, pool["chosen.alpha"][number].tolist(), strict=True))
            shares = _shares(pool, group, len(splits))
            told_E = _solved_again(cache, group, splits, device, settled, shares)
        member_EM = torch.zeros(shape_EM, dtype=torch.bool, device=device)
        told_EMC = torch.zeros(*shape_EM, len(cache.items.classes), device=device)
        for e, told_nC in enumerate(told_E):
            at = torch.from_numpy(np.searchsorted(nodes, nodes_E[e])).to(device)
            member_EM[e, at] = True
            told_EMC[e, at] = told_nC
        share_EV = _shares(pool, group, len(splits))
        factor_ED = factors(share_EV, [cache.emb[view].shape[1] for view in group]).to(device)
        x_V = []
        for view in group:
            read = Input([cache.emb[view]], probes[view]["input_mean"], probes[view]["input_std"])
            x_V.append(read(nodes))
        found.append(Expert(group, side_by_side(x_V), member_EM, told_EMC, k_E, factor_ED))
    if "reached" in pool and pool["reached"].shape[1]:
        sights = []
        for e, rows in enumerate(nodes_E):
            reach_M = torch.zeros(len(nodes), device=device)
            reach_M[torch.from_numpy(np.searchsorted(nodes, rows))] = pool[f"reach.{e}"]
            sights.append(Sight(reach_M, pool["reached"][e].sort().values, pool[f"apart.{e}"]))
        found[-1] = replace(found[-1], sights_E=sights)
    return found


def _shares(pool: Params, group: Sequence[int], seeds: int) -> list[Share]:
    """Of each seed the views' shares in a graph; in runs of before all are alike."""
    if len(group) > 1 and "shares" in pool:
        return [tuple(share_V) for share_V in pool["shares"].tolist()]
    return [equal_shares(len(group))] * seeds


def _kept(pool: Params, number: int, nodes_E: Sequence[np.ndarray]) -> list[Tensor] | None:
    """What the nodes of each experiment's graph know, if the run wrote it down."""
    if "told.0.0" not in pool:
        return None
    told_E = [pool[f"told.{number}.{e}"] for e in range(len(nodes_E))]
    same = [len(told_nC) for told_nC in told_E] == [len(rows) for rows in nodes_E]
    return told_E if same else None


def _refuse_other_links(pool: Params) -> None:
    """Graphs of before had links of weight 1: solved anew they would say something else."""
    if int(pool.get("power", torch.tensor(0))) != POWER:
        raise StaleError(
            "the run's graphs are of an earlier version, which linked images otherwise and did not "
            "write down what they know, since it was too much. Train again under another RUN",
            instead={"RUN": UNKNOWN},
        )


def _solved_again(
    cache: Cache,
    group: Sequence[int],
    splits: Sequence[Split],
    device: torch.device,
    settled: list[tuple[int, float]],
    shares: list[Share],
) -> list[Tensor]:
    emb_V, classes = [cache.emb[view] for view in group], len(cache.items.classes)
    graph = Graph(emb_V, cache.items.label, splits, classes, device, settled, shares)
    return [one.told_nC for one in graph.solved_E]


def _named(run: Path, opened: Cache, config: dict[str, Any]) -> Cache:
    """With the class names of then, which are all that the run knew of labels. Raises
    StaleError."""
    named = with_classes(with_texts(opened))
    changed = differences(config["fingerprints"], named.fingerprints)
    if changed:
        lines = "\n  ".join(changed)
        raise StaleError(
            f"{run} knew no label but the class names, and these are others by now:\n  {lines}\n"
            "Train on what they are now, under another RUN, or encode those of then",
            instead={"RUN": UNKNOWN},
        )
    return named


def open_model(folder: Path, device: str = "cpu") -> Model:
    """The model in a folder that `make export-model` wrote. Raises UsageError (no such folder, or
    none of ours) or IntegrityError naming the damaged file."""
    return read_model(Path(folder), torch.device(device))


def _splits(
    run: Path, cache: Cache, settings: dict[str, Any], summary: dict[str, Any]
) -> list[Split]:
    """As they were: by the rule, where that gives the images that the run wrote down, or by these,
    of LABELS=file and of a version that drew others. Raises IntegrityError (a file was changed) or
    StaleError."""
    apart, labels, of_each = apart_of(settings), settings["labels"], []
    if cache.taken:
        apart, labels = nobody(apart), "all"
    items, ok = cache.items, cache.ok
    for seed in summary["seeds"]:
        written = checked(run, split_file(run, seed).relative_to(run).as_posix(), summary)
        of_each.append(str(written))
        if isinstance(labels, str):
            split = make_split(items, ok, labels, seed, apart)
            if keys_of(items, split) == written.read_bytes():
                of_each[-1] = labels
    try:
        return splits_of(items, ok, of_each, summary["seeds"], apart)
    except UsageError as error:
        raise StaleError(
            f"not all images of {run / 'splits'} can be used any more ({error}). Train again under "
            "another RUN",
            instead={"RUN": UNKNOWN},
        ) from error


def _tensors(
    run: Path, method: str, name: str, scores: dict[str, Any], device: torch.device
) -> Params:
    tensors, sha256 = read_tensors(run, method, name, device)
    expected = scores["probes"][name]
    if sha256 != expected:
        raise IntegrityError(
            f"{run / 'probes' / method / name}.safetensors is not the file that "
            f"{run / 'summary.json'} was made of (sha256 {sha256[:12]}, expected {expected[:12]}); "
            "train again under another RUN",
            instead={"RUN": UNKNOWN},
        )
    return tensors


def _view(folder: Path, name: str, width: int) -> ViewRecord:
    attributes = store.open_view(folder).attributes
    provenance = attributes["provenance"]
    return ViewRecord(
        name,
        width,
        attributes["spec"],
        attributes["weights_sha256"],
        provenance.get("spec_file", ""),
        provenance.get("batch", 64),
        provenance.get("weights_commit", ""),
    )
