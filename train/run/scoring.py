"""What a run found, reckoned: every method on the test split, read once -> summary.json and
predictions.parquet. What reads them again, without torch: train/run/summary.py."""

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from base import durable
from base.console import counted
from cache_specs.items import Items
from train.algorithm.evaluate import joint, metrics, pooled, predict
from train.config import TrainConfig
from train.data.feed import Input
from train.data.names import NAMES
from train.data.reader import Cache
from train.data.scarce import forced, rarer, share_text, unlearnt
from train.data.seen import tuned_of
from train.data.splits import Split
from train.methods import METHODS, Method
from train.run.probe_files import read_tensors
from train.run.summary import against, read_summary, scored, told_apart

SCORES = (
    *("test_top1", "test_balanced", "test_f1", "test_nll", "test_ece"),
    *("val_top1", "val_balanced", "val_f1", "val_nll", "val_ece"),
)
# what was chosen on validation: {view, joint or graph: {hyper-parameter or weight: E values}}
Chosen = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Says:
    """What a method says of both splits: (E, n, C) log-scores of each view and then of the joint;
    `together` has a joint alone. views: the names of those views. sha256: of the files that they
    come from."""

    views: list[str]
    val: list[Tensor]
    test: list[Tensor]
    sha256: dict[str, str]
    chosen: Chosen


def describe(config: TrainConfig, cache: Cache, splits: Sequence[Split]) -> dict[str, Any]:
    """The head of summary.json: what was trained on."""
    split, items = splits[0], cache.items
    contents = {
        "test": _contents(cache, split.test),
        "test_labels": _contents(cache, split.test, labels=True),
        "val": _contents(cache, split.val),
        "val_labels": _contents(cache, split.val, labels=True),
        "labelled": [_contents(cache, one.labelled, labels=True) for one in splits],
    }
    return {
        "dataset": cache.items.name,
        "contents": contents,
        "views": list(cache.names),
        "labels": config.labels,
        "labels_text": _labels_text(config.labels, cache, split),
        "taken": cache.taken,
        "tuned": tuned_of(cache),
        "seeds": config.seed_list(),
        "classes": len(items.classes),
        "unlearnt": dataclasses.asdict(unlearnt(items, split)),
        "fingerprints": cache.fingerprints,
        "folds": len(split.folds),
        "joint": config.joint,
        "select": config.select,
        "rows": {
            "labelled": len(split.labelled),
            "unlabelled": len(split.unlabelled),
            "val": len(split.val),
            "test": len(split.test),
        },
    }


def _labels_text(labels: str, cache: Cache, split: Split) -> str:
    items = cache.items
    if cache.taken:
        return "no label"
    if labels == "all":
        return "all labels"
    if forced(labels, items, split):
        return f"labels: {labels}, at least 1 a class ({share_text(items, split)} in fact)"
    if not labels.isdigit():
        return f"labels: {labels}"
    text, fewer = f"{counted(int(labels), 'label')} a class", len(rarer(labels, items, split))
    if fewer:
        text += f", fewer of {fewer:,} {'class' if fewer == 1 else 'classes'}"
    return text


def _contents(cache: Cache, rows: np.ndarray, labels: bool = False) -> str:
    """A digest of what the images of these rows hold, and of their labels' names: whatever their
    files are called, and however classes are numbered."""
    items, lines = cache.items, []
    for row in rows.tolist():
        name = items.classes[items.label[row]] if labels else ""
        lines.append(f"{items.sha256[row]} {name}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def say(
    folder: Path,
    method: Method,
    cache: Cache,
    splits: Sequence[Split],
    rule: str,
    device: torch.device,
) -> Says:
    """What a method's files say of the validation rows of the seeds' splits and of their test rows.
    rule: how the views are joined; with graphs they are pooled. scikit-learn's methods keep no
    model: their scores were written down when they were fitted."""
    if method.classic:
        return _as_written(folder, method, cache.names, device)
    files, digests = {}, {}
    for name in method.files(cache.names):
        files[name], digests[name] = read_tensors(folder, method.name, name, device)
    pool = files.pop("pool", {})
    inputs = [[emb_ND] for emb_ND in cache.emb]
    if method.jobs == "together":
        inputs = [cache.emb]
    probes = list(zip(files.values(), inputs, strict=True))
    found = []
    for part, rows in (("val", splits[0].val), ("test", splits[0].test)):
        if part == "val" and splits[0].folds:
            found.append(out_of_fold(method, list(files.values()), pool, rule))
            continue
        own = [_predicted(tensors, emb, rows, "") for tensors, emb in probes]
        fused = [_predicted(tensors, emb, rows, "joint.") for tensors, emb in probes]
        found.append(_with_joint(method, own, fused, pool, part, rule))
    views = [] if method.jobs == "together" else cache.names
    chosen = _chosen(names_of_experts(cache.names, NAMES + "bias" in pool), pool)
    return Says(views, found[0], found[1], digests, chosen)


