"""A model as a folder that needs nothing else: written by `make export-model`, read by
`open_model`.

    model.json                  method, joint rule, classes, seeds, temperature, the views' specs
                                and the hashes of their weights; sha256 of every file below
    probes/VIEW.safetensors     the run's own files
    graphs/0.safetensors …      nodes and what they know, where the method has graphs
    names.safetensors           what the class names look like to the views, where they have a say
    joint.onnx  README.md       for other programs, and for people

model.json knows its own digest. Whatever is missing, short, added to or changed in one bit is named
before anything is used. A seal keeps out damage, not a person who seals anew: so model.json is held
against what an export can have written (`_refuse`), and names no file but those above.
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
from predict.model import ClassNames, Expert, Model, Sight, ViewRecord
from train.algorithm.probe import Params
from train.config import TrainConfig
from train.methods import METHODS, with_model

RECORD = "model.json"
# 1 tempered seeds, then averaged them; 2 has no class names, no factors and no reach
FORMAT, READ = 3, (2, 3)
NAMED = "names.safetensors"
OTHERS = ("README.md", "joint.onnx", "joint.onnx.data")  # beside the tensors
RULES = typing.get_args(typing.get_type_hints(TrainConfig)["joint"])
# What reading a damaged folder may raise.
DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
    SafetensorError,
)


def probe_files(method: str, names: list[str]) -> list[str]:
    """One of each view, or one for all of them."""
    return [f"probes/{name}.safetensors" for name in (["concat"] if method == "concat" else names)]


def graph_files(graphs: int) -> list[str]:
    return [f"graphs/{number}.safetensors" for number in range(graphs)]


def write_parts(model: Model, folder: Path) -> None:
    """The probes and graphs. The folder is there."""
    found = dict(zip(probe_files(model.method, model.names), model.probes, strict=True))
    for name, expert in zip(graph_files(len(model.experts)), model.experts, strict=True):
        found[name] = {
            "nodes": expert.nodes_MD,
            "member": expert.member_EM,
            "told": expert.told_EMC,
            "factor": expert.factor_ED,
        }
        for e, sight in enumerate(expert.sights_E):
            for key, value in sight._asdict().items():
                found[name][f"sight.{e}.{key}"] = value
    if model.named:
        found[NAMED] = model.named.tensors
    for name, tensors in found.items():
        plain = {}
        for key, value in tensors.items():
            plain[key] = value.detach().contiguous().cpu().clone()
        durable.make_folder((folder / name).parent)
        durable.write(folder / name, save(plain), "model.tensors")


def write_record(model: Model, folder: Path) -> None:
    """model.json, last of all: the digests are of the files that lie there."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = _digest_of(path)
    views = []
    for view in model.views:
        told = dataclasses.replace(view, spec_file="", spec=_portable(view.spec))
        views.append(dataclasses.asdict(told))
    graphs = []
    for expert in model.experts:
        graphs.append({"views": expert.views, "neighbours": expert.neighbours_E})
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
        "graphs": graphs,
        "named": model.named is not None,
        "weight": None if model.weight_ME is None else model.weight_ME.tolist(),
    }
    durable.write(folder / RECORD, durable.sealed(record), "model.record")


def read_model(folder: Path, device: torch.device) -> Model:
    """Raises UsageError (no folder of ours), StaleError (of another version) or IntegrityError
    naming the damaged file."""
    if not (folder / RECORD).is_file():
        _refuse_folder(folder)
    try:
        record = durable.read_sealed(folder / RECORD)
        if record["format"] not in READ:
            raise _of_another_version(folder, record)
        model = _model_of(folder, record, device)
        _try(model)
        return model
    except DAMAGED as error:
        durable.reraise_unless_gone(folder / RECORD, error)
        raise IntegrityError(
            f"the model in {folder} is damaged: {error}. Copy it again, or export it again: make "
            "export-model RUN=… TO=…"
        ) from error


def _of_another_version(folder: Path, record: dict[str, Any]) -> StaleError:
    """With the command that makes it anew from the run that it names."""
    run, method = (record.get("about") or {}).get("run"), record.get("method")
    whose = f"RUN={quoted(run) if run else '…'} METHOD={method or '…'}"
    meant = ""
    if record["format"] == 1:
        meant = " (in the other one each seed has the temperature, and then they are averaged)"
    return StaleError(
        f"{folder} has format {record['format']}, this version reads {FORMAT}{meant}; export it "
        f"again, where its run is: make export-model {whose} TO={quoted(f'{folder}-{FORMAT}')}"
    )


