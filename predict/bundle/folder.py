"""A model as a folder that needs nothing else: written by `make export-model`, read by `open_model`.

    model.json                  method, joint rule, classes, seeds, temperature, the views' specs and the hashes of their weights; sha256 of every file below
    probes/VIEW.safetensors     the run's own files
    graphs/0.safetensors …      nodes and what they know, where the method has graphs
    joint.onnx  README.md       for other programs, and for people

model.json knows its own digest. Whatever is missing, short, added to or changed in one bit is named before anything is used. A seal keeps out damage, not a
person who seals anew: so model.json is held against what an export can have written (`_refuse`), and names no file but those above.
"""

import dataclasses
import hashlib
import typing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from base import durable
from base.errors import IntegrityError, StaleError, UsageError, nearest
from base.phrase import quoted
from predict.model import Expert, Model, View
from train.algorithm.probe import Params
from train.config import TrainConfig
from train.methods import PLANS

FORMAT, RECORD = 1, "model.json"
OTHERS = ("README.md", "joint.onnx", "joint.onnx.data")  # beside the tensors
RULES = typing.get_args(typing.get_type_hints(TrainConfig)["joint"])


def write_tensors(model: Model, folder: Path) -> None:
    """The probes and graphs. The folder is there."""
    names = ["concat"] if model.method == "concat" else model.names
    found = {
        f"probes/{name}.safetensors": probe for name, probe in zip(names, model.probes, strict=True)
    }
    found |= {
        f"graphs/{number}.safetensors": {
            "nodes": expert.nodes_MD,
            "member": expert.member_EM,
            "told": expert.told_EMC,
        }
        for number, expert in enumerate(model.experts)
    }
    for name, tensors in found.items():
        durable.make_folder((folder / name).parent)
        durable.write(
            folder / name,
            save(
                {key: value.detach().contiguous().cpu().clone() for key, value in tensors.items()}
            ),
            "model.tensors",
        )


def write_record(model: Model, folder: Path) -> None:
    """model.json, last of all: the digests are of the files that lie there."""
    files = {
        str(path.relative_to(folder)): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    views = [
        dataclasses.asdict(dataclasses.replace(view, spec_file="", spec=_portable(view.spec)))
        for view in model.views
    ]
    record = {
        "format": FORMAT,
        "method": model.method,
        "joint": model.rule,
        "classes": model.classes,
        "seeds": model.seeds,
        "temperature": model.temperature,
        "views": views,
        "about": model.about,
        "files": files,
        "graphs": [
            {"views": expert.views, "neighbours": expert.neighbours_E} for expert in model.experts
        ],
        "weight": None if model.weight_ME is None else model.weight_ME.tolist(),
    }
    durable.write(folder / RECORD, durable.sealed(record), "model.record")


def read_model(folder: Path, device: torch.device) -> Model:
    """Raises UsageError (no folder of ours), StaleError (of another version) or IntegrityError naming the damaged file."""
    if not (folder / RECORD).is_file():
        near = nearest(
            folder.name, [path.parent.name for path in folder.parent.glob(f"*/{RECORD}")]
        )
        inner = [path.parent for path in folder.glob(f"*/{RECORD}")]
        meant = str(inner[0]) if len(inner) == 1 else str(folder.with_name(near)) if near else ""
        then = (
            f"; did you mean {meant!r}"
            if meant
            else f". Make one: make export-model RUN=… TO={quoted(str(folder))}"
        )
        raise UsageError(
            f"MODEL={folder}: there is no {f'{RECORD} in this' if folder.is_dir() else 'such'} folder{then}",
            instead={"MODEL": meant} if meant else None,
        )
    try:
        record = durable.read_sealed(folder / RECORD)
        if record["format"] != FORMAT:
            raise StaleError(
                f"{folder} has format {record['format']}, this version reads {FORMAT}; export it again: make export-model RUN=… TO=…"
            )
        views = [dataclasses.replace(View(**view), spec_file="") for view in record["views"]]
        _refuse(record, views)
        names = ["concat"] if record["method"] == "concat" else [view.name for view in views]
        probes, graphs = (
            [f"probes/{name}.safetensors" for name in names],
            [f"graphs/{number}.safetensors" for number in range(len(record["graphs"]))],
        )
        if lacking := {*probes, *graphs} - record["files"].keys():
            raise ValueError(f"{RECORD} does not name the file {min(lacking)}")
        if strange := record["files"].keys() - {*probes, *graphs, *OTHERS}:
            raise ValueError(
                f"{RECORD} names the file {min(strange)!r}, which is none of a model's"
            )
        for name, digest in record["files"].items():
            _check(folder, name, digest)
        experts = []
        for name, graph in zip(graphs, record["graphs"], strict=True):
            tensors = _read(folder / name, device)
            experts.append(
                Expert(
                    graph["views"],
                    tensors["nodes"],
                    tensors["member"],
                    tensors["told"],
                    graph["neighbours"],
                )
            )
        weight: Tensor | None = (
            None
            if record["weight"] is None
            else torch.tensor(record["weight"], dtype=torch.float64, device=device)
        )
        model = Model(
            views,
            record["classes"],
            record["method"],
            record["seeds"],
            record["joint"],
            [_read(folder / name, device) for name in probes],
            experts,
            weight,
            float(record["temperature"]),
            record["about"],
        )
        _try(model)
        return model
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RuntimeError,
        SafetensorError,
    ) as error:
        durable.reraise_unless_gone(folder / RECORD, error)
        raise IntegrityError(
            f"the model in {folder} is damaged: {error}. Copy it again, or export it again: make export-model RUN=… TO=…"
        ) from error


