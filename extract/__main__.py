"""make extract VIEW=clip DATA=photos/     (python -m extract --view clip --data photos/)

Hashes the images, embeds those that the cache does not hold yet, ends with one line per view and the list of unreadable images.
"""

import os
import sys

from base.commands import run_cli
from extract.config import ExtractConfig


def main() -> None:
    import tyro

    config = tyro.cli(ExtractConfig, prog="python -m extract", description=ExtractConfig.__doc__)
    if config.dry_run:
        os.environ["HF_HUB_OFFLINE"] = (
            "1"  # read when huggingface_hub is imported: nothing is fetched
        )
    from base.console import document
    from extract.plan import plan
    from extract.run import run

    with document(config.json, "extract") as found:
        plan(config, found) if config.dry_run else run(config, found)


if __name__ == "__main__":
    sys.exit(run_cli(main))
