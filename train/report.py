"""What a run found: the selected probes on the test split, read once -> summary.json, predictions.parquet, and the table."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache_specs import durable
from cache_specs.errors import IntegrityError
from cache_specs.items import Items
from train.config import TrainConfig
from train.evaluate import joint, metrics, predict
from train.loop import Input
from train.probe import Params
from train.splits import Split

TITLES = {"supervised": ("supervised", "late fusion of the supervised probes"), "mct": ("meta co-training", "joint")}
KEYS = ("test_top1", "test_nll", "test_ece", "val_top1")


def write_probe(folder: Path, method: str, view: str, best: Params, fused: Params, source: Input) -> None:
    """probes/METHOD/VIEW.safetensors: the view's own (E, ...) parameters, those for the joint prediction, the input's mean and std."""
    durable.make_folder(folder / "probes" / method)
    tensors = {**best, **{f"joint.{name}": value for name, value in fused.items()}, "input_mean": source.mean_D, "input_std": source.std_D}
    data = save({name: value.detach().contiguous().cpu().clone() for name, value in tensors.items()})
    durable.write(folder / "probes" / method / f"{view}.safetensors", data, "probe")


def read_probe(folder: Path, method: str, view: str, emb_ND: np.ndarray, device: torch.device) -> tuple[Params, Params, Input, str]:
    """(the view's own parameters, those for the joint prediction, input, sha256 of the file)"""
    path = folder / "probes" / method / f"{view}.safetensors"
    try:
        data = path.read_bytes()
        tensors = {name: value.clone().to(device) for name, value in load(data).items()}
        source = Input(emb_ND, tensors.pop("input_mean"), tensors.pop("input_std"))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise IntegrityError(f"the probe {path} cannot be read ({error}); delete {folder} and train again") from error
    fused = {name.removeprefix("joint."): value for name, value in tensors.items() if name.startswith("joint.")}
    return {name: tensors[name] for name in fused}, fused, source, hashlib.sha256(data).hexdigest()


def describe(config: TrainConfig, items: Items, views: Sequence[str], splits: Sequence[Split], fingerprints: dict[str, str]) -> dict[str, Any]:
    """The head of summary.json: what was trained on."""
    count = f"{config.labels} label{'s' * (config.labels != '1')} a class" if config.labels.isdigit() else f"labels: {config.labels}"
    text = "all labels" if config.labels == "all" else count
    split = splits[0]
    return {"dataset": items.name, "views": list(views), "labels": config.labels, "labels_text": text, "seeds": config.seed_list(),
            "classes": len(items.classes), "fingerprints": fingerprints,
            "rows": {"labelled": len(split.labelled), "unlabelled": len(split.unlabelled), "val": len(split.val), "test": len(split.test)}}


def summarise(folder: Path, head: dict[str, Any], methods: Sequence[str], views: Sequence[str], emb: Sequence[np.ndarray], label: np.ndarray,
              keys: Sequence[str], rows: dict[str, np.ndarray], device: torch.device, seconds: float) -> dict[str, Any]:
    """Score the probes of every method on rows["val"] and rows["test"]; write predictions.parquet and then summary.json."""
    summary: dict[str, Any] = {**head, "methods": {}}
    tables = []
    for method in methods:
        probes = [read_probe(folder, method, view, emb_ND, device) for view, emb_ND in zip(views, emb, strict=True)]
        scores: dict[str, dict[str, list[float]]] = {view: {} for view in [*views, "joint"]}
        for split in ("val", "test"):
            y = torch.from_numpy(label[rows[split]]).long().to(device)
            own = [predict(params, source, rows[split]) for params, _, source, _ in probes]
            both = [*own, joint([predict(fused, source, rows[split]) for _, fused, source, _ in probes])]
            for name, logits in zip(scores, both, strict=True):
                scores[name] |= {f"{split}_{key}": values for key, values in metrics(logits, y).items()}
            tables.append(_predictions(method, split, views, [logits.cpu() for logits in both], [keys[row] for row in rows[split]],
                                       label[rows[split]], head["seeds"]))
        found = {name: {key: _spread(values[key]) for key in KEYS} for name, values in scores.items()}
        summary["methods"][method] = {"views": {view: found[view] for view in views}, "joint": found["joint"],
                                      "probes": {view: sha for view, (*_, sha) in zip(views, probes, strict=True)}}
    _write_parquet(folder / "predictions.parquet", tables)
    summary["seconds"] = round(seconds, 1)
    durable.write_json(folder / "summary.json", summary, "summary")
    return summary


def table(summary: dict[str, Any]) -> str:
    """The result as text: one line a view and method, mean ± standard deviation over the seeds, in percent."""
    seeds = summary["seeds"]
    lines = [f"{summary['dataset']}, {summary['labels_text']}, {len(seeds)} seed{'s' * (len(seeds) > 1)}; test top-1 in %, mean ± std over seeds",
             f"{'':50}{'test top-1':>13}{'NLL':>8}{'ECE':>8}"]
    for method in (name for name in TITLES if name in summary["methods"]):      # JSON keeps no order of its own
        (title, fused), result = TITLES[method], summary["methods"][method]
        rows = [(f"{view}, {title}", result["views"][view]) for view in summary["views"]]
        for name, scores in rows + [(f"{title}: {fused}", result["joint"])] * (len(rows) > 1):          # one view has nothing to fuse with
            top1 = scores["test_top1"]
            text = f"{100 * top1['mean']:.1f} ± {100 * top1['std']:.1f}" if top1["n"] > 1 else f"{100 * top1['mean']:.1f}"
            lines.append(f"{name:50}{text:>13}{scores['test_nll']['mean']:8.3f}{scores['test_ece']['mean']:8.3f}")
    if {"supervised", "mct"} <= summary["methods"].keys() and len(seeds) > 1:
        lines.append(comparison(summary))
    lines.append(f"selected on {summary['rows']['val']} labelled validation images, tested once on {summary['rows']['test']}; {summary['seconds']:.0f} s")
    return "\n".join(lines)


def comparison(summary: dict[str, Any]) -> str:
    """Joint co-training against late fusion, paired over the seeds."""
    a, b = (np.array(summary["methods"][method]["joint"]["test_top1"]["values"]) for method in ("mct", "supervised"))
    gain = 100 * (a - b)
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    verdict = "against" if len(gain) < 5 else "beats" if gain.mean() > 2 * error else "loses to" if gain.mean() < -2 * error else \
        "is not clearly different from"
    return (f"joint co-training {verdict} late fusion here: {gain.mean():+.1f} ± {error:.1f} points (mean ± standard error of the difference, "
            f"better in {int((gain > 0).sum())} of {len(gain)} seeds)")


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, "n": len(values), "values": list(values)}


