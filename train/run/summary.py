"""What a run found: every method on the test split, read once -> summary.json, predictions.parquet,
and the table."""

import dataclasses
import hashlib
import io
import itertools
import math
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
from base.errors import UNKNOWN, IntegrityError
from cache_specs.items import Items
from train.algorithm.evaluate import MEASURES, joint, metrics, pooled, predict
from train.algorithm.paired import FEW, Difference, difference
from train.config import TrainConfig
from train.data.feed import Input
from train.data.reader import Cache
from train.data.scarce import Unlearnt, forced, rarer, share_text, unlearnt
from train.data.splits import Split
from train.methods import METHODS, Method, in_order
from train.run.probe_files import read_tensors

SCORES = (
    *("test_top1", "test_balanced", "test_f1", "test_nll", "test_ece"),
    *("val_top1", "val_balanced", "val_f1"),
)
CHANCE = 0.05  # below it a difference counts, divided by the number of pairs that are looked at
AGAIN = (
    "Delete summary.json and type the command of the run once more, the same make train: the "
    "probes are kept, and what was made of them is made again"
)

# what was chosen on validation: {view, joint or graph: {hyper-parameter or weight: E values}}
Chosen = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Says:
    """What a method says of both splits: (E, n, C) log-scores of each view and then of the joint;
    `together` has a joint alone. sha256: of the files that they come from."""

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
        "labelled": [_contents(cache, one.labelled, labels=True) for one in splits],
    }
    return {
        "dataset": cache.items.name,
        "contents": contents,
        "views": list(cache.names),
        "labels": config.labels,
        "labels_text": _labels_text(config.labels, items, split),
        "seeds": config.seed_list(),
        "classes": len(items.classes),
        "unlearnt": dataclasses.asdict(unlearnt(items, split)),
        "fingerprints": cache.fingerprints,
        "joint": config.joint,
        "select": config.select,
        "rows": {
            "labelled": len(split.labelled),
            "unlabelled": len(split.unlabelled),
            "val": len(split.val),
            "test": len(split.test),
        },
    }


def _labels_text(labels: str, items: Items, split: Split) -> str:
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
    rule: how the views are joined; with graphs they are pooled. scikit-learn's methods keep no model: their scores were
    written down when they were fitted."""
    if method.classic:
        tensors, sha256 = read_tensors(folder, method.name, "scores", device)
        chosen = _chosen([*cache.names, "joint"], tensors)
        return Says(list(tensors["val"]), list(tensors["test"]), {"scores": sha256}, chosen)
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
            own = [tensors["said"] for tensors, _ in probes]
            fused = [tensors["joint_said"] for tensors, _ in probes]
        else:
            own = [_predicted(tensors, emb, rows, "") for tensors, emb in probes]
            fused = [_predicted(tensors, emb, rows, "joint.") for tensors, emb in probes]
        if method.graphs:
            both = pooled(torch.stack([*fused, *pool[part].float()]), pool["weight"])
        else:
            both = joint(fused, rule)
        found.append(own if method.jobs == "together" else [*own, both])
    return Says(found[0], found[1], digests, _chosen(names_of_experts(cache.names), pool))


def names_of_experts(views: Sequence[str]) -> list[str]:
    """The names of a pool's experts: the views, and the graphs on them and on all."""
    graphs = [f"graph of {name}" for name in views]
    return [*views, *graphs, "graph of all views"] if len(views) > 1 else [*views, *graphs]


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
    split: Split,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """Score every method on the rows of split.val and split.test; write predictions.parquet and
    then summary.json."""
    summary: dict[str, Any] = {**head, "methods": {}}
    tables, right = [], {}
    for name in methods:
        said = say(folder, METHODS[name], cache, split, head["joint"], device)
        views = cache.names if len(said.val) > 1 else []
        scores: dict[str, dict[str, Any]] = {view: {} for view in [*views, "joint"]}
        for part, rows, logits in (("val", split.val, said.val), ("test", split.test, said.test)):
            y = torch.from_numpy(cache.items.label[rows]).long().to(device)
            for view, z in zip(scores, logits, strict=True):
                scores[view] |= _scores(part, z, y)
            opinions = _opinions(cache.names, [z.cpu() for z in logits])
            facts = _facts(name, part, cache.items, rows, head["seeds"])
            tables.append({**facts, **opinions})
            if part == "test":
                hits = opinions["pred"] == facts["label"]
                right[name] = hits.reshape(len(head["seeds"]), -1)
        both = scores.pop("joint")
        summary["methods"][name] = {
            "views": scores,
            "joint": both,
            "probes": said.sha256,
            "chosen": said.chosen,
        }
    for name, gain in against(right).items():
        summary["methods"][name]["against"] = dataclasses.asdict(gain)
    summary["told_apart"] = told_apart(right)
    _write_parquet(folder / "predictions.parquet", tables)
    summary["files"] = _digests(folder)
    summary["seconds"] = round(seconds, 1)
    durable.write(folder / "summary.json", durable.sealed(summary), "summary")
    return read_summary(folder)


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


