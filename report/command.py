"""make report RUN=name     (python -m report --run name)

Writes runs/<name>/report.html: one file that opens offline, with the scores, the training, where the model errs, and the images worth a look.
`make train` does so at the end of each run; here it is made anew. Nothing but this file is written.
"""

from pathlib import Path
from typing import Any

from base.errors import CoviewError, UsageError
from report.config import ReportConfig


def command(config: ReportConfig, found: dict[str, Any]) -> None:
    """make report."""
    if not config.run:
        raise UsageError("RUN is missing. Type: make report RUN=demo")
    from train.run.rundir import run_folder

    run = run_folder(config.runs, config.run)
    print(write_report(run, Path(config.cache), Path(config.root), config.device))


def write_report(
    folder: Path, cache: Path = Path("cache"), root: Path = Path("data"), device: str = "cpu"
) -> Path:
    """Write FOLDER/report.html and return its path. What needs the embeddings or the images is left out, with a line that says why, where they are gone.
    Raises CoviewError where the run itself cannot be read."""
    from base import durable
    from report.html.page import Section, join, note, page
    from report.run import read_run
    from report.sections.calibration import agreement, classes, reliability
    from report.sections.confusion import confusion
    from report.sections.galleries import (
        class_names,
        disagreement_gallery,
        error_gallery,
        look,
        map_section,
        next_section,
        suspects_section,
    )
    from report.sections.scores import curves, intro, scores

    run = read_run(folder)
    seen, missing = None, []
    try:
        seen = look(run, cache, root, device)
        missing += [seen.pictures.why] if seen.pictures.why else []
    except CoviewError as error:
        missing.append(f"The galleries and maps are left out: {error}")
    names = class_names(run, cache)
    confused, agreed = confusion(run, names), agreement(run)
    if seen:
        confused = Section(
            confused.name,
            confused.title,
            join([confused.body, error_gallery(seen, len(run.summary["seeds"]))]),
            confused.lead,
        )
        agreed = agreed and Section(
            agreed.name, agreed.title, join([agreed.body, disagreement_gallery(seen)]), agreed.lead
        )
    sections = [
        scores(run),
        next_section(seen) if seen else None,
        confused,
        suspects_section(seen) if seen else None,
        classes(run, names),
        reliability(run),
        agreed,
        map_section(seen) if seen else None,
        curves(run),
    ]
    older = seen.cache.items.folder_name if seen and seen.cache.older else ""
    if older:
        missing.append(
            f"This run was made of {older}, an older version of its data: what was added, moved or labelled since is not known to this page"
        )
    head = join([intro(run, older), *[note(line, warning=True) for line in missing]])
    text = page(
        run.name, [section for section in sections if section], intro=head, scripts=["report.js"]
    )
    durable.write(folder / "report.html", text.encode("utf-8", "replace"), "report")
    return folder / "report.html"
