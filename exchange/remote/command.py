"""make push, make pull: what they need is imported when they run, and is an extra."""

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Generator
from typing import Any

from base.errors import UsageError
from exchange.config import PullConfig, PushConfig


def push(config: PushConfig, found: dict[str, Any]) -> None:
    """make push."""
    _require_obstore("push")
    from exchange.remote import push as remote

    with _ended_by_ctrl_c():
        found["at"] = remote.push(config)


def pull(config: PullConfig, found: dict[str, Any]) -> None:
    """make pull."""
    _require_obstore("pull")
    from exchange.remote import pull as remote

    with _ended_by_ctrl_c():
        found["views"] = [str(view.folder) for view in remote.pull(config)]


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Generator[None]:
    """At once, even while a store does not answer: what waits for it is no Python. Nothing is lost
    by it."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _require_obstore(target: str) -> None:
    if importlib.util.find_spec("obstore") is None:
        raise UsageError(
            f"make {target} needs obstore, which is not installed. Type: {sys.executable} -m pip "
            "install 'obstore>=0.8'   (the extra `remote` of this project)"
        )
