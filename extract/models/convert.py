"""make weights VIEW=swav [FROM=checkpoint.pth.tar]

The authors' own checkpoint of a view -> safetensors that `make extract` reads. It is fetched from
the spec's weights.url, or is FROM= where it was fetched by other means; unpickled with
weights_only=True, in a process of its own; and written to `weights_folder()`, with the tensors'
names as they are.
"""

import hashlib
import http.client
import logging
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from base import durable
from base.console import NOTE
from base.errors import IntegrityError, StorageError, UsageError
from cache_specs.spec import ViewSpec, load_spec
from extract.config import ConvertConfig

log = logging.getLogger(f"coview.{__name__}")

PIECE = 2**20


def weights_folder() -> Path:
    return Path(os.environ.get("COVIEW_WEIGHTS", "~/.cache/coview/weights")).expanduser()


def command(config: ConvertConfig, found: dict[str, Any]) -> None:
    """make weights."""
    convert(config)


def convert(config: ConvertConfig) -> Path:
    """Leave the safetensors file, unless it is there. Raises UsageError, IntegrityError for a
    checkpoint that is another one or no checkpoint."""
    if not config.view:
        raise UsageError("VIEW is missing. Type: make weights VIEW=swav")
    spec = load_spec(config.view)
    if spec.weights.url is None:
        raise UsageError(
            f"the view {spec.name!r} needs no conversion: its weights are "
            f"{spec.weights.hub or spec.weights.path}. "
            f"Type: make extract VIEW={config.view} DATA=photos/"
        )
    target = weights_folder() / spec.weights.files[0]
    if target.is_file() and config.source is None:
        log.info(f"{target} is there already; make extract VIEW={config.view} uses it")
        return target
    durable.make_folder(target.parent)
    download = target.parent / f".{spec.name}.{os.getpid()}.download.tmp"
    made = target.parent / f".{spec.name}.{os.getpid()}.tmp.safetensors"
    try:
        if config.source is None:
            source = _fetch(spec.weights.url, download, config.view)
        else:
            source = Path(config.source).expanduser()
        sha256 = _digest(spec, source, config.source)
        _unpickle(source, made, spec.weights.key)
        _require_fit(spec, made, source)
        made.rename(target)
        durable.fsync_folder(target.parent)
    finally:
        download.unlink(missing_ok=True)
        made.unlink(missing_ok=True)
    pin = f'; to pin it, write sha256 = "{sha256}" below [weights] in {spec.source.name}'
    told = f"{target}: made of {source.name}, sha256 {sha256}"
    log.info(told if spec.weights.sha256 else told + pin)
    return target


def _digest(spec: ViewSpec, source: Path, named: str | None) -> str:
    """The sha256 of the checkpoint. Raises IntegrityError where the spec has another one."""
    if not source.is_file():
        raise UsageError(
            f"FROM={named}: there is no such file. Name one, or leave FROM out: then it is fetched "
            f"from {spec.weights.url}"
        )
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if spec.weights.sha256 not in (None, found):
        raise IntegrityError(
            f"{source} is not the checkpoint of {spec.name!r}: its sha256 is {found}, expected "
            f"{spec.weights.sha256}; fetch it again"
        )
    return found


def _fetch(url: str, to: Path, view: str) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise UsageError(
            f"HF_HUB_OFFLINE is set, so {url} is not fetched. Fetch it elsewhere, then type: make "
            f"weights VIEW={view} FROM=FILE"
        )
    log.log(NOTE, f"fetching {url} …")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, to.open("wb") as file:
            size, done, told = int(answer.headers.get("Content-Length") or 0), 0, 0
            while piece := answer.read(PIECE):
                file.write(piece)
                done += len(piece)
                if done - told >= 50 * PIECE:
                    told = done
                    log.log(NOTE, f"  {done / 1e6:,.0f} of {size / 1e6:,.0f} MB")
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise StorageError(
            f"{url} could not be fetched ({error}). Try again, or fetch it elsewhere and type: "
            f"make weights VIEW={view} FROM=FILE"
        ) from error
    if size and done != size:
        raise IntegrityError(
            f"{url} ended after {done:,} of {size:,} bytes; type the same command again"
        )
    return to


def _unpickle(source: Path, target: Path, key: str | None) -> None:
    """In a process of its own: what a hostile file could still do to one that loads it, it does not
    do to this one."""
    command = [sys.executable, "-m", "extract.models.unpickle"]
    command += [str(source.absolute()), str(target.absolute())]
    if key:
        command.append(key)
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        if re.search(r"No space left|Disk quota|Errno 28|os error 28", said[-1]):
            raise StorageError(
                f"{target.parent} is full ({said[-1]}). Make room there, or name another folder "
                "with COVIEW_WEIGHTS, and type the same command"
            )
        raise IntegrityError(
            f"{source} is not a checkpoint of bare tensors that can be read safely: {said[-1]}. "
            "Fetch it again, or take another"
        )


def _require_fit(spec: ViewSpec, made: Path, source: Path) -> None:
    """Load the model from it as extraction will. Raises IntegrityError for the checkpoint of
    another model."""
    from extract.models.backbones import load_backbone  # noqa: PLC0415  torch takes seconds

    try:
        load_backbone(spec, {spec.weights.files[0]: made}, "cpu")
    except UsageError as error:
        raise IntegrityError(
            f"{source} is not the checkpoint of {spec.name!r}, or the spec does not describe it: "
            f"{error}. Fetch {spec.weights.url} again, or mend the spec"
        ) from error
