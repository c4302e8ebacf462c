"""Which data set or view folders of a cache a command speaks of: VIEW=… DATA=…, either of which
may be left out.

find_views(cache, "", "")                every view of every data set
find_views(cache, "clip", "")            the view clip of every data set; also path/to/clip.toml, or
                                         a folder's own name
one_view(cache, "clip", "", "export")   exactly one, of the current versions if there are several,
                                         or an error that lists the commands to choose from
named_view(dataset, "mine", hint)       of one data set, for training: a view of one's own by the
                                         name that the cache holds, with the spec it was made with
spec_named(cache, "mine", "photos/")    the spec to extract with, likewise
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from base.errors import UNKNOWN, StaleError, UsageError, did_you_mean, nearest
from base.phrase import quoted
from cache_specs import store
from cache_specs.items import Items, read_items
from cache_specs.sources import dataset_name, is_gone, read_source, recorded_words, source_path
from cache_specs.spec import (
    PIXELS,
    Text,
    ViewSpec,
    differences,
    load_spec,
    pixels_of,
    recorded_spec,
    view_names,
    with_pixels_of,
)
from cache_specs.store import open_view
from cache_specs.versions import (
    IMPORTED,
    current,
    dataset_folders,
    every_dataset,
    is_older,
    name_of,
    version_of,
)
from cache_specs.view import View, view_name
from cache_specs.words import read_as_class

log = logging.getLogger(f"coview.{__name__}")


def find_views(cache: Path, view: str = "", data: str = "") -> list[Path]:
    """The folders of the views that are meant, damaged or not, in order of path. Raises UsageError
    when there is none."""
    name = Path(view).stem if view.endswith(".toml") else view
    if not cache.is_dir():
        raise UsageError(
            f"there is no cache {cache}; name it with CACHE=…, or fill it: make extract "
            f"VIEW={name or 'clip'} DATA=…"
        )
    datasets = [find_dataset(cache, data)] if data else dataset_places(cache)
    everything = []
    for dataset in datasets:
        everything += store.view_folders(dataset)
    found = store.called(everything, name)
    if not found:
        raise _no_view(datasets[0] if data else cache, name, everything)
    return found


def _no_view(place: Path, name: str, everything: list[Path]) -> UsageError:
    if not name:
        return UsageError(f"no view in {place}. Make one: make extract VIEW=clip DATA=…")
    known = sorted({view_name(folder) for folder in everything})
    near = nearest(name, known)
    return UsageError(
        f"no view {name!r} in {place}{did_you_mean(name, known)}", {"VIEW": near or UNKNOWN}
    )


def dataset_places(cache: Path) -> list[Path]:
    """The folders of a cache that hold an item list, or views without one."""
    found = []
    for path in sorted(cache.iterdir()):
        if path.is_dir() and ((path / "dataset.json").is_file() or store.view_folders(path)):
            found.append(path)
    return found


def one_view(cache: Path, view: str, data: str, target: str, rest: str = "") -> Path:
    """The one view folder that is meant. Raises UsageError listing the ways to name one, as
    commands `make target … rest`."""
    found = find_views(cache, view, data)
    if not data:
        found = [folder for folder in found if not is_older(folder.parent)] or found
    if len(found) > 1 and view.endswith(".toml") and Path(view).is_file():
        found = store.of_spec(found, load_spec(view).declared()) or found
    if len(found) > 1:
        raise _several(found, target, rest)
    return found[0]


def _several(found: Sequence[Path], target: str, rest: str) -> UsageError:
    choices = "\n".join(f"  {store.command(folder, target)}{rest}" for folder in found)
    return UsageError(
        f"{len(found)} views are meant, make {target} takes one. Type one of:\n{choices}"
    )


def named_view(dataset: Path, name: str, hint: str, among: Sequence[str] = ()) -> View:
    """The view of a data set that `name` means: a name that its cache holds once, or a folder's
    own name, is that view, with the spec that it was made with; a TOML file that of this spec.
    among: all that stands in VIEWS.

    Raises UsageError (no such view, or several: naming each), StaleError where the file, or the
    project's own spec of that name, is another one now.
    """
    own = sorted({view_name(folder) for folder in store.view_folders(dataset)})
    if name.endswith(".toml"):
        spec = load_spec(name, among, own)
        same = store.of_spec(store.view_folders(dataset, spec.name), spec.declared())
        wanted = same[0].name if len(same) == 1 else spec.name
        view = store.find_view(dataset, wanted, hint, among)
        _refuse_drift(view, spec, name, among)
        _say_earlier_pixels(view)
        return view
    folders = store.view_folders(dataset)
    if not store.called(folders, name) and name not in view_names():
        load_spec(name, among, own)  # its message names the nearest of all
    view = store.find_view(dataset, name, hint, among)
    if view.folder.name != name:
        _hold_against_now(view, name, among)
        _say_earlier_pixels(view)
    return view


def _hold_against_now(view: View, name: str, among: Sequence[str]) -> None:
    """A view of the project must be what the project's spec says now. Of one's own, which a name
    means as it is, it is told that its file has changed since."""
    made = view.attributes["provenance"]
    if view.attributes["spec"].get("backend") == IMPORTED:
        return
    if store.is_of_project(made, view.name):
        _refuse_drift(view, load_spec(name), name, among)
        return
    _say_whose(view, name)
    now = _spec_by_now(view)
    if now is None:
        return
    now = with_pixels_of(now, view.attributes["spec"])
    changed = differences(view.attributes["spec"], now.declared())
    if changed:
        lines = "\n  ".join(changed)
        log.warning(
            f"{made['spec_file']} has changed since the view {name!r} was made of it:\n  {lines}\n"
            "The view is used as it was made"
        )


def _spec_by_now(view: View) -> ViewSpec | None:
    """None where the file of a view is gone, or in the middle of being changed: the cache has what
    is needed."""
    try:
        return load_spec(view.attributes["provenance"]["spec_file"])
    except (UsageError, KeyError):
        return None


def _say_whose(view: View, name: str) -> None:
    """A view of one's own that is called as one of the project."""
    if name in view_names():
        source = view.attributes["provenance"].get("spec_file", "another spec")
        log.warning(
            f"{name} is here the view that was made of {source}, which the data set has in the "
            "cache, and not the project's view of that name"
        )


