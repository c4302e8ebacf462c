"""What --device may be; whether there is such a GPU, those ask who use it."""

import re

from base.errors import UsageError, nearest


def refuse_unknown_device(device: str) -> None:
    """Raise UsageError unless it is auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        near = nearest(device, ("auto", "cpu", "cuda"))
        raise UsageError(
            f"DEVICE={device}: it is one of auto, cpu, cuda and cuda:N",
            instead={"DEVICE": near} if near else None,
        )
