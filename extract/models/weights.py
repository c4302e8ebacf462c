"""Where a view's weights come from: WEIGHTS=, the spec's own folder, `make weights`, or the Hugging Face hub. Always safetensors, always hashed."""

import hashlib
import sys
from pathlib import Path

from base.durable import canonical_json
from base.errors import UsageError
from base.phrase import quoted
from cache_specs.spec import SPECS, ViewSpec
from extract.models.convert import weights_folder


def find_weights(
    spec: ViewSpec, override: str | None, fetch: bool = True
) -> tuple[dict[str, Path], str]:
    """The weight files of a view, {name: path}, and the sha256 over their names and contents. Without `fetch`
    the hub is not asked, and what is not here gives ({}, "").

    From `override` (WEIGHTS=: a folder with the spec's files, or the one .safetensors file), the spec's own folder, or the hub.
    Raises UsageError naming the repository and the file that are needed.
    """
    where, names = spec.weights, spec.weights.files
    if override is not None:
        source = Path(override).expanduser()
        if source.is_file() and len(names) == 1 and source.suffix != ".safetensors":
            how = (
                f"type: make weights VIEW={called(spec)} FROM={quoted(override)}   and then this command without WEIGHTS"
                if where.url is not None
                else "other checkpoints are pickles, which are not opened here: fetch the .safetensors file, or save one (safetensors.torch.save_file)"
            )
            raise UsageError(
                f"WEIGHTS={override}: the view {spec.name!r} needs a .safetensors file; {how}"
            )
        if source.is_file() and len(names) == 1:
            files = {names[0]: source}
        elif source.is_dir():
            files = {name: source / name for name in names}
        else:
            raise UsageError(
                f"WEIGHTS={override}: "
                + (
                    f"the view {spec.name!r} needs a folder with {' and '.join(names)}"
                    if source.exists()
                    else "there is no such file or folder; name one that is there"
                )
            )
    elif where.path is not None:
        files = {name: spec.source.parent / where.path / name for name in names}
    elif where.url is not None:
        files = {name: weights_folder() / name for name in names}
        if not files[names[0]].is_file() and not fetch:
            return {}, ""
        if not files[names[0]].is_file():
            raise UsageError(
                f"the weights of {spec.name!r} are its authors' own checkpoint, {where.url}, which is turned into safetensors once. "
                f"Type: make weights VIEW={called(spec)}   (with FROM=FILE where it was fetched elsewhere)"
            )
    else:
        files = _download(spec, fetch)
        if not files:
            return {}, ""
    lost = [path for path in files.values() if not path.is_file()]
    if lost:
        raise UsageError(
            f"the view {spec.name!r} needs the file {lost[0]}, which is not there (weights.path is relative "
            f"to {spec.source}); put it there, or add WEIGHTS=FOLDER"
        )
    digests = []
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            digests.append([name, hashlib.file_digest(file, "sha256").hexdigest()])
    return files, hashlib.sha256(canonical_json(digests)).hexdigest()


def called(spec: ViewSpec) -> str:
    """What VIEW= was: the name of a bundled view, or the path of the TOML file."""
    return spec.name if spec.source.parent == SPECS else quoted(str(spec.source))


def _download(spec: ViewSpec, fetch: bool) -> dict[str, Path]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.get_logger().setLevel(
        logging.ERROR
    )  # its retries say nothing that the message below does not
    where = spec.weights
    files = {}
    for name in where.files:
        try:
            files[name] = Path(_fetch(where.hub, name, where.revision, fetch))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            if not fetch:
                return {}
            raise UsageError(
                f"the weights of {spec.name!r} are not on this machine and could not be fetched ({type(error).__name__}).\n"
                f"  needed: {' and '.join(where.files)} of the Hugging Face repository {where.hub}, revision {where.revision}\n"
                f"  with a network: run the same command again; it downloads them once\n"
                f"  without: download them elsewhere (hf download {where.hub} {' '.join(where.files)} --local-dir FOLDER), copy the folder here "
                f"and add WEIGHTS=FOLDER"
            ) from error
    return files


def _fetch(repository: str, name: str, revision: str, fetch: bool) -> str:
    """The copy in the hub's local cache, else a download, if that may be."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return hf_hub_download(repository, name, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        if not fetch:
            raise
        print(f"fetching {name} of {repository} …", file=sys.stderr, flush=True)
        return hf_hub_download(repository, name, revision=revision)