def _refuse_folder(folder: Path) -> None:
    """Raise UsageError, with what may have been meant."""
    near = nearest(folder.name, [path.parent.name for path in folder.parent.glob(f"*/{RECORD}")])
    inner = [path.parent for path in folder.glob(f"*/{RECORD}")]
    meant = ""
    if len(inner) == 1:
        meant = str(inner[0])
    elif near:
        meant = str(folder.with_name(near))
    where = f"{RECORD} in this" if folder.is_dir() else "such"
    if meant:
        then = f"; did you mean {meant!r}"
    else:
        then = f". Make one: make export-model RUN=… TO={quoted(str(folder))}"
    raise UsageError(
        f"MODEL={folder}: there is no {where} folder{then}",
        instead={"MODEL": meant} if meant else None,
    )


def _model_of(folder: Path, record: dict[str, Any], device: torch.device) -> Model:
    """Raises one of DAMAGED."""
    views = [dataclasses.replace(ViewRecord(**view), spec_file="") for view in record["views"]]
    _refuse(record, views)
    probes = probe_files(record["method"], [view.name for view in views])
    graphs = graph_files(len(record["graphs"]))
    text = [NAMED] if record.get("named") else []
    _check_files(folder, record["files"], {*probes, *graphs, *text})
    experts = []
    for name, graph in zip(graphs, record["graphs"], strict=True):
        experts.append(_expert(_tensors(folder / name, device), graph))
    weight: Tensor | None = None
    if record["weight"] is not None:
        weight = torch.tensor(record["weight"], dtype=torch.float64, device=device)
    return Model(
        views,
        record["classes"],
        record["method"],
        record["seeds"],
        record["joint"],
        [_tensors(folder / name, device) for name in probes],
        experts,
        weight,
        float(record["temperature"]),
        record["about"],
        _named(_tensors(folder / NAMED, device), len(views)) if text else None,
    )


def _expert(parts: Params, graph: dict[str, Any]) -> Expert:
    """Of a graph's file and what the record says of it; format 2 has neither factors nor sights."""
    nodes_MD, member_EM = parts["nodes"], parts["member"]
    factor_ED = parts.get("factor", nodes_MD.new_ones(len(member_EM), nodes_MD.shape[1]))
    sights: list[Sight] = []
    while f"sight.{len(sights)}.reach_M" in parts:
        own = [parts[f"sight.{len(sights)}.{key}"] for key in Sight._fields]
        sights.append(Sight(*own))
    told = nodes_MD, member_EM, parts["told"]
    return Expert(graph["views"], *told, graph["neighbours"], factor_ED, sights)


def _named(tensors: Params, views: int) -> ClassNames:
    """Raises ValueError where they are no class names of these views."""
    named = ClassNames.of(tensors)
    if named is None or not named.towers or not {*named.towers} <= {*range(views)}:
        raise ValueError(f"{NAMED} has no class names of the model's views")
    return named


