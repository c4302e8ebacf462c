"""Ctrl-C: pressed once, the work stops at the next place that it can go on from; twice, the process
ends at once.

A thread hears the signal, since Python itself hears it only between two steps of its own, and a
batch of a large model is one step.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

INTERRUPTED = 130
PRESSED: list[int] = []  # interrupts that this process has had


def pressed(number: int, frame: object) -> None:
    """Ctrl-C as Python has it, but remembered: what is raised in the middle of a library's import
    may be swallowed there. See heeded."""
    PRESSED.append(number)
    raise KeyboardInterrupt


@contextmanager
def heeded(first: Callable[[], None], plan: str, kept: str) -> Generator[None]:
    """At the first Ctrl-C call `first()` and say the `plan`; at the second say what is `kept` and
    end the process with 130.

    Elsewhere than in the main thread, where no signal arrives, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if PRESSED:
        raise KeyboardInterrupt  # pressed while libraries were loading, one of which swallowed it
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    other = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    words = (hear, first, plan, kept)
    thread = threading.Thread(target=_listen, args=words, name="Ctrl-C", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(other)
        signal.signal(signal.SIGINT, handler)
        os.close(tell)
        thread.join()
        os.close(hear)


def _listen(hear: int, first: Callable[[], None], plan: str, kept: str) -> None:
    times = 0
    while number := os.read(hear, 1):
        if number[0] != signal.SIGINT:
            continue
        times += 1
        if times == 1:
            first()
            print(f"{_fresh_line()}{plan}", file=sys.stderr, flush=True)
        else:  # not through sys.stderr: its lock may be held by what is stopped
            os.write(2, f"{_fresh_line(cursor=True)}{kept}\n".encode())
            os._exit(INTERRUPTED)


def _fresh_line(cursor: bool = False) -> str:
    """In a terminal the line holds a bar, which may have hidden the cursor."""
    if not sys.stderr.isatty():
        return ""
    return "\033[?25h\n" if cursor else "\n"
