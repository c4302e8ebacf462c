"""make train VIEWS=clip,dinov2 DATA=photos/     (coview train --views clip,dinov2 --data photos/)

Trains the probes on the cache, prints a table with spreads, writes runs/<id>/. The same command
with the same RUN resumes or shows it. make sweep has its door here, too: both answer what is wrong
with their words before anything heavy is imported.
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from base.devices import devices
from train.config import TrainConfig
from train.grid import SweepConfig

log = logging.getLogger(f"coview.{__name__}")


def command(config: TrainConfig, found: dict[str, Any]) -> Path | None:
    """make train: the run's folder; None where nothing was trained, or another process tells."""
    config.check()
    from train.run.start import begin, start

    begin()
    if config.dry_run:
        from train.run.reading import read

        ground = read(config, aloud=True, remember=False)
        devices(config.device)

        from train.rehearse import rehearse

        found |= rehearse(config, ground)
        return None
    return start("train", config, run, found)


def command_sweep(config: SweepConfig, found: dict[str, Any]) -> None:
    """make sweep."""
    config.check()
    from train.run.start import begin, start

    begin()
    start("sweep", config, run_sweep, found, "sweep.json")


def run_sweep(config: SweepConfig) -> list[dict[str, Any]]:
    from train.run.start import look

    ground = look(config)

    from train.sweep import sweep

    return sweep(config, ground)


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate, print the table; return the summary (on rank 0). Raises CoviewError."""
    from train.run.start import look

    begun = time.monotonic()
    ground = look(config)

    from train.algorithm.peers import LocalPeers
    from train.jobs import train_method
    from train.methods import METHODS
    from train.run.scoring import describe, summarise
    from train.run.session import session, together
    from train.run.summary import read_summary, summary_table

    with session(config, ground) as s:
        if s.finished:
            summary = read_summary(s.folder)
            if s.leads:
                told = f"the run {s.folder} is finished; another RUN= makes a new one"
                log.info(f"{told}\n\n{summary_table(summary)}")
            return summary
        with together(s.peers):
            for method in s.methods:
                if not METHODS[method].solo:
                    train_method(method, config, s)
        if not s.leads:
            return {}
        alone = dataclasses.replace(s, peers=LocalPeers(len(s.cache.names)))
        for method in s.methods:  # what one process does alone, while no other waits for it
            if METHODS[method].solo:
                train_method(method, config, alone)
        s.cache.refuse_changed()
        head = describe(config, s.cache, s.splits)
        work = s.methods, s.cache, s.splits, s.device
        summary = summarise(s.folder, head, *work, time.monotonic() - begun)
        log.info(f"\n{summary_table(summary)}\n{s.folder / 'summary.json'}")
        return summary
