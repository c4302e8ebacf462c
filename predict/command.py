"""make predict RUN=name [IMAGES=folder] [TO=file.parquet]     (python -m predict --run name --images folder)

Labels images with a trained model. Without IMAGES: those of its data set whose label is not known, from the cache, in seconds; where all are known, the
training images whose labels the run had hidden. With IMAGES: decodes and embeds them first. MODEL=folder, of `make export-model`, needs neither run nor cache.
Writes one row an image, and prints how sure it is.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.console import counted
from base.errors import DataQualityError, UsageError
from base.phrase import quoted
from cache_specs.view import STATUS
from predict.config import PredictConfig
from predict.find import open_images

if TYPE_CHECKING:
    import numpy as np

    from extract.data.datasets import Dataset
    from predict.model import Model, Opinions
    from train.data.reader import Cache
    from train.data.splits import Split

ENDINGS = (".parquet", ".csv")


def command(config: PredictConfig, found: dict[str, Any]) -> None:
    """make predict."""
    predict(config, found)


def predict(config: PredictConfig, found: dict[str, Any] | None = None) -> Path:
    """Write the table and print its summary; return the table's path. `found` is filled with what --json says. Raises CoviewError."""
    run, to = _where_to(config)
    dataset = open_images(config.images, Path(config.root)) if config.images else None

    import numpy as np

    from extract.prepare import devices
    from predict import table
    from predict.from_run import of_run, open_model

    device = devices(config.device, 1)[0]
    if config.model:
        model = open_model(Path(config.model).expanduser(), device)
        print(f"{config.model}: {_called(model)}", flush=True)
    else:
        model, cache, splits = of_run(run, config.method, device, Path(config.cache))
        print(f"run {run}: {_called(model)}", flush=True)
        if cache.older:
            now = (
                ""
                if dataset
                else f". To label what is there now: make predict RUN={quoted(config.run)} IMAGES={quoted(cache.source)}"
            )
            print(
                f"its images are {cache.items.folder_name}, an older version of {cache.items.name!r}: what was added or moved since is not among them{now}",
                flush=True,
            )
    keys, status_n, said, truth_n, sha256 = (
        _of_images(config, model, dataset, device)
        if dataset
        else _of_cache(config, model, cache, splits)
    )
    new = bool(config.model) or _are_new(model, sha256, cache, splits, told=bool(dataset))
    columns = table.columns(model, keys, status_n, said)
    file, written = table.write(to, columns, replace=config.force)
    kept = f"{to} holds something else and is kept\n" if file != to else ""
    rows = f"{len(keys):,} row{'s' * (len(keys) != 1)} in {file}{'' if written else ', which held just this already'}"
    print(
        f"{table.listed(columns)}{table.summary(model, said, truth_n, new)}\n{kept}{rows}",
        flush=True,
    )
    if found is not None:
        found |= {
            "file": str(file),
            "written": written,
            "rows": len(keys),
            "method": model.method,
            "views": model.names,
            "seeds": model.seeds,
            "status": {
                name: int(count)
                for name, count in zip(
                    STATUS, np.bincount(status_n, minlength=len(STATUS)), strict=True
                )
                if count
            },
            **table.figures(model, said, truth_n, new),
        }
    return file


def _where_to(config: PredictConfig) -> tuple[Path, Path]:
    """The run's folder and the file to write. Raises CoviewError for what can be seen without reading any data."""
    from cache_specs.sources import dataset_name
    from train.run.rundir import run_folder

    if bool(config.run) == bool(config.model):
        raise UsageError(
            f"{'RUN and MODEL are both given, one is wanted' if config.run else 'RUN is missing'}. Type: make predict RUN=demo   or   "
            "make predict RUN=demo IMAGES=photos/   or   make predict MODEL=folder IMAGES=photos/"
        )
    if config.model and not config.images:
        raise UsageError(
            f"IMAGES is missing: a model folder has no images of its own. Type: make predict MODEL={quoted(config.model)} IMAGES=photos/"
        )
    if config.model and config.method:
        raise UsageError(
            f"METHOD={config.method}: a model folder holds one method. Leave METHOD out, or export another: make export-model RUN=… METHOD=… TO=…",
            instead={"METHOD": None},
        )
    run = run_folder(config.runs, config.run) if config.run else Path()
    if not config.to:
        return run, run / (
            f"predicted-{dataset_name(config.images)}.parquet"
            if config.images
            else "predicted.parquet"
        )
    to = Path(config.to).expanduser()
    if to.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"TO={config.to}: unknown format {to.suffix!r}; TO ends in .parquet or .csv",
            instead={"TO": str(to.with_suffix(".csv"))},
        )
    if not to.parent.is_dir() or to.is_dir():
        raise UsageError(
            f"TO={config.to}: {to if to.is_dir() else to.parent} is {'a' if to.is_dir() else 'no'} folder"
        )
    if to.exists() and not config.force:
        raise UsageError(
            f"{to} is there already; to replace it: ARGS='--force'", instead={"--force": ""}
        )
    return run, to


