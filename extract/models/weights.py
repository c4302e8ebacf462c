"""Where a view's weights come from: WEIGHTS=, the spec's own folder, `make weights`, or the Hugging
Face hub. Always safetensors, always hashed."""

import hashlib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging

from base.console import NOTE
from base.durable import canonical_json
from base.errors import UNKNOWN, CoviewError, StorageError, UsageError
from base.limits import of_the_disk
from base.phrase import quoted
from cache_specs.spec import SPECS, ViewSpec
from extract.models.convert import weights_folder
from extract.models.digests import digest_of

log = logging.getLogger(f"coview.{__name__}")


def find_weights(
    spec: ViewSpec,
    override: str | None,
    fetch: bool = True,
    commit: str = "",
    rehash: bool = False,
) -> tuple[dict[str, Path], str]:
    """The weight files of a view, {name: path}, and the sha256 over their names and contents.
    Without `fetch` the hub is not asked, and what is not here gives ({}, "").

    commit: of the hub's repository, where it is known; a branch such as main may have moved since.
    rehash: the files are read, even if they have the stamps that they had when they were hashed.

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
        files = _download(spec, where.hub, fetch, commit or where.revision)
    if not files:
        return {}, ""
    lost = [path for path in files.values() if not path.is_file()]
    if lost:
        raise _lost(spec, lost[0], override)
    digests = [[name, digest_of(path, rehash)] for name, path in sorted(files.items())]
    return files, hashlib.sha256(canonical_json(digests)).hexdigest()


def weights_of_each(specs: Sequence[ViewSpec], override: str | None) -> list[str | None]:
    """WEIGHTS= for each of several views: what lies below it under the view's name; of one view,
    the thing itself. Raises UsageError where nothing lies there."""
    if override is None or len(specs) == 1:
        return [override] * len(specs)
    names = [spec.name for spec in specs]
    found = weights_below(override, names)
    if not any(found):
        raise none_below(override, names)
    return found


def weights_below(folder: str, names: Sequence[str]) -> list[str | None]:
    """What lies in a folder under the name of each view, a folder or a .safetensors file."""
    found: list[str | None] = []
    for name in names:
        own = Path(folder).expanduser() / name
        places = (own, own.with_name(f"{name}.safetensors"))
        found.append(next((str(path) for path in places if path.exists()), None))
    return found


def none_below(folder: str, names: Sequence[str]) -> UsageError:
    places = ", ".join(f"{Path(folder).expanduser() / name}/" for name in names)
    return UsageError(
        f"WEIGHTS={folder}: of several views this is a folder with a folder, or one .safetensors "
        f"file, for each whose weights lie there: {places}; none is there",
        {"WEIGHTS": UNKNOWN},
    )


def of_several(error: UsageError, views: int, name: str, weights: str | None) -> UsageError:
    """The error, and what WEIGHTS is where there are several views: no view's own folder."""
    if views == 1 or "WEIGHTS" not in f"{error} {error.instead}":
        return error
    given = f"; {weights} holds neither" if weights else ""
    return UsageError(
        f"{error}. Of several views WEIGHTS=FOLDER holds {name}/ or {name}.safetensors{given}",
        error.instead,
    )


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


def commit_of(files: dict[str, Path]) -> str:
    """The commit of the hub's repository that all of the files are of; '' of other files."""
    commits = set()
    for path in files.values():
        found = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
        commits.add(found[1] if found else "")
    return commits.pop() if len(commits) == 1 else ""


def _download(
    spec: ViewSpec, repository: str, fetch: bool, revision: str | None
) -> dict[str, Path]:
    """All files of one commit: that of the first is kept to for the others."""
    # The hub's retries say nothing that the message below does not.
    hub_logging.get_logger().setLevel(hub_logging.ERROR)
    files: dict[str, Path] = {}
    for name in spec.weights.files:
        try:
            files[name] = Path(_fetch(repository, name, commit_of(files) or revision, fetch))
        except Exception as error:  # whatever the hub, the network and its libraries raise
            if not fetch:
                return {}
            raise _not_fetched(spec, repository, revision, error) from error
    return files


def _not_fetched(
    spec: ViewSpec, repository: str, revision: str | None, error: Exception
) -> CoviewError:
    """Why, and what to type."""
    files, why = " and ".join(spec.weights.files), f"{type(error).__name__}: {error}".split("\n")[0]
    if said := of_the_disk(error):
        return StorageError(
            f"the weights of {spec.name!r} were not fetched: {constants.HF_HUB_CACHE}: {said}. "
            "Make room there or mend the disk, or name another one in the environment: "
            "HF_HUB_CACHE=/another/disk; then type the same command"
        )
    login = f"{Path(sys.executable).parent / 'hf'} auth login"
    if isinstance(error, GatedRepoError):
        return UsageError(
            f"the weights of {spec.name!r} are gated: their owner gives them to those who agree to "
            f"the terms. Agree at https://huggingface.co/{repository}, then log in, once, with a "
            f"token of that account (`hf auth login`):\n  {login}\nand type the same command"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UsageError(
            f"the hub has no repository {repository} ({spec.source}, weights.hub), or it is "
            f"private. Mend the name; or log in with an account that may read it (`hf auth "
            f"login`):\n  {login}\nand type the same command"
        )
    missing = isinstance(error, RevisionNotFoundError | EntryNotFoundError)
    if missing and not isinstance(error, LocalEntryNotFoundError):
        return UsageError(
            f"the repository {repository} of the hub has no {files} at the revision {revision}: "
            f"mend weights.files or weights.revision in {spec.source}"
        )
    return UsageError(
        f"the weights of {spec.name!r} are not on this machine and could not be fetched "
        f"({why}).\n"
        f"  needed: {files} of the Hugging Face repository {repository}, revision {revision}\n"
        "  with a network: run the same command again; it downloads them once\n"
        f"  without: download them elsewhere (hf download {repository} "
        f"{' '.join(spec.weights.files)} --revision {revision} --local-dir FOLDER), copy the "
        "folder here and add WEIGHTS=FOLDER"
    )


def _fetch(repository: str, name: str, revision: str | None, fetch: bool) -> str:
    """The copy in the hub's local cache, else a download, if that may be."""
    try:
        return hf_hub_download(repository, name, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        if not fetch:
            raise
        log.log(NOTE, f"fetching {name} of {repository} …")
        return hf_hub_download(repository, name, revision=revision)
