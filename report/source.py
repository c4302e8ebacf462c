"""What a run's folder holds, read for a page: settings, summary, the records of its training, and the predictions on validation and test images."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_specs.errors import IntegrityError, UsageError, did_you_mean
from train.methods import PLANS, TITLES
from train.report import read_summary


@dataclass(frozen=True, eq=False)
class Part:
    """A method's predictions on n images of one split. label_n: int; pred_En, sure_En: the joint's first choice and its probability for each seed;
    own_VEn, own_sure_VEn: those of each view by itself (V = 0 for concat)."""

    keys: list[str]
    label_n: np.ndarray
    pred_En: np.ndarray
    sure_En: np.ndarray
    own_VEn: np.ndarray
    own_sure_VEn: np.ndarray

    @property
    def right_En(self) -> np.ndarray:
        return self.pred_En == self.label_n


@dataclass(frozen=True, eq=False)
class Run:
    """method: the one that the page shows in detail; parts[method]["val" or "test"]; records: the lines of metrics.jsonl."""

    folder: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    method: str
    parts: dict[str, dict[str, Part]]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def methods(self) -> list[str]:
        return [name for name in TITLES if name in self.summary["methods"]]

    @property
    def views(self) -> list[str]:
        """Those that have a line of their own in the shown method."""
        return [view for view in self.summary["views"] if view in self.summary["methods"][self.method]["views"]]


def read_run(folder: Path) -> Run:
    """Raises UsageError (there is no such run, or it is not finished) or IntegrityError (a damaged file of it)."""
    if not (folder / "config.json").is_file():
        there = [path.parent.name for path in folder.parent.glob("*/config.json")]
        raise UsageError(f"RUN={folder.name}: there is no run {folder}{did_you_mean(folder.name, there)}. Type: make report RUN={there[0] if there else '…'}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not (folder / "summary.json").is_file():
            raise UsageError(f"RUN={folder.name} is not finished: it has no summary.json. Type the command that began it once more: make train "
                             f"VIEWS={config['settings']['views']} DATA={config['settings']['data']} RUN={folder.name} …")
        summary = read_summary(folder)
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()] \
            if (folder / "metrics.jsonl").is_file() else []
        method = shown_method(summary)
        return Run(folder, config["settings"], environment, summary, records, method, read_predictions(folder, summary["views"], method))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the run {folder} cannot be read ({error!r}); train it again under another RUN=") from error


def shown_method(summary: dict[str, Any]) -> str:
    """mct-graph if it is there, else the best joint on validation, of the methods that keep a model if there are any. The test split has no say."""
    kept = [name for name in TITLES if name in summary["methods"] and name in PLANS] or [name for name in TITLES if name in summary["methods"]]
    return "mct-graph" if "mct-graph" in kept else max(kept, key=lambda name: summary["methods"][name]["joint"]["val_top1"]["mean"])


def read_predictions(folder: Path, views: Sequence[str], method: str) -> dict[str, dict[str, Part]]:
    """predictions.parquet, batch by batch; the views' probabilities are reduced to a first choice at once, and read for `method` alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [f"prob_{view}" for view in views]
    found: dict[tuple[str, str], list[tuple]] = {}
    try:
        file = pq.ParquetFile(folder / "predictions.parquet", pre_buffer=False)
        for batch in file.iter_batches(16_384, columns=["method", "seed", "id", "split", "label", "pred", "confidence", *columns], use_threads=False):
            of, split = (np.array(batch[name].to_pylist(), object) for name in ("method", "split"))
            seed = batch["seed"].to_numpy()
            edges = [0, *(1 + np.flatnonzero((of[1:] != of[:-1]) | (split[1:] != split[:-1]) | (seed[1:] != seed[:-1]))), len(of)]
            for first, last in itertools.pairwise(edges):
                rows = batch.slice(first, last - first)
                own = [_first(rows[name], last - first) for name in columns] if of[first] == method else []
                found.setdefault((of[first], split[first]), []).append((
                    int(seed[first]), rows["id"].to_pylist(), rows["label"].to_numpy(), rows["pred"].to_numpy(), rows["confidence"].to_numpy(), own))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise IntegrityError(f"{folder / 'predictions.parquet'} cannot be read ({error}); delete {folder / 'summary.json'} and type the same `make train` "
                             "to have both made again") from error
    parts: dict[str, dict[str, Part]] = {}
    for (name, split), pieces in found.items():
        seeds = list(dict.fromkeys(piece[0] for piece in pieces))
        each = [[piece for piece in pieces if piece[0] == seed] for seed in seeds]

        def stack(of: Any, each: list = each) -> np.ndarray:
            return np.stack([np.concatenate([of(piece) for piece in seed]) for seed in each])

        own = [v for v in range(len(columns)) if pieces[0][5] and pieces[0][5][v] is not None]
        empty = np.empty((0, len(seeds), len(stack(lambda piece: piece[3])[0])))
        parts.setdefault(name, {})[split] = Part(
            [key for piece in each[0] for key in piece[1]], np.concatenate([piece[2] for piece in each[0]]), stack(lambda piece: piece[3]),
            stack(lambda piece: piece[4]),
            np.stack([stack(lambda piece, v=v: piece[5][v][0]) for v in own]) if own else empty.astype(int),
            np.stack([stack(lambda piece, v=v: piece[5][v][1]) for v in own]) if own else empty)
    return parts


def _first(column: Any, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The first choice of each row and its probability; None for a column of NaN (the view has no opinion of its own)."""
    prob_nC = column.flatten().to_numpy(zero_copy_only=False).reshape(n, -1)
    return None if np.isnan(prob_nC[:1]).any() else (prob_nC.argmax(1), prob_nC.max(1).astype(np.float32))
