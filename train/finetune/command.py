"""make finetune VIEW=clip DATA=photos/ LABELS=4     (coview finetune --view clip --data photos/ …)

Tunes the backbone of one view on few labels, and writes it as a view of its own, which extract
embeds and train reads as any other. The same command with the same RUN resumes it.
"""

from typing import Any

from base.commands import CURRENT
from base.errors import CoviewError
from train.finetune.config import FinetuneConfig


def command(config: FinetuneConfig, found: dict[str, Any]) -> None:
    """make finetune."""
    config.check()
    from train.finetune.run import run

    try:
        run(config, found)
    except CoviewError as error:
        if CURRENT.typed.command != "finetune":  # make train LIVE= has started this process
            error.instead = {}  # it has other words
        raise
