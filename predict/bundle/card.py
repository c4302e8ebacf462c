"""The README.md of an exported model: what it is, what it was made of, how good it is and how far
to trust it. Everything in it is read off the run."""

import html
from typing import Any

from base.console import counted
from base.durable import canonical_json
from base.errors import UsageError
from cache_specs.spec import fingerprint, load_spec, with_pixels_of
from predict.model import Model, ViewRecord
from predict.table import judged, kind_of_judged
from train.methods import METHODS
from train.run.summary import chosen_on, doubt, kind_of, scored

LOOK = """import json, numpy, onnxruntime
session = onnxruntime.InferenceSession("joint.onnx")
classes = json.load(open("model.json"))["classes"]
embeddings = {INPUTS}
found = session.run(["joint"], embeddings)[0]               # (n, C) log-probabilities of n images
print([classes[c] for c in found.argmax(1)])"""
OF_VIEWS = (
    "view",
    "width",
    "architecture",
    "spec and weights",
    "weights sha256",
    "licence of the published weights",
)
SHOWN = 50  # classes at most


def model_card(model: Model, onnx: str) -> str:
    """onnx: what is to be said of that file."""
    about, rows, held_out = model.about, model.about["rows"], model.about["held_out"]
    classes, seeds = f"{len(model.classes):,}", counted(len(model.seeds), "seed")
    inputs = []
    for view in model.views:
        inputs.append(f'"{view.name}": numpy.zeros((1, {view.width}), "float32")')
    kind, calibration = kind_of(about, scored(about)), "which nothing tells to be right"
    if held_out["val"]:
        judges = "labelled" if held_out.get("out_of_fold") else "validation"
        calibration = f"which has the lowest loss on {held_out['val']:,} {judges} images"
    look = LOOK.replace("INPUTS", ", ".join(inputs))
    return f"""# {_text(model.method)} on {_text(", ".join(model.names))}

Labels an image with one of {classes} classes, from the embeddings of frozen vision models. Method:
{METHODS[model.method].title}. Trained on {_text(about["dataset"])}, run {_text(about["run"])}:
{_text(about["labels_text"])} ({rows["labelled"]:,} labelled images of each seed,
{rows["unlabelled"]:,} unlabelled), {seeds} ({", ".join(map(str, model.seeds))}), whose
distributions are averaged (geometrically).

Classes: {_class_names(model.classes)}

## How good

Of one seed, before calibration: mean ± standard deviation over {seeds}; {chosen_on(about)}.

| | {kind} top-1 in % | balanced | macro F1 | {kind} NLL | {kind} ECE | top-1 in %, selecting |
|---|---|---|---|---|---|---|
{_scores(model)}

{_together(model)}Calibration: the geometric mean of the seeds' distributions, at temperature
{model.temperature:.3f}, {calibration}. The
views' own opinions are as their probes give them.

{onnx}

## What it reads

| {" | ".join(OF_VIEWS)} |
|---|---|---|---|---|---|
{_views(model)}

The views' weights are not in this folder. `make predict MODEL=this-folder IMAGES=photos/` finds
them as `make extract` does, and refuses others than these. With embeddings at hand:

```python
{look}
```

## What it is for, and what not

For images like those it was trained on. It chooses one of its classes for any image, also for one
that shows none of them, and of images of another kind it is surer than it should be. A confidence
is a mean over images like those it was calibrated on, not a promise for one. Whoever is judged by
it should be able to object. What the backbones have learnt of their own training images, they bring
along. Look at what the views disagree on before you rely on it.

Files: `model.json` (all of the above for programs, with the sha256 of every file), `probes/`,
`graphs/` where the method has any, `joint.onnx`.
"""


def _class_names(classes: list[str]) -> str:
    names = ", ".join(_text(name) for name in classes[:SHOWN])
    more = f", … (all {len(classes):,} in model.json)" if len(classes) > SHOWN else ""
    return f"{names}{more}"


def _together(model: Model) -> str:
    """How good this model is, all its seeds together."""
    held_out = model.about["held_out"]
    top1, n = judged(held_out)
    if top1 is None:
        return ""
    kind = kind_of_judged(held_out)
    return (
        f"This model, with {counted(len(model.seeds), 'seed')}: {100 * top1:.1f} % of {n:,} {kind} "
        f"images right, give or take {100 * doubt(top1, n):.0f} points.\n\n"
    )


def _scores(model: Model) -> str:
    """A line of the table for each view that has an opinion of its own, and the joint."""
    scores, part = model.about["scores"], scored(model.about)
    own = {f"view {name}": scores["views"].get(name) for name in model.names}
    lines = []
    for name, found in {**own, "joint": scores["joint"]}.items():
        if found is None:
            continue
        cells = (
            _text(name),
            _mean_std(found.get(f"{part}_top1"), 100),
            _mean_std(found.get(f"{part}_balanced"), 100),
            _mean_std(found.get(f"{part}_f1"), 100),
            _mean_std(found.get(f"{part}_nll")),
            _mean_std(found.get(f"{part}_ece")),
            _mean_std(found.get("val_top1"), 100),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _views(model: Model) -> str:
    lines = []
    for view in model.views:
        key = fingerprint(view.spec, view.weights_sha256)
        cells = (
            _text(view.name),
            str(view.width),
            _text(str(view.spec.get("architecture", "imported"))),
            f"`{key[:12]}`",
            f"`{view.weights_sha256[:12]}`",
            _text(licence_of(view)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def licence_of(view: ViewRecord) -> str:
    """What the TOML file, the view's own or the bundled one of its name, says of the weights'
    licence, if it is the very spec that the run recorded."""
    for name in (view.spec_file, view.name):
        try:
            spec = load_spec(name) if name else None
        except UsageError:
            continue
        if spec is None or spec.about is None:
            continue
        declared = with_pixels_of(spec, view.spec).declared()
        if canonical_json(declared) == canonical_json(view.spec):
            return spec.about.licence
    return "unknown: see its TOML file, or ask its authors"


def _mean_std(found: dict[str, Any] | None, scale: float = 1) -> str:
    """A dash where there is no such score."""
    if found is None:
        return "–"
    digits = 1 if scale == 100 else 3
    mean, std = scale * found["mean"], scale * found["std"]
    more = f" ± {std:.{digits}f}" if found["n"] > 1 else ""
    return f"{mean:.{digits}f}{more}"


def _text(value: str) -> str:
    """A name in Markdown, whatever it holds: no HTML, no table cell, no line of its own."""
    plain = "".join(c if c.isprintable() else " " for c in value)
    escaped = html.escape(plain, quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in escaped)
