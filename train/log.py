"""Listeners: who is told of a run's progress. The loop calls `tell`; nobody who listens can change or stop a run."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from cache_specs.errors import IntegrityError


class Listener(Protocol):
    def step(self, step: int) -> None:
        """One step is done."""

    def tell(self, record: dict[str, Any]) -> None:
        """One evaluation: method, step, steps, phase and the means over the experiments by view."""

    def close(self) -> None: ...


class Ignore:
    """What a listener does unless it says otherwise: nothing."""

    def step(self, step: int) -> None:
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
            raise IntegrityError(f"{path} has {size} bytes, but the checkpoint knows {keep_bytes}; delete {path.parent} to train this run anew")
        self.file.truncate(keep_bytes)              # lines after the checkpoint that is resumed are written again

    def tell(self, record: dict[str, Any]) -> None:
        self.file.write((json.dumps(record, sort_keys=True) + "\n").encode())
        self.file.flush()
        os.fsync(self.file.fileno())                # a checkpoint may be about to record its length

    def close(self) -> None:
        self.file.close()


class Console(Ignore):
    """A bar in a terminal, otherwise a line every `every_s` seconds: step, rate, time left, validation accuracy."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self.method, self.last = every_s, "", 0.0
        self.terminal = sys.stderr.isatty()

    def tell(self, record: dict[str, Any]) -> None:
        now, step, steps = time.monotonic(), record["step"], record["steps"]
        if record["method"] != self.method:
            self.method, self.begun, self.first, self.last = record["method"], now, step, now
        done = step == steps
        if self.terminal or done or now - self.last >= self.every_s:
            self.last = now
            rate = (step - self.first) / max(now - self.begun, 1e-9)
            left = f", {(steps - step) / rate:.0f} s left" if rate else ""
            scores = ", ".join(f"{name} {100 * value['top1']:.1f}" for name, value in record["val"].items())
            text = f"{self.method} {step}/{steps} ({record['phase']}), {rate:.0f} steps/s{left}; validation top-1: {scores}"
            print(("\r\033[K" if self.terminal else "") + text, end="" if self.terminal and not done else "\n", file=sys.stderr, flush=True)


class Wandb(Ignore):
    """Weights & Biases. Whatever it raises is said once and forgotten: tracking can never stop a run."""

    def __init__(self, mode: str, run: Path, config: dict[str, Any]) -> None:
        self.run: Any = None
        self._guard(lambda: self._start(mode, run, config))

    def _start(self, mode: str, run: Path, config: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(mode=mode, project="coview", name=run.name, dir=str(run), config=config, settings=wandb.Settings(silent=True))

    def tell(self, record: dict[str, Any]) -> None:
        flat = {f"{record['method']}/{name}/{key}": value for name, values in record["val"].items() for key, value in values.items()}
        self._guard(lambda: self.run.log({**flat, f"{record['method']}/step": record["step"]}))

    def close(self) -> None:
        self._guard(lambda: self.run.finish())

    def _guard(self, call: Any) -> None:
        if self.run is False:
            return
        try:
            call()
        except Exception as error:          # any failure of a tracker is its own
            self.run = False
            print(f"wandb: {error!r}; the run goes on without it", file=sys.stderr, flush=True)


class Listeners:
    """Several as one."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def step(self, step: int) -> None:
        for listener in self.listeners:
            listener.step(step)

    def tell(self, record: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener.tell(record)

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
