"""make label-next RUN=name [N=24] [TO=next.csv]     (coview label-next --run name)

Lists the images whose labels would teach most, those of *Label these next* on the run's page, with
what the model takes them for. TO writes all images of the data set as a table, these first and
without a label: filled in, it is the DATA of the next extraction and training.
"""

import logging
from pathlib import Path
from typing import Any

from base.commands import typed
from base.devices import devices
from base.errors import UsageError
from base.phrase import quoted
from report.config import LabelNextConfig

log = logging.getLogger(f"coview.{__name__}")


def command(config: LabelNextConfig, found: dict[str, Any]) -> None:
    """make label-next."""
    _refuse_words(config)
    device = devices(config.device)[0]
    from train.run.rundir import finished, no_run, run_folder
    from train.run.summary import read_summary

    if not config.run:
        raise no_run(config.runs)
    run = run_folder(config.runs, config.run)
    settings, summary = finished(run)["settings"], read_summary(run)

    from predict.from_run import of_run
    from report.asked import ask, to_label, unseen
    from report.label_next.table import listed, require_model, text_of, write_all
    from report.run import shown_method

    require_model(run, settings, summary)
    method = shown_method(summary)
    model, cache, splits = of_run(run, method, device, Path(config.cache))
    asked = ask(model, cache, unseen(splits))
    chosen = to_label(asked, cache, config.n)
    if not len(chosen.at):
        raise UsageError(
            f"every image of {cache.items.name} has a label, and the run saw those of all training "
            "images: nothing is left to be labelled. Add images without a label to them, and type "
            f"make extract VIEW=… DATA={quoted(cache.source or settings['data'])}"
        )
    log.info(f"run {run}: {method} on {', '.join(cache.names)}\n{chosen.why}")
    if not config.to:
        log.info(chosen.then)
    images = listed(chosen, asked, cache)
    log.info(f"\n{text_of(images, config.n)}")
    found |= {
        "run": str(run),
        "method": method,
        "pool": chosen.pool,
        "hidden": not chosen.bare,
        "images": images,
        "file": None,
    }
    if config.to:
        rows = asked.rows[chosen.at]
        file, told = write_all(Path(config.to).expanduser(), rows, cache, config, settings)
        found["file"] = str(file)
        log.info(told)
    elif chosen.bare and typed():
        log.info(f"\nTo write a table to fill in: {typed(instead={'TO': 'next.csv'})}")


def _refuse_words(config: LabelNextConfig) -> None:
    """Raise UsageError for what can be seen without reading anything."""
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


def _free(to: Path) -> Path:
    """The next name that nothing has."""
    number = 2
    while to.with_stem(f"{to.stem}-{number}").exists():
        number += 1
    return to.with_stem(f"{to.stem}-{number}")