def _portable(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without a path of this machine: an absolute weights.path would say where its owner's
    files lie, and lead nowhere on another machine."""
    path = (spec.get("weights") or {}).get("path")
    if not path or not Path(path).is_absolute():
        return spec
    return {**spec, "weights": {**spec["weights"], "path": Path(path).name}}


def _refuse(record: dict[str, Any], views: list[ViewRecord]) -> None:
    """Raise ValueError for what no export writes: it could lead out of the folder, or to
    probabilities that are none."""
    names, rows = [view.name for view in views], record["about"]["rows"]
    _need(_are_names(names), "views of different names, which are names of files")
    _need(_are_classes(record["classes"]), "two or more different classes")
    _need(all(_is_width(view.width) for view in views), "views of a possible width")
    _need(_is_temperature(record["temperature"]), "a temperature from 0.001 to 1,000")
    about = type(rows["val"]) is int and isinstance(record["about"]["dataset"], str)
    _need(about, "what is said of the data")
    _need(_is_held_out(record["about"]["held_out"]), "how good it is on images held out")
    _need(record["method"] in with_model(), f"a method of {', '.join(with_model())}")
    _need(record["joint"] in RULES, f"a joint rule of {', '.join(RULES)}")
    graphs, weight = bool(record["graphs"]), record["weight"] is not None
    named = record.get("named", False)  # format 2 has none
    _need(named is False or (named is True and graphs), "what class names say, or that they do not")
    _need(
        graphs == weight == METHODS[record["method"]].graphs,
        "a weight, and graphs, where the method has them, and only there",
    )
    members = [view for graph in record["graphs"] for view in graph["views"]]
    _need(
        all(0 <= view < len(views) for view in members),
        "views of graphs that are views of the model",
    )


def _need(there: bool, wanted: str) -> None:
    if not there:
        raise ValueError(f"{RECORD} lacks {wanted}")


def _are_names(names: list[Any]) -> bool:
    return bool(names) and len({*names}) == len(names) and all(map(_is_name, names))


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def _are_classes(classes: Any) -> bool:
    if not isinstance(classes, list) or {*map(type, classes)} != {str}:
        return False
    return len({*classes}) == len(classes) > 1


def _is_width(width: Any) -> bool:
    return type(width) is int and 0 < width < 2**20


def _is_held_out(found: Any) -> bool:
    """As predict/from_run.py counts it."""
    val, test, top1 = found["val"], found["test"], found["top1"]
    out = found.get("out_of_fold")  # an earlier version knows none
    if out is not None and not (type(out["images"]) is int and 0 <= out["top1"] <= 1):
        return False
    if type(val) is not int or type(test) is not int or min(val, test) < 0:
        return False
    if not all(map(_is_judged, found.get("judged", []))):
        return False
    return top1 is None if test == 0 else type(top1) in (int, float) and 0 <= top1 <= 1


def _is_judged(one: Any) -> bool:
    """The confidence in an image's label, and 1 where that is right, else 0."""
    return isinstance(one, list) and len(one) == 2 and 0 <= one[0] <= 1 and one[1] in (0, 1)


def _is_temperature(temperature: Any) -> bool:
    return type(temperature) in (int, float) and 1e-3 <= temperature <= 1e3


def _try(model: Model) -> None:
    """Raise ValueError or RuntimeError where the tensors do not fit one another: what is said of
    one image must be probabilities."""
    seeds, classes = len(model.seeds), len(model.classes)
    if {len(probe["b0"]) for probe in model.probes} != {seeds}:
        raise ValueError(f"{RECORD} has {seeds} seeds, the probes have others")
    _need_all_seeds(model)
    nothing_V = [np.zeros((1, width), np.float32) for width in model.widths]
    p_nC = model(nothing_V).joint_nC
    model.familiar(nothing_V)
    finite = p_nC.shape == (1, classes) and np.isfinite(p_nC).all()
    if not finite or abs(p_nC.sum() - 1) > 1e-3:
        raise ValueError(f"the model says no probabilities of {classes} classes")


def _need_all_seeds(model: Model) -> None:
    """Raise ValueError where weights, or what is familiar, are not those of each seed."""
    seeds = len(model.seeds)
    weight = model.weight_ME
    experts = len(model.views) + bool(model.named) + len(model.experts)
    if weight is not None and weight.shape != (experts, seeds):
        raise ValueError(
            f"{RECORD} has a weight of the shape {tuple(weight.shape)}, expected one for each view "
            "and graph (and for the class names, where they have a say), and each seed"
        )
    sighted = {len(expert.sights_E) for expert in model.experts}
    if not sighted <= {0, seeds}:
        raise ValueError(f"a graph knows what is familiar to {max(sighted)} of {seeds} seeds")


def _check_files(folder: Path, files: dict[str, dict[str, Any]], wanted: set[str]) -> None:
    """Raise ValueError where one is not as it was written, or is none of a model's."""
    lacking, strange = wanted - files.keys(), files.keys() - {*wanted, *OTHERS}
    if lacking:
        raise ValueError(f"{RECORD} does not name the file {min(lacking)}")
    if strange:
        raise ValueError(f"{RECORD} names the file {min(strange)!r}, which is none of a model's")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        found = _digest_of(folder / name)
        if found != expected:
            raise ValueError(
                f"{name} has changed since it was written: {found['bytes']:,} bytes with sha256 "
                f"{found['sha256'][:12]}, expected {expected['bytes']:,} with "
                f"{expected['sha256'][:12]}"
            )


def _digest_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def _tensors(path: Path, device: torch.device) -> Params:
    tensors = load(path.read_bytes())
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            name = f"{path.parent.name}/{path.name}"
            raise ValueError(f"{name}: the tensor {key!r} is not finite")
    return {key: value.to(device) for key, value in tensors.items()}
