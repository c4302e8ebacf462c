"""Progress of long work: a bar in a terminal, otherwise a plain line every 10 seconds; and a file for `make status`."""

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from base.console import clock_text, rate_text

LINE_EVERY_S = 10.0
FILE_EVERY_S = 1.0


class Clock:
    """Where the time goes: `with clock("decode"): …` adds to `clock.seconds["decode"]`."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[step] += time.monotonic() - begun


class Progress:
    """`with Progress("clip", total) as p: p.advance(n)`; shows done, total, rate and time left. `done` may start above 0.

    With `live`, a file that tells other processes the same, and the seconds of `clock`.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, unit: str = "images", live: Path | None = None
    ) -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.live, self.clock, self.last_file = live, Clock(), 0.0
        self.first = done
        self.start = self.last_line = time.monotonic()
        self.bar = _bar(title, total, done, unit) if sys.stderr.isatty() else None

    def advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(
                self.bar.task_ids[0],
                completed=self.done,
                rate=rate_text(self.rate(now)),
                wait=self.wait(),
            )
        elif now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            print(
                f"{self.title}: {self.done:,}/{self.total:,} {self.unit}, {rate_text(self.rate(now))} {self.unit}/s, "
                f"{clock_text(self.left(now))} left{self.wait()}",
                file=sys.stderr,
                flush=True,
            )

        if self.live and now - self.last_file >= FILE_EVERY_S:
            self.last_file = now
            temp = self.live.with_name(f".{self.live.name}.tmp")
            with contextlib.suppress(OSError):  # a full disk is the writer's to report
                temp.write_text(
                    json.dumps(
                        {
                            "done": self.done,
                            "total": self.total,
                            "rate": self.rate(now),
                            "seconds": self.clock.seconds,
                        }
                    )
                )
                os.rename(temp, self.live)

    def rate(self, now: float) -> float:
        return (self.done - self.first) / max(now - self.start, 1e-9)

    def left(self, now: float) -> float:
        """Seconds to the end at this rate."""
        return (self.total - self.done) / max(self.rate(now), 1e-9)

    def wait(self) -> str:
        """Which part of the time the model waited for images."""
        whole = sum(self.clock.seconds.values())
        return (
            f", {100 * self.clock.seconds['decode'] / whole:.0f} % waiting for images"
            if whole
            else ""
        )

    def __enter__(self) -> "Progress":
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


def _bar(title: str, total: int, done: int, unit: str):  # noqa: ANN202  rich is imported only where there is a terminal
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Rich

    bar = Rich(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + ", {task.fields[rate]}/s{task.fields[wait]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(title, total=total, completed=done, rate="…", wait="")
    return bar
