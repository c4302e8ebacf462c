"""Progress of long work: a bar in a terminal, otherwise a plain line every 10 seconds."""

import sys
import time
from types import TracebackType

LINE_EVERY_S = 10.0


class Progress:
    """`with Progress("clip", total) as p: p.advance(n)`; shows done, total, rate and time left. `done` may start above 0."""

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.first = done
        self.start = self.last_line = time.monotonic()
        self.bar = _bar(title, total, done, unit) if sys.stderr.isatty() else None

    def advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done, rate=f"{self.rate(now):,.0f}")
        elif now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            left = (self.total - self.done) / max(self.rate(now), 1e-9)
            print(f"{self.title}: {self.done:,}/{self.total:,} {self.unit}, {self.rate(now):,.0f} {self.unit}/s, "
                  f"{_clock(left)} left", file=sys.stderr, flush=True)

    def rate(self, now: float) -> float:
        return (self.done - self.first) / max(now - self.start, 1e-9)

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()


def _bar(title: str, total: int, done: int, unit: str):  # noqa: ANN202  rich is imported only where there is a terminal
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Rich

    bar = Rich(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit + ", {task.fields[rate]}/s"),
               TimeRemainingColumn(), console=Console(stderr=True))
    bar.add_task(title, total=total, completed=done, rate="…")
    return bar


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
