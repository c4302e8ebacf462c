"""What a run's folder holds, read for a page: settings, summary, the records of its training, and
the predictions on validation and test images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from base.errors import UNKNOWN, IntegrityError
from train.methods import in_order, with_model
from train.run.rundir import finished
from train.run.summary import AGAIN, checked, kind_of, read_summary, scored, selection_score


@dataclass(frozen=True, eq=False)
class Part:
    """A method's predictions on n images of one split, for each seed; out-of-fold, each seed has
    its own images. keys_E: n each; label_En: int; pred_En, sure_En: the joint's first choice and
    its probability; own_VEn, own_sure_VEn: those of each view by itself (V = 0 for concat);
    own_sure_VEn is that of the shown method alone, own_VEn too in a run of before."""

    keys_E: list[list[str]]
    label_En: np.ndarray
    pred_En: np.ndarray
    sure_En: np.ndarray
    own_VEn: np.ndarray
    own_sure_VEn: np.ndarray

    @property
    def common(self) -> bool:
        """Have all seeds the same images?"""
        return all(keys == self.keys_E[0] for keys in self.keys_E)

    @property
    def right_En(self) -> np.ndarray:
        return self.pred_En == self.label_En


@dataclass(frozen=True, eq=False)
class Run:
    """method: the one that the page shows in detail; parts[method]["val" or "test"], as far as
    there are any; records: the lines of metrics.jsonl."""

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
        return in_order(self.summary["methods"])

    @property
    def part(self) -> str:
        """The part that the results stand on; '' where nobody judges."""
        return scored(self.summary)

    @property
    def kind(self) -> str:
        """What its images are called."""
        return kind_of(self.summary, self.part)

    @property
    def views(self) -> list[str]:
        """Those that have a line of their own in the shown method."""
        own = self.summary["methods"][self.method]["views"]
        return [view for view in self.summary["views"] if view in own]


def read_run(folder: Path) -> Run:
    """Raises UsageError (there is no such run, or it is not finished) or IntegrityError (a damaged
    file of it)."""
    config = finished(folder)
    try:
        summary = read_summary(folder)
        files = {name: checked(folder, name, summary) for name in summary["files"]}
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        records = _records(files["metrics.jsonl"]) if "metrics.jsonl" in files else []
        method = shown_method(summary)
        parts: dict[str, dict[str, Part]] = {}
        if scored(summary):
            predictions, seeds = files["predictions.parquet"], len(summary["seeds"])
            parts = read_predictions(predictions, summary["views"], method, seeds)
        return Run(folder, config["settings"], environment, summary, records, method, parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the run {folder} cannot be read ({error!r}); train it again under another RUN=",
            instead={"RUN": UNKNOWN, "RUNS": UNKNOWN},
        ) from error


def _records(path: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def shown_method(summary: dict[str, Any]) -> str:
    """mct-graph if it is there, else the best joint on validation, of the methods that keep a model
    if there are any. The test split has no say."""
    kept = with_model(summary["methods"]) or in_order(summary["methods"])
    if "mct-graph" in kept:
        return "mct-graph"
    scores = {name: selection_score(summary, name) for name in kept}
    return max(kept, key=scores.__getitem__)


def read_predictions(
    path: Path, views: Sequence[str], method: str, seeds: int
) -> dict[str, dict[str, Part]]:
    """predictions.parquet, whose row groups are each a method on a split, seed after seed. The
    views' probabilities are read for `method` alone, and reduced at once."""
    parts: dict[str, dict[str, Part]] = {}
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
        # a run of before has no first choices of its views, which then are those of `method` alone
        chosen = [name for name in file.schema_arrow.names if name in {f"pred_{v}" for v in views}]
        for group in range(file.num_row_groups):
            head = ["method", "id", "split", "label", "pred", "confidence"]
            rows = file.read_row_group(group, columns=[*head, *chosen], use_threads=False)
            name, split = rows["method"][0].as_py(), rows["split"][0].as_py()
            own = _own(file, group, views) if name == method else ([], [])
            if chosen:
                own = _picks(rows, chosen), own[1]
            parts.setdefault(name, {})[split] = _part(rows, own, seeds)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise IntegrityError(f"{path} cannot be read ({error}). {AGAIN}") from error
    return parts


def _picks(rows: pa.Table, columns: Sequence[str]) -> list[np.ndarray]:
    """First choices of the views that have an opinion of their own."""
    picks = [rows[column].to_numpy() for column in columns]
    return [pick for pick in picks if (pick >= 0).all()]


def _part(rows: pa.Table, own: tuple[list[np.ndarray], list[np.ndarray]], seeds: int) -> Part:
    label_En = rows["label"].to_numpy().reshape(seeds, -1)
    pred_En = rows["pred"].to_numpy().reshape(seeds, -1)
    sure_En = rows["confidence"].to_numpy().reshape(seeds, -1)
    own_VEn = np.empty((0, *pred_En.shape), int)
    own_sure_VEn = np.empty((0, *pred_En.shape), np.float32)
    if own[0]:
        own_VEn = np.stack(own[0]).reshape(-1, *pred_En.shape)
    if own[1]:
        own_sure_VEn = np.stack(own[1]).reshape(-1, *pred_En.shape)
    keys, n = rows["id"].to_pylist(), label_En.shape[1]
    keys_E = [keys[first : first + n] for first in range(0, len(keys), n)]
    return Part(keys_E, label_En, pred_En, sure_En, own_VEn, own_sure_VEn)


def _own(
    file: pq.ParquetFile, group: int, views: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """First choices and their probabilities of all rows, one array of each for every view that has
    an opinion of its own."""
    columns = [f"prob_{view}" for view in views]
    picks: dict[str, list[np.ndarray]] = {}
    sures: dict[str, list[np.ndarray]] = {}
    for batch in file.iter_batches(16_384, row_groups=[group], columns=columns, use_threads=False):
        for column in columns:
            prob_nC = _by_class(batch[column])
            if not np.isnan(prob_nC[:1]).any():  # NaN: the view has no opinion of its own
                picks.setdefault(column, []).append(prob_nC.argmax(1))
                sures.setdefault(column, []).append(prob_nC.max(1).astype(np.float32))
    return [*map(np.concatenate, picks.values())], [*map(np.concatenate, sures.values())]


def _by_class(column: Any) -> np.ndarray:
    """A column of lists as (n, C) probabilities."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
