"""A trained model -> one folder, with an ONNX file that says what torch says.

told, difference = write_bundle(model, cache, split, Path("model"))
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from base import durable
from base.errors import IntegrityError
from predict.bundle import onnx
from predict.bundle.card import model_card
from predict.bundle.folder import write_parts, write_record
from predict.model import Model
from train.data.reader import Cache
from train.data.splits import Split

ALLOWED = 1e-4  # of a log-probability in ONNX, from torch's
COMPARED = 512  # rows
NO_ONNX = "pip install 'onnx>=1.17' 'onnxruntime>=1.20'   (the extra `onnx` of this project)"


def write_bundle(model: Model, cache: Cache, split: Split, to: Path) -> tuple[str, float | None]:
    """Write the folder whole or not at all. What is to be told of joint.onnx, and the largest
    difference found on real rows (None: not written). Raises CoviewError."""
    rows = np.sort(_compared(split))
    emb_V = [emb_ND[rows] for emb_ND in cache.emb]
    temp = None
    try:
        # nobody else's, whoever exports here too
        temp = Path(tempfile.mkdtemp(prefix=f".{to.name}.", suffix=".tmp", dir=to.parent))
        temp.chmod(0o777 & ~_umask())
        write_parts(model, temp)
        told, difference = _onnx(model, temp, emb_V)
        durable.write(temp / "README.md", model_card(model, told).encode(), "model.card")
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
    return told, difference


def _compared(split: Split) -> np.ndarray:
    """Rows of every kind, evenly spaced."""
    found = []
    for part in (split.val, split.test, split.labelled, split.unlabelled):
        if len(part):
            found.append(part[:: -(-len(part) // (COMPARED // 4))])
    return np.concatenate(found)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _onnx(model: Model, folder: Path, emb_V: list[np.ndarray]) -> tuple[str, float | None]:
    """Write joint.onnx and compare: what is to be told of it, and the largest difference (None: not
    written). Raises IntegrityError when it says something else than torch, or no number."""
    path, rows = folder / "joint.onnx", len(emb_V[0])
    try:
        files = onnx.write_onnx(model, path)
        far = onnx.difference(model, path, emb_V)
    except ImportError as error:
        for left in folder.glob("joint.onnx*"):
            left.unlink()
        told = f"joint.onnx is left out: {error.name} is not installed. For it, type: {NO_ONNX}"
        return f"{told}   and export again", None
    if not far < ALLOWED:
        raise IntegrityError(
            f"joint.onnx differs from torch by {far:.2g} in a log-probability of {rows} real rows, "
            f"allowed {ALLOWED:g}; nothing is written. Another onnxruntime may compute otherwise; "
            "without onnx installed the folder is written without the file"
        )
    for file in files:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    told = f"joint.onnx: largest difference of a log-probability from torch {far:.2g}"
    return f"{told}, on {rows:,} real rows, allowed {ALLOWED:g}", far
