"""What a run found: every method on the test split, read once -> summary.json, predictions.parquet, and the table."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base import durable
from base.errors import IntegrityError
from train.algorithm.evaluate import joint, metrics, pooled, predict
from train.config import TrainConfig
from train.data.feed import Input
from train.data.reader import Cache
from train.data.splits import Split
from train.methods import PLANS, TITLES
from train.run.probe_files import read_tensors

KEYS = ("test_top1", "test_nll", "test_ece", "val_top1")
AGAIN = "Delete summary.json and type the command of the run once more, the same make train: the probes are kept, and what was made of them is made again"


def describe(config: TrainConfig, cache: Cache, splits: Sequence[Split]) -> dict[str, Any]:
    """The head of summary.json: what was trained on."""
    count = (
        f"{config.labels} label{'s' * (config.labels != '1')} a class"
        if config.labels.isdigit()
        else f"labels: {config.labels}"
    )
    text = "all labels" if config.labels == "all" else count
    split = splits[0]
    contents = {
        "test": _contents(cache, split.test),
        "test_labels": _contents(cache, split.test, labels=True),
        "labelled": [_contents(cache, one.labelled, labels=True) for one in splits],
    }
    return {
        "dataset": cache.items.name,
        "contents": contents,
        "views": list(cache.names),
        "labels": config.labels,
        "labels_text": text,
        "seeds": config.seed_list(),
        "classes": len(cache.items.classes),
        "fingerprints": cache.fingerprints,
        "joint": config.joint,
        "rows": {
            "labelled": len(split.labelled),
            "unlabelled": len(split.unlabelled),
            "val": len(split.val),
            "test": len(split.test),
        },
    }


def _contents(cache: Cache, rows: np.ndarray, labels: bool = False) -> str:
    """A digest of what the images of these rows hold, and of their labels' names: whatever their files are called, and however classes are numbered."""
    lines = sorted(
        f"{cache.items.sha256[row]} {cache.items.classes[cache.items.label[row]] if labels else ''}\n"
        for row in rows.tolist()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def logits_of(
    folder: Path, method: str, cache: Cache, split: Split, rule: str, device: torch.device
) -> tuple[dict[str, list[Tensor]], dict[str, str], dict[str, dict[str, list[float]]]]:
    """{val, test: (E, n, C) log-scores of each view and then of the joint}, the digests of the files that they come from, and what was chosen
    on validation: {view, joint or graph: {hyper-parameter or weight in the joint: E values}}.

    `concat` has a joint alone. scikit-learn's methods keep no model: their scores were written down when they were fitted.
    """
    if method in ("logreg", "knn", "label-propagation"):
        tensors, sha256 = read_tensors(folder, method, "scores", device)
        return (
            {name: list(tensors[name]) for name in ("val", "test")},
            {"scores": sha256},
            _chosen([*cache.names, "joint"], tensors),
        )
    names = ["concat"] if method == "concat" else cache.names
    files = {name: read_tensors(folder, method, name, device) for name in names}
    found: dict[str, list[Tensor]] = {}
    graphs = method in PLANS and PLANS[method].graphs
    pool = {}
    if graphs:
        pool, sha256 = read_tensors(folder, method, "pool", device)
        files["pool"] = {}, sha256
    for part in ("val", "test"):
        own, fused = [], []
        for view, name in enumerate(names):
            tensors = files[name][0]
            source = Input(
                cache.emb if method == "concat" else [cache.emb[view]],
                tensors["input_mean"],
                tensors["input_std"],
            )
            pick = {
                key.removeprefix("joint."): tensors[key]
                for key in sorted(tensors)
                if key.startswith("joint.")
            }
            own.append(predict({key: tensors[key] for key in pick}, source, getattr(split, part)))
            fused.append(predict(pick, source, getattr(split, part)))
        both = (
            pooled(torch.stack([*fused, *pool[part].float()]), pool["weight"])
            if graphs
            else joint(fused, rule)
        )
        found[part] = own if method == "concat" else [*own, both]
    experts = [
        *cache.names,
        *(f"graph of {name}" for name in cache.names),
        *["graph of all views"] * (len(cache.names) > 1),
    ]
    return found, {name: sha256 for name, (_, sha256) in files.items()}, _chosen(experts, pool)


def _chosen(names: Sequence[str], tensors: dict[str, Tensor]) -> dict[str, dict[str, list[float]]]:
    """A tensor of fewer rows than there are names is of the last of them: only graphs have neighbours."""
    found: dict[str, dict[str, list[float]]] = {}
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
    split: Split,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """Score every method on the rows of split.val and split.test; write predictions.parquet and then summary.json."""
    summary: dict[str, Any] = {**head, "methods": {}}
    tables, label, keys = [], cache.items.label, cache.items.keys
    for method in methods:
        logits, digests, chosen = logits_of(folder, method, cache, split, head["joint"], device)
        views = cache.names if len(logits["val"]) > 1 else []
        scores: dict[str, dict[str, list[float]]] = {name: {} for name in [*views, "joint"]}
        for part, both in logits.items():
            rows = getattr(split, part)
            y = torch.from_numpy(label[rows]).long().to(device)
            for name, z in zip(scores, both, strict=True):
                scores[name] |= {f"{part}_{key}": values for key, values in metrics(z, y).items()}
            tables.append(
                _predictions(
                    method,
                    part,
                    cache.names,
                    [z.cpu() for z in both],
                    [keys[row] for row in rows],
                    label[rows],
                    head["seeds"],
                )
            )
        found = {
            name: {key: _spread(values[key]) for key in KEYS} for name, values in scores.items()
        }
        summary["methods"][method] = {
            "views": {view: found[view] for view in views},
            "joint": found["joint"],
            "probes": digests,
            "chosen": chosen,
        }
    _write_parquet(folder / "predictions.parquet", tables)
    written = [
        *(
            folder / name
            for name in ("predictions.parquet", "metrics.jsonl", "config.json", "environment.json")
        ),
        *sorted(folder.glob("splits/*.txt")),
    ]
    summary["files"] = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in written
        if path.is_file()
    }
    summary["seconds"] = round(seconds, 1)
    durable.write(folder / "summary.json", durable.sealed(summary), "summary")
    return read_summary(folder)


