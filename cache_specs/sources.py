"""What DATA=… names: a word, a file or a folder; and the record of it beside a data set's item list."""

import os
from pathlib import Path

from cache_specs import durable
from cache_specs.errors import UsageError

LONGEST = 200               # bytes of a data set's name: a file's may have 255, and more is appended


def dataset_name(data: str) -> str:
    """photos/ -> photos; /data/list.csv -> list; torchvision:MNIST -> MNIST. Characters that do not suit a folder name become '-'."""
    base = data.split(":", 1)[1] if data.startswith("torchvision:") else Path(data).resolve().name if "/" in data or data == "." else data
    base = base.rsplit(".", 1)[0] if base.endswith((".csv", ".parquet")) else base
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in base).lstrip(".-") or "data"
    return name.encode("utf-8", "replace")[:LONGEST].decode(errors="ignore")


def source_path(data: str) -> str:
    """What DATA names, for good: an absolute path, or the very word (digits, torchvision:MNIST)."""
    path = Path(data).expanduser()
    found = str(path.resolve()) if path.exists() and data != "digits" else data
    try:
        found.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the name {os.fsencode(found)!r} is not UTF-8, so it cannot be recorded; rename the folder or file") from None
    return found


def read_source(folder: Path) -> str:
    """The DATA that a dataset was made of, as `source_path` gave it; '' where its record cannot be read (read_items says why)."""
    try:
        return durable.read_sealed(folder / "dataset.json")["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
