"""make views [DATA=photos/]     (python -m cache_specs.views)

Every bundled view: width, parameters, arithmetic, licence, whether it is in the cache; and which pairs are too alike to teach each other.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from cache_specs.errors import run_cli


@dataclass(frozen=True)
class ViewsConfig:
    """List the views."""

    cache: str = "cache"
    """where the embeddings are"""
    data: str | None = None
    """the data set whose embeddings are looked for; default: any"""


def main() -> None:
    import tyro

    config = tyro.cli(ViewsConfig, prog="python -m cache_specs.views", description=ViewsConfig.__doc__)
    print(table(Path(config.cache), config.data))


def table(cache: Path, data: str | None = None) -> str:
    """One line a view, then one a pair that is too alike."""
    from cache_specs import store
    from cache_specs.lookup import find_dataset
    from cache_specs.spec import load_spec, view_names

    sets = [find_dataset(cache, os.path.expanduser(data))] if data is not None else \
        sorted(path for path in cache.iterdir() if (path / "dataset.json").is_file()) if cache.is_dir() else []
    specs = {name: load_spec(name) for name in view_names()}
    lines = [f"{'view':18}{'width':>6}{'params':>9}{'GMACs':>8}{'GB/1e6':>8}  {'licence':16}{'cached':9}model"]
    for name, spec in specs.items():
        finished = sum((folder / "complete.json").is_file() for dataset in sets for folder in store.view_folders(dataset, name))
        about = spec.about
        numbers = f"{about.parameters / 1e6:7.1f} M{about.gmacs:8.1f}" if about else f"{'':17}"
        lines.append(f"{name:18}{spec.width:6}{numbers}{spec.width * 2e-3:8.2f}  {about.licence if about else '':16}"
                     f"{'yes' if finished == 1 else f'{finished} sets' if finished else '':9}{about.model if about else ''}")
    return "\n".join([*lines, "", "too alike to teach each other:", *(f"  {one} and {other}: {why}" for (one, other), why in alike(list(specs)).items())])


def alike(views: list[str]) -> dict[tuple[str, str], str]:
    """The pairs of these views of which one's spec says that they are too alike, and why; each pair once. What is no bundled view has no say."""
    from cache_specs.spec import load_spec, view_names

    found: dict[tuple[str, str], str] = {}
    for one in sorted(set(views) & set(view_names())):
        about = load_spec(one).about
        for other, why in (about.alike if about else {}).items():
            if other in views and (other, one) not in found:
                found[one, other] = why
    return found


if __name__ == "__main__":
    sys.exit(run_cli(main))
