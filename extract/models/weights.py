"""Where a view's weights come from: WEIGHTS=, the spec's own folder, `make weights`, or the Hugging
Face hub. Always safetensors, always hashed."""

import hashlib
import logging
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging

from base.console import NOTE
from base.durable import canonical_json
from base.errors import UNKNOWN, UsageError
from base.phrase import quoted
from cache_specs.spec import SPECS, ViewSpec
from extract.models.convert import weights_folder

log = logging.getLogger(f"coview.{__name__}")


def find_weights(
    spec: ViewSpec, override: str | None, fetch: bool = True
) -> tuple[dict[str, Path], str]:
    """The weight files of a view, {name: path}, and the sha256 over their names and contents.
    Without `fetch` the hub is not asked, and what is not here gives ({}, "").

    From `override` (WEIGHTS=: a folder with the spec's files, or the one .safetensors file), the
    spec's own folder, or the hub. Raises UsageError naming the repository and the file that are
    needed.
    """
    where = spec.weights
    if override is not None:
        files = _named(spec, override)
    elif where.path is not None:
        files = {name: spec.source.parent / where.path / name for name in where.files}
    elif where.url is not None:
        files = _converted(spec, fetch)
    else:
        assert where.hub is not None, f"{spec.source} says nowhere where its weights are"
        files = _download(spec, where.hub, fetch)
    if not files:
        return {}, ""
    lost = [path for path in files.values() if not path.is_file()]
    if lost:
        raise _lost(spec, lost[0], override)
    return files, _digest(files)


def _lost(spec: ViewSpec, path: Path, override: str | None) -> UsageError:
    told = f"the view {spec.name!r} needs the file {path}, which is not there"
    if override is not None:
        return UsageError(
            f"{told}. WEIGHTS is a folder with {' and '.join(spec.weights.files)}",
            {"WEIGHTS": UNKNOWN},
        )
    told += f" (weights.path is relative to {spec.source.parent}). Put it there, or name its folder"
    if spec.source.is_file() and path.suffix == ".safetensors":
        make = f"make weights VIEW={called(spec)} FROM={UNKNOWN}"
        told += f"; of a checkpoint of another kind this makes it: {make}"
    return UsageError(told, {"WEIGHTS": UNKNOWN})


def _digest(files: dict[str, Path]) -> str:
    """The sha256 over the files' names and contents."""
    digests = []
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            digests.append([name, hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(canonical_json(digests)).hexdigest()


def called(spec: ViewSpec) -> str:
    """What VIEW= was: the name of a bundled view, or the path of the TOML file."""
    return spec.name if spec.source.parent == SPECS else quoted(str(spec.source))


def _named(spec: ViewSpec, override: str) -> dict[str, Path]:
    """What WEIGHTS= is: a folder, or the only file. Raises UsageError."""
    source, names = Path(override).expanduser(), spec.weights.files
    if source.is_dir():
        return {name: source / name for name in names}
    if not source.exists():
        raise UsageError(
            f"WEIGHTS={override}: there is no such file or folder; name one that is there",
            {"WEIGHTS": UNKNOWN},
        )
    if not source.is_file() or len(names) > 1:
        raise UsageError(
            f"WEIGHTS={override}: the view {spec.name!r} needs a folder with {' and '.join(names)}",
            {"WEIGHTS": UNKNOWN},
        )
    if source.suffix != ".safetensors":
        how = (
            "other checkpoints are pickles, which are not opened here: fetch the .safetensors "
            "file, or save one (safetensors.torch.save_file)"
        )
        if spec.weights.hub is None:
            type_first = f"make weights VIEW={called(spec)} FROM={quoted(override)}"
            how = f"type first: {type_first}   and then this command without WEIGHTS"
        raise UsageError(
            f"WEIGHTS={override}: the view {spec.name!r} needs a .safetensors file; {how}",
            {"WEIGHTS": UNKNOWN} if spec.weights.hub else None,
        )
    return {names[0]: source}


def _converted(spec: ViewSpec, fetch: bool) -> dict[str, Path]:
    """What `make weights` left; {} where it has not run, and `fetch` is not asked for."""
    files = {name: weights_folder() / name for name in spec.weights.files}
    if files[spec.weights.files[0]].is_file():
        return files
    if not fetch:
        return {}
    raise UsageError(
        f"the weights of {spec.name!r} are its authors' own checkpoint, {spec.weights.url}, which "
        f"is turned into safetensors once. Type: make weights VIEW={called(spec)}   (with "
        "FROM=… where it was fetched elsewhere)"
    )


def _download(spec: ViewSpec, repository: str, fetch: bool) -> dict[str, Path]:
    # The hub's retries say nothing that the message below does not.
    hub_logging.get_logger().setLevel(hub_logging.ERROR)
    where = spec.weights
    files = {}
    for name in where.files:
        try:
            files[name] = Path(_fetch(repository, name, where.revision, fetch))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            if not fetch:
                return {}
            raise UsageError(
                f"the weights of {spec.name!r} are not on this machine and could not be fetched "
                f"({type(error).__name__}).\n"
                f"  needed: {' and '.join(where.files)} of the Hugging Face repository "
                f"{repository}, revision {where.revision}\n"
                "  with a network: run the same command again; it downloads them once\n"
                f"  without: download them elsewhere (hf download {repository} "
                f"{' '.join(where.files)} --local-dir FOLDER), copy the folder here and add "
                "WEIGHTS=FOLDER"
            ) from error
    return files


def _fetch(repository: str, name: str, revision: str | None, fetch: bool) -> str:
    """The copy in the hub's local cache, else a download, if that may be."""
    try:
        return hf_hub_download(repository, name, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        if not fetch:
            raise
        log.log(NOTE, f"fetching {name} of {repository} …")
        return hf_hub_download(repository, name, revision=revision)
