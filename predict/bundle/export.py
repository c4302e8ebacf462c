"""make export-model RUN=name TO=folder [METHOD=mct]     (python -m predict.bundle.export --run name --to folder)

Writes a trained model as one folder that needs neither run nor cache (see predict/bundle/folder.py): probes, graphs, label names, the views' specs and the hashes
of their weights, README.md (a model card), and joint.onnx, which is run and compared with torch: prints the largest difference, which must be below 1e-4.
The backbones are not in it. Label images with it: make predict MODEL=folder IMAGES=photos/
"""

import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.console import counted
from base.errors import IntegrityError, UsageError
from base.phrase import quoted
from cache_specs.versions import IMPORTED
from predict.config import ExportModelConfig

if TYPE_CHECKING:
    import numpy as np

    from predict.model import Model

ALLOWED = 1e-4  # of a log-probability in ONNX, from torch's
COMPARED = 512  # rows
NO_ONNX = "pip install 'onnx>=1.17' 'onnxruntime>=1.20'   (the extra `onnx` of this project)"


def command(config: ExportModelConfig, found: dict[str, Any]) -> None:
    """make export-model."""
    export(config, found)


def export(config: ExportModelConfig, found: dict[str, Any] | None = None) -> Path:
    """Write the folder whole or not at all; return it. `found` is filled with what --json says. Raises CoviewError."""
    if not config.run or not config.to:
        raise UsageError(
            f"{'TO' if config.run else 'RUN'} is missing. Type: make export-model RUN={quoted(config.run or 'demo')} "
            f"TO={quoted(config.to or 'model')}"
        )
    to = Path(config.to).expanduser()
    if to.exists() or to.is_symlink():
        free = next(
            name for number in itertools.count(2) if not os.path.lexists(name := f"{to}-{number}")
        )
        raise UsageError(
            f"TO={config.to} is there already; name another folder", instead={"TO": free}
        )
    if not to.parent.is_dir():
        raise UsageError(f"TO={config.to}: {to.parent} is no folder; make it, or name another")
    from train.run.rundir import run_folder

    run = run_folder(config.runs, config.run)  # a mistyped name is answered before torch is loaded
    import numpy as np

    from base import durable
    from predict.bundle.card import card
    from predict.bundle.folder import write_record, write_tensors
    from predict.from_run import of_run

    model, cache, splits = of_run(run, config.method, "cpu", Path(config.cache))
    split = splits[0]
    rows = np.concatenate(
        [
            part[:: -(-len(part) // (COMPARED // 4))]
            for part in (split.val, split.test, split.labelled, split.unlabelled)
            if len(part)
        ]
    )
    temp = None
    try:
        temp = Path(
            tempfile.mkdtemp(prefix=f".{to.name}.", suffix=".tmp", dir=to.parent)
        )  # nobody else's, whoever exports here too
        temp.chmod(0o777 & ~_umask())
        write_tensors(model, temp)
        told, far = _onnx(model, temp, [emb_ND[np.sort(rows)] for emb_ND in cache.emb])
        durable.write(temp / "README.md", card(model, told).encode(), "model.card")
        write_record(model, temp)
        durable.settle([folder for folder in (temp, *temp.rglob("*")) if folder.is_dir()])
        durable.fault("model.rename")
        temp.rename(to)
        durable.fsync_folder(to.parent)
    except OSError as error:
        raise durable.cannot_write(to, error) from error
    finally:
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    if found is not None:
        found |= {
            "folder": str(to),
            "bytes": size,
            "method": model.method,
            "views": model.names,
            "seeds": model.seeds,
            "onnx_difference": far,
        }
    elsewhere = [view.name for view in model.views if view.spec["backend"] == IMPORTED]
    use = (
        f"the view {elsewhere[0]!r} was imported, so that no images can be embedded for it here: use joint.onnx, or in Python predict.from_run.open_model"
        if elsewhere
        else f"label images with it: make predict MODEL={quoted(config.to)} IMAGES=photos/"
    )
    print(
        f"run {run}: {model.method} on {', '.join(model.names)}, {counted(len(model.seeds), 'seed')}, in {to}, {size / 1e6:,.1f} MB\n{told}\n{use}",
        flush=True,
    )
    return to


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask


def _onnx(model: "Model", folder: Path, emb_V: "list[np.ndarray]") -> tuple[str, float | None]:
    """Write joint.onnx and compare: what is to be told of it, and the largest difference (None: not written). Raises IntegrityError when it says something
    else than torch, or no number."""
    from predict.bundle import onnx

    path = folder / "joint.onnx"
    try:
        files = onnx.write_onnx(model, path)
        far = onnx.difference(model, path, emb_V)
    except ImportError as error:
        for left in folder.glob("joint.onnx*"):
            left.unlink()
        return (
            f"joint.onnx is left out: {error.name} is not installed. For it, type: {NO_ONNX}   and export again",
            None,
        )
    if not far < ALLOWED:
        raise IntegrityError(
            f"joint.onnx differs from torch by {far:.2g} in a log-probability of {len(emb_V[0])} real rows, allowed {ALLOWED:g}; nothing is "
            "written. Another onnxruntime may compute otherwise; without onnx installed the folder is written without the file"
        )
    for file in files:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    return (
        f"joint.onnx: largest difference of a log-probability from torch {far:.2g}, on {len(emb_V[0]):,} real rows, allowed {ALLOWED:g}",
        far,
    )
