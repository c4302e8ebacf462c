"""What an extraction looks at before it writes anything: its settings, the spec, the weights, the
devices, and the images with their hashes. The settings end here, in plain objects."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from base.devices import devices
from base.errors import CoviewError, UsageError
from base.progress import Progress
from cache_specs import store
from cache_specs.items import Items
from cache_specs.lookup import words_for, words_of_renamed
from cache_specs.prompts import read_names
from cache_specs.sources import dataset_name, is_gone, read_source, source_path
from cache_specs.spec import ViewSpec
from cache_specs.stamps import Stamps, remembered
from cache_specs.versions import dataset_folders, tops
from cache_specs.view import default_rows
from extract import bad_images
from extract.class_names import Naming, warn_of_alike
from extract.config import ExtractConfig
from extract.data import datasets, overview
from extract.data.suspects import warn_of_classes, warn_of_copies, warn_of_words
from extract.depth import warn_of_depth
from extract.models.leaks import refuse_labels
from extract.models.weights import find_weights, of_several, weights_of_each
from extract.settings import check

TINY = 64  # pixels a side


@dataclass(frozen=True)
class Flags:
    """What changes the speed and no number. devices: of each process. shard_rows: of a view that is
    begun now. max_bad: as it was typed."""

    devices: list[str]
    batch: int
    compile: bool
    workers: int
    shard_rows: int
    max_bad: str


@dataclass(frozen=True)
class Ready:
    """All that an extraction needs to know. weights_sha256 is empty, and there are no files, where
    the weights are not here and were not fetched. seen: the data sets' versions before hashing.
    stamps: of the images' files. naming: of a view with a text tower, where CLASSES is given."""

    spec: ViewSpec
    files: dict[str, Path]
    weights_sha256: str
    dataset: datasets.Dataset
    items: Items
    seen: dict[str, int]
    cache: Path
    source: str
    changed: bool
    flags: Flags
    stamps: Stamps
    naming: Naming | None = None

    def why(self, row: int) -> str:
        """Why the image of a row cannot be read; '' where that is not known."""
        from extract.images import why_not  # noqa: PLC0415  torch takes seconds

        return why_not(self.dataset.read, self.spec.preprocess, row)


def prepare(config: ExtractConfig, fetch: bool = True) -> list[Ready]:
    """Check the settings, find (or `fetch`) the weights, hash the images: of each view. Raises
    CoviewError."""
    specs, cache = check(config), Path(config.cache)
    where = devices(config.device, config.gpus)
    weights = weights_of_each(specs, config.weights)
    found = []
    for spec, place in zip(specs, weights, strict=True):
        try:
            found.append(_weights(spec, place, config, fetch))
        except UsageError as error:
            raise of_several(error, len(specs), spec.name, config.weights) from error
    _refuse_cached_name(cache, config.data)
    data = os.path.expanduser(config.data)
    source = source_path(config.data)
    as_class = words_for(cache, config.name or dataset_name(data), source, config.as_class)
    dataset = datasets.open_dataset(data, Path(config.root), config.name, as_class)
    overview.say(dataset.overview())
    seen = tops(cache)
    stamps = Stamps(None if config.rehash else remembered(cache, dataset.name, source))
    with Progress(f"hashing {dataset.name}", len(dataset.keys)) as progress:
        items = datasets.build_items(dataset, progress.advance, stamps)
    if config.as_class is None and not as_class and (words := words_of_renamed(cache, items)):
        dataset = datasets.open_dataset(data, Path(config.root), config.name, words)
        overview.say(dataset.overview())
        items = datasets.relabelled(items, dataset)
    bad_images.refuse_unreadable(items, dataset.read, config.max_bad)
    warn_of_copies(items)
    warn_of_classes(items)
    warn_of_words(items)
    for spec in specs:
        warn_of_depth(items, dataset.read, spec)
    rows = min(config.shard_rows, len(items)) or default_rows(len(items))
    namings = _namings(config, specs, weights, items.classes, fetch)
    same, readies = (dataset, items, seen, cache, source, config.changed), []
    for spec, files, naming in zip(specs, found, namings, strict=True):
        batch = config.batch or default_batch(spec, where[0])
        flags = Flags(where, batch, config.compile, config.workers, rows, config.max_bad)
        readies.append(Ready(spec, *files, *same, flags, stamps, naming))
    return readies


def _namings(
    config: ExtractConfig,
    specs: Sequence[ViewSpec],
    weights: Sequence[str | None],
    classes: Sequence[str],
    fetch: bool,
) -> list[Naming | None]:
    """Of each view what CLASSES says, and its text tower's files, before anything is embedded."""
    if not config.classes:
        return [None] * len(specs)
    names = read_names(config.classes, classes)
    warn_of_alike(config.classes, names)
    found: list[Naming | None] = []
    for spec, place in zip(specs, weights, strict=True):
        naming = None
        if spec.text is not None:
            naming = Naming(
                names, *find_weights(spec.both_towers, place, fetch, rehash=config.rehash)
            )
        found.append(naming)
    return found


def _weights(
    spec: ViewSpec, place: str | None, config: ExtractConfig, fetch: bool
) -> tuple[dict[str, Path], str]:
    """The view's weight files and their sha256."""
    if not config.allow_leak:
        refuse_labels(spec, place)
    commit = kept_commit(Path(config.cache), spec, config.data)
    files, sha256 = find_weights(spec, place, fetch, commit, config.rehash)
    if not config.allow_leak:
        refuse_labels(spec, place, files)
    return files, sha256


def default_batch(spec: ViewSpec, device: str) -> int:
    """Images of a batch, where none is asked for. On a CPU more than a few are no faster, and each
    takes memory; tiny ones take little, and many share the cost of a call."""
    return 16 if device == "cpu" and spec.preprocess.crop > TINY else 64


def kept_commit(cache: Path, spec: ViewSpec, data: str) -> str:
    """The commit of the hub that the cache's views of this spec were made with: a branch such as
    main may have moved since. Those of the same data first, then the newest; '' where there is
    none."""
    found = []
    for path in cache.glob(f"*/{spec.name}-*/zarr.json"):
        try:
            view = store.open_view(path.parent)
        except (CoviewError, OSError):  # whoever needs it says so
            continue
        commit = view.attributes["provenance"].get("weights_commit", "")
        if commit and view.attributes["spec"] == spec.declared():
            same = read_source(path.parents[1]) == source_path(data)
            found.append((same, path.stat().st_mtime, commit))
    return max(found)[2] if found else ""


def _refuse_cached_name(cache: Path, data: str) -> None:
    """Raise UsageError where DATA is the cache's name of a data set whose images lie elsewhere."""
    if not is_gone(data):
        return
    for folder in dataset_folders(cache, data):
        source = read_source(folder)
        if source and source != data and not is_gone(source):
            raise UsageError(
                f"DATA={data}: there is no such folder here. The cache calls the images in "
                f"{source} so: name that",
                instead={"DATA": source},
            )
