"""make train VIEWS=clip,dinov2 DATA=photos/     (coview train --views clip,dinov2 --data photos/)

Trains the probes on the cache, prints a table with spreads, writes runs/<id>/. The same command with the same RUN resumes or shows it.
"""

import time
from pathlib import Path
from typing import Any

from train.config import TrainConfig
from train.run.session import begin, start


def command(config: TrainConfig, found: dict[str, Any]) -> Path | None:
    """make train: the run's folder; None where nothing was trained, or another process tells."""
    config.check()
    begin()
    if config.dry_run:
        from train.rehearse import rehearse

        found |= rehearse(config)
        return None
    return start(config, run, found)


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate, print the table; return the summary (on rank 0). Raises CoviewError."""
    from train.algorithm.peers import LocalPeers
    from train.jobs import train_method
    from train.methods import SOLO
    from train.run.session import session
    from train.run.summary import describe, read_summary, summarise, table

    begun = time.monotonic()
    with session(config) as s:
        leader, methods, summary = s.peers.rank == 0, s.methods, {}
        if s.finished:
            summary = read_summary(s.folder)
            if leader:
                print(
                    f"the run {s.folder} is finished; another RUN= makes a new one\n\n{table(summary)}"
                )
            return summary
        for method in methods:
            if method not in SOLO:
                train_method(
                    method,
                    config,
                    s.cache,
                    s.splits,
                    s.peers,
                    s.listener,
                    s.folder,
                    s.device,
                    s.stop,
                )
        s.peers.any(False)  # every rank has looked, and every probe is on the disk
        s.peers.close()
        if leader:
            for method in methods:  # what one process does alone, while no other waits for it
                if method in SOLO:
                    train_method(
                        method,
                        config,
                        s.cache,
                        s.splits,
                        LocalPeers(len(s.cache.names)),
                        s.listener,
                        s.folder,
                        s.device,
                        s.stop,
                    )
            s.cache.refuse_changed()
            summary = summarise(
                s.folder,
                describe(config, s.cache, s.splits),
                methods,
                s.cache,
                s.splits[0],
                s.device,
                time.monotonic() - begun,
            )
            print(f"\n{table(summary)}\n{s.folder / 'summary.json'}", flush=True)
        return summary
