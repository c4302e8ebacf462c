"""The README.md of an exported model: what it is, what it was made of, how good it is and how far to trust it. Everything in it is read off the run."""

import html
from typing import Any

from base.durable import canonical_json
from base.errors import UsageError
from cache_specs.spec import fingerprint, load_spec
from predict.model import Model, View
from train.methods import TITLES

LOOK = """import json, numpy, onnxruntime
session = onnxruntime.InferenceSession("joint.onnx")
classes = json.load(open("model.json"))["classes"]
embeddings = {INPUTS}
found = session.run(["joint"], embeddings)[0]               # (n, C) log-probabilities of n images
print([classes[c] for c in found.argmax(1)])"""


def card(model: Model, onnx: str) -> str:
    about, scores = model.about, model.about["scores"]
    rows, n = about["rows"], len(model.seeds)
    own = [
        (f"view {view}", scores["views"][view]) for view in model.names if view in scores["views"]
    ]
    table = "\n".join(
        f"| {_text(name)} | {_spread(found['test_top1'], 100)} | {_spread(found['test_nll'])} | {_spread(found['test_ece'])} | "
        f"{_spread(found['val_top1'], 100)} |"
        for name, found in [*own, ("joint", scores["joint"])]
    )
    views = "\n".join(
        f"| {_text(view.name)} | {view.width} | {_text(str(view.spec.get('architecture', 'imported')))} | "
        f"`{fingerprint(view.spec, view.weights_sha256)[:12]}` | `{view.weights_sha256[:12]}` | {_text(licence_of(view))} |"
        for view in model.views
    )
    names = ", ".join(_text(name) for name in model.classes[:50]) + (
        f", … (all {len(model.classes):,} in model.json)" if len(model.classes) > 50 else ""
    )
    inputs = ", ".join(
        f'"{name}": numpy.zeros((1, {width}), "float32")'
        for name, width in zip(model.names, model.widths, strict=True)
    )
    return f"""# {_text(model.method)} on {_text(", ".join(model.names))}

Labels an image with one of {len(model.classes):,} classes, from the embeddings of frozen vision models. Method: {TITLES[model.method][0]}.
Trained on {_text(about["dataset"])}, run {_text(about["run"])}: {_text(about["labels_text"])} ({rows["labelled"]:,} labelled images of each seed,
{rows["unlabelled"]:,} unlabelled), {n} seed{"s" * (n > 1)} ({", ".join(map(str, model.seeds))}), whose distributions are averaged.

Classes: {names}

## How good

Of one seed, before calibration: mean ± standard deviation over {n} seed{"s" * (n > 1)}; selected on {rows["val"]:,} labelled validation images, tested once
on {rows["test"]:,}.

| | test top-1 in % | test NLL | test ECE | validation top-1 in % |
|---|---|---|---|---|
{table}

Calibration: the joint of all seeds at temperature {model.temperature:.3f}, which has the lowest loss on the validation images. The views' own opinions
are as their probes give them.

{onnx}

## What it reads

| view | width | architecture | spec and weights | weights sha256 | licence of the published weights |
|---|---|---|---|---|---|
{views}

The views' weights are not in this folder. `make predict MODEL=this-folder IMAGES=photos/` finds them as `make extract` does, and refuses others than these.
With embeddings at hand:

```python
{LOOK.replace("INPUTS", inputs)}
```

## What it is for, and what not

For images like those it was trained on. It chooses one of its classes for any image, also for one that shows none of them, and of images of another kind it is
surer than it should be. A confidence is a mean over images like the validation images, not a promise for one. Whoever is judged by it should be able to object.
What the backbones have learnt of their own training images, they bring along. Look at what the views disagree on before you rely on it.

Files: `model.json` (all of the above for programs, with the sha256 of every file), `probes/`, `graphs/` where the method has any, `joint.onnx`.
"""


def licence_of(view: View) -> str:
    """What the TOML file, the view's own or the bundled one of its name, says of the weights' licence, if it is the very spec that the run recorded."""
    for name in (view.spec_file, view.name):
        try:
            spec = load_spec(name) if name else None
        except UsageError:
            continue
        if spec and spec.about and canonical_json(spec.declared()) == canonical_json(view.spec):
            return spec.about.licence
    return "unknown: see its TOML file, or ask its authors"


def _spread(found: dict[str, Any], scale: float = 1) -> str:
    digits = 1 if scale == 100 else 3
    return f"{scale * found['mean']:.{digits}f}" + (
        f" ± {scale * found['std']:.{digits}f}" if found["n"] > 1 else ""
    )


def _text(value: str) -> str:
    """A name in Markdown, whatever it holds: no HTML, no table cell, no line of its own."""
    plain = "".join(c if c.isprintable() else " " for c in value)
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in html.escape(plain, quote=False))
