"""What follows what: a training ends with its page, and says which command labels images with
it."""

import dataclasses
import logging
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from base.console import NOTE
from base.errors import UNKNOWN, CoviewError, StaleError, UsageError
from base.phrase import line_of
from coview.live import TrainingConfig
from train.algorithm.ranks import under_torchrun
from train.command import command as train_alone
from train.config import TrainConfig

log = logging.getLogger(f"coview.{__name__}")


def train(asked: TrainingConfig, found: dict[str, Any]) -> None:
    """make train, of tuned backbones where LIVE names some; then report.html, unless that of a
    finished run is there, and what to type next. Whatever goes wrong with the page is one line and
    changes nothing else."""
    asked.check()
    config = with_tuned(asked)
    if asked.dry_run and asked.live_list():
        log.log(NOTE, "what the tuned views are embedded and trained in depends on what comes out")
        return
    folder = train_alone(config, found)
    if folder is None:
        return
    from train.run.summary import read_summary, undecided

    page = folder / "report.html"
    if config.report and not page.is_file():
        _write_page(config, folder)
    if page.is_file():
        log.log(NOTE, f"report {page}")
    summary = read_summary(folder)
    command = next_step(dataclasses.replace(config, run=folder.name), summary)
    if command:
        but = ", though nothing shows yet which method is best" if undecided(summary) else ""
        log.log(NOTE, f"to label images with it{but}, type: {command}")


def with_tuned(config: TrainingConfig) -> TrainConfig:
    """Tune the live views, embed with what comes out, and return the training on that. What is
    finished is not done again. Raises CoviewError."""
    plain = config.frozen()
    if not config.live_list():
        return plain
    from base.devices import devices
    from extract.config import ExtractConfig
    from extract.run import run as extract
    from train.finetune.config import FinetuneConfig
    from train.finetune.run import run as finetune

    if under_torchrun():
        raise UsageError(
            "LIVE is not for torchrun: one process tunes, embeds, and starts the others itself. "
            "Type the command alone, with GPUS for torchrun's --nproc-per-node"
        )
    devices(config.device, config.gpus)
    _refuse_taken(config)
    views, judged = [], True
    for view in config.view_list():
        if view not in config.live_list():
            views.append(view)
            continue
        name = config.tuned_name(view)
        settings = FinetuneConfig(
            view=view,
            data=config.data,
            labels=config.labels,
            val=config.val,
            test=config.test,
            seeds=config.seeds,
            mode=config.mode,
            device=config.device,
            gpus=math.gcd(config.gpus, FinetuneConfig.batch),  # equal parts of a batch
            cache=config.cache,
            runs=config.runs,
            run=name,
            dry_run=config.dry_run,
        )
        settings.check()
        found: dict = {}
        try:
            finetune(settings, found, say=False)
        except CoviewError as error:
            error.instead = _of_train(error.instead, config)
            raise
        if config.dry_run:
            continue
        judged = found["judged"]
        places = {"cache": config.cache, "device": config.device, "gpus": config.gpus}
        extract(ExtractConfig(view=found["views"][0], data=config.data, **places), {})
        views.append(name)
    val = plain.val
    if val == "auto" and not judged:
        val = "none"
        log.log(NOTE, "nobody chooses (VAL=none): the tuned backbones know the labels that would")
    return dataclasses.replace(plain, views=",".join(views), val=val)


def _refuse_taken(config: TrainingConfig) -> None:
    """Raise StaleError, before anything is tuned, where the run is one of other views."""
    from train.run.names import free_name
    from train.run.rundir import read_config

    folder = Path(config.runs) / config.run
    if not (folder / "config.json").is_file():
        return
    live = config.live_list()
    views = [config.tuned_name(view) if view in live else view for view in config.view_list()]
    found = read_config(folder)["settings"]
    if found.get("views") != ",".join(views):
        raise StaleError(
            f"the run {folder} is one of the views {found.get('views')}, and these would be "
            f"{','.join(views)}: give this one another name",
            instead={"RUN": Path(free_name(folder)).name},
        )


def _of_train(instead: Mapping[str, str | None], config: TrainingConfig) -> dict[str, str | None]:
    """What finetune would have changed in its command, as `make train` can: another name of the run
    is another one here, too; what it has no word for is left to the message."""
    from train.run.names import free_name

    found = {word: value for word, value in instead.items() if word in ("LABELS", "DEVICE", "GPUS")}
    if "RUN" in instead:
        found["RUN"] = Path(free_name(Path(config.runs) / config.run)).name
    return found


def next_step(config: TrainConfig, summary: dict[str, Any]) -> str:
    """The `make predict` of a finished run, of new images where it saw the labels of all; '' where
    no method of it keeps a model."""
    from train.methods import with_model

    if not with_model(summary["methods"]):
        return ""
    words = {"RUN": config.run}
    if not summary["rows"]["unlabelled"]:
        words["IMAGES"] = UNKNOWN
    if config.cache != TrainConfig.cache:
        words["CACHE"] = config.cache
    if config.runs != TrainConfig.runs:
        words["ARGS"] = f"--runs {shlex.quote(config.runs)}"
    return line_of("predict", words)


def _write_page(config: TrainConfig, folder: Path) -> None:
    try:
        from base.devices import devices
        from report.write import write_report

        write_report(folder, Path(config.cache), device=devices(config.device)[0])
    except (Exception, KeyboardInterrupt) as error:
        why = " ".join(f"{type(error).__name__} {error}".split())[:300]
        again = line_of("report", {"RUN": folder.name})
        log.log(NOTE, f"the run is finished, but its page was not written ({why}). Type: {again}")
