"""DATA=hf:owner/name: a data set of the Hugging Face hub, as Parquet; DATA=hf:path/to/folder: one that is here.

    hf:owner/name@config        its Parquet files, its own or else those that the hub made of it (refs/convert/parquet), are fetched once
    hf:folder                   what `save_to_disk` wrote, or Parquet files named as on the hub (train-00000-of-00002.parquet, test/0000.parquet)

No script of a data set is ever run, and the `datasets` library is not needed. HF_HUB_OFFLINE=1 reads what was fetched before.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from base.errors import UsageError, did_you_mean
from cache_specs.sources import split_config
from extract.data import columns
from extract.data.naming import split_in

REVISIONS = ("main", "refs/convert/parquet")
NUMBERED = re.compile(r"(.*?)-?(\d{5,})-of-(\d{5,})(.*)")
SIZE = 2**24  # of a JSON file


def hub(data: str, root: Path) -> tuple:
    name, config = split_config(data[3:])
    here = Path(name).expanduser()
    if name and here.is_dir():
        folder, files = (
            here,
            _saved(here)
            or _choose(
                data,
                [path.relative_to(here).as_posix() for path in sorted(here.rglob("*.parquet"))],
                config,
            ),
        )
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith("."):
        folder, files = _fetch(data, name, config)
    else:
        raise UsageError(
            f"DATA={data}: there is no such folder; name one that is there, or DATA=hf:OWNER/NAME, a data set of the Hugging Face hub"
        )
    if not files:
        raise UsageError(
            f"DATA={data}: no Parquet file and no folder of save_to_disk in {folder}; name a folder that has one"
        )
    named: dict[str, set[str]] = defaultdict(set)
    for _, name in files:
        named[split_in(name)].add(name)
    if (other := sorted(named.pop("", set()) - {""})) or any(
        len(names) > 1 for names in named.values()
    ):
        what = (
            f"{other[0]!r} is none of train, val, test and unlabelled"
            if other
            else next(
                f"{' and '.join(map(repr, sorted(names)))} are both the split {split!r}"
                for split, names in named.items()
                if len(names) > 1
            )
        )
        raise UsageError(
            f"DATA={data}: {what}. Fetch the files that are meant (hf download --repo-type dataset … --local-dir FOLDER), with names such as "
            "train-0.parquet and test-0.parquet, and type DATA=hf:FOLDER"
        )
    return columns.images_of(data, [(str(folder / path), split_in(name)) for path, name in files])


def _saved(folder: Path) -> list[tuple[str, str]]:
    """(file, split) of what `save_to_disk` wrote; [] where the folder is something else."""
    if (folder / "dataset_dict.json").is_file():
        splits = [str(split) for split in _json(folder / "dataset_dict.json").get("splits", [])]
        return [
            (f"{split}/{file}", split) for split in splits for file in _arrow_files(folder, split)
        ]
    return (
        [(file, "") for file in _arrow_files(folder, "")]
        if (folder / "state.json").is_file()
        else []
    )


def _arrow_files(folder: Path, split: str) -> list[str]:
    if split != PurePosixPath(split).name:
        raise UsageError(
            f"{folder / 'dataset_dict.json'}: the split {split!r} is no name of a folder; save the data set anew"
        )
    state = _json(folder / split / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UsageError(
            f"{folder / split} is a selection of rows by an index; save it with a newer `datasets`, or after dataset.flatten_indices()"
        )
    names = [
        str(file.get("filename")) for file in state.get("_data_files", []) if isinstance(file, dict)
    ]
    for name in names:
        if (
            name != PurePosixPath(name).name
            or not name.endswith(".arrow")
            or not (folder / split / name).is_file()
        ):
            raise UsageError(
                f"{folder / split / 'state.json'} names the file {name!r}, which is not there; save the data set anew"
            )
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


def _fetch(data: str, name: str, config: str) -> tuple[Path, list[tuple[str, str]]]:
    """The folder of the fetched files in the hub's cache, and (file, split) of each. Raises UsageError."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    logging.get_logger().setLevel(
        logging.ERROR
    )  # its retries say nothing that the message below does not
    failures, online = [], not constants.HF_HUB_OFFLINE
    for revision in REVISIONS:
        there, files = [], []
        try:
            if online:
                there = [
                    file
                    for file in HfApi().list_repo_files(
                        name, repo_type="dataset", revision=revision
                    )
                    if file.endswith(".parquet")
                ]
                if not there:
                    continue
        except Exception as error:  # whatever the hub, the network and its libraries raise: what was fetched before may do
            online = isinstance(error, HfHubHTTPError)  # the hub itself has answered
            failures.append(f"{type(error).__name__}: {error}".split("\n")[0])
        if there:
            files = _choose(data, there, config)
        try:
            folder = Path(
                snapshot_download(
                    name,
                    repo_type="dataset",
                    revision=revision,
                    local_files_only=not there,
                    allow_patterns=[file for file, _ in files] or "*.parquet",
                )
            )
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}".split("\n")[0])
            continue
        files = files or _choose(
            data,
            [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.parquet"))],
            config,
        )
        if files:
            return folder, files
    raise UsageError(
        f"DATA={data}: no Parquet file of the data set {name} of the Hugging Face hub is on this machine, or could be fetched"
        f" ({'; '.join(failures[:2]) or 'it has none'}).\n"
        "  with a network: run the same command again; a private or gated one needs `hf auth login` first\n"
        f"  without: download it elsewhere (hf download --repo-type dataset {name} --include '*.parquet' --local-dir FOLDER), copy the folder "
        "here and type DATA=hf:FOLDER"
    )


def _choose(data: str, names: Sequence[str], config: str) -> list[tuple[str, str]]:
    """(file, split) of one configuration of the Parquet files of a data set. Raises UsageError where it is not clear which, or files are missing."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        top = PurePosixPath(name).parts[0] if "/" in name else ""
        groups["default" if top in ("", "data", "default") or split_in(top) else top].append(name)
    if config and config not in groups:
        raise UsageError(f"DATA={data}: no configuration {config!r}{did_you_mean(config, groups)}")
    if not config and "default" in groups and len(groups) > 1:
        print(
            f"{data}: of the configurations {', '.join(sorted(groups))} the one called default is taken",
            flush=True,
        )
    if not config and len(groups) > 1 and "default" not in groups:
        raise UsageError(
            f"DATA={data} has several configurations; type one of: "
            + ", ".join(f"DATA={data}@{group}" for group in sorted(groups))
        )
    group = config or ("default" if "default" in groups else next(iter(groups), "default"))
    chosen = groups[group]
    if partial := [name for name in chosen if "/partial-" in f"/{name}"]:
        raise UsageError(
            f"DATA={data}: the hub made Parquet of a part of this data set only ({partial[0]}), and its own files are none; turn it into Parquet "
            "or .tar yourself"
        )
    _refuse_missing(data, chosen)
    return [(name, _part_of(name, group)) for name in chosen]


def _part_of(name: str, group: str) -> str:
    """What a file's name, without its number, or its folder calls the part of the data that it is: the first that says a split; '' where nothing does."""
    path = PurePosixPath(name)
    stem = (
        found[1]
        if (found := NUMBERED.fullmatch(path.stem))
        else path.stem.rstrip("0123456789").rstrip("-_.")
    )
    folders = [part for part in path.parts[:-1] if part not in ("data", group)]
    return next(
        (part for part in [stem, *reversed(folders)] if split_in(part)),
        stem or (folders[-1] if folders else ""),
    )


def _refuse_missing(data: str, names: Sequence[str]) -> None:
    rows: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in names:
        if found := NUMBERED.fullmatch(name):
            rows[found[1], found[3], found[4]].add(int(found[2]))
    for (stem, count, _), numbers in rows.items():
        if lost := sorted(set(range(min(int(count), 1_000_000))) - numbers):
            raise UsageError(
                f"DATA={data}: {len(lost):,} of {int(count):,} files of {stem} are not there, the first is {stem}-{lost[0]:05d}-of-{count}; "
                "fetch them"
            )
