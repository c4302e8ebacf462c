"""Listeners: who is told of a run's progress. The loop calls `tell`; nobody who listens can change or stop a run."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from base.console import clock_text
from base.errors import IntegrityError
from train.run.tracker import AFTER_S, ENDED

WAIT_S = 0.3  # that a run which is over waits for its trackers


class Listener(Protocol):
    def step(self, step: int) -> None:
        """One step is done."""

    def waited(self, seconds: float) -> None:
        """So long, of the time since the method began or was resumed, its steps waited for rows. Told before `tell`."""

    def tell(self, record: dict[str, Any]) -> None:
        """One evaluation: method, step, steps, phase and the means over the experiments by view."""

    def close(self) -> None: ...


class Ignore:
    """What a listener does unless it says otherwise: nothing."""

    def step(self, step: int) -> None:
        pass

    def waited(self, seconds: float) -> None:
        pass

    def tell(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass

    def ended(self, code: int) -> None:
        pass


class Jsonl(Ignore):
    """metrics.jsonl: one line an evaluation, no clock in it, so that a resumed run's file is byte-equal to an uninterrupted one's."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self.file = path.open("ab")
        if (size := path.stat().st_size) < keep_bytes:
            self.file.close()
            raise IntegrityError(
                f"{path} has {size} bytes, but the checkpoint knows {keep_bytes}; delete {path.parent} to train this run anew"
            )
        self.file.truncate(
            keep_bytes
        )  # lines after the checkpoint that is resumed are written again

    def tell(self, record: dict[str, Any]) -> None:
        self.file.write((json.dumps(record, sort_keys=True) + "\n").encode())
        self.file.flush()
        os.fsync(self.file.fileno())  # a checkpoint may be about to record its length

    def close(self) -> None:
        self.file.close()


class Console(Ignore):
    """A line in place in a terminal, otherwise a line every `every_s` seconds: step, rate, time left, waiting, validation accuracy."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self.method, self.last, self.wait = every_s, "", 0.0, 0.0
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def waited(self, seconds: float) -> None:
        self.wait = seconds

    def tell(self, record: dict[str, Any]) -> None:
        now, step, steps = time.monotonic(), record["step"], record["steps"]
        if record["method"] != self.method:
            self.method, self.begun, self.first, self.last, self.before = (
                record["method"],
                now,
                step,
                now,
                self.wait,
            )
        done = step == steps
        if self.terminal or done or now - self.last >= self.every_s:
            self.last = now
            seconds = max(now - self.begun, 1e-9)
            rate = (step - self.first) / seconds
            left = (
                f", {clock_text((steps - step) / rate)} left, {100 * (self.wait - self.before) / seconds:.0f} % waiting for rows"
                if rate
                else ""
            )
            scores = ", ".join(
                f"{name} {100 * value['top1']:.1f}" for name, value in record["val"].items()
            )
            text = f"{self.method} {step}/{steps} ({record['phase']}), {rate:.0f} steps/s{left}; validation top-1: {scores}"
            if self.terminal and not done:  # a line that wraps cannot be written over
                print(
                    "\r\033[K" + text[: shutil.get_terminal_size().columns - 1],
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            else:
                print("\r\033[K" * self.terminal + text, file=sys.stderr, flush=True)


class Trackers(Ignore):
    """TensorBoard and Weights & Biases, each a process that follows metrics.jsonl by itself (train/run/tracker.py). Whatever becomes of one, it changes
    nothing here: the run starts it, tells it at the end that this is the end, waits WAIT_S at most, and says what has become of it."""

    def __init__(self, folder: Path, modes: dict[str, str]) -> None:
        self.folder = folder.absolute()
        self.running = {name: self._start(name, mode) for name, mode in modes.items()}

    def _start(self, name: str, mode: str) -> subprocess.Popen | None:
        try:
            with self._log(name).open("wb") as log:
                return subprocess.Popen(
                    [sys.executable, "-m", "train.run.tracker", name, str(self.folder), mode],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=Path(__file__).parents[2],
                    start_new_session=True,
                )
        except OSError as error:  # no process or no file is left: the training may still go on
            print(
                f"{name}: not started ({error}); the run goes on without it",
                file=sys.stderr,
                flush=True,
            )
            return None

    def close(self) -> None:
        running = {name: process for name, process in self.running.items() if process is not None}
        self.running, until = {}, time.monotonic() + WAIT_S
        for process in running.values():
            with contextlib.suppress(OSError), process.stdin:
                process.stdin.write(ENDED)
        for name, process in running.items():
            try:
                code = process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                threading.Thread(
                    target=process.wait, daemon=True
                ).start()  # so that it leaves no zombie in a notebook
                if name != "tensorboard":  # nobody asked for it, and it has nothing to send
                    print(
                        f"{name}: still at work, for {AFTER_S / 60:.0f} minutes at most, while this run is over; see {self._log(name)}",
                        file=sys.stderr,
                        flush=True,
                    )
                continue
            if code:
                print(
                    f"{name}: failed ({self._why(name, code)}); the run is whole without it, see {self._log(name)}",
                    file=sys.stderr,
                    flush=True,
                )

    def _log(self, name: str) -> Path:
        return self.folder / f"tracker-{name}.log"

    def _why(self, name: str, code: int) -> str:
        """The last line of what it printed."""
        try:
            with self._log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
                return (
                    log.read().decode(errors="replace").strip().rpartition("\n")[2][:200]
                    or f"exit code {code}"
                )
        except OSError as error:
            return str(error)


class Listeners:
    """Several as one."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def step(self, step: int) -> None:
        for listener in self.listeners:
            listener.step(step)

    def waited(self, seconds: float) -> None:
        for listener in self.listeners:
            listener.waited(seconds)

    def tell(self, record: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener.tell(record)

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
