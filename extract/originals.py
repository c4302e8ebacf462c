"""What a view was made of, found again: its spec, its weights, its images."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.errors import IntegrityError, UsageError
from base.phrase import quoted
from cache_specs import store
from cache_specs.items import read_items
from cache_specs.sources import is_gone, read_source, recorded_words
from cache_specs.spec import SPECS, ViewSpec, load_spec, recorded_spec, with_pixels_of
from cache_specs.versions import current, dataset_folders
from cache_specs.view import View
from extract.data.datasets import Dataset, open_dataset
from extract.data.readers import Reordered
from extract.models.weights import find_weights


@dataclass(frozen=True)
class Originals:
    """files: the weights, by name."""

    spec: ViewSpec
    files: dict[str, Path]
    dataset: Dataset


def find_originals(
    view: View, asked: str, weights: str | None, root: Path, rehash: bool = False
) -> Originals:
    """asked: VIEW=, which may be a TOML file. rehash: of the weights, whatever is known of their
    files. Raises CoviewError naming what is gone or changed."""
    if view.attributes["spec"]["backend"] == store.IMPORTED:
        raise UsageError(
            f"{view.folder} was imported, not computed from images: there is nothing to compute "
            "its rows from; leave --recompute out"
        )
    spec = with_pixels_of(_spec(view, asked), view.attributes["spec"])
    toml = spec.name if spec.source.parent == SPECS else str(spec.source)
    commit = view.attributes["provenance"].get("weights_commit", "")
    files, weights_sha256 = find_weights(spec, weights, commit=commit, rehash=rehash)
    store.refuse_changed(view, spec.declared(), weights_sha256)
    folder = view.folder.parent
    source = read_source(folder)
    if not source:
        raise IntegrityError(
            f"{folder / 'dataset.json'} does not say where the images are; type: make extract "
            f"VIEW={quoted(toml)} DATA=… with them"
        )
    if is_gone(source):
        raise UsageError(
            f"the images of {folder.name} were in {source}, which is gone. If they were moved, "
            f"type first: make extract VIEW={quoted(toml)} DATA=…, where they are now; it "
            "notes the place and embeds nothing"
        )
    name, words = folder.name.rpartition("-")[0], recorded_words(folder)
    dataset = open_dataset(source, root, name, words)
    return Originals(spec, files, _as_listed(dataset, folder))


def _spec(view: View, asked: str) -> ViewSpec:
    """Of the file that is named, of the project, or as it was recorded: the file that it was made
    of may be gone."""
    made = view.attributes["provenance"]
    toml = Path(made.get("spec_file", f"{view.name}.toml"))
    if asked.endswith(".toml"):
        return load_spec(asked)
    if asked != view.folder.name and store.is_of_project(made, view.name):
        return load_spec(view.name)
    if toml.is_file() and asked != view.folder.name:
        return load_spec(str(toml))
    return recorded_spec(view.name, view.attributes["spec"], toml)


def _as_listed(dataset: Dataset, folder: Path) -> Dataset:
    """The images under the keys of the item list: those of an older version have other names now,
    and the current version's list says which."""
    now = current(dataset_folders(folder.parent, dataset.name))
    if now is None or now == folder:
        return dataset
    try:
        items, listed = read_items(folder), read_items(now)
    except IntegrityError:  # whoever needs the list says so
        return dataset
    row_of = {sha: row for row, sha in enumerate(listed.sha256) if sha}
    if dataset.keys != listed.keys or not row_of.keys() >= set(items.sha256):
        return dataset
    order = np.array([row_of[sha] for sha in items.sha256])
    return dataclasses.replace(dataset, keys=items.keys, read=Reordered(dataset.read, order))
