"""make views [DATA=photos/]     (python -m upkeep.list_views)

Every bundled view: width, parameters, arithmetic, licence, whether it is in the cache; and which pairs are too alike to teach each other.
"""

import os
from pathlib import Path
from typing import Any

from cache_specs.alike import alike
from upkeep.config import ViewsConfig


def command(config: ViewsConfig, found: dict[str, Any]) -> None:
    """make views."""
    if config.json:
        views = records(Path(config.cache), config.data)
        pairs = alike([view["view"] for view in views])
        found |= {"views": views, "alike": [[*pair, why] for pair, why in pairs.items()]}
    else:
        print(table(Path(config.cache), config.data))


def records(cache: Path, data: str | None = None) -> list[dict[str, Any]]:
    """One record a bundled view; parameters, gmacs (at one image), licence and model are None where its spec has no [about]."""
    from cache_specs import store
    from cache_specs.lookup import find_dataset
    from cache_specs.spec import load_spec, view_names

    sets = (
        [find_dataset(cache, os.path.expanduser(data))]
        if data is not None
        else sorted(path for path in cache.iterdir() if (path / "dataset.json").is_file())
        if cache.is_dir()
        else []
    )
    found = []
    for name in view_names():
        spec = load_spec(name)
        about = {
            key: getattr(spec.about, key) if spec.about else None
            for key in ("parameters", "gmacs", "licence", "model")
        }
        cached = sum(
            (folder / "complete.json").is_file()
            for dataset in sets
            for folder in store.view_folders(dataset, name)
        )
        found.append({"view": name, "width": spec.width, **about, "cached": cached})
    return found


def table(cache: Path, data: str | None = None) -> str:
    """One line a view, then one a pair that is too alike."""
    views = records(cache, data)
    lines = [
        f"{'view':18}{'width':>6}{'params':>9}{'GMACs':>8}{'GB/1e6':>8}  {'licence':16}{'cached':9}model"
    ]
    for view in views:
        numbers = (
            f"{view['parameters'] / 1e6:7.1f} M{view['gmacs']:8.1f}"
            if view["model"]
            else f"{'':17}"
        )
        cached = {0: "", 1: "yes"}.get(view["cached"], f"{view['cached']} sets")
        lines.append(
            f"{view['view']:18}{view['width']:6}{numbers}{view['width'] * 2e-3:8.2f}  {view['licence'] or '':16}{cached:9}{view['model'] or ''}"
        )
    pairs = alike([view["view"] for view in views])
    return "\n".join(
        [
            *lines,
            "",
            "too alike to teach each other:",
            *(f"  {one} and {other}: {why}" for (one, other), why in pairs.items()),
        ]
    )
