"""report.html of a finished run, as a whole: its sections in their order, and what is left out."""

from dataclasses import replace
from pathlib import Path

from base import durable
from base.errors import CoviewError
from report.html.page import Html, Section, join, note, page
from report.run import Run, read_run
from report.sections.calibration import agreement, classes, reliability
from report.sections.confusion import confusion
from report.sections.galleries import (
    Look,
    class_names,
    disagreement_gallery,
    error_gallery,
    look,
    map_section,
    next_section,
    suspects_section,
)
from report.sections.scores import curves, intro, scores


def write_report(
    folder: Path, cache: Path = Path("cache"), root: Path = Path("data"), device: str = "cpu"
) -> Path:
    """Write FOLDER/report.html and return its path.

    What needs the embeddings or the images is left out, with a line that says why, where they are
    gone. Raises CoviewError where the run itself cannot be read.
    """
    run = read_run(folder)
    seen, missing, older = None, "", ""
    try:
        seen = look(run, cache, root, device)
    except CoviewError as error:
        missing = f"The galleries and maps are left out: {error}"
    if seen:
        missing = seen.pictures.why
        older = seen.cache.items.folder_name if seen.cache.older else ""
    notes = [intro(run, older)]
    if missing:
        notes.append(note(missing, warning=True))
    if older:
        told = (
            f"This run was made of {older}, an older version of its data: what was added, moved or "
            "labelled since is not known to this page"
        )
        notes.append(note(told, warning=True))
    found = sections(run, seen, class_names(run, cache))
    text = page(run.name, found, intro=join(notes), scripts=["report.js"])
    durable.write(folder / "report.html", text.encode("utf-8", "replace"), "report")
    return folder / "report.html"


def sections(run: Run, seen: Look | None, names: list[str]) -> list[Section]:
    """In the order of the page, without those that have nothing to say. seen: what the galleries
    are made of, where it is there."""
    if not run.part:
        found = [scores(run), next_section(seen), map_section(seen)] if seen else [scores(run)]
        return [section for section in found if section]
    confused, agreed = confusion(run, names), agreement(run)
    if seen is None:
        found = [scores(run), confused, classes(run, names), reliability(run), agreed, curves(run)]
    else:
        confused = _with(confused, error_gallery(seen, len(run.summary["seeds"])))
        found = [
            scores(run),
            next_section(seen),
            confused,
            suspects_section(seen),
            classes(run, names),
            reliability(run),
            _with(agreed, disagreement_gallery(seen)) if agreed else None,
            map_section(seen),
            curves(run),
        ]
    return [section for section in found if section]


def _with(section: Section, more: Html) -> Section:
    return replace(section, body=join([section.body, more]))
