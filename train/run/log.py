"""Listeners: who is told of a run's progress. The loop calls `tell`; nobody who listens can change
or stop a run."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from base.console import NOTE, clock_text
from base.errors import IntegrityError
from train.run.tracker import AFTER_S, ENDED

log = logging.getLogger(f"coview.{__name__}")
WAIT_S = 0.3  # that a run which is over waits for its trackers
FRESH = "\r\033[K"  # the line of a terminal, written anew


class Listener(Protocol):
    def step(self, step: int) -> None:
        """One step is done."""

    def waited(self, seconds: float) -> None:
        """So long, of the time since the method began or was resumed, its steps waited for rows.
        Told before `tell`."""

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
    """metrics.jsonl: one line an evaluation, no clock in it, so that a resumed run's file is
    byte-equal to an uninterrupted one's."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self.file = path.open("ab")
        size = path.stat().st_size
        if size < keep_bytes:
            self.file.close()
            raise IntegrityError(
                f"{path} has {size} bytes, but the checkpoint knows {keep_bytes}; delete "
                f"{path.parent} to train this run anew"
            )
        # lines after the checkpoint that is resumed are written again
        self.file.truncate(keep_bytes)

    def tell(self, record: dict[str, Any]) -> None:
        self.file.write((json.dumps(record, sort_keys=True) + "\n").encode())
        self.file.flush()
        os.fsync(self.file.fileno())  # a checkpoint may be about to record its length

    def close(self) -> None:
        self.file.close()


class Console(Ignore):
    """A line in place in a terminal, otherwise a line every `every_s` seconds: step, rate, time
    left, waiting, validation accuracy. It prints by itself: coview's classifiers have it, too."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self.method, self.last, self.wait = every_s, "", 0.0, 0.0
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def waited(self, seconds: float) -> None:
        self.wait = seconds

    def tell(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if record["method"] != self.method:
            self.method, self.first = record["method"], record["step"]
            self.begun = self.last = now
            self.before = self.wait
        done = record["step"] == record["steps"]
        if not (self.terminal or done or now - self.last >= self.every_s):
            return
        self.last = now
        text = self._line(record, max(now - self.begun, 1e-9))
        if not self.terminal:
            print(text, file=sys.stderr, flush=True)
        elif done:
            print(f"{FRESH}{text}", file=sys.stderr, flush=True)
        else:  # a line that wraps cannot be written over
            text = text[: shutil.get_terminal_size().columns - 1]
            print(f"{FRESH}{text}", end="", file=sys.stderr, flush=True)

    def _line(self, record: dict[str, Any], seconds: float) -> str:
        step, steps = record["step"], record["steps"]
        rate = (step - self.first) / seconds
        left = ""
        if rate:
            share = 100 * (self.wait - self.before) / seconds
            left = f", {clock_text((steps - step) / rate)} left, {share:.0f} % waiting for rows"
        scores = []
        for name, value in record["val"].items():
            scores.append(f"{name} {100 * value['top1']:.1f}")
        line = f"{self.method} {step}/{steps} ({record['phase']}), {rate:.0f} steps/s{left}"
        return f"{line}; validation top-1: {', '.join(scores)}" if scores else line


class Trackers(Ignore):
    """TensorBoard and Weights & Biases, each a process that follows metrics.jsonl by itself
    (train/run/tracker.py). Whatever becomes of one, it changes nothing here: the run starts it,
    tells it at the end that this is the end, waits WAIT_S at most, and says what has become of
    it."""

    def __init__(self, folder: Path, modes: dict[str, str]) -> None:
        self.folder = folder.absolute()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for name, mode in modes.items():
            try:
                self.running[name] = self._start(name, mode)
            except OSError as error:  # no process or no file is left: the training may still go on
                log.log(NOTE, f"{name}: not started ({error}); the run goes on without it")

    def _start(self, name: str, mode: str) -> subprocess.Popen[bytes]:
        with self._log(name).open("wb") as told:
            return subprocess.Popen(
                [sys.executable, "-m", "train.run.tracker", name, str(self.folder), mode],
                stdin=subprocess.PIPE,
                stdout=told,
                stderr=told,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )

    def close(self) -> None:
        running, until = self.running, time.monotonic() + WAIT_S
        self.running = {}
        for process in running.values():
            assert process.stdin is not None
            with contextlib.suppress(OSError), process.stdin:
                process.stdin.write(ENDED)
        for name, process in running.items():
            self._end(name, process, max(0, until - time.monotonic()))

    def _end(self, name: str, process: subprocess.Popen[bytes], seconds: float) -> None:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # waited for all the same, so that it leaves no zombie in a notebook
            threading.Thread(target=process.wait, daemon=True).start()
            if name != "tensorboard":  # nobody asked for it, and it has nothing to send
                log.log(
                    NOTE,
                    f"{name}: still at work, for {AFTER_S / 60:.0f} minutes at most, while this "
                    f"run is over; see {self._log(name)}",
                )
            return
        if code:
            log.log(
                NOTE,
                f"{name}: failed ({self._why(name, code)}); the run is whole without it, see "
                f"{self._log(name)}",
            )

    def _log(self, name: str) -> Path:
        return self.folder / f"tracker-{name}.log"

    def _why(self, name: str, code: int) -> str:
        """The last line of what it printed."""
        try:
            with self._log(name).open("rb") as told:
                told.seek(max(0, told.seek(0, os.SEEK_END) - 4096))
                lines = told.read().decode(errors="replace").strip()
        except OSError as error:
            return str(error)
        return lines.rpartition("\n")[2][:200] or f"exit code {code}"


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
