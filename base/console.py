"""`--json`: one document on stdout for machines, also where the command fails; what is meant for
people goes to stderr. And how what the library logs reaches the terminal.

{"schema": 1, "command": "status", "ok": true, "exit_code": 0, "error": null, …what was found…}
"""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

LOG = logging.getLogger("coview")  # of which all loggers of the project are children
LOG.addHandler(logging.NullHandler())  # who does not ask for its warnings hears none
NOTE = 25  # a level between INFO and WARNING: how far a command is, and what it has done
SCHEMA = 1  # grows when a key changes its meaning or goes; new keys may come at any time


@contextmanager
def document(
    asked: bool, command: str, told: Callable[[BaseException], tuple[str, int]]
) -> Generator[dict[str, Any]]:
    """What is put into the dictionary is printed at the end, if it is `asked` for. Child processes'
    stdout goes to stderr too. told: what is said of an error, and its exit code."""
    found: dict[str, Any] = {}
    if not asked:
        yield found
        return
    sys.stdout.flush()
    out = os.dup(1)
    os.dup2(2, 1)
    error_text: str | None = None
    code = 0
    try:
        yield found
    except BaseException as error:
        error_text, code = told(error)
        raise
    finally:
        sys.stdout.flush()
        os.dup2(out, 1)
        os.close(out)
        head = {
            "schema": SCHEMA,
            "command": command,
            "ok": code == 0,
            "exit_code": code,
            "error": None if code == 0 else error_text,
        }
        print(json.dumps(head | found, allow_nan=False, default=str), flush=True)


class Render(logging.Handler):
    """Prints what the library logs: INFO on stdout, NOTE on stderr, warnings there too, as such."""

    def __init__(self, rendered: Callable[[str], str]) -> None:
        super().__init__(logging.INFO)
        self.rendered = rendered

    def emit(self, record: logging.LogRecord) -> None:
        text = self.rendered(record.getMessage())
        if record.levelno >= logging.WARNING:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        else:
            note = record.levelno >= NOTE
            print(text, file=sys.stderr if note else sys.stdout, flush=True)


def is_heard() -> bool:
    """Does anybody listen to what the library says? Otherwise there is no progress either."""
    return LOG.isEnabledFor(logging.INFO)


@contextmanager
def rendering(rendered: Callable[[str], str] = str) -> Generator[None]:
    """While a command runs, what the library logs is printed; otherwise nobody hears it. rendered:
    what becomes of each message."""
    handler, level = Render(rendered), LOG.level
    others = [one for one in LOG.handlers if isinstance(one, Render)]
    for one in others:
        LOG.removeHandler(one)
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    # some libraries give the root logger a handler when they first say something, and then each
    # message would be said twice
    above, LOG.propagate = LOG.propagate, False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        LOG.propagate = above
        for one in others:
            LOG.addHandler(one)


def short(value: Any) -> Any:
    """Of a sha256 the first 12 digits, anything else as it is."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    return value


def counted(n: int, what: str) -> str:
    """1 -> "1 image", 1797 -> "1,797 images"."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def rate_text(rate: float) -> str:
    """Two digits at least: 1234.5 -> "1,234", 0.0523 -> "0.052"."""
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.2g}"


def about_text(seconds: float) -> str:
    """An estimate: 0.3 -> less than a second, 12.1 -> about 0:00:13."""
    return f"about {clock_text(math.ceil(seconds))}" if seconds >= 1 else "less than a second"


def clock_text(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
