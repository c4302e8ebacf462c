"""make weights VIEW=swav [FROM=checkpoint.pth.tar]     (python -m extract.models.convert --view swav)

The authors' own checkpoint of a view -> safetensors that `make extract` reads. It is fetched from the spec's weights.url, or is FROM= where it was
fetched by other means; unpickled with weights_only=True, in a process of its own; and written to WEIGHTS_FOLDER, with the tensors' names as they are.
"""

import hashlib
import http.client
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import IntegrityError, StorageError, UsageError
from extract.config import ConvertConfig

PIECE = 2**20

if TYPE_CHECKING:
    from cache_specs.spec import ViewSpec


def weights_folder() -> Path:
    return Path(os.environ.get("COVIEW_WEIGHTS", "~/.cache/coview/weights")).expanduser()


def command(config: ConvertConfig, found: dict[str, Any]) -> None:
    """make weights."""
    convert(config)


def convert(config: ConvertConfig) -> Path:
    """Leave the safetensors file, unless it is there. Raises UsageError, IntegrityError for a checkpoint that is another one or no checkpoint."""
    from base import durable
    from cache_specs.spec import load_spec

    if not config.view:
        raise UsageError("VIEW is missing. Type: make weights VIEW=swav")
    spec = load_spec(config.view)
    if spec.weights.url is None:
        raise UsageError(
            f"the view {spec.name!r} needs no conversion: its weights are {spec.weights.hub or spec.weights.path}. "
            f"Type: make extract VIEW={config.view} DATA=photos/"
        )
    target = weights_folder() / spec.weights.files[0]
    if target.is_file() and config.source is None:
        print(f"{target} is there already; make extract VIEW={config.view} uses it")
        return target
    durable.make_folder(target.parent)
    download, made = (
        target.parent / f".{spec.name}.{os.getpid()}.{what}"
        for what in ("download.tmp", "tmp.safetensors")
    )
    try:
        source = (
            Path(config.source).expanduser()
            if config.source is not None
            else _fetch(spec.weights.url, download, config.view)
        )
        if not source.is_file():
            raise UsageError(
                f"FROM={config.source}: there is no such file. Name one, or leave FROM out: then it is fetched from {spec.weights.url}"
            )
        with source.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if spec.weights.sha256 not in (None, found):
            raise IntegrityError(
                f"{source} is not the checkpoint of {spec.name!r}: its sha256 is {found}, expected {spec.weights.sha256}; fetch it again"
            )
        _unpickle(source, made, spec.weights.key)
        _require_fit(spec, made, source)
        made.rename(target)
        durable.fsync_folder(target.parent)
    finally:
        download.unlink(missing_ok=True)
        made.unlink(missing_ok=True)
    print(
        f"{target}: made of {source.name}, sha256 {found}"
        + (
            ""
            if spec.weights.sha256
            else f'; to pin it, write sha256 = "{found}" below [weights] in {spec.source.name}'
        )
    )
    return target


def _fetch(url: str, to: Path, view: str) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise UsageError(
            f"HF_HUB_OFFLINE is set, so {url} is not fetched. Fetch it elsewhere, then type: make weights VIEW={view} FROM=FILE"
        )
    print(f"fetching {url} …", file=sys.stderr, flush=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, to.open("wb") as file:
            size, done, told = int(answer.headers.get("Content-Length") or 0), 0, 0
            while piece := answer.read(PIECE):
                file.write(piece)
                done += len(piece)
                if done - told >= 50 * PIECE:
                    told = done
                    print(
                        f"  {done / 1e6:,.0f} of {size / 1e6:,.0f} MB", file=sys.stderr, flush=True
                    )
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise StorageError(
            f"{url} could not be fetched ({error}). Try again, or fetch it elsewhere and type: make weights VIEW={view} FROM=FILE"
        ) from error
    if size and done != size:
        raise IntegrityError(
            f"{url} ended after {done:,} of {size:,} bytes; type the same command again"
        )
    return to


def _unpickle(source: Path, target: Path, key: str | None) -> None:
    """In a process of its own: what a hostile file could still do to one that loads it, it does not do to this one."""
    command = [
        sys.executable,
        "-m",
        "extract.models.unpickle",
        str(source.absolute()),
        str(target.absolute()),
        *([key] if key else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        if re.search(r"No space left|Disk quota|Errno 28|os error 28", said[-1]):
            raise StorageError(
                f"{target.parent} is full ({said[-1]}). Make room there, or name another folder with COVIEW_WEIGHTS, and type the same command"
            )
        raise IntegrityError(
            f"{source} is not a checkpoint of bare tensors that can be read safely: {said[-1]}. Fetch it again, or take another"
        )


def _require_fit(spec: "ViewSpec", made: Path, source: Path) -> None:
    """Load the model from it as extraction will. Raises IntegrityError for the checkpoint of another model."""
    from extract.models.backbones import load_backbone

    try:
        load_backbone(spec, {spec.weights.files[0]: made}, "cpu")
    except UsageError as error:
        raise IntegrityError(
            f"{source} is not the checkpoint of {spec.name!r}, or the spec does not describe it: {error}. Fetch "
            f"{spec.weights.url} again, or mend the spec"
        ) from error
