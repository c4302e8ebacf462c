"""make suggest VIEWS=clip,dinov2 DATA=photos/ [N=24] [TO=next.csv]     the first images to label
make suggest RUN=name [N=24] [TO=next.csv]                           the next ones
(coview suggest --views clip,dinov2 --data photos/, coview suggest --run name)

Lists the images whose labels would teach most: without a run by their embeddings alone, where the
images that have a label count as known; with one those of *Label these next* on its page, with what
its model takes them for. TO writes all images of the data set as a table, these first and without a
label: filled in, it is the DATA of the next extraction and training.
"""

import logging
from pathlib import Path
from typing import Any

from base.commands import typed
from base.devices import devices
from base.errors import UsageError
from base.phrase import quoted
from report.config import SuggestConfig

log = logging.getLogger(f"coview.{__name__}")


def command(config: SuggestConfig, found: dict[str, Any]) -> None:
    """make suggest."""
    _refuse_words(config)
    device = devices(config.device)[0]
    if config.run:
        from train.run.rundir import finished, run_folder

        finished(run_folder(config.runs, config.run))  # or it is said before torch is loaded
    from report.suggest.chosen import by_run, without_run
    from report.suggest.table import text_of, write_all

    one = by_run(config, device) if config.run else without_run(config)
    log.info(f"{one.head}\n{one.chosen.why}")
    if not config.to:
        log.info(one.chosen.then)
    log.info(f"\n{text_of(one.images, config.n)}")
    found |= {
        "run": one.run,
        "method": one.method,
        "rule": one.chosen.rule,
        "pool": one.chosen.pool,
        "hidden": not one.chosen.bare,
        "images": one.images,
        "file": None,
    }
    if config.to:
        to = Path(config.to).expanduser()
        file, told = write_all(to, one.chosen.rows, one.cache, config, one.views)
        found["file"] = str(file)
        log.info(told)
    elif one.chosen.bare and typed():
        log.info(f"\nTo write a table to fill in: {typed(instead={'TO': 'next.csv'})}")


def _refuse_words(config: SuggestConfig) -> None:
    """Raise UsageError for what can be seen without reading anything."""
    if not config.run:
        _refuse_missing(config)
    if config.n < 1:
        raise UsageError(
            f"N={config.n}: so many images are listed; it must be at least 1", {"N": "24"}
        )
    if not config.to:
        return
    to = Path(config.to).expanduser()
    if to.suffix.lower() != ".csv":
        raise UsageError(
            f"TO={config.to}: unknown format {to.suffix!r}; the table ends in .csv",
            {"TO": str(to.with_suffix(".csv"))},
        )
    if not to.parent.is_dir():
        raise UsageError(f"TO={config.to}: {to.parent} is no folder; name one that is there")
    if to.exists():
        raise UsageError(
            f"TO={config.to} is there already, and may hold labels; name another file",
            {"TO": str(_free(to))},
        )


def _refuse_missing(config: SuggestConfig) -> None:
    from train.run.rundir import newest_runs, no_run

    if config.views and config.data:
        return
    if not config.views and not config.data and newest_runs(config.runs):
        raise no_run(config.runs)
    missing = "DATA" if config.views else "VIEWS"
    views, data = config.views or "clip,dinov2", config.data or "photos/"
    raise UsageError(
        f"{missing} is missing. For the first images, type: make suggest VIEWS={quoted(views)} "
        f"DATA={quoted(data)}; for the next ones of a run: make suggest RUN=…"
    )


def _free(to: Path) -> Path:
    """The next name that nothing has."""
    number = 2
    while to.with_stem(f"{to.stem}-{number}").exists():
        number += 1
    return to.with_stem(f"{to.stem}-{number}")
