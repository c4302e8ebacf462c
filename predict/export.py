"""make export-model RUN=name TO=folder [METHOD=mct]     (python -m predict.export --run name --to folder)

Writes a trained model as one folder that needs neither run nor cache (see predict/folder.py): probes, graphs, label names, the views' specs and the hashes
of their weights, README.md (a model card), and joint.onnx, which is run and compared with torch: prints the largest difference, which must be below 1e-4.
The backbones are not in it. Label images with it: make predict MODEL=folder IMAGES=photos/
"""

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache_specs.errors import IntegrityError, UsageError, run_cli

if TYPE_CHECKING:
    import numpy as np

    from predict.network import Model

ALLOWED = 1e-4              # of a log-probability in ONNX, from torch's
COMPARED = 512              # rows
NO_ONNX = "pip install 'onnx>=1.17' 'onnxruntime>=1.20'   (the extra `onnx` of this project)"


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as one self-contained folder."""

    run: str = ""
    """name of a finished run"""
    to: str = ""
    """the folder to write; it must not be there yet"""
    method: str = ""
    """which of the run's methods; default: mct-graph if it is there, else the best on validation"""
    cache: str = "cache"
    """where the embeddings are that the run was trained on"""
    runs: str = "runs"
    """where runs are"""


def main() -> None:
    import tyro

    export(tyro.cli(ExportConfig, prog="python -m predict.export", description=ExportConfig.__doc__))


def export(config: ExportConfig) -> Path:
    """Write the folder whole or not at all; return it. Raises CoviewError."""
    if not config.run or not config.to:
        raise UsageError(f"{'TO' if config.run else 'RUN'} is missing. Type: make export-model RUN={config.run or 'demo'} "
                         f"TO={shlex.quote(config.to or 'model')}")
    to = Path(config.to).expanduser()
    if to.exists() or to.is_symlink():
        raise UsageError(f"TO={config.to} is there already; name another folder: make export-model RUN={shlex.quote(config.run)} TO={shlex.quote(str(to))}-2")
    if not to.parent.is_dir():
        raise UsageError(f"TO={config.to}: {to.parent} is no folder")

    import numpy as np

    from cache_specs import durable
    from predict.card import card
    from predict.folder import write_record, write_tensors
    from predict.model import of_run

    model, cache, splits = of_run(Path(config.runs) / config.run, config.method, "cpu", Path(config.cache))
    split = splits[0]
    rows = np.concatenate([part[:: -(-len(part) // (COMPARED // 4))] for part in (split.val, split.test, split.labelled, split.unlabelled) if len(part)])
    temp = to.with_name(f".{to.name}.tmp")
    try:
        if temp.exists():
            shutil.rmtree(temp)                             # of a killed export
        durable.make_folder(temp)
        write_tensors(model, temp)
        told = _onnx(model, temp, [emb_ND[np.sort(rows)] for emb_ND in cache.emb])
        durable.write(temp / "README.md", card(model, told).encode(), "model.card")
        write_record(model, temp)
        durable.settle([folder for folder in (temp, *temp.rglob("*")) if folder.is_dir()])
        durable.fault("model.rename")
        temp.rename(to)
        durable.fsync_folder(to.parent)
    except OSError as error:
        raise durable.cannot_write(to, error) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    print(f"run {Path(config.runs) / config.run}: {model.method} on {', '.join(model.names)}, {len(model.seeds)} seeds, in {to}, {size / 1e6:,.1f} MB\n{told}\n"
          f"label images with it: make predict MODEL={shlex.quote(config.to)} IMAGES=photos/", flush=True)
    return to


def _onnx(model: "Model", folder: Path, emb_V: "list[np.ndarray]") -> str:
    """Write joint.onnx and compare; what is to be told of it. Raises IntegrityError when it says something else than torch."""
    import os

    from predict import onnx

    path = folder / "joint.onnx"
    try:
        files = onnx.write_onnx(model, path)
        far = onnx.difference(model, path, emb_V)
    except ImportError as error:
        for left in folder.glob("joint.onnx*"):
            left.unlink()
        return f"joint.onnx is left out: {error.name} is not installed. For it, type: {NO_ONNX}   and export again"
    if not far < ALLOWED:
        raise IntegrityError(f"joint.onnx differs from torch by {far:.2g} in a log-probability of {len(emb_V[0])} real rows, allowed {ALLOWED:g}; nothing is "
                             "written. Another onnxruntime may compute otherwise; without onnx installed the folder is written without the file")
    for file in files:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    return f"joint.onnx: largest difference of a log-probability from torch {far:.2g}, on {len(emb_V[0]):,} real rows, allowed {ALLOWED:g}"


if __name__ == "__main__":
    sys.exit(run_cli(main))
