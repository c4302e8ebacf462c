"""make weights VIEW=swav [FROM=checkpoint.pth.tar]

The authors' own checkpoint of a view -> safetensors that `make extract` reads. It is fetched from
the spec's weights.url, or is FROM= where it was fetched by other means; unpickled with
weights_only=True, in a process of its own; and written, with the tensors' names as they are, to
`weights_folder()`, or where the spec's weights.path says.
"""

import filecmp
import hashlib
import http.client
import logging
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from base import durable
from base.console import NOTE
from base.errors import UNKNOWN, IntegrityError, StorageError, UsageError
from base.phrase import quoted
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
        example = " Type: make weights VIEW=swav" if config.source is None else ""
        raise UsageError(f"VIEW is missing.{example}", {"VIEW": UNKNOWN} if config.source else None)
    spec = load_spec(config.view)
    target = _target(spec, config)
    if target.is_file() and config.source is None:
        log.info(f"{target} is there already; make extract VIEW={quoted(config.view)} uses it")
        return target
    durable.make_folder(target.parent)
    download = target.parent / f".{spec.name}.{os.getpid()}.download.tmp"
    made = target.parent / f".{spec.name}.{os.getpid()}.tmp.safetensors"
    try:
        if config.source is None:
            assert spec.weights.url is not None, spec.source  # `_target` asks for FROM
            source = _fetch(spec.weights.url, download, config.view)
        else:
            source = Path(config.source).expanduser()
        sha256 = _digest(spec, source, config.source)
        if source.suffix == ".safetensors":
            shutil.copyfile(source, made)
        else:
            _unpickle(source, made, spec.weights.key)
        _require_fit(spec, made, source, target)
        if spec.weights.path is not None and _is_another(target, made):
            raise UsageError(
                f"{target} is there already and holds other bytes; it is kept. Remove it first, or "
                f"give weights.files of {spec.source} another name"
            )
        made.rename(target)
        durable.fsync_folder(target.parent)
    finally:
        download.unlink(missing_ok=True)
        made.unlink(missing_ok=True)
    pin = f'; to pin it, write sha256 = "{sha256}" below [weights] in {spec.source.name}'
    told = f"{target}: made of {source.name}, sha256 {sha256}"
    log.info(told if spec.weights.sha256 else told + pin)
    return target


def _target(spec: ViewSpec, config: ConvertConfig) -> Path:
    """The safetensors file that is to be made. Raises UsageError for a view of the hub's, which
    needs none, and without FROM where the spec does not say what to fetch."""
    where = spec.weights
    if where.url is not None:
        return weights_folder() / where.files[0]
    if where.path is None:
        raise UsageError(
            f"the view {spec.name!r} needs no conversion: its weights are {where.hub}. "
            f"Type: make extract VIEW={quoted(config.view)} DATA=…"
        )
    tensors = [name for name in where.files if name.endswith(".safetensors")]
    if len(tensors) != 1:
        raise UsageError(
            f"{spec.source}: weights.files must name one .safetensors file, found "
            f"{list(where.files)}; mend it"
        )
    target = spec.source.parent / where.path / tensors[0]
    if config.source is None and not target.is_file():
        raise UsageError(
            f"FROM is missing: name the checkpoint of which {target} is to be made",
            {"FROM": UNKNOWN},
        )
    return target


def _is_another(target: Path, made: Path) -> bool:
    return target.is_file() and not filecmp.cmp(target, made, shallow=False)


def _digest(spec: ViewSpec, source: Path, named: str | None) -> str:
    """The sha256 of the checkpoint. Raises IntegrityError where the spec has another one."""
    if not source.is_file():
        url = spec.weights.url
        other = f", or leave FROM out: then it is fetched from {url}" if url else ""
        raise UsageError(
            f"FROM={named}: there is no such file. Name one{other}",
            {"FROM": None if url else UNKNOWN},
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
            f"weights VIEW={quoted(view)} FROM=…"
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
            f"make weights VIEW={quoted(view)} FROM=…"
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
            "Fetch it again, or take another; where the tensors lie under one of its entries, name "
            'that below [weights], such as key = "state_dict"'
        )


def _require_fit(spec: ViewSpec, made: Path, source: Path, target: Path) -> None:
    """Load the model from it as extraction will. Raises IntegrityError for the checkpoint of
    another model."""
    from extract.models.backbones import load_backbone  # noqa: PLC0415  torch takes seconds

    files = {}
    for name in spec.weights.files:
        files[name] = made if name.endswith(".safetensors") else target.parent / name
    try:
        load_backbone(spec, files, "cpu")
    except UsageError as error:
        again = f"Fetch {spec.weights.url} again" if spec.weights.url else "Take another"
        raise IntegrityError(
            f"{source} is not the checkpoint of {spec.name!r}, or the spec does not describe it: "
            f"{error}. {again}, or mend the spec"
        ) from error
