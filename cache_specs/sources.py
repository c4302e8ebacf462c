"""What DATA=… names: a word, a file, a folder, a row of shards; and the record of it beside a data
set's item list."""

import os
import re
from pathlib import Path

from base import durable
from base.errors import UsageError

LONGEST = 200  # bytes of a data set's name: a file's may have 255, and more is appended
MOST_SHARDS = 100_000
ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".tar", ".h5", ".hdf5")
SUBSET = re.compile(r"(.+)#top(\d{1,9})", re.DOTALL)
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def dataset_name(data: str) -> str:
    """photos/ -> photos; /data/list.csv -> list; torchvision:MNIST -> MNIST;
    hf:owner/name@small -> name-small; a/train-{000..012}.tar -> train;
    photos/#top10 -> photos-top10. Characters that do not suit a folder name become '-'."""
    data, top = split_subset(data)
    config = ""
    if data.startswith("hf:"):
        data, config = split_config(data[3:])
    base = _base_name(data.removeprefix("torchvision:"))
    if config:
        base += f"-{config}"
    if top:
        base += f"-top{top}"
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in base).lstrip(".-") or "data"
    return name.encode("utf-8", "replace")[:LONGEST].decode(errors="ignore")


def _base_name(data: str) -> str:
    """Of a path its last part without the ending, of a row of shards what they have in common."""
    base = BRACES.sub("", data)
    if base != data and not Path(data).exists():
        common = Path(base).name.removesuffix(".tar").rstrip("-_.")
        data = common or str(Path(base).resolve().parent)
    if "/" in data or data == ".":
        data = Path(data).resolve().name
    for ending in ENDINGS:
        if data.lower().endswith(ending):
            return data[: -len(ending)]
    return data


def source_path(data: str) -> str:
    """What DATA names, for good: with an absolute path, or the very word (digits,
    torchvision:MNIST, hf:owner/name)."""
    path, found = where(data), data
    if path is not None and path.exists():
        found = _absolute(data)
    try:
        found.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the name {os.fsencode(found)!r} is not UTF-8, so it cannot be recorded; rename the "
            "folder or file"
        ) from None
    return found


def _absolute(data: str) -> str:
    plain, top = split_subset(data)
    head = config = ""
    if plain.startswith("hf:"):
        head = "hf:"
        plain, config = split_config(plain[3:])
    found = f"{head}{Path(plain).expanduser().resolve()}"
    if config:
        found += f"@{config}"
    if top:
        found += f"#top{top}"
    return found


def where(data: str) -> Path | None:
    """The file or folder that DATA names, there or not (of a row of shards the first); None where
    it is a word (digits, torchvision:…, hf:owner/name)."""
    data, _ = split_subset(data)
    if data == "digits" or data.startswith("torchvision:"):
        return None
    if data.startswith("hf:"):
        path = Path(split_config(data[3:])[0]).expanduser()
        return path if path.is_absolute() or data[3:].startswith(".") or path.is_dir() else None
    path = Path(data).expanduser()
    return path if path.exists() else Path(expand_shards(data)[0]).expanduser()


def is_gone(data: str) -> bool:
    """DATA names a file or folder, and it is not there."""
    path = where(data)
    return path is not None and not path.exists()


def split_subset(data: str) -> tuple[str, int]:
    """photos/#top10 -> ('photos/', 10): only the ten classes with the most training images.
    (data, 0): all of it."""
    found = SUBSET.fullmatch(data)
    if found is None or Path(data).expanduser().exists():
        return data, 0
    if not int(found[2]):
        raise UsageError(
            f"DATA={data}: #top0 would leave no class; take at least #top1",
            instead={"DATA": f"{found[1]}#top1"},
        )
    return found[1], int(found[2])


def split_config(name: str) -> tuple[str, str]:
    """owner/name@config -> ('owner/name', 'config'); ('owner/name', '') without one."""
    base, _, config = name.rpartition("@")
    if not base or "/" in config or Path(name).expanduser().exists():
        return name, ""
    return base, config


def expand_shards(pattern: str) -> list[str]:
    """train-{000..012}.tar -> the 13 names; {a,b} works too; a name without braces is itself."""
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    head, rest = pattern[: found.start()], expand_shards(pattern[found.end() :])
    first, last, words = found.groups()
    if words is not None:
        parts, count = words.split(","), words.count(",") + 1
    else:
        parts, count = range(int(first), int(last) + 1), int(last) - int(first) + 1
    if not 0 < count * len(rest) <= MOST_SHARDS:
        raise UsageError(
            f"DATA={pattern}: {found[0]} stands for {max(0, count * len(rest)):,} shards, expected "
            f"1 to {MOST_SHARDS:,}; type {{000000..000012}}"
        )
    names = []
    for part in parts:
        middle = part if isinstance(part, str) else str(part).zfill(len(first))
        names += [f"{head}{middle}{end}" for end in rest]
    return names


def read_source(folder: Path) -> str:
    """The DATA that a dataset was made of, as `source_path` gave it; '' where its record cannot be
    read (read_items says why)."""
    try:
        return durable.read_sealed(folder / "dataset.json")["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def recorded_words(folder: Path) -> list[str]:
    """What --as-class was given for the labels of a dataset; [] where nothing was, or its record
    cannot be read."""
    try:
        return list(durable.read_sealed(folder / "dataset.json")["as_class"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
