"""Which view folders of a cache a command speaks of: VIEW=… DATA=…, either of which may be left out.

    find_views(cache, "", "")               every view of every data set
    find_views(cache, "clip", "")           the view clip of every data set; also path/to/clip.toml, or a folder's own name
    find_view(cache, "clip", "", "export")  exactly one, or an error that lists the commands to choose from
"""

from pathlib import Path

from cache_specs import store
from cache_specs.errors import UsageError, did_you_mean
from cache_specs.items import find_dataset
from cache_specs.view import view_name


def find_views(cache: Path, view: str = "", data: str = "") -> list[Path]:
    """The folders of the views that are meant, damaged or not, in order of path. Raises UsageError when there is none."""
    name = Path(view).stem if view.endswith(".toml") else view
    if not cache.is_dir():
        raise UsageError(f"there is no cache {cache}; name it with CACHE=…, or fill it: make extract VIEW={name or 'clip'} DATA=…")
    datasets = [find_dataset(cache, data)] if data else \
        sorted(path for path in cache.iterdir() if path.is_dir() and ((path / "dataset.json").is_file() or store.view_folders(path)))
    everything = [folder for dataset in datasets for folder in store.view_folders(dataset)]
    found = [folder for folder in everything if name in ("", view_name(folder))] or [folder for folder in everything if folder.name == name]
    if not found and name:
        raise UsageError(f"no view {name!r} in {datasets[0] if data else cache}{did_you_mean(name, map(view_name, everything))}")
    if not found:
        raise UsageError(f"no view in {datasets[0] if data else cache}. Make one: make extract VIEW=clip DATA=…")
    return found


def find_view(cache: Path, view: str, data: str, target: str, rest: str = "") -> Path:
    """The one view folder that is meant. Raises UsageError listing the ways to name one, as commands `make target … rest`."""
    found = find_views(cache, view, data)
    if len(found) > 1:
        choices = "\n".join(f"  {store.command(folder, target)}{rest}" for folder in found)
        raise UsageError(f"{len(found)} views are meant, make {target} takes one. Type one of:\n{choices}")
    return found[0]
