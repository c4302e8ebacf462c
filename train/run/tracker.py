"""Trackers: what follows a run's metrics.jsonl and shows it elsewhere, each in a process of its
own. A run starts them (see train/run/log.py):

    python -m train.run.tracker tensorboard runs/<id>       -> runs/<id>/tensorboard/
    python -m train.run.tracker wandb runs/<id> offline     -> runs/<id>/wandb/; online: to the
                                                               server that `wandb login` named

Whatever a tracker does (raise, hang, print, exit) it does here, and its words go to
runs/<id>/tracker-NAME.log: of the training it knows one file, and the pipe on its standard input.
`end` there is the run's end, after which an upload may take AFTER_S; a pipe that closes without it
is the trainer's death, which a tracker outlives by ORPHAN_S. How many lines were shown stands in
tracker-NAME.json: a resumed run writes the lines after its checkpoint again, the same ones, and
they are not shown again.
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
from train.run.summary import scored

EVERY_S, AFTER_S, ORPHAN_S = 0.5, 600, 3
ENDED = b"end"


class TensorBoard:
    """Event files, written by the extra `tensorboard` without TensorFlow or torch."""

    def __init__(self, run: Path, ident: str, mode: str) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: PLC0415  an extra
        from tensorboard.summary.writer.event_file_writer import (  # noqa: PLC0415  an extra
            EventFileWriter,
        )

        self.event = event_pb2.Event  # pyrefly: ignore[missing-attribute]  generated code
        self.summary = summary_pb2.Summary  # pyrefly: ignore[missing-attribute]  generated code
        self.writer = EventFileWriter(str(run / "tensorboard"))

    def show(self, line: int, record: dict[str, Any]) -> None:
        self._write(scalars(record), record["step"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self, tested: dict[str, float]) -> None:
        self._write(tested, 0)
        self.writer.close()

    def _write(self, values: dict[str, float], step: int) -> None:
        found = []
        for tag, value in values.items():
            found.append(self.summary.Value(tag=tag, simple_value=value))
        summary = self.summary(value=found)
        self.writer.add_event(self.event(wall_time=time.time(), step=step, summary=summary))


class Wandb:
    """Weights & Biases. The run's id there is drawn once, so that a resumed run goes on there
    too."""

    def __init__(self, run: Path, ident: str, mode: str) -> None:
        import wandb  # noqa: PLC0415  an extra

        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
        self.run = wandb.init(
            mode=mode,  # pyrefly: ignore[bad-argument-type]  one of the words of --wandb
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
    found, job = {}, record["method"]
    for name, scores in record["val"].items():
        for key, value in scores.items():
            found[f"{job}/{name}/{key}"] = value
    for name, value in record.get("feedback", {}).items():
        found[f"{job}/{name}/feedback"] = value
    return found


def tested(run: Path) -> dict[str, float]:
    """The means that stand in summary.json, as METHOD/VIEW/NUMBER: value; nothing if the run did
    not come so far."""
    path, values = run / "summary.json", {}
    if not path.is_file():
        return values
    summary = json.loads(path.read_text(encoding="utf-8"))
    part = scored(summary)
    for method, found in summary["methods"].items():
        for name, scores in {**found["views"], "joint": found["joint"]}.items():
            for key, score in scores.items():
                if part and key.startswith(f"{part}_"):
                    values[f"{method}/{name}/{key}"] = score["mean"]
    return values


def main() -> None:
    name, folder, mode = sys.argv[1:]
    run, ended = Path(folder), threading.Event()
    _give_way()
    pipe = os.dup(0)  # what a tracker may ask of a user is asked of nobody
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_listen, args=(pipe, ended), daemon=True).start()
    # the tracker of the run before this one was resumed may still be uploading
    with lock(run, wait=True, name=f".tracker-{name}"):
        follow(run, name, mode, ended)


def _give_way() -> None:
    """The training goes first. Where Linux shares the processor out to sessions and not to
    processes, it is the session that must be nice."""
    os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def _listen(pipe: int, ended: threading.Event) -> None:
    whole = os.read(pipe, len(ENDED)) == ENDED
    signal.alarm(AFTER_S if whole else ORPHAN_S)  # nobody catches it: the end, whatever hangs
    ended.set()


def follow(run: Path, name: str, mode: str, ended: threading.Event) -> None:
    """Show every line of metrics.jsonl once, until the run has ended."""
    memory = run / f"tracker-{name}.json"
    known: dict[str, Any] = {"id": secrets.token_hex(4), "lines": 0}
    if memory.is_file():
        known = json.loads(memory.read_text())
    _remember(memory, known)
    tracker = TRACKERS[name](run, known["id"], mode)
    line, rest, last = 0, b"", False
    with (run / "metrics.jsonl").open("rb") as file:
        while not last:
            # asked first, so that what was written before the end is seen
            last = ended.wait(EVERY_S)
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
