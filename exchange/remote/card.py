"""The README.md beside a view in an object store: what it is, of which model, and how to get it."""

import html

from base.phrase import quoted
from cache_specs import integrity
from cache_specs.items import Items
from cache_specs.spec import load_spec, view_names
from cache_specs.store import is_of_project
from cache_specs.view import View


def card(view: View, items: Items, address: str) -> str:
    """Markdown."""
    spec, made = view.attributes["spec"], view.attributes["provenance"]
    rows = {
        "images": f"{view.n:,}, of {items.name}",
        "embeddings": f"{view.width} numbers each, float16, Zarr v3, in shards of {view.rows:,}",
        "made by": spec["backend"],
        "architecture": spec.get("architecture", ""),
        "output": spec.get("output", ""),
        "sha256 of the weights": view.attributes["weights_sha256"],
        "root of all digests": integrity.root(view),
        **about_of(view),
    }
    tuned = spec.get("tuned")
    if tuned:
        rows["tuned"] = (
            f"{tuned['mode']}, on the labels of {tuned['labels']} images (seen.txt), by which it "
            "must not be judged"
        )
    for name, number in sorted(made.get("versions", {}).items()):
        rows[name] = number
    lines = [f"| {name} | {_text(value)} |" for name, value in rows.items() if value]
    return (
        f"# {_text(view.name)}: embeddings\n\n"
        "What a frozen vision model gives for each image, one row an image, in the order of\n"
        "`items.parquet` beside this folder. Any Zarr reader opens it.\n\n"
        f"    make pull FROM={quoted(address)} VIEW={quoted(view.name)}\n\n"
        "| | |\n|---|---|\n" + "\n".join(lines) + "\n\n"
        "The licence is that of the published weights; the images have their own.\n"
    )


def about_of(view: View) -> dict[str, str]:
    """Of a view that comes with the project."""
    if not is_of_project(view.attributes["provenance"], view.name) or view.name not in view_names():
        return {}
    about = load_spec(view.name).about
    if about is None:
        return {}
    return {"model": about.model, "licence": about.licence}


def _text(value: object) -> str:
    return html.escape(" ".join(str(value).split())).replace("|", "&#124;")
