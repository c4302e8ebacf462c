"""make finetune VIEW=clip DATA=photos/ LABELS=4     (coview finetune --view clip --data photos/ …)

Tunes the backbone of one view on few labels, and writes it as a view of its own, which extract
embeds and train reads as any other. The same command with the same RUN resumes it.
"""

from typing import Any

from train.finetune.config import FinetuneConfig


def command(config: FinetuneConfig, found: dict[str, Any]) -> None:
    """make finetune."""
    config.check()
    from train.finetune.run import run

    run(config, found)