def _say_earlier_pixels(view: View) -> None:
    made = pixels_of(view.attributes["spec"])
    if not 0 < made < PIXELS:
        return
    by_now, first, then = _spec_by_now(view), "", ""
    if by_now and by_now.preprocess.pixels == made:
        first = f"take pixels = {made} out of {by_now.source} and "
    if by_now or view.name in view_names():  # else there is no spec to do it with
        then = f". To embed its images anew, beside it, {first}type: {store.anew(view.folder)}"
    log.warning(
        f"{view.name} was made with an earlier version of the pixels (preprocess.pixels: "
        f"{made} -> {PIXELS}) and is used as it is{then}"
    )


def _refuse_drift(view: View, spec: ViewSpec, name: str, among: Sequence[str]) -> None:
    try:
        then = with_pixels_of(spec, view.attributes["spec"])
        store.refuse_changed(view, then.declared(), None)
    except StaleError as error:
        own = view.folder.name
        beside = ",".join(own if one == name else one for one in among)
        raise StaleError(
            f"{error}. To use it as it was made, name its folder: {own}",
            {"VIEW": own, "VIEWS": beside or own},
        ) from None


def spec_named(cache: Path, view: str, data: str, name: str = "", say: bool = True) -> ViewSpec:
    """The spec that VIEW names for an extraction of DATA: of a TOML file, of the project, or that
    of a view which the data set (called `name`) has in the cache already, whatever has become of
    its TOML file. say: warn where that is not the project's view of the name, or of earlier pixels.
    Raises UsageError."""
    if view.endswith(".toml") or not cache.is_dir():
        return load_spec(view)
    everything, found = _views_of(cache, view, data, name or dataset_name(data))
    if not found:
        _refuse_unknown(cache, view)
        return load_spec(view, own=sorted(set(map(view_name, everything))))
    exact = found[0].name == view
    if not exact and _has_of_project(found, view):
        return load_spec(view)
    if len(found) > 1:
        raise store.several(found, view)
    made = open_view(found[0])
    spec = _spec_of(made, keep=exact)
    if say and not exact:
        _say_which(made, spec, view)
    return spec


