"""What would make a score too good: weights that have seen ImageNet's labels."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from base.errors import UsageError
from cache_specs.spec import ViewSpec
from cache_specs.tuned import FILE as SEEN

# Ways to train without labels, as they stand in the names of weights.
UNLABELLED = r"mae|mim|jepa|dino|ibot|data2vec|beit|moco|simclr|byol|swav"
HEAD = re.compile(
    r"(^|\.)(head|head\.fc|fc|heads\.head|head_dist|classifier|classifier\.1)\.weight"
)
# Of ImageNet-1k, -12k and -21k, as they were published.
CLASSES = (1000, 1001, 10450, 11221, 11821, 21841, 21842, 21843)


def refuse_labels(
    spec: ViewSpec, weights: str | None = None, files: dict[str, Path] | None = None
) -> None:
    """Raise UsageError for weights that were trained with ImageNet's labels: going by their names
    as timm gives them, `a1_in1k`, `mae_ft_in1k`; or, with `files`, by what they hold: a classifier
    of as many classes as ImageNet has, or the config.json of one. weights: those that were named
    instead of the spec's."""
    seen = next(_in_names(spec, weights) if files is None else _in_files(files), None)
    if seen is not None:
        raise UsageError(
            f"the weights of {spec.name!r} ({seen}) were trained with ImageNet's labels, so probes "
            "on few labels of ImageNet, and of what is like it, would be measured with labels that "
            "they must not have. Take weights that were trained without labels, or, where that is "
            "meant, say so: --allow-leak",
            instead={"--allow-leak": ""},
        )


def refuse_tuned(spec: ViewSpec, path: Path) -> None:
    """Raise UsageError for weights that `make finetune` wrote, under a spec that does not say so:
    whom they have seen would be forgotten."""
    try:
        with safe_open(path, "pt") as file:
            seen = (file.metadata() or {}).get(SEEN, "")
    except (OSError, SafetensorError):  # who loads them says so
        return
    if seen != (spec.tuned.seen if spec.tuned else ""):
        raise UsageError(
            f"the weights of {spec.name!r} ({path}) were tuned on labels by make finetune, and "
            f"{spec.source} does not say on which. Name the view that was written with them: "
            "VIEW=runs/…/NAME.toml"
        )


def _in_names(spec: ViewSpec, weights: str | None) -> Iterator[str]:
    sources = (spec.architecture, spec.weights.hub, spec.weights.url, spec.weights.path, weights)
    for source in filter(None, sources):
        name = source.rstrip("/").rpartition("/")[2]
        trained = re.search(r"(?<![a-z0-9])in(1|12|21|22)k(?![a-z0-9])", name)
        tuned = re.search(r"(?<![a-z0-9])ft_in\d", name)
        if trained and (tuned or not re.search(UNLABELLED, name)):
            yield name


def _in_files(files: dict[str, Path]) -> Iterator[str]:
    for path in files.values():
        try:
            if path.name == "config.json":
                yield from _in_config(path)
            elif path.suffix == ".safetensors":
                yield from _in_tensors(path)
        # One that cannot be read is refused, and named, when the model is loaded.
        except (OSError, ValueError, AttributeError, TypeError, SafetensorError):
            continue


def _in_config(path: Path) -> Iterator[str]:
    for kind in json.loads(path.read_text(encoding="utf-8")).get("architectures") or []:
        if str(kind).endswith("ForImageClassification"):
            yield f"{path.name}: {kind}"


def _in_tensors(path: Path) -> Iterator[str]:
    with safe_open(path, "np") as tensors:  # shapes alone are read: torch would take seconds
        for name in filter(HEAD.search, tensors.keys()):
            shape = tensors.get_slice(name).get_shape()
            if len(shape) == 2 and shape[0] in CLASSES:
                yield f"{name} of {shape[0]:,} classes in {path.name}"