def out_of_fold(
    method: Method, probes: Sequence[dict[str, Tensor]], pool: dict[str, Tensor], rule: str
) -> list[Tensor]:
    """(S, n, C) log-scores of each view and then of the joint, as trainings gave them that did not
    know the labels of these rows; `together` has a joint alone. probes, pool: the tensors of the
    method's files."""
    own = [tensors["said"] for tensors in probes]
    fused = [tensors["joint_said"] for tensors in probes]
    return _with_joint(method, own, fused, pool, "val", rule)


def _with_joint(
    method: Method,
    own: list[Tensor],
    fused: list[Tensor],
    pool: dict[str, Tensor],
    part: str,
    rule: str,
) -> list[Tensor]:
    if method.jobs == "together":
        return own
    if method.graphs:
        experts = torch.stack([*fused, *pool[part].to(fused[0])])
        return [*own, pooled(experts, pool["weight"])]
    return [*own, joint(fused, rule)]


def _as_written(folder: Path, method: Method, names: Sequence[str], device: torch.device) -> Says:
    """views: those that had something to say, where these are not all."""
    tensors, sha256 = read_tensors(folder, method.name, "scores", device)
    telling = tensors.get("views", torch.arange(len(names)))
    views = [names[view] for view in telling.tolist()]
    said = list(tensors["val"]), list(tensors["test"])
    return Says(views, *said, {"scores": sha256}, _chosen([*names, "joint"], tensors))


def names_of_experts(views: Sequence[str], text: bool) -> list[str]:
    """The names of a pool's experts: the views, the class names if there is `text`, and the graphs
    on the views and on all."""
    graphs = [f"graph of {name}" for name in views]
    if len(views) > 1:
        graphs.append("graph of all views")
    return [*views, *(["class names"] if text else []), *graphs]


def _predicted(
    tensors: dict[str, Tensor], emb: Sequence[np.ndarray], rows: np.ndarray, head: str
) -> Tensor:
    """By the parameters of a probe's file whose names begin with `head`."""
    params = {}
    for key in sorted(tensors):
        if key.startswith("joint."):
            name = key.removeprefix("joint.")
            params[name] = tensors[f"{head}{name}"]
    source = Input(emb, tensors["input_mean"], tensors["input_std"])
    return predict(params, source, rows)


def _chosen(names: Sequence[str], tensors: dict[str, Tensor]) -> Chosen:
    """A tensor of fewer rows than there are names is of the last of them: only graphs have
    neighbours."""
    found: Chosen = {}
    for key, values in tensors.items():
        if key == "weight" or key.startswith("chosen."):
            for name, row in zip(names[-len(values) :], values.tolist(), strict=True):
                found.setdefault(name, {})[key.removeprefix("chosen.")] = row
    return found