def summary_table(summary: dict[str, Any]) -> str:
    """The result as text: one line a view and method, mean ± standard deviation over the seeds, in
    percent; the joint lines against late fusion. Where it cannot tell the methods apart, it says so
    first; a run of before has no such numbers, and a dash instead."""
    seeds, methods, rows = summary["seeds"], summary["methods"], summary["rows"]
    paired = "supervised" in methods and len(methods) > 1 and len(summary["views"]) > 1
    body = []
    for name in in_order(methods):
        gain = ""
        if paired and name != "supervised":
            gain = _gain(methods[name].get("against"))
        body += _lines(METHODS[name], methods[name], summary["views"], gain)
    wide = max(len(title) for title, _ in body) + 2
    lines = [
        f"{summary['dataset']}, {summary['labels_text']}, {counted(len(seeds), 'seed')}; test "
        "scores in %, mean ± std over seeds",
        *filter(None, [undecided(summary)]),
        f"{'':{wide}}{'top-1':>11}{'balanced':>10}{'F1':>7}{'NLL':>8}{'ECE':>8}"
        f"{'   against late fusion' if paired else ''}",
        *[f"{title:{wide}}{cells}" for title, cells in body],
        f"selected on {rows['val']} labelled validation images, tested once on {rows['test']}; "
        f"{summary['seconds']:.0f} s",
        *notes(summary),
    ]
    if paired:
        lines.append(f"against late fusion: {meaning(len(seeds))}")
    return "\n".join(lines)


def _lines(
    method: Method, result: dict[str, Any], views: list[str], gain: str
) -> list[tuple[str, str]]:
    """Of one method, title and cells; gain: of the joint against late fusion."""
    lines = []
    for view in views:  # JSON keeps no order of its own
        if view in result["views"]:
            lines.append((f"{view}, {method.title}", _cells(result["views"][view])))
    if len(lines) != 1:  # one view has nothing to fuse with
        cells = f"{_cells(result['joint'])}{gain}"
        lines.append((f"{method.title}: {method.joint}", cells))
    return lines


def _cells(scores: dict[str, Any]) -> str:
    top1 = scores["test_top1"]
    value = f"{100 * top1['mean']:.1f}"
    if top1["n"] > 1:
        value += f" ± {100 * top1['std']:.1f}"
    of_classes = []
    for key in ("test_balanced", "test_f1"):
        of_classes.append(f"{100 * scores[key]['mean']:.1f}" if key in scores else "–")
    balanced, f1 = of_classes
    nll, ece = scores["test_nll"]["mean"], scores["test_ece"]["mean"]
    return f"{value:>11}{balanced:>10}{f1:>7}{nll:8.3f}{ece:8.3f}"


def _gain(against: dict[str, Any] | None) -> str:
    return f"   {Difference(**against)}" if against else "   –"


def doubt(share: float, n: int) -> float:
    """Two standard errors of a share that was found on n images, with two more right and two more
    wrong ones (Agresti & Coull 1998)."""
    p = (share * n + 2) / (n + 4)
    return 2 * float(np.sqrt(p * (1 - p) / (n + 4)))


def limits(summary: dict[str, Any]) -> str:
    """What the number of test images leaves open, whatever the spread over the seeds is: they have
    them in common."""
    common = ", and all seeds share them" if len(summary["seeds"]) > 1 else ""
    return f"so many test images leave {_in_doubt(summary)}{common}"


def _in_doubt(summary: dict[str, Any]) -> str:
    best = max(found["joint"]["test_top1"]["mean"] for found in summary["methods"].values())
    points = 100 * doubt(best, summary["rows"]["test"])
    return f"{100 * best:.1f} % in doubt by {points:.1f} points (two standard errors)"


def undecided(summary: dict[str, Any]) -> str:
    """That no two of the methods differ by more than chance would make them; '' where some do."""
    if summary.get("told_apart", True):
        return ""
    images = counted(summary["rows"]["test"], "test image")
    pairs = math.comb(len(summary["methods"]), 2)
    among = f", counting all {pairs:,} pairs (Bonferroni)" if pairs > 1 else ""
    return (
        f"THIS TABLE CANNOT TELL THE METHODS APART: no difference is beyond chance{among}. "
        f"{images} leave {_in_doubt(summary)}; more labelled images tell more"
    )


