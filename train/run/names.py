"""Names of runs. Knows no torch."""

from pathlib import Path


def free_name(folder: Path) -> str:
    """The next one after this run's."""
    number = 2
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return f"{folder.name}-{number}"
