"""make extract VIEW=clip DATA=photos/     (python -m extract --view clip --data photos/)

Hashes the images, embeds those that the cache does not hold yet, ends with one line per view and the list of unreadable images.
"""

import sys

from cache_specs.errors import run_cli
from extract.config import ExtractConfig


def main() -> None:
    import tyro

    config = tyro.cli(ExtractConfig, prog="python -m extract", description=ExtractConfig.__doc__)
    from extract.run import run

    run(config)


if __name__ == "__main__":
    sys.exit(run_cli(main))
