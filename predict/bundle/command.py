"""make export-model RUN=name TO=folder [METHOD=mct]

Writes a trained model as one folder that needs neither run nor cache (see
predict/bundle/folder.py): probes, graphs, label names, the views' specs and the hashes of their
weights, README.md (a model card), and joint.onnx, which is run and compared with torch: prints the
largest difference, which must be below 1e-4. The backbones are not in it. Label images with it:
make predict MODEL=folder IMAGES=photos/
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.console import counted
from base.errors import UsageError
from base.phrase import quoted
from cache_specs.versions import IMPORTED
from predict.choose import choose_method
from predict.config import ExportModelConfig
from train.run.rundir import run_folder
from train.run.summary import read_summary

log = logging.getLogger(f"coview.{__name__}")

if TYPE_CHECKING:
    from predict.model import Model


def command(config: ExportModelConfig, found: dict[str, Any]) -> None:
    """make export-model."""
    export_model(config, found)


def export_model(config: ExportModelConfig, found: dict[str, Any] | None = None) -> Path:
    """Write the folder whole or not at all; return it. `found` is filled with what --json says.
    Raises CoviewError."""
    to = _where_to(config)
    # a typing error is answered before torch is loaded
    run = run_folder(config.runs, config.run)
    method = choose_method(read_summary(run), config.method)

    from predict.bundle.export import write_bundle
    from predict.from_run import of_run

    model, cache, splits = of_run(run, method, "cpu", Path(config.cache))
    told, difference = write_bundle(model, cache, splits[0], to)
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    if found is not None:
        found |= {
            "folder": str(to),
            "bytes": size,
            "method": model.method,
            "views": model.names,
            "seeds": model.seeds,
            "onnx_difference": difference,
        }
    log.info(
        f"run {run}: {model.method} on {', '.join(model.names)}, "
        f"{counted(len(model.seeds), 'seed')}, in {to}, {size / 1e6:,.1f} MB\n{told}\n"
        f"{_use(model, config.to)}"
    )
    return to


def _where_to(config: ExportModelConfig) -> Path:
    """The folder to write. Raises UsageError."""
    if not config.run or not config.to:
        raise UsageError(
            f"{'TO' if config.run else 'RUN'} is missing. Type: make export-model "
            f"RUN={quoted(config.run or 'demo')} TO={quoted(config.to or 'model')}"
        )
    to = Path(config.to).expanduser()
    if os.path.lexists(to):
        raise UsageError(
            f"TO={config.to} is there already; name another folder", instead={"TO": _free(to)}
        )
    if not to.parent.is_dir():
        raise UsageError(f"TO={config.to}: {to.parent} is no folder; make it, or name another")
    return to


def _free(to: Path) -> str:
    """The next name that nothing has."""
    number = 2
    while os.path.lexists(f"{to}-{number}"):
        number += 1
    return f"{to}-{number}"


def _use(model: "Model", to: str) -> str:
    """How to go on."""
    for view in model.views:
        if view.spec["backend"] == IMPORTED:
            return (
                f"the view {view.name!r} was imported, so that no images can be embedded for it "
                "here: use joint.onnx, or in Python predict.from_run.open_model"
            )
    return f"label images with it: make predict MODEL={quoted(to)} IMAGES=…"
