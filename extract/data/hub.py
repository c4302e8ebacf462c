"""DATA=hf:owner/name: a data set of the Hugging Face hub, as Parquet; DATA=hf:path/to/folder: one
that is here.

    hf:owner/name@config   its Parquet files, its own or else those that the hub made of it
                           (refs/convert/parquet), are fetched once
    hf:folder              what `save_to_disk` wrote, or Parquet files named as on the hub
                           (train-00000-of-00002.parquet, test/0000.parquet)

No script of a data set is ever run, and the `datasets` library is not needed. HF_HUB_OFFLINE=1
reads what was fetched before.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging

from base.errors import StorageError, UsageError, did_you_mean
from base.limits import of_the_disk
from cache_specs.sources import split_config
from cache_specs.words import split_within
from extract.data import columns
from extract.data.readers import Listing

log = logging.getLogger(f"coview.{__name__}")

REVISIONS = ("main", "refs/convert/parquet")
NUMBERED = re.compile(r"(.*?)-?(\d{5,})-of-(\d{5,})(.*)")
SIZE = 2**24  # of a JSON file
Files = list[tuple[str, str]]  # a file relative to its folder, and the part of the data that it is


def of_hub(data: str, root: Path) -> Listing:
    name, config = split_config(data[3:])
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        files = _saved(folder) or _choose(data, _parquet_in(folder), config)
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith("."):
        folder, files = _fetch(data, name, config)
    else:
        raise UsageError(
            f"DATA={data}: there is no such folder; name one that is there, or DATA=hf:OWNER/NAME, "
            "a data set of the Hugging Face hub"
        )
    if not files:
        raise UsageError(
            f"DATA={data}: no Parquet file and no folder of save_to_disk in {folder}; name a "
            "folder that has one"
        )
    _require_splits(data, files)
    return columns.images_of(
        data, [(str(folder / path), split_within(name)) for path, name in files]
    )


def _parquet_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.parquet"))]


def _require_splits(data: str, files: Files) -> None:
    """Raise UsageError where a part of the data is no split, or two parts are the same one."""
    named: dict[str, set[str]] = defaultdict(set)
    for _, name in files:
        if name:
            named[split_within(name)].add(name)
    what = ""
    if "" in named:
        what = f"{min(named[''])!r} is none of train, val, test and unlabelled"
    else:
        for split, names in named.items():
            if len(names) > 1 and not what:
                both = " and ".join(map(repr, sorted(names)))
                what = f"{both} are both the split {split!r}"
    if what:
        raise UsageError(
            f"DATA={data}: {what}. Fetch the files that are meant (hf download --repo-type dataset "
            "… --local-dir FOLDER), with names such as train-0.parquet and test-0.parquet, and "
            "type DATA=hf:FOLDER"
        )


def _saved(folder: Path) -> Files:
    """(file, split) of what `save_to_disk` wrote; [] where the folder is something else."""
    found = []
    if (folder / "dataset_dict.json").is_file():
        for split in map(str, _json(folder / "dataset_dict.json").get("splits", [])):
            for file in _arrow_files(folder, split):
                found.append((f"{split}/{file}", split))
    elif (folder / "state.json").is_file():
        found = [(file, "") for file in _arrow_files(folder, "")]
    return found


def _arrow_files(folder: Path, split: str) -> list[str]:
    if split != PurePosixPath(split).name:
        raise UsageError(
            f"{folder / 'dataset_dict.json'}: the split {split!r} is no name of a folder; save the "
            "data set anew"
        )
    state = _json(folder / split / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UsageError(
            f"{folder / split} is a selection of rows by an index; save it with a newer "
            "`datasets`, or after dataset.flatten_indices()"
        )
    names = []
    for file in state.get("_data_files", []):
        if not isinstance(file, dict):
            continue
        name = str(file.get("filename"))
        plain = name == PurePosixPath(name).name and name.endswith(".arrow")
        if not plain or not (folder / split / name).is_file():
            raise UsageError(
                f"{folder / split / 'state.json'} names the file {name!r}, which is not there; "
                "save the data set anew"
            )
        names.append(name)
    return names


def _json(path: Path) -> dict:
    try:
        if path.stat().st_size > SIZE:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}; save the data set anew") from error


def _fetch(data: str, name: str, config: str) -> tuple[Path, Files]:
    """The folder of the fetched files in the hub's cache, and what they are. Raises UsageError."""
    # The hub's retries say nothing that the message below does not.
    hub_logging.get_logger().setLevel(hub_logging.ERROR)
    failures, online = [], not constants.HF_HUB_OFFLINE
    for revision in REVISIONS:
        there: list[str] | None = None  # None: the hub has not told
        if online:
            try:
                there = _listed(name, revision)
            # Whatever the hub, the network and its libraries raise: what was fetched before may do.
            except Exception as error:
                online = isinstance(error, HfHubHTTPError)  # the hub itself has answered
                failures.append(_first_line(error))
        if there == []:
            continue
        chosen = _choose(data, there, config) if there else []
        try:
            folder = _snapshot(name, revision, chosen)
        except Exception as error:
            if said := of_the_disk(error):
                raise StorageError(
                    f"DATA={data}: {constants.HF_HUB_CACHE}: {said}. Make room there or mend the "
                    "disk, or name another one in the environment: HF_HUB_CACHE=/another/disk; "
                    "then type the same command"
                ) from error
            failures.append(_first_line(error))
            continue
        if not chosen:
            chosen = _choose(data, _parquet_in(folder), config)
        if chosen:
            return folder, chosen
    raise _not_here(data, name, failures)