def _has_of_project(folders: Sequence[Path], view: str) -> bool:
    return any(store.is_of_project(store.provenance(folder), view) for folder in folders)


def _say_which(made: View, spec: ViewSpec, name: str) -> None:
    _say_whose(made, name)
    if spec.preprocess.pixels < PIXELS:
        _say_earlier_pixels(made)


def _views_of(cache: Path, view: str, data: str, own: str) -> tuple[list[Path], list[Path]]:
    """All views of a data set, which is called `own`, in all its versions; and those that `view`
    names, of the last version that has one."""
    versions = [one for one in every_dataset(cache) if data == one.name or own == name_of(one)]
    everything: list[Path] = []
    found: list[Path] = []
    for dataset in sorted(versions, key=version_of):
        folders = store.view_folders(dataset)
        everything += folders
        found = store.called(folders, view) or found
    return everything, found


def _refuse_unknown(cache: Path, view: str) -> None:
    """Raise UsageError for a view of one's own that another data set of the cache has: with the
    path of its TOML file."""
    if view in view_names():
        return
    for dataset in every_dataset(cache):
        for folder in store.called(store.view_folders(dataset), view):
            file = store.provenance(folder).get("spec_file", "")
            if file and Path(file).is_file():
                raise UsageError(
                    f"no view {view!r} here; {dataset.name} has one, made of {file}: name that",
                    {"VIEW": file},
                )


def _spec_of(view: View, keep: bool) -> ViewSpec:
    """What the view was made with: what its TOML file says now, where that is there and it is not
    to be kept as it was."""
    made, spec = view.attributes["provenance"], view.attributes["spec"]
    if spec.get("backend") == IMPORTED:
        raise UsageError(
            f"the view {view.name!r} was imported, not computed from images. To import it again: "
            f"{store.command(view.folder, 'extract')}"
        )
    source = Path(made.get("spec_file", f"{view.name}.toml"))
    if source.is_file() and not keep:
        return load_spec(str(source))
    # no embedding depends on the text tower: it is that of the file also where that has changed
    return dataclasses.replace(recorded_spec(view.name, spec, source), text=text_of(view))


def text_of(view: View) -> Text | None:
    """The text tower of a view's model, as its TOML file has it now; None without one."""
    made = view.attributes["provenance"]
    source = view.name if store.is_of_project(made, view.name) else made.get("spec_file", "")
    try:
        return load_spec(source).text
    except UsageError:  # there is no such file any more, or it is none
        return None


def find_dataset(cache: Path, data: str, views: Sequence[str] = ()) -> Path:
    """The cached dataset that `DATA=data` names: the cache folder's own name, else a folder's or
    file's base name, or a bundled name; of several versions the current one. Says which of the
    others cannot be read. `views`: what the message says to extract."""
    name = dataset_name(data)
    found = _meant(cache, data, name)
    if not found:
        raise _no_dataset(cache, data, name, views)
    chosen = found[0] if len(found) == 1 else current(found)
    unreadable = [folder for folder in found if folder != chosen and version_of(folder) < 0]
    if chosen is None:
        for folder in unreadable:
            read_items(folder)  # its message names the damage and the command
        names = ", ".join(path.name for path in found)
        raise StaleError(
            f"{cache} holds {len(found)} item lists called {name!r}: {names}. "
            f"Name one: DATA={found[0].name}",
            instead={"DATA": found[0].name},
        )
    for folder in unreadable:
        log.warning(
            f"{folder / 'dataset.json'}, of an older version of {chosen.name}, cannot be read: see "
            "make status"
        )
    _refuse_other_source(chosen, data)
    return chosen


