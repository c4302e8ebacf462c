"""What a run's folder holds, read for a page: settings, summary, the records of its training, and the predictions on validation and test images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import IntegrityError
from train.methods import PLANS, TITLES
from train.run.rundir import finished
from train.run.summary import AGAIN, checked, read_summary


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
        return [
            view
            for view in self.summary["views"]
            if view in self.summary["methods"][self.method]["views"]
        ]


def read_run(folder: Path) -> Run:
    """Raises UsageError (there is no such run, or it is not finished) or IntegrityError (a damaged file of it)."""
    config = finished(folder)
    try:
        summary = read_summary(folder)
        files = {name: checked(folder, name, summary) for name in summary["files"]}
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        records = (
            [
                json.loads(line)
                for line in files["metrics.jsonl"].read_text(encoding="utf-8").splitlines()
            ]
            if "metrics.jsonl" in files
            else []
        )
        method = shown_method(summary)
        parts = read_predictions(
            files["predictions.parquet"], summary["views"], method, len(summary["seeds"])
        )
        return Run(folder, config["settings"], environment, summary, records, method, parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the run {folder} cannot be read ({error!r}); train it again under another RUN="
        ) from error


def shown_method(summary: dict[str, Any]) -> str:
    """mct-graph if it is there, else the best joint on validation, of the methods that keep a model if there are any. The test split has no say."""
    kept = [name for name in TITLES if name in summary["methods"] and name in PLANS] or [
        name for name in TITLES if name in summary["methods"]
    ]
    return (
        "mct-graph"
        if "mct-graph" in kept
        else max(kept, key=lambda name: summary["methods"][name]["joint"]["val_top1"]["mean"])
    )


def read_predictions(
    path: Path, views: Sequence[str], method: str, seeds: int
) -> dict[str, dict[str, Part]]:
    """predictions.parquet, whose row groups are each a method on a split, seed after seed. The views' probabilities are read for `method` alone, and
    reduced to a first choice at once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, parts = [f"prob_{view}" for view in views], {}
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(
                group,
                columns=["method", "id", "split", "label", "pred", "confidence"],
                use_threads=False,
            )
            name, split = rows["method"][0].as_py(), rows["split"][0].as_py()
            label_En, pred_En, sure_En = (
                rows[column].to_numpy().reshape(seeds, -1)
                for column in ("label", "pred", "confidence")
            )
            keys = rows["id"].slice(0, label_En.shape[1]).to_pylist()
            pieces = (
                [
                    [_first(batch[column]) for column in columns]
                    for batch in file.iter_batches(
                        16_384, row_groups=[group], columns=columns, use_threads=False
                    )
                ]
                if name == method
                else []
            )
            own = [
                [np.concatenate(part).reshape(seeds, -1) for part in zip(*view, strict=True)]
                for view in zip(*pieces, strict=True)
                if view[0]
            ]
            empty = np.empty((0, *pred_En.shape))
            parts.setdefault(name, {})[split] = Part(
                keys,
                label_En[0],
                pred_En,
                sure_En,
                *(
                    np.stack([view[i] for view in own]) if own else empty.astype(kind)
                    for i, kind in enumerate((int, np.float32))
                ),
            )
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise IntegrityError(f"{path} cannot be read ({error}). {AGAIN}") from error
    return parts


def _first(column: Any) -> tuple[np.ndarray, np.ndarray] | tuple[()]:
    """The first choice of each row and its probability; nothing of a column of NaN (the view has no opinion of its own)."""
    prob_nC = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return (
        ()
        if np.isnan(prob_nC[:1]).any()
        else (prob_nC.argmax(1), prob_nC.max(1).astype(np.float32))
    )