def table(summary: dict[str, Any]) -> str:
    """The result as text: one line a view and method, mean ± standard deviation over the seeds, in percent; the joint lines against late fusion."""
    seeds, methods = summary["seeds"], summary["methods"]
    paired = (
        len(seeds) > 1
        and "supervised" in methods
        and len(methods) > 1
        and len(summary["views"]) > 1
    )
    lines = [
        f"{summary['dataset']}, {summary['labels_text']}, {len(seeds)} seed{'s' * (len(seeds) > 1)}; test top-1 in %, mean ± std over seeds",
        f"{'':50}{'test top-1':>13}{'NLL':>8}{'ECE':>8}{'   against late fusion' if paired else ''}",
    ]
    for method in (name for name in TITLES if name in methods):  # JSON keeps no order of its own
        (title, fused), result = TITLES[method], methods[method]
        rows = [
            (f"{view}, {title}", result["views"][view], "")
            for view in summary["views"]
            if view in result["views"]
        ]
        if len(rows) != 1:  # one view has nothing to fuse with
            rows.append(
                (
                    f"{title}: {fused}",
                    result["joint"],
                    against(result, methods["supervised"])
                    if paired and method != "supervised"
                    else "",
                )
            )
        for name, scores, text in rows:
            top1 = scores["test_top1"]
            value = (
                f"{100 * top1['mean']:.1f} ± {100 * top1['std']:.1f}"
                if top1["n"] > 1
                else f"{100 * top1['mean']:.1f}"
            )
            lines.append(
                f"{name:50}{value:>13}{scores['test_nll']['mean']:8.3f}{scores['test_ece']['mean']:8.3f}{text}"
            )
    lines.append(
        f"selected on {summary['rows']['val']} labelled validation images, tested once on {summary['rows']['test']}; {summary['seconds']:.0f} s"
    )
    lines.append(limits(summary))
    if paired and len(seeds) < 5:
        lines.append(
            "against late fusion: mean difference and its standard error over the seeds; a p-value wants 5 of them: SEEDS=0..4"
        )
    return "\n".join(lines)