def _portable(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without a path of this machine: an absolute weights.path would say where its owner's files lie, and lead nowhere on another machine."""
    path = (spec.get("weights") or {}).get("path")
    return (
        {**spec, "weights": {**spec["weights"], "path": Path(path).name}}
        if path and Path(path).is_absolute()
        else spec
    )


def _refuse(record: dict[str, Any], views: list[View]) -> None:
    """Raise ValueError for what no export writes: it could lead out of the folder, or to probabilities that are none."""
    names, classes, temperature = (
        [view.name for view in views],
        record["classes"],
        record["temperature"],
    )
    for wanted, there in (
        (
            "views of different names, which are names of files",
            bool(names) and len({*names}) == len(names) and all(map(_is_name, names)),
        ),
        (
            "two or more different classes",
            isinstance(classes, list)
            and len({*classes}) == len(classes) > 1
            and {*map(type, classes)} == {str},
        ),
        (
            "views of a possible width",
            all(type(view.width) is int and 0 < view.width < 2**20 for view in views),
        ),
        (
            "a temperature from 0.001 to 1,000",
            type(temperature) in (int, float) and 1e-3 <= temperature <= 1e3,
        ),
        (
            "what is said of the data",
            type(record["about"]["rows"]["val"]) is int
            and isinstance(record["about"]["dataset"], str),
        ),
        (f"a method of {', '.join(PLANS)}", record["method"] in PLANS),
        (f"a joint rule of {', '.join(RULES)}", record["joint"] in RULES),
        (
            "a weight, and graphs, where the method has them, and only there",
            bool(record["graphs"])
            == (record["weight"] is not None)
            == PLANS[record["method"]].graphs
            if record["method"] in PLANS
            else False,
        ),
        (
            "views of graphs that are views of the model",
            all(0 <= view < len(views) for graph in record["graphs"] for view in graph["views"]),
        ),
    ):
        if not there:
            raise ValueError(f"{RECORD} lacks {wanted}")


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def _try(model: Model) -> None:
    """Raise ValueError or RuntimeError where the tensors do not fit one another: what is said of one image must be probabilities."""
    if {len(probe["b0"]) for probe in model.probes} != {len(model.seeds)}:
        raise ValueError(f"{RECORD} has {len(model.seeds)} seeds, the probes have others")
    if model.weight_ME is not None and model.weight_ME.shape != (
        len(model.views) + len(model.experts),
        len(model.seeds),
    ):
        raise ValueError(
            f"{RECORD} has a weight of the shape {tuple(model.weight_ME.shape)}, expected one for each view and graph, and each seed"
        )
    said = model([np.zeros((1, width), np.float32) for width in model.widths])
    if (
        said.joint_nC.shape != (1, len(model.classes))
        or not np.isfinite(said.joint_nC).all()
        or abs(said.joint_nC.sum() - 1) > 1e-3
    ):
        raise ValueError(f"the model says no probabilities of {len(model.classes)} classes")


def _check(folder: Path, name: str, expected: dict[str, Any]) -> None:
    if not (folder / name).is_file():
        raise ValueError(f"{name} is missing")
    if (found := _digest(folder / name)) != expected:
        raise ValueError(
            f"{name} has changed since it was written: {found['bytes']:,} bytes with sha256 {found['sha256'][:12]}, expected "
            f"{expected['bytes']:,} with {expected['sha256'][:12]}"
        )


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _read(path: Path, device: torch.device) -> Params:
    tensors = load(path.read_bytes())
    if wrong := [key for key, value in tensors.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"{path.parent.name}/{path.name}: the tensor {wrong[0]!r} is not finite")
    return {key: value.to(device) for key, value in tensors.items()}