def selected_by(summary: dict[str, Any]) -> str:
    """The validation score by which steps and settings were chosen, as `methods` have it; runs of
    before knew one alone."""
    return f"val_{summary.get('select', 'top1')}"


def notes(summary: dict[str, Any]) -> list[str]:
    """What limits the scores, besides."""
    found = [] if undecided(summary) else [limits(summary)]
    if "unlearnt" in summary:
        found += filter(None, [Unlearnt(**summary["unlearnt"]).text(summary["classes"])])
    if summary.get("select", "top1") != "top1":
        chosen = MEASURES[summary["select"]]
        found.append(f"steps and settings were chosen by {chosen} on the validation images")
    return found


def meaning(seeds: int) -> str:
    """What ± and p of a difference mean."""
    if seeds == 1:
        return (
            "mean difference ± its standard error, over the test images alone; what other labels, "
            "weights and batches would give, one seed does not say: SEEDS=0..4"
        )
    few = "" if seeds >= FEW else "; of fewer than 5 seeds p is too careful: SEEDS=0..4"
    return f"mean difference ± its standard error, over seeds and test images{few}"


def against(right: dict[str, np.ndarray]) -> dict[str, Difference]:
    """Of each other method the difference to late fusion of the supervised probes. right: {method:
    (E, n) bool}, which test images the joint has right."""
    if "supervised" not in right:
        return {}
    fusion = right["supervised"]
    others = [name for name in right if name != "supervised"]
    return {name: difference(right[name], fusion) for name in others}


def told_apart(right: dict[str, np.ndarray]) -> bool:
    """Is one of the methods better than another one by more than chance, as many pairs as there are
    (Bonferroni)? True of one method alone."""
    pairs = list(itertools.combinations(right.values(), 2))
    if not pairs:
        return True
    return min(difference(one, other).p for one, other in pairs) < CHANCE / len(pairs)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "n": len(values),
        "values": list(values),
    }


def _facts(
    method: str, part: str, items: Items, rows: np.ndarray, seeds: Sequence[int]
) -> dict[str, Any]:
    """The first columns of predictions.parquet, seed after seed."""
    count = len(seeds) * len(rows)
    return {
        "method": [method] * count,
        "seed": np.repeat(seeds, len(rows)),
        "id": [items.keys[row] for row in rows] * len(seeds),
        "split": [part] * count,
        "label": np.tile(items.label[rows], len(seeds)),
    }


def _opinions(views: Sequence[str], logits: Sequence[Tensor]) -> dict[str, Any]:
    """The others, of (E, n, C) logits. margin: the joint's first minus its second probability. A
    method with a joint alone has no view's own prediction."""
    probs = [torch.softmax(z, -1) for z in logits]
    whole = probs[-1]
    top2 = whole.topk(min(2, whole.shape[-1]), -1).values
    picks = torch.stack([p.argmax(-1) for p in probs])
    agreement = torch.full(whole.shape[:2], torch.nan)
    own = [torch.full_like(whole, torch.nan)] * len(views)
    if len(probs) > 1:
        agreement = (picks[:-1] == picks[-1]).float().mean(0)
        own = probs[:-1]
    columns: dict[str, Any] = {
        "pred": picks[-1].flatten().numpy().astype(np.int32),
        "confidence": top2[..., 0].flatten().float().numpy(),
        "margin": (top2[..., 0] - top2[..., -1]).flatten().float().numpy(),
        "agreement": agreement.flatten().numpy(),
    }
    for view, p in zip(views, own, strict=True):
        columns[f"pred_{view}"] = _first_choices(p)
        columns[f"prob_{view}"] = list(p.flatten(0, 1).half().numpy())
    return columns


def _first_choices(prob_EnC: Tensor) -> np.ndarray:
    """(E n,) int32; -1 where a view has no opinion of its own."""
    nobody = prob_EnC[..., 0].isnan()
    return torch.where(nobody, -1, prob_EnC.argmax(-1)).flatten().numpy().astype(np.int32)


def _write_parquet(path: Path, tables: Sequence[dict[str, Any]]) -> None:
    """Each a row group."""
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
    """A file of a finished run that is, byte for byte, what its summary was made with. Raises
    IntegrityError."""
    path = folder / name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read ({error.strerror}). {AGAIN}") from error
    if found != summary["files"].get(name):
        made_of_probes = name == "predictions.parquet" or name.startswith("splits/")
        then = AGAIN if made_of_probes else "Train again under another RUN"
        raise IntegrityError(
            f"{path} is not the file that {folder / 'summary.json'} was made with: it was changed "
            f"afterwards. {then}",
            instead=None if then == AGAIN else {"RUN": UNKNOWN, "RUNS": UNKNOWN},
        )
    return path