def _predictions(method: str, split: str, views: Sequence[str], logits: Sequence[Tensor], keys: Sequence[str], label: np.ndarray,
                 seeds: Sequence[int]) -> dict[str, Any]:
    """The columns of predictions.parquet, seed after seed. margin: the joint's first minus its second probability."""
    probs = [torch.softmax(z, -1) for z in logits]
    top2 = probs[-1].topk(min(2, probs[-1].shape[-1]), -1)
    picks = torch.stack([p.argmax(-1) for p in probs])
    experiments, n = len(seeds), len(keys)
    return {"method": [method] * (experiments * n), "seed": np.repeat(seeds, n), "id": list(keys) * experiments, "split": [split] * (experiments * n),
            "label": np.tile(label, experiments), "pred": picks[-1].flatten().numpy().astype(np.int32),
            "confidence": top2.values[..., 0].flatten().float().numpy(),
            "margin": (top2.values[..., 0] - top2.values[..., -1]).flatten().float().numpy(),
            "agreement": (picks[:-1] == picks[-1]).float().mean(0).flatten().numpy(),
            **{f"prob_{view}": list(p.flatten(0, 1).half().numpy()) for view, p in zip(views, probs, strict=False)}}


def _write_parquet(path: Path, tables: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.concat_tables([pa.table(columns) for columns in tables]), sink, compression="zstd")
    durable.write(path, sink.getvalue(), "predictions")


def read_summary(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{folder / 'summary.json'} is damaged ({error}); delete it to have it made again") from error
