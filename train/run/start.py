"""From a command to its processes: this one, or as many as GPUS says. Knows no torch."""

import dataclasses
import faulthandler
import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from base.commands import amend
from base.console import NOTE
from base.devices import devices
from base.errors import CoviewError, StoppedError
from base.limits import within_memory
from train.algorithm.ranks import BOARD, my_rank, ranks_of, under_torchrun
from train.config import TrainConfig
from train.run.launch import launch
from train.run.names import free_name
from train.run.reading import Ground, read

log = logging.getLogger(f"coview.{__name__}")
KEPT = "stopped at once; finished methods and the last checkpoint are kept"


def begin() -> None:
    """What holds for every process that trains."""
    # a mapped file that is cut short kills: then with its place
    faulthandler.enable(sys.__stderr__ or 2)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle torch threads give way, not spin


def look(config: TrainConfig) -> Ground | None:
    """Read what a run trains on, and say what is wrong with its words and data, before torch is
    loaded, which takes seconds. None in one of several processes: it reads where it is watched."""
    if under_torchrun():
        return None
    ground = read(config, aloud=True)
    devices(config.device)
    return ground


def start(
    command: str,
    config: TrainConfig,
    run: Callable[[Any], Any],
    found: dict[str, Any],
    outcome: str = "summary.json",
) -> Path | None:
    """Run a command of this name. Returns the run's folder; None in all but one of several
    processes. Without a name the run is called by date and time. outcome: the file it ends with,
    which `found` gets too."""
    made_up = not config.run
    if made_up:
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        config = dataclasses.replace(config, run=f"{now}-{os.getpid()}")
        amend("RUN", config.run)  # every rank writes into one folder
    folder = Path(config.runs) / config.run
    found["run"] = str(folder)
    try:
        with within_memory("this training", *_less(config, made_up)):
            _run_here_or_launch(command, config, run)
    except KeyboardInterrupt:
        raise StoppedError(KEPT) from None
    except CoviewError:
        if made_up and not (folder / "config.json").is_file():
            amend("RUN", None)  # nothing goes by that name yet: again as it was typed
        raise
    if BOARD in os.environ or my_rank():
        return None
    found["result"] = json.loads((folder / outcome).read_text(encoding="utf-8"))
    return folder


def _run_here_or_launch(command: str, config: TrainConfig, run: Callable[[Any], Any]) -> None:
    if under_torchrun():
        run(dataclasses.replace(config, gpus=ranks_of(config.gpus, len(config.view_list()))))
        return
    log.log(NOTE, f"run {Path(config.runs) / config.run}")
    if config.gpus > 1:
        read(config)  # what is wrong with the data is said once, before any rank starts
        stops = "at the next look at the validation images"
        launch(command, config, config.view_list(), stops)
    else:
        run(config)


def _less(config: TrainConfig, made_up: bool) -> tuple[str, dict[str, str | None]]:
    """What to do where the memory does not suffice, and what to type instead: fewer rows of a batch
    at a time give the same gradients. It is another run."""
    rows = config.chunk or max(config.batch_labelled, config.batch_unlabelled)
    if rows <= 16:
        return "Train fewer SEEDS at once, on another DEVICE, or free memory: nvidia-smi, top", {}
    name = None if made_up else free_name(Path(config.runs) / config.run)
    how = "Keep fewer rows of a batch at a time, or train fewer SEEDS at once"
    return how, {"RUN": name, "--chunk": str(rows // 2)}
