"""make report RUN=name     (coview report --run name)

Writes runs/<name>/report.html: one file that opens offline, with the scores, the training, where
the model errs, and the images worth a look. `make train` does so at the end of each run; here it is
made anew. Nothing but this file is written.
"""

from pathlib import Path
from typing import Any

from base.devices import devices
from base.errors import UsageError
from report.config import ReportConfig


def command(config: ReportConfig, found: dict[str, Any]) -> None:
    """make report."""
    if not config.run:
        raise UsageError("RUN is missing. Type: make report RUN=demo")
    device = devices(config.device)[0]
    from train.run.rundir import run_folder

    run = run_folder(config.runs, config.run)  # a typing error is answered before torch is loaded

    from report.write import write_report

    print(write_report(run, Path(config.cache), Path(config.root), device))
