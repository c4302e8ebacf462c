"""What would make a score too good: weights that have seen ImageNet's labels, and the same image in two splits or classes."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from base.commands import quoted
from base.errors import UsageError
from cache_specs.items import Items
from cache_specs.spec import ViewSpec
from extract.config import ExtractConfig

UNLABELLED = r"mae|mim|jepa|dino|ibot|data2vec|beit|moco|simclr|byol|swav"       # ways to train without labels, as they stand in the names of weights
HEAD = re.compile(r"(^|\.)(head|head\.fc|fc|heads\.head|head_dist|classifier|classifier\.1)\.weight")
CLASSES = (1000, 1001, 10450, 11221, 11821, 21841, 21842, 21843)                 # of ImageNet-1k, -12k and -21k, as they were published


def refuse_labels(config: ExtractConfig, spec: ViewSpec, files: dict[str, Path] | None = None) -> None:
    """Raise UsageError for weights that were trained with ImageNet's labels: going by their names as timm gives them, `a1_in1k`, `mae_ft_in1k`; or, with
    `files`, by what they hold: a classifier of as many classes as ImageNet has, or the config.json of one."""
    if config.allow_leak:
        return
    seen = next(_in_names(config, spec) if files is None else _in_files(files), None)
    if seen is not None:
        raise UsageError(f"the weights of {spec.name!r} ({seen}) were trained with ImageNet's labels, so probes on few labels of ImageNet, and of what is "
                         "like it, would be measured with labels that they must not have. Take weights that were trained without labels, or, where that is "
                         f"meant, type: make extract VIEW={config.view} DATA={quoted(config.data)} ARGS=--allow-leak")


def _in_names(config: ExtractConfig, spec: ViewSpec) -> Iterator[str]:
    sources = (spec.architecture, spec.weights.hub, spec.weights.url, spec.weights.path, config.weights)
    for name in (source.rstrip("/").rpartition("/")[2] for source in sources if source):
        trained = re.search(r"(?<![a-z0-9])in(1|12|21|22)k(?![a-z0-9])", name)
        if trained and (re.search(r"(?<![a-z0-9])ft_in\d", name) or not re.search(UNLABELLED, name)):
            yield name


def _in_files(files: dict[str, Path]) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    for path in files.values():         # one that cannot be read is refused, and named, when the model is loaded
        try:
            if path.name == "config.json":
                kinds = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
                yield from (f"{path.name}: {kind}" for kind in kinds if str(kind).endswith("ForImageClassification"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as tensors:
                    shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys() if HEAD.search(name)}       # noqa: SIM118
                yield from (f"{name} of {shape[0]:,} classes in {path.name}" for name, shape in shapes.items() if len(shape) == 2 and shape[0] in CLASSES)
        except (OSError, ValueError, AttributeError, TypeError, SafetensorError):
            continue


def warn_of_classes(items: Items) -> None:
    """Print which classes are called nearly the same: Circle and circle are two."""
    alike: dict[str, list[str]] = {}
    for name in items.classes:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).split()).casefold(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            counts = [int((items.label == items.classes.index(name)).sum()) for name in names]
            told = " and ".join(f"{name!r} ({count:,} images)" for name, count in zip(names, counts, strict=True))
            print(f"warning: {told} are classes of their own, though their names differ in case, blanks or the coding of letters alone; if they are one, "
                  "mend the labels and type the same command again", flush=True)


def warn_of_copies(items: Items) -> None:
    """Print how many images are byte for byte in two splits, or in two classes."""
    first: dict[str, int] = {}
    splits, classes = [], []
    for row, sha in enumerate(items.sha256):
        if not sha or (one := first.setdefault(sha, row)) == row:
            continue
        if "" not in (items.split[row], items.split[one]) and items.split[row] != items.split[one]:
            splits.append((one, row))
        if min(items.label[row], items.label[one]) >= 0 and items.label[row] != items.label[one]:
            classes.append((one, row))
    for pairs, what, then in ((splits, "split", "scores of the one are too good, being trained on the other; keep one of them"),
                              (classes, "class", "at least one label is wrong; keep one of them")):
        if pairs:
            one, other = (items.keys[row] for row in pairs[0])
            print(f"warning: {len(pairs):,} of {len(items):,} images of {items.name!r} are byte for byte an image of another {what} "
                  f"(first: {one!r} and {other!r}): {then}", flush=True)
