"""What fine-tuning leaves: a backbone of its own, as extract takes any other.

    runs/clip-ft/clip-ft.toml                  the view: its parent's, but for [weights], [tuned]
                 clip-ft/                      the tuned model, whole (low-rank parts merged)
                 clip-ft.learnt.safetensors    what learnt alone: the adapter, or norms; the head
                 seen.txt                      the contents of the images whose labels it has seen
                 tuned.json                    written last (sealed): sha256 of each of these

What is written is read again, and must give what was tuned.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from base import durable
from base.errors import IntegrityError
from cache_specs.spec import Tensors, Tuned, ViewSpec, Weights, check
from cache_specs.tuned import FILE as SEEN
from extract.models.backbones import Backbone, load_backbone
from extract.models.checkpoint import mapped, safetensors_of
from extract.models.timm_backend import RESAMPLING
from extract.originals import Originals
from train.finetune.live import Live
from train.finetune.thaw import merge

DONE = "tuned.json"
CLOSE = 1e-4  # of an embedding's length: as far as it may be off once it was written and read


def is_tuned(folder: Path) -> bool:
    """Is a fine-tuning in this folder finished?"""
    return (folder / DONE).is_file()


def tuned_spec(parent: ViewSpec, toml: Path, tuned: Tuned) -> ViewSpec:
    """The view that is written; its weights lie beside its file, in a folder of its name."""
    arguments = {k: v for k, v in parent.arguments.items() if k not in RESAMPLING}
    spec = dataclasses.replace(
        parent,
        name=toml.stem,
        source=toml,
        weights=Weights(files=parent.weights.files, path=toml.stem),
        arguments=arguments if parent.backend == "timm" else parent.arguments,
        tensors=Tensors(),
        about=None,
        text=None,
        tuned=tuned,
    )
    check(spec, str(spec.source))
    return spec


def write_tuned(spec: ViewSpec, original: Originals, live: Live, some_pixels: Tensor) -> None:
    """Merge what was learnt, write everything, and see that what was written gives what was tuned.
    Raises StorageError, or IntegrityError where it does not."""
    folder = spec.source.parent
    assert spec.tuned is not None
    learnt = {name: p.detach().cpu().contiguous() for name, p in live.named().items()}
    learnt |= {name: getattr(live.body, name).cpu() for name in ("mean_D", "std_D")}
    merge(live.backbone.model)
    durable.make_folder(folder / spec.name)
    state = whole_state(original.spec, original.files, live.backbone)
    written: dict[str, bytes] = {}
    for name, path in original.files.items():
        data = path.read_bytes()
        if name.endswith(".safetensors"):
            # one key, since safetensors keeps no order of several: the same bytes again
            data = save(state, {SEEN: spec.tuned.seen})
        written[f"{spec.name}/{name}"] = data
    written[f"{spec.name}.learnt.safetensors"] = save(learnt)
    for name, data in written.items():
        durable.write(folder / name, data, "tuned")
    _refuse_other(spec, live.backbone, some_pixels)
    durable.write(spec.source, toml_of(spec).encode(), "tuned")  # last: with it there is a view


def files_of(tomls: Sequence[Path], originals: Sequence[Originals]) -> dict[str, str]:
    """The sha256 of each file that was written for these views."""
    folder, names = tomls[0].parent, [SEEN]
    for toml, original in zip(tomls, originals, strict=True):
        names += [toml.name, f"{toml.stem}.learnt.safetensors"]
        names += [f"{toml.stem}/{name}" for name in original.files]
    return {name: _sha256(folder / name) for name in names}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_state(
    parent: ViewSpec, files: Mapping[str, Path], backbone: Backbone
) -> dict[str, Tensor]:
    """The tensors of the tuned model as a checkpoint of its backend has them: of open_clip both
    towers, the text's as it was."""
    own = {name: tensor.detach().cpu() for name, tensor in backbone.model.state_dict().items()}
    if parent.backend == "open_clip":
        path = safetensors_of(parent, dict(files))
        own = {f"visual.{name}": tensor for name, tensor in own.items()}
        own = {**mapped(parent, load_file(path)), **own}
    return {name: tensor.contiguous().clone() for name, tensor in own.items()}


def _refuse_other(spec: ViewSpec, backbone: Backbone, pixels_BCHW: Tensor) -> None:
    """Raise IntegrityError unless the weights, read again, embed these images as what was tuned;
    then they are taken away. On the CPU: a GPU may have no room for a second model."""
    where = spec.source.parent / spec.name
    files = {name: where / name for name in spec.weights.files}
    read = load_backbone(spec, files, "cpu", folded=False)
    with torch.inference_mode():
        tuned, found = (one(pixels_BCHW, exact=True) for one in (backbone.cpu(), read))
    off = ((found - tuned).norm(dim=1) / tuned.norm(dim=1)).max().item()
    if not off <= CLOSE:
        shutil.rmtree(where)
        raise IntegrityError(
            f"{where}: what was written, read again, is not what was tuned (embeddings are off by "
            f"{off:.1e} of their length): this backbone cannot be written as a view of its own. "
            "Report it, with the view's TOML file; take another view meanwhile"
        )


def toml_of(spec: ViewSpec) -> str:
    """A spec as its TOML file, every field written out."""
    values = dataclasses.asdict(spec)
    for key in ("name", "source", "about", "text"):
        del values[key]
    lines = [f"# tuned from {spec.tuned.parent}" if spec.tuned else "", ""]
    tables = []
    for key, value in values.items():
        if not isinstance(value, dict):
            lines += _lines({key: value})
        elif own := _lines(value):
            tables += ["", f"[{key}]", *own]
    return "\n".join([*lines, *tables, ""])


def _lines(table: Mapping[str, Any]) -> list[str]:
    """What is not given, or empty, is left out."""
    given = {key: value for key, value in table.items() if value not in (None, "", (), {})}
    return [f"{_key(key)} = {_value(value)}" for key, value in given.items()]


def _key(key: str) -> str:
    return key if key.replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    """JSON is TOML, but for tables."""
    if isinstance(value, dict):
        return f"{{{', '.join(_lines(value))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)


def finish(folder: Path, record: dict[str, Any]) -> None:
    """The last thing that is written."""
    durable.write(folder / DONE, durable.sealed(record), "tuned")


def read_done(folder: Path) -> dict[str, Any]:
    """What `finish` wrote. Raises IntegrityError where it, or a file that it names, is another
    one."""
    try:
        record = durable.read_sealed(folder / DONE)
        for name, sha256 in record["files"].items():
            if _sha256(folder / name) != sha256:
                raise ValueError(f"{name} has changed since it was written")
    except (OSError, ValueError, KeyError) as error:
        durable.reraise_unless_gone(folder, error)
        raise IntegrityError(
            f"{folder} is damaged ({error}). Delete it, and type the command that made it"
        ) from error
    return record