def words_for(cache: Path, name: str, source: str, typed: str | None) -> list[str]:
    """The words that are classes of a data set: those that --as-class is given or, where it is not
    typed, was given when the labels of the same data were written, which is said. Raises
    UsageError."""
    if typed is not None:
        return read_as_class(typed)
    of_source = [folder for folder in every_dataset(cache) if read_source(folder) == source]
    before = current(dataset_folders(cache, name) or of_source)
    if before is None:
        return []
    known, words = read_source(before), recorded_words(before)
    if not words or (known != source and not is_gone(known)):
        return []
    log.info(
        f"{name}: --as-class {','.join(words)}, as its labels were written before; to have no "
        "such class any more: ARGS=--as-class="
    )
    return words


def words_of_renamed(cache: Path, items: Items) -> list[str]:
    """The words that were classes of these very images when their folder had another name, which
    is said; [] where they are known by their own."""
    if dataset_folders(cache, items.name):
        return []
    for folder in every_dataset(cache):
        words, source = recorded_words(folder), read_source(folder)
        if words and source and is_gone(source) and folder.name.endswith(items.fingerprint[:8]):
            log.info(
                f"{items.name}: --as-class {','.join(words)}, as the labels of these images were "
                f"written when they were in {source}; to have no such class any more: "
                "ARGS=--as-class="
            )
            return words
    return []


def _meant(cache: Path, data: str, name: str) -> list[Path]:
    """The item lists that DATA may mean: the folder of that very name; else those of its base name,
    unless they are of other places and some are of this one, whatever they are called."""
    everything = every_dataset(cache)
    exact = [folder for folder in everything if folder.name == data]
    if exact:
        return exact
    here, found = _from(everything, data), _called(everything, name)
    elsewhere = {*found}.isdisjoint(here)
    return here if not found or (here and elsewhere) else found


def _from(datasets: Sequence[Path], data: str) -> list[Path]:
    """Those whose images are what DATA names."""
    if is_gone(data):
        return []
    source = source_path(data)
    return [folder for folder in datasets if read_source(folder) == source]


def _called(datasets: Sequence[Path], name: str) -> list[Path]:
    """All versions of a data set, or the folder of this name."""
    versions = [folder for folder in datasets if name_of(folder) == name]
    return versions or [folder for folder in datasets if folder.name == name]


def _no_dataset(cache: Path, data: str, name: str, views: Sequence[str]) -> UsageError:
    known = sorted(set(map(name_of, every_dataset(cache))))
    # what lies there, though nobody embedded it, is what was meant
    near = nearest(name, known) if is_gone(data) else ""
    if near:
        return UsageError(
            f"no dataset {name!r} in {cache}/{did_you_mean(name, known)}", instead={"DATA": near}
        )
    named = f"{'VIEWS' if len(views) > 1 else 'VIEW'}={quoted(','.join(views) or UNKNOWN)}"
    then = f"make extract {named} DATA={quoted(data)}"
    return UsageError(
        f"no dataset {name!r} in {cache}/{did_you_mean(name, known)}. Embed it first: {then}"
    )


def _refuse_other_source(folder: Path, data: str) -> None:
    """Two folders may share a base name; the cache of one is not that of the other."""
    source, here = read_source(folder), source_path(data)
    if not source or data == folder.name:
        return
    if "/" in data and is_gone(data):
        raise UsageError(
            f"DATA={data}: there is no such file or folder. To train on the cache alone, type its "
            f"name: DATA={folder.name}",
            instead={"DATA": folder.name},
        )
    if here != source and (Path(here).is_absolute() or ":" in data):
        raise StaleError(
            f"{folder} was embedded from {source}, not from {here}. If that is another data set, "
            f"give it a name: make extract VIEW=… DATA={quoted(data)} ARGS='--name …' and train on "
            "DATA=that name. If the folder was moved, run make extract on it once more: nothing is "
            "embedded again"
        )
