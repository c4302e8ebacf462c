"""make extract VIEW=clip DATA=photos/ CLASSES=names.txt

The names of the classes as the view's text tower sees them, once, beside the embeddings
(cache_specs/text.py). Where the same names stand there already, no model is loaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from base.console import NOTE, counted
from base.errors import IntegrityError, StaleError, UsageError
from base.limits import free_memory, within_memory
from cache_specs.prompts import SHOWN, Names
from cache_specs.spec import ViewSpec, load_spec, view_names
from cache_specs.text import FILE, ViewText, read_text, write_text
from cache_specs.view import View

log = logging.getLogger(f"coview.{__name__}")


@dataclass(frozen=True)
class Naming:
    """What is encoded for a view. files: of its text tower's model; none where they are not here
    and were not fetched."""

    names: Names
    files: dict[str, Path]
    weights_sha256: str


def refuse_without_towers(specs: Sequence[ViewSpec]) -> None:
    """Say which views have no text tower. Raises UsageError where none has one."""
    without = [spec.name for spec in specs if spec.text is None]
    if not without:
        return
    listed = ", ".join(without)
    told = f"{listed} {'has' if len(without) == 1 else 'have'} no text tower, and CLASSES needs one"
    if len(without) == len(specs):
        some = ", ".join(name for name in view_names() if load_spec(name).text is not None)
        raise UsageError(
            f"{told}. Views that have one: {some}. Name one of them, or leave CLASSES out",
            instead={"CLASSES": None},
        )
    log.log(NOTE, f"{told}: zero-shot does without")


def warn_of_alike(given: str, names: Names) -> None:
    """Of classes that no image can tell apart by their names."""
    groups = names.alike()
    if not groups:
        return
    listed = "; ".join(" and ".join(map(repr, group[:SHOWN])) for group in groups[:SHOWN])
    more = ", among others" if max(len(groups), *map(len, groups)) > SHOWN else ""
    log.warning(
        f"CLASSES={given}: {listed}{more} have the same names, so zero-shot calls every image of "
        "them by the first. Give them different ones"
    )


def encode(spec: ViewSpec, view: View, naming: Naming, device: str) -> None:
    """Leave the names beside the view, unless they are there. Raises CoviewError."""
    assert spec.text is not None, f"{spec.source} has no text tower"
    prompts = naming.names.prompts(spec.text.templates)
    tower = spec.text.fingerprint(naming.weights_sha256)
    number = counted(sum(map(len, prompts.values())), "prompt")
    told = f"{view.name}: the names of {len(prompts):,} classes ({number})"
    if _is_there(view, tower, prompts):
        log.info(f"{told} are encoded already")
        return
    from extract.models import text  # noqa: PLC0415  torch takes seconds

    what = f"the text tower of {spec.name} on {device}"
    with within_memory(what, f"{free_memory(device)}; then type the same command"):
        loaded = text.load_tower(spec, naming.files, device)
        tensors = text.tensors_of(loaded, [*prompts.values()])
    write_text(view, ViewText(tensors, tower, prompts, spec.text.fingerprint("")))
    log.info(f"{told} are encoded, for METHOD=zero-shot and as an expert of mct-graph")


def _is_there(view: View, tower: str, prompts: dict[str, list[str]]) -> bool:
    """What is damaged, or of another view, is made anew."""
    try:
        found = read_text(view)
    except (IntegrityError, StaleError):
        log.warning(f"{view.folder / FILE} is damaged, or of another view: it is made anew")
        return False
    if found is None:
        return False
    return found.tower == tower and [*found.prompts.items()] == [*prompts.items()]
