"""Progress of long work: a bar in a terminal, otherwise a plain line every 10 seconds; and a file
for `make status`."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import progress as rich_progress
from rich.console import Console

from base.console import clock_text, is_heard, rate_text

LINE_EVERY_S = 10.0
FILE_EVERY_S = 1.0


class Clock:
    """Where the time goes: `with clock("decode"): …` adds to `clock.seconds["decode"]`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, step: str) -> Generator[None]:
        begun = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - begun


class Progress:
    """`with Progress("clip", total) as p: p.advance(n)`; shows done, total, rate and time left.
    `done` may start above 0.

    With `live`, a file that tells other processes the same, and the seconds of `clock`. A part of
    a `whole` is not shown itself, and advances that. shown=False: of all but one of several
    processes that do the same.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        unit: str = "images",
        live: Path | None = None,
        whole: Self | None = None,
        shown: bool = True,
    ) -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.live, self.whole, self.last_file = live, whole, 0.0
        self.clock = Clock() if whole is None else whole.clock
        self.first = done
        self.start = self.last_line = time.monotonic()
        self.heard = shown and is_heard() and whole is None
        self.bar = None
        if self.heard and sys.stderr.isatty():
            self.bar = _bar(title, total, done, unit)

    def advance(self, n: int) -> None:
        self.done += n
        if self.whole is not None:
            self.whole.advance(n)
        now = time.monotonic()
        if self.bar is not None:
            bar, rate = self.bar, rate_text(self.rate(now))
            bar.update(bar.task_ids[0], completed=self.done, rate=rate, wait=self.wait())
        elif self.heard and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            print(self._line(now), file=sys.stderr, flush=True)
        if self.live and now - self.last_file >= FILE_EVERY_S:
            self.last_file = now
            self._write(self.live, now)

    def _line(self, now: float) -> str:
        rate, left = rate_text(self.rate(now)), clock_text(self.left(now))
        return (
            f"{self.title}: {self.done:,}/{self.total:,} {self.unit}, {rate} {self.unit}/s, "
            f"{left} left{self.wait()}"
        )

    def _write(self, live: Path, now: float) -> None:
        told = {
            "done": self.done,
            "total": self.total,
            "rate": self.rate(now),
            "seconds": self.clock.seconds,
        }
        temp = live.with_name(f".{live.name}.tmp")
        with contextlib.suppress(OSError):  # a full disk is the writer's to report
            temp.write_text(json.dumps(told))
            os.rename(temp, live)

    def rate(self, now: float) -> float:
        return (self.done - self.first) / max(now - self.start, 1e-9)

    def left(self, now: float) -> float:
        """Seconds to the end at this rate."""
        return (self.total - self.done) / max(self.rate(now), 1e-9)

    def wait(self) -> str:
        """Which part of the time the model waited for images."""
        whole, waited = sum(self.clock.seconds.values()), self.clock.seconds.get("decode", 0.0)
        return f", {100 * waited / whole:.0f} % waiting for images" if whole else ""

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()


def _bar(title: str, total: int, done: int, unit: str) -> rich_progress.Progress:
    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit + ", {task.fields[rate]}/s{task.fields[wait]}"),
        rich_progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(title, total=total, completed=done, rate="…", wait="")
    return bar