def summarise(
    folder: Path,
    head: dict[str, Any],
    methods: Sequence[str],
    cache: Cache,
    splits: Sequence[Split],
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """Score every method on the validation and test rows of the seeds' splits, where there are any;
    write predictions.parquet and then summary.json."""
    summary: dict[str, Any] = {**head, "methods": {}}
    judges = scored(summary)
    tables, right = [], {}
    for name in methods:
        said = say(folder, METHODS[name], cache, splits, head["joint"], device)
        scores: dict[str, dict[str, Any]] = {view: {} for view in [*said.views, "joint"]}
        for part, logits in (("val", said.val), ("test", said.test)):
            rows_Sn = np.stack([getattr(split, part) for split in splits])
            if not rows_Sn.size:
                continue
            y = torch.from_numpy(cache.items.label[rows_Sn]).long().to(device)
            for view, z in zip(scores, logits, strict=True):
                scores[view] |= _scores(part, z, y)
            opinions = _opinions(cache.names, said.views, [z.cpu() for z in logits])
            facts = _facts(name, part, cache.items, rows_Sn, head["seeds"])
            tables.append({**facts, **opinions})
            if part == judges:
                hits = opinions["pred"] == facts["label"]
                right[name] = hits.reshape(len(head["seeds"]), -1)
        both = scores.pop("joint")
        summary["methods"][name] = {
            "views": scores,
            "joint": both,
            "probes": said.sha256,
            "chosen": said.chosen,
        }
    common = _in_common(splits, judges)
    for name, gain in against(right, common).items():
        summary["methods"][name]["against"] = dataclasses.asdict(gain)
    summary["told_apart"] = told_apart(right, common)
    _write_parquet(folder / "predictions.parquet", tables)
    summary["files"] = _digests(folder)
    summary["seconds"] = round(seconds, 1)
    durable.write(folder / "summary.json", durable.sealed(summary), "summary")
    return read_summary(folder)


def _in_common(splits: Sequence[Split], judges: str) -> bool:
    """Do the same rows judge all seeds?"""
    rows_Sn = np.stack([getattr(split, judges or "val") for split in splits])
    return bool((rows_Sn == rows_Sn[0]).all())


def _scores(part: str, logits_EnC: Tensor, y_n: Tensor) -> dict[str, Any]:
    """What the summary says of a view, or the joint, on a split."""
    found = {}
    for key, values in metrics(logits_EnC, y_n).items():
        if f"{part}_{key}" in SCORES:
            found[f"{part}_{key}"] = _spread(values)
    return found


def _digests(folder: Path) -> dict[str, str]:
    """Of the files that a reader trusts."""
    names = ("predictions.parquet", "metrics.jsonl", "config.json", "environment.json")
    found = {}
    for path in [*(folder / name for name in names), *sorted(folder.glob("splits/*.txt"))]:
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "n": len(values),
        "values": list(values),
    }


def _facts(
    method: str, part: str, items: Items, rows_Sn: np.ndarray, seeds: Sequence[int]
) -> dict[str, Any]:
    """The first columns of predictions.parquet, seed after seed."""
    return {
        "method": [method] * rows_Sn.size,
        "seed": np.repeat(seeds, rows_Sn.shape[1]),
        "id": [items.keys[row] for row in rows_Sn.ravel()],
        "split": [part] * rows_Sn.size,
        "label": items.label[rows_Sn].ravel(),
    }


def _opinions(
    names: Sequence[str], views: Sequence[str], logits: Sequence[Tensor]
) -> dict[str, Any]:
    """The others, of (E, n, C) logits of these `views` and then the joint. margin: the joint's
    first minus its second probability. names: of all views; one that says nothing has no
    prediction of its own."""
    probs = [torch.softmax(z, -1) for z in logits]
    whole = probs[-1]
    top2 = whole.topk(min(2, whole.shape[-1]), -1).values
    picks = torch.stack([p.argmax(-1) for p in probs])
    agreement = torch.full(whole.shape[:2], torch.nan)
    nothing, own = torch.full_like(whole, torch.nan), dict(zip(views, probs, strict=False))
    if len(probs) > 1:
        agreement = (picks[:-1] == picks[-1]).float().mean(0)
    columns: dict[str, Any] = {
        "pred": picks[-1].flatten().numpy().astype(np.int32),
        "confidence": top2[..., 0].flatten().float().numpy(),
        "margin": (top2[..., 0] - top2[..., -1]).flatten().float().numpy(),
        "agreement": agreement.flatten().numpy(),
    }
    for view in names:
        p = own.get(view, nothing)
        columns[f"pred_{view}"] = _first_choices(p)
        columns[f"prob_{view}"] = list(p.flatten(0, 1).half().numpy())
    return columns


def _first_choices(prob_EnC: Tensor) -> np.ndarray:
    """(E n,) int32; -1 where a view has no opinion of its own."""
    nobody = prob_EnC[..., 0].isnan()
    return torch.where(nobody, -1, prob_EnC.argmax(-1)).flatten().numpy().astype(np.int32)


def _write_parquet(path: Path, tables: Sequence[dict[str, Any]]) -> None:
    """Each a row group; nothing where nobody judges."""
    if not tables:
        return
    sink, each = io.BytesIO(), [pa.table(columns) for columns in tables]
    with pq.ParquetWriter(sink, each[0].schema, compression="zstd") as writer:
        for table in each:
            writer.write_table(table, row_group_size=len(table))
    durable.write(path, sink.getvalue(), "predictions")
