"""make train VIEWS=clip,dinov2 DATA=photos/     (python -m train --views clip,dinov2 --data photos/)

Trains the probes on the cache, prints a table with spreads, writes runs/<id>/. The same command with the same RUN resumes or shows it.
"""

import faulthandler
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from base.commands import quoted, run_cli
from base.console import document
from base.errors import UsageError
from train.config import TrainConfig


def main() -> None:
    import tyro

    faulthandler.enable()  # a mapped file that is cut short kills the process: then at least with its place
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # idle torch threads give way instead of spinning on a shared machine
    config = tyro.cli(TrainConfig, prog="python -m train", description=TrainConfig.__doc__)
    try:
        config.check()
    except UsageError:
        with document(config.json, "train"):
            raise

    from train.rehearse import rehearse
    from train.run.session import start

    start(config, "train", run_and_report, rehearse)


def run_and_report(config: TrainConfig) -> None:
    """Run; then rank 0 writes report.html, unless that of a finished run is there, and says what to type next. Whatever goes wrong with the page is one
    line and changes nothing else."""
    summary = run(config)
    from train.algorithm.ranks import my_rank

    if my_rank():
        return
    page = Path(config.runs) / config.run / "report.html"
    if config.report and not page.is_file():
        _write_page(config)
    if page.is_file():
        print(f"report {page}", file=sys.stderr, flush=True)
    if command := next_step(config, summary):
        print(f"to label images with it, type: {command}", file=sys.stderr, flush=True)


def next_step(config: TrainConfig, summary: dict[str, Any]) -> str:
    """The `make predict` of a finished run, of new images where it saw the labels of all; '' where no method of it keeps a model."""
    from train.methods import PLANS

    if not PLANS.keys() & summary["methods"]:
        return ""
    words = [f"make predict RUN={config.run}"] + ["IMAGES=photos/"] * (
        not summary["rows"]["unlabelled"]
    )
    words += [f"CACHE={quoted(config.cache)}"] * (config.cache != TrainConfig.cache)
    return " ".join(
        words
        + [f"ARGS={quoted(f'--runs {shlex.quote(config.runs)}')}"]
        * (config.runs != TrainConfig.runs)
    )


def _write_page(config: TrainConfig) -> None:
    try:
        import torch

        from report.__main__ import write_report

        write_report(
            Path(config.runs) / config.run,
            Path(config.cache),
            device="cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu",
        )
    except (Exception, KeyboardInterrupt) as error:
        print(
            f"the run is finished, but its page was not written ({' '.join(f'{type(error).__name__} {error}'.split())[:300]}). Type: make report "
            f"RUN={config.run}",
            file=sys.stderr,
            flush=True,
        )


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


if __name__ == "__main__":
    sys.exit(run_cli(main))
