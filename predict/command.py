"""make predict RUN=name [IMAGES=folder] [TO=file.parquet]

Labels images with a trained model. Without IMAGES: those of its data set whose label is not known,
from the cache, in seconds; where all are known, the training images whose labels the run had
hidden. With IMAGES: decodes and embeds them first. MODEL=folder, of `make export-model`, needs
neither run nor cache. Writes one row an image, and prints how sure it is.
"""

import dataclasses
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.console import NOTE, counted
from base.devices import devices
from base.errors import UsageError
from base.phrase import quoted
from cache_specs.sources import dataset_name
from predict.abstain import keep, risk_of
from predict.choose import choose_method
from predict.config import PredictConfig
from train.run.rundir import no_run, run_folder
from train.run.summary import read_summary

if TYPE_CHECKING:
    from predict.model import Model
    from train.data.reader import Cache

log = logging.getLogger(f"coview.{__name__}")
ENDINGS = (".parquet", ".csv")


def command(config: PredictConfig, found: dict[str, Any]) -> None:
    """make predict."""
    predict(config, found)


def predict(config: PredictConfig, found: dict[str, Any] | None = None) -> Path:
    """Write the table and print its summary; return the table's path. `found` is filled with what
    --json says. Raises CoviewError."""
    run, to = _where_to(config)
    place, dataset = Path(config.cache), None
    if config.images:
        from predict.find import find_images

        dataset = find_images(config.images, Path(config.root), place)

    device = devices(config.device, 1)[0]
    method = ""
    if config.run:
        method = choose_method(read_summary(run), config.method)
        log.log(NOTE, f"opening {method} of {run}, and trying it on the images that judge …")

    from predict import table
    from predict.from_run import of_run, open_model
    from predict.label import are_new, rows_of_cache

    cache, splits = None, []
    if config.model:
        model = open_model(Path(config.model).expanduser(), device)
        log.info(f"{config.model}: {_called(model)}")
    else:
        model, cache, splits = of_run(run, method, device, place)
        log.info(f"run {run}: {_called(model)}")
        _tell_older(cache, config.run, bool(config.images))
    kept = keep(model.about["held_out"].get("judged"), config.risk)
    if dataset is not None:
        from predict.images import refuse_imported
        from predict.new import new_images

        refuse_imported(model.views, of_run=not config.model)
        given = config.weights, device, config.workers, config.images
        labelled = new_images(model, dataset, *given)
    else:
        assert cache is not None, config  # `_where_to` asks for IMAGES with MODEL
        labelled = rows_of_cache(model, cache, splits, config.run)
    told = dataset is not None
    new = cache is None or are_new(model, labelled.sha256, cache, splits, told=told)
    columns = table.columns(model, labelled, config.probabilities, kept)
    file, written = table.write_table(to, columns, replace=config.force)
    shares = table.figures(model, labelled.said, labelled.truth_n, new)
    print(table.each_image(columns), end="")
    print(table.summary_text(model, labelled, shares, new, kept))
    if file != to:
        print(f"{to} holds something else and is kept")
    already = "" if written else ", which held just this already"
    print(f"{counted(len(labelled.keys), 'row')} in {file}{already}", flush=True)
    if found is not None:
        found |= {
            "file": str(file),
            "written": written,
            "rows": len(labelled.keys),
            "method": model.method,
            **{"views": model.names, "seeds": model.seeds},
            "status": dict(Counter(columns["status"])),
            "kept": table.told_of_kept(kept),
            **dataclasses.asdict(shares),
        }
    return file


def _where_to(config: PredictConfig) -> tuple[Path, Path]:
    """The run's folder and the file to write. Raises CoviewError for what can be seen without
    reading any data."""
    _refuse_words(config)
    run = run_folder(config.runs, config.run) if config.run else Path()
    if not config.to:
        name = f"predicted-{dataset_name(config.images)}" if config.images else "predicted"
        return run, run / f"{name}.parquet"
    to = Path(config.to).expanduser()
    if to.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"TO={config.to}: unknown format {to.suffix!r}; TO ends in .parquet or .csv",
            instead={"TO": str(to.with_suffix(".csv"))},
        )
    if to.is_dir():
        raise UsageError(
            f"TO={config.to}: {to} is a folder; name a file in it",
            instead={"TO": str(to / "predicted.parquet")},
        )
    if not to.parent.is_dir():
        raise UsageError(f"TO={config.to}: {to.parent} is no folder; name one that is there")
    if to.exists() and not config.force:
        raise UsageError(
            f"{to} is there already; to replace it: ARGS='--force'", instead={"--force": ""}
        )
    return run, to


def _refuse_words(config: PredictConfig) -> None:
    """Raise UsageError where RUN, MODEL, IMAGES and METHOD do not go together, or RISK is none."""
    if config.risk:
        risk_of(config.risk)
    if config.run and config.model:
        raise UsageError("RUN and MODEL are both given, one is wanted", instead={"MODEL": None})
    if not config.run and not config.model:
        raise no_run(config.runs)
    if config.model and not config.images:
        raise UsageError(
            "IMAGES is missing: a model folder has no images of its own. Type: make predict "
            f"MODEL={quoted(config.model)} IMAGES=…"
        )
    if config.model and config.method:
        raise UsageError(
            f"METHOD={config.method}: a model folder holds one method. Leave METHOD out, or export "
            "another: make export-model RUN=… METHOD=… TO=…",
            instead={"METHOD": None},
        )


def _tell_older(cache: "Cache", run: str, named: bool) -> None:
    """That the run's images are not all that are there now. named: IMAGES says which are meant."""
    if not cache.older:
        return
    then = ""
    if not named:
        now = f"make predict RUN={quoted(run)} IMAGES={quoted(cache.source)}"
        then = f". To label what is there now: {now}"
    log.info(
        f"its images are {cache.items.folder_name}, an older version of {cache.items.name!r}: what "
        f"was added or moved since is not among them{then}"
    )


def _called(model: "Model") -> str:
    return (
        f"{model.method} on {', '.join(model.names)}, {counted(len(model.seeds), 'seed')}, "
        f"{len(model.classes):,} classes, temperature {model.temperature:.2f}"
    )
