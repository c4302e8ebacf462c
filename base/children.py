"""Processes that this one starts, and what they must not find."""

import contextlib
import os
from collections.abc import Generator

SAFE = "PYTHONSAFEPATH"


@contextlib.contextmanager
def safe_path() -> Generator[None]:
    """A Python that is started meanwhile imports nothing from the folder that one works in, where
    somebody's own random.py or torch.py may lie."""
    before = os.environ.get(SAFE)
    os.environ[SAFE] = "1"
    try:
        yield
    finally:
        del os.environ[SAFE]
        if before is not None:
            os.environ[SAFE] = before
