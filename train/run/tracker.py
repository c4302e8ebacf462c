"""Trackers: what follows a run's metrics.jsonl and shows it elsewhere, each in a process of its own. A run starts them (see train/run/log.py):

    python -m train.run.tracker tensorboard runs/<id>           -> runs/<id>/tensorboard/
    python -m train.run.tracker wandb runs/<id> offline         -> runs/<id>/wandb/; online: to the server that `wandb login` named

Whatever a tracker does (raise, hang, print, exit) it does here, and its words go to runs/<id>/tracker-NAME.log: of the training it knows one file, and
the pipe on its standard input. `end` there is the run's end, after which an upload may take AFTER_S; a pipe that closes without it is the
trainer's death, which a tracker outlives by ORPHAN_S. How many lines were shown stands in tracker-NAME.json: a resumed run writes the lines after
its checkpoint again, the same ones, and they are not shown again.
"""

import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from base.locks import lock

EVERY_S, AFTER_S, ORPHAN_S = 0.5, 600, 3
ENDED = b"end"


class TensorBoard:
    """Event files, written by the extra `tensorboard` without TensorFlow or torch."""

    def __init__(self, run: Path, ident: str, mode: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.event, self.summary, self.writer = (
            Event,
            Summary,
            EventFileWriter(str(run / "tensorboard")),
        )

    def show(self, line: int, record: dict[str, Any]) -> None:
        self._write(scalars(record), record["step"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self, tested: dict[str, float]) -> None:
        self._write(tested, 0)
        self.writer.close()

    def _write(self, values: dict[str, float], step: int) -> None:
        found = self.summary(
            value=[self.summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )
        self.writer.add_event(self.event(wall_time=time.time(), step=step, summary=found))


class Wandb:
    """Weights & Biases. The run's id there is drawn once, so that a resumed run goes on there too."""

    def __init__(self, run: Path, ident: str, mode: str) -> None:
        import wandb

        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
        self.run = wandb.init(
            mode=mode,
            project="coview",
            name=run.name,
            id=ident,
            resume="allow",
            dir=str(run),
            config=settings,
        )
        self.jobs: set[str] = set()

    def show(self, line: int, record: dict[str, Any]) -> None:
        job = record["method"]
        if job not in self.jobs:
            self.jobs.add(job)
            self.run.define_metric(f"{job}/*", step_metric=f"{job}/step")
        self.run.log({**scalars(record), f"{job}/step": record["step"]}, step=line)

    def flush(self) -> None:
        pass

    def close(self, tested: dict[str, float]) -> None:
        self.run.summary.update(tested)
        self.run.finish(exit_code=0 if tested else 1)


TRACKERS = {"tensorboard": TensorBoard, "wandb": Wandb}


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as METHOD/VIEW/NUMBER: value."""
    found = {
        f"{name}/{key}": value
        for name, scores in record["val"].items()
        for key, value in scores.items()
    }
    found |= {f"{name}/feedback": value for name, value in record.get("feedback", {}).items()}
    return {f"{record['method']}/{key}": value for key, value in found.items()}


def tested(run: Path) -> dict[str, float]:
    """The means that stand in summary.json, as METHOD/VIEW/NUMBER: value; nothing if the run did not come so far."""
    path = run / "summary.json"
    methods = json.loads(path.read_text(encoding="utf-8"))["methods"] if path.is_file() else {}
    return {
        f"{method}/{name}/{key}": scores[key]["mean"]
        for method, found in methods.items()
        for name, scores in [*found["views"].items(), ("joint", found["joint"])]
        for key in ("test_top1", "test_nll", "test_ece")
    }


def main() -> None:
    name, folder, mode = sys.argv[1:]
    run, ended = Path(folder), threading.Event()
    _give_way()
    pipe = os.dup(0)  # what a tracker may ask of a user is asked of nobody
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_listen, args=(pipe, ended), daemon=True).start()
    with lock(
        run, wait=True, name=f".tracker-{name}"
    ):  # the tracker of the run before this one was resumed may still be uploading
        follow(run, name, mode, ended)


def _give_way() -> None:
    """The training goes first. Where Linux shares the processor out to sessions and not to processes, it is the session that must be nice."""
    os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def _listen(pipe: int, ended: threading.Event) -> None:
    signal.alarm(
        AFTER_S if os.read(pipe, len(ENDED)) == ENDED else ORPHAN_S
    )  # nobody catches it: the end, whatever hangs
    ended.set()


def follow(run: Path, name: str, mode: str, ended: threading.Event) -> None:
    """Show every line of metrics.jsonl once, until the run has ended."""
    memory = run / f"tracker-{name}.json"
    known = (
        json.loads(memory.read_text())
        if memory.is_file()
        else {"id": secrets.token_hex(4), "lines": 0}
    )
    _remember(memory, known)
    tracker = TRACKERS[name](run, known["id"], mode)
    line, rest, last = 0, b"", False
    with (run / "metrics.jsonl").open("rb") as file:
        while not last:
            last = ended.wait(
                EVERY_S
            )  # asked first, so that what was written before the end is seen
            *whole, rest = (rest + file.read()).split(b"\n")
            for text in whole:
                if line >= known["lines"]:
                    tracker.show(line, json.loads(text))
                line += 1
            if line > known["lines"]:
                tracker.flush()
                known["lines"] = line
                _remember(memory, known)
    tracker.close(tested(run))


def _remember(path: Path, known: dict[str, Any]) -> None:
    temp = path.with_name(f".{path.name}.tmp")
    temp.write_text(json.dumps(known))
    temp.replace(path)


if __name__ == "__main__":
    main()