# keys, status, opinions of the rows that are ok, known labels, hashes
Found = tuple[list[str], "np.ndarray", "Opinions", "np.ndarray | None", list[str]]


def _of_cache(
    config: PredictConfig, model: "Model", cache: "Cache", splits: "list[Split]"
) -> Found:
    """The rows without a label, or those whose labels were hidden from every seed."""
    import functools

    import numpy as np

    from cache_specs import integrity, store
    from extract import bad_images

    items, truth_n = cache.items, None
    rows = np.flatnonzero(items.label < 0)
    status = np.zeros(len(items), np.uint8)
    for name in cache.names:  # what could not be embedded in a view has a status there
        found = integrity.check(store.find_view(Path(config.cache) / items.folder_name, name, ""))
        status = np.where(status > 0, status, found)
    if len(rows):
        print(f"{counted(len(rows), 'image')} of {items.name} without a label", flush=True)
    else:
        rows = functools.reduce(np.intersect1d, [split.unlabelled for split in splits])
        truth_n = items.label[rows]
        if not len(rows):
            raise UsageError(
                f"every image of {items.name} has a label, and the run saw those of all training images: nothing is left to be labelled. "
                f"Name new images: make predict RUN={quoted(config.run)} IMAGES=photos/"
            )
        print(
            f"every image of {items.name} has a label: these are the {len(rows):,} training images whose labels the run had hidden "
            f"({model.about['labels_text']}) from every seed",
            flush=True,
        )
    if bad := int((status[rows] > 0).sum()):
        shown = np.zeros_like(status)
        shown[rows] = status[rows]
        print(
            f"{bad} of them could not be embedded ({bad_images.counts(status[rows])}); they get no label:\n{bad_images.listed(shown, items)}",
            flush=True,
        )
    good = rows[status[rows] == 0]
    if not len(good):
        raise DataQualityError(
            f"not one of the {len(rows):,} images without a label could be embedded; nothing is written"
        )
    return (
        [items.keys[row] for row in rows],
        status[rows],
        model([emb_ND[good] for emb_ND in cache.emb]),
        truth_n,
        [items.sha256[row] for row in rows],
    )


def _of_images(config: PredictConfig, model: "Model", dataset: "Dataset", device: str) -> Found:
    """New images, embedded here."""
    from base.progress import Progress
    from extract import bad_images
    from extract.data.datasets import build_items
    from predict.images import backbones, embed

    models = backbones(model.views, config.weights)
    with Progress(f"hashing {dataset.name}", len(dataset.keys)) as progress:
        items = build_items(dataset, progress.advance)
    emb_V, status_n = embed(model.views, models, dataset, items, device, config.workers)
    good = status_n == 0
    if not good.all():
        print(
            f"{int((~good).sum()):,} of {counted(len(items), 'image')} could not be read ({bad_images.counts(status_n)}); they get no label:\n"
            f"{bad_images.listed(status_n, items)}",
            flush=True,
        )
    if not good.any():
        raise DataQualityError(
            f"not one of the {len(items):,} images in {config.images} could be embedded; are they images? Nothing is written"
        )
    return (
        list(items.keys),
        status_n,
        model([emb_nD[good] for emb_nD in emb_V]),
        None,
        list(items.sha256),
    )


def _are_new(
    model: "Model", sha256: list[str], cache: "Cache", splits: "list[Split]", told: bool
) -> bool:
    """Whether the training has learnt from less than half of these images; if it is to be `told`, says how many of them it had."""
    from train.methods import learns_unlabelled

    labelled, unlabelled = (
        {cache.items.sha256[row] for split in splits for row in getattr(split, part).tolist()}
        for part in ("labelled", "unlabelled")
    )
    named, known = (
        sum(one in seen for one in sha256 if one) for seen in (labelled, labelled | unlabelled)
    )
    if known and told:
        print(
            f"{known:,} of {counted(len(sha256), 'image')} {'were' if known > 1 else 'was'} part of the training, {named:,} of them with a label",
            flush=True,
        )
    return not learns_unlabelled(model.method) or 2 * known < len(sha256)


def _called(model: "Model") -> str:
    return (
        f"{model.method} on {', '.join(model.names)}, {len(model.seeds)} seed{'s' * (len(model.seeds) > 1)}, {len(model.classes):,} classes, "
        f"temperature {model.temperature:.2f}"
    )