def doubt(share: float, n: int) -> float:
    """Two standard errors of a share that was found on n images, with two more right and two more wrong ones (Agresti & Coull 1998)."""
    p = (share * n + 2) / (n + 4)
    return 2 * float(np.sqrt(p * (1 - p) / (n + 4)))


def limits(summary: dict[str, Any]) -> str:
    """What the number of test images leaves open, whatever the spread over the seeds is: they have them in common."""
    best = max(found["joint"]["test_top1"]["mean"] for found in summary["methods"].values())
    return (
        f"so many test images leave {100 * best:.1f} % in doubt by {100 * doubt(best, summary['rows']['test']):.1f} points (two standard errors)"
        + (", and all seeds share them" if len(summary["seeds"]) > 1 else "")
    )


def against(result: dict[str, Any], fusion: dict[str, Any]) -> str:
    """A method's joint against late fusion of the supervised probes, paired over the seeds: mean ± standard error of the difference, in points,
    and, of 5 seeds or more, the p-value of a two-sided paired t-test."""
    from scipy.special import stdtr  # scipy.stats alone takes seconds to import

    a, b = (np.array(found["joint"]["test_top1"]["values"]) for found in (result, fusion))
    gain = 100 * (a - b)
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    text = f"{gain.mean():+10.1f} ± {error:.1f}"
    if len(gain) < 5 or gain.std() == 0:
        return text
    p = 2 * float(stdtr(len(gain) - 1, -abs(gain.mean() / error)))
    return f"{text} ({'p < 0.001' if p < 0.001 else f'p = {p:.3f}'})"


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "n": len(values),
        "values": list(values),
    }


def _predictions(
    method: str,
    split: str,
    views: Sequence[str],
    logits: Sequence[Tensor],
    keys: Sequence[str],
    label: np.ndarray,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """The columns of a row group of predictions.parquet, seed after seed. margin: the joint's first minus its second probability."""
    probs = [torch.softmax(z, -1) for z in logits]
    top2 = probs[-1].topk(min(2, probs[-1].shape[-1]), -1)
    picks = torch.stack([p.argmax(-1) for p in probs])
    experiments, n = len(seeds), len(keys)
    own = (
        probs[:-1] if len(probs) > 1 else [torch.full_like(probs[0], torch.nan)] * len(views)
    )  # concat has no view's own prediction
    return {
        "method": [method] * (experiments * n),
        "seed": np.repeat(seeds, n),
        "id": list(keys) * experiments,
        "split": [split] * (experiments * n),
        "label": np.tile(label, experiments),
        "pred": picks[-1].flatten().numpy().astype(np.int32),
        "confidence": top2.values[..., 0].flatten().float().numpy(),
        "margin": (top2.values[..., 0] - top2.values[..., -1]).flatten().float().numpy(),
        "agreement": (picks[:-1] == picks[-1]).float().mean(0).flatten().numpy()
        if len(probs) > 1
        else np.full(experiments * n, np.nan, np.float32),
        **{
            f"prob_{view}": list(p.flatten(0, 1).half().numpy())
            for view, p in zip(views, own, strict=True)
        },
    }


def _write_parquet(path: Path, tables: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink, each = io.BytesIO(), [pa.table(columns) for columns in tables]
    with pq.ParquetWriter(sink, each[0].schema, compression="zstd") as writer:
        for table in each:
            writer.write_table(table, row_group_size=len(table))
    durable.write(path, sink.getvalue(), "predictions")


def read_summary(folder: Path) -> dict[str, Any]:
    """Raises IntegrityError where a byte of it is another than was written."""
    try:
        return durable.read_sealed(folder / "summary.json")
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{folder / 'summary.json'} is damaged ({error}). {AGAIN}") from error


def checked(folder: Path, name: str, summary: dict[str, Any]) -> Path:
    """A file of a finished run that is, byte for byte, what its summary was made with. Raises IntegrityError."""
    path = folder / name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read ({error.strerror}). {AGAIN}") from error
    if found != summary["files"].get(name):
        again = name == "predictions.parquet" or name.startswith("splits/")
        raise IntegrityError(
            f"{path} is not the file that {folder / 'summary.json'} was made with: it was changed afterwards. "
            f"{AGAIN if again else 'Train again under another RUN'}"
        )
    return path
