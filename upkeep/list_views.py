"""make views [DATA=photos/]

Every bundled view: width, parameters, arithmetic, licence, whether it is in the cache; and which
pairs are too alike to teach each other.
"""

import os
from pathlib import Path
from typing import Any

from cache_specs import store
from cache_specs.alike import alike
from cache_specs.lookup import find_dataset
from cache_specs.spec import load_spec, view_names
from upkeep.config import ViewsConfig

ABOUT = ("parameters", "gmacs", "licence", "model")


def command(config: ViewsConfig, found: dict[str, Any]) -> None:
    """make views."""
    views = bundled_views(Path(config.cache), config.data)
    pairs = alike([view["view"] for view in views])
    if config.json:
        found |= {"views": views, "alike": [[*pair, why] for pair, why in pairs.items()]}
    else:
        print(views_text(views, pairs))


def bundled_views(cache: Path, data: str | None = None) -> list[dict[str, Any]]:
    """One record a bundled view; parameters, gmacs (at one image), licence and model are None where
    its spec has no [about]. cached: in how many data sets it is finished."""
    datasets = _datasets(cache, data)
    found = []
    for name in view_names():
        spec, cached = load_spec(name), 0
        for dataset in datasets:
            for folder in store.view_folders(dataset, name):
                cached += (folder / "complete.json").is_file()
        about = {key: getattr(spec.about, key, None) for key in ABOUT}
        found.append({"view": name, "width": spec.width, **about, "cached": cached})
    return found


def _datasets(cache: Path, data: str | None) -> list[Path]:
    if data is not None:
        return [find_dataset(cache, os.path.expanduser(data))]
    if not cache.is_dir():
        return []
    return sorted(path for path in cache.iterdir() if (path / "dataset.json").is_file())


def views_text(views: list[dict[str, Any]], pairs: dict[tuple[str, str], str]) -> str:
    """One line a view, then one a pair that is too alike."""
    numbers = f"{'width':>6}{'params':>9}{'GMACs':>8}{'GB/1e6':>8}"
    lines = [f"{'view':18}{numbers}  {'licence':16}{'cached':9}model"]
    lines += [_view_line(view) for view in views]
    lines += ["", "too alike to teach each other:"]
    for (one, other), why in pairs.items():
        lines.append(f"  {one} and {other}: {why}")
    return "\n".join(lines)


def _view_line(view: dict[str, Any]) -> str:
    size = f"{'':17}"
    if view["model"]:
        size = f"{view['parameters'] / 1e6:7.1f} M{view['gmacs']:8.1f}"
    numbers = f"{view['width']:6}{size}{view['width'] * 2e-3:8.2f}"
    cached = {0: "", 1: "yes"}.get(view["cached"], f"{view['cached']} sets")
    words = f"{view['licence'] or '':16}{cached:9}{view['model'] or ''}"
    return f"{view['view']:18}{numbers}  {words}"