def _not_here(data: str, name: str, failures: Sequence[str]) -> UsageError:
    why = "; ".join(failures[:2]) or "it has none"
    return UsageError(
        f"DATA={data}: no Parquet file of the data set {name} of the Hugging Face hub is on this "
        f"machine, or could be fetched ({why}).\n"
        "  with a network: run the same command again; a private or gated one needs "
        "`hf auth login` first\n"
        f"  without: download it elsewhere (hf download --repo-type dataset {name} --include "
        "'*.parquet' --local-dir FOLDER), copy the folder here and type DATA=hf:FOLDER"
    )


def _listed(name: str, revision: str) -> list[str]:
    """The Parquet files that the hub has."""
    files = huggingface_hub.HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
    return [file for file in files if file.endswith(".parquet")]


def _snapshot(name: str, revision: str, files: Files) -> Path:
    """The folder with these files, fetched where they are not here yet; [] asks for what is here
    already."""
    folder = huggingface_hub.snapshot_download(
        name,
        repo_type="dataset",
        revision=revision,
        local_files_only=not files,
        allow_patterns=[file for file, _ in files] or "*.parquet",
    )
    return Path(folder)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _choose(data: str, names: Sequence[str], config: str) -> Files:
    """One configuration of the Parquet files of a data set. Raises UsageError where it is not clear
    which, or files are missing."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[_config_of(name)].append(name)
    group = config or _default(data, sorted(groups))
    if config and config not in groups:
        raise UsageError(f"DATA={data}: no configuration {config!r}{did_you_mean(config, groups)}")
    chosen = groups[group]
    for name in chosen:
        if "/partial-" in f"/{name}":
            raise UsageError(
                f"DATA={data}: the hub made Parquet of a part of this data set only ({name}), and "
                "its own files are none; turn it into Parquet or .tar yourself"
            )
    _refuse_missing(data, chosen)
    return [(name, _part_of(name, group)) for name in chosen]


def _config_of(name: str) -> str:
    """The configuration that a file belongs to: the folder at the top, unless that is a split."""
    top = PurePosixPath(name).parts[0] if "/" in name else ""
    return "default" if top in ("", "data", "default") or split_within(top) else top


def _default(data: str, groups: Sequence[str]) -> str:
    """The configuration that is taken where none was named."""
    if len(groups) < 2:
        return groups[0] if groups else "default"
    if "default" not in groups:
        named = ", ".join(f"DATA={data}@{group}" for group in groups)
        raise UsageError(f"DATA={data} has several configurations; type one of: {named}")
    listed = ", ".join(groups)
    log.info(f"{data}: of the configurations {listed} the one called default is taken")
    return "default"


def _part_of(name: str, group: str) -> str:
    """What a file's name, without its number, or its folder calls the part of the data that it is:
    the first that says a split; '' where nothing does."""
    path = PurePosixPath(name)
    numbered = NUMBERED.fullmatch(path.stem)
    stem = numbered[1] if numbered else path.stem.rstrip("0123456789").rstrip("-_.")
    folders = [part for part in path.parts[:-1] if part not in ("data", group)]
    for part in [stem, *reversed(folders)]:
        if split_within(part):
            return part
    return stem or (folders[-1] if folders else "")


def _refuse_missing(data: str, names: Sequence[str]) -> None:
    rows: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in names:
        found = NUMBERED.fullmatch(name)
        if found:
            rows[found[1], found[3], found[4]].add(int(found[2]))
    for (stem, count, _), numbers in rows.items():
        lost = sorted(set(range(min(int(count), 1_000_000))) - numbers)
        if lost:
            raise UsageError(
                f"DATA={data}: {len(lost):,} of {int(count):,} files of {stem} are not there, the "
                f"first is {stem}-{lost[0]:05d}-of-{count}; fetch them"
            )
