"""make extract VIEW=clip DATA=photos/     (coview extract --view clip --data photos/)

Hashes the images, embeds those that the cache does not hold yet, ends with one line per view and
the list of unreadable images.
"""

import os
from typing import Any

from extract.config import ExtractConfig


def command(config: ExtractConfig, found: dict[str, Any]) -> None:
    """make extract."""
    if config.dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
        from extract.plan import plan

        plan(config, found)
        return
    from extract.run import run

    run(config, found)
