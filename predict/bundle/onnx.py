"""The model after the backbones as one ONNX graph: embeddings of each view -> log-probabilities, for programs without torch.

    inputs      one (n, D_v) float32 for each view, called as the view; raw, as the cache has them
    outputs     joint (n, C) float32 log-probabilities, calibrated; and view.NAME (n, C) for each view, where it has an opinion of its own

Everything is in it: standardisation, the probes of all seeds and members, graphs, pool or joint rule, temperature, the mean over the seeds. The nodes
are written out one by one with onnx.helper, as train/algorithm/probe.py, train/algorithm/evaluate.py and predict/model.py compute; no exporter of torch traces anything.
From the logits on it computes in float64, as they do.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from predict.model import FLOOR, SAME, Expert, Model
from train.algorithm.probe import Params
from train.data.graph import LEAST

OPSET = 18
INLINE = 1_500_000_000  # bytes of tensors in the file itself; protobuf ends at 2 GB, and more goes into joint.onnx.data beside it
INNER = (
    "coview/"  # begins the names of what is neither input nor output; no view's name has a slash
)


class Builder:
    """Nodes and constants of a graph in the making. `builder.Op(inputs, attribute=…)` adds a node and gives the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any, dtype: Any = None) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"{INNER}c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array, dtype or array.dtype).reshape(
            array.shape
        )
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        from onnx import helper

        names = [f"{INNER}t{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def reduce(self, kind: str, x: str, axis: int, keep: int = 0) -> str:
        return self.op(kind, x, self.constant([axis], np.int64), keepdims=keep)

    def double(self, x: str) -> str:
        from onnx import TensorProto

        return self.op("Cast", x, to=TensorProto.DOUBLE)

    def single(self, x: str, name: str) -> None:
        from onnx import TensorProto, helper

        self.nodes.append(helper.make_node("Cast", [x], [name], to=TensorProto.FLOAT))


def write_onnx(model: Model, path: Path) -> list[Path]:
    """Write the graph; returns the files that it lies in. Raises ImportError without onnx."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    b, inputs = Builder(), model.names
    outputs = ["joint", *(f"view.{name}" for name in model.names if model.method != "concat")]
    groups = [inputs] if model.method == "concat" else [[name] for name in inputs]
    x_P = [
        _standardised(b, group, probe) for group, probe in zip(groups, model.probes, strict=True)
    ]
    own_P = [_logits(b, x, probe, "") for x, probe in zip(x_P, model.probes, strict=True)]
    if model.method == "concat":
        joint = own_P[0]
    else:
        for name, own in zip(inputs, own_P, strict=True):
            b.single(_mean(b, b.double(own)), f"view.{name}")
        fused_P = [
            b.double(_logits(b, x, probe, "joint."))
            for x, probe in zip(x_P, model.probes, strict=True)
        ]
        joint = (
            _pooled(b, model, [*fused_P, *(_expert(b, x_P, expert) for expert in model.experts)])
            if model.experts
            else _joint(
                b,
                fused_P,
                model.rule,
                len(model.classes),
                torch.finfo(model.probes[0]["b0"].dtype).tiny,
            )
        )
    b.single(
        _mean(b, b.op("Div", b.double(joint), b.constant(model.temperature, np.float64))), "joint"
    )
    graph = helper.make_graph(
        b.nodes,
        "joint",
        [
            helper.make_tensor_value_info(view.name, TensorProto.FLOAT, ["n", view.width])
            for view in model.views
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", len(model.classes)])
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in b.constants.items()],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="coview", ir_version=10
    )
    large = sum(array.nbytes for array in b.constants.values()) > INLINE
    onnx.save_model(
        made,
        str(path),
        save_as_external_data=large,
        location=f"{path.name}.data" if large else None,
    )
    onnx.checker.check_model(str(path))
    return [path, path.with_name(f"{path.name}.data")][: 1 + large]


def difference(model: Model, path: Path, emb_V: list[np.ndarray]) -> float:
    """The largest |difference| of log-probabilities, joint and of each view, between onnxruntime and torch on these rows; NaN where either says NaN. Raises
    ImportError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(
        None,
        {name: emb_nD.astype(np.float32) for name, emb_nD in zip(model.names, emb_V, strict=True)},
    )
    views_VnC, joint_nC = model.log_probabilities(*model.scores(emb_V))
    return float(
        np.max(
            [
                np.abs(told - np.asarray(one.cpu())).max()
                for told, one in zip(found, [joint_nC, *views_VnC], strict=True)
            ]
        )
    )


def _standardised(b: Builder, group: list[str], probe: Params) -> str:
    x = group[0] if len(group) == 1 else b.op("Concat", *group, axis=-1)
    return b.op(
        "Div",
        b.op("Sub", x, b.constant(probe["input_mean"], np.float32)),
        b.constant(probe["input_std"], np.float32),
    )


def _logits(b: Builder, x: str, probe: Params, prefix: str) -> str:
    """(n, D) -> (E, n, C), as train/algorithm/probe.py: the parameters' leading axes, E and the M members, are broadcast."""
    params = {
        key: probe[prefix + key]
        for key in (key.removeprefix("joint.") for key in probe if key.startswith("joint."))
    }
    layers, h = sum(key.startswith("gain") for key in params), x
    for i in range(layers + 1):
        h = b.op(
            "Add",
            b.op("MatMul", h, b.constant(params[f"w{i}"], np.float32)),
            b.constant(params[f"b{i}"], np.float32),
        )
        if i < layers:
            one = b.constant(np.ones(params[f"gain{i}"].shape[-1]), np.float32)
            h = b.op(
                "Mul",
                b.op("LayerNormalization", h, one, axis=-1, epsilon=1e-5),
                b.constant(params[f"gain{i}"], np.float32),
            )
            h = b.op("Relu", b.op("Add", h, b.constant(params[f"shift{i}"], np.float32)))
    if params["b0"].dim() == 3:
        return h
    mean = b.reduce("ReduceMean", h, 1, keep=1)  # of the members: mean / sqrt(1 + pi/8 variance)
    gap = b.op("Sub", h, mean)
    variance = b.reduce("ReduceMean", b.op("Mul", gap, gap), 1)
    spread = b.op(
        "Sqrt",
        b.op(
            "Add",
            b.op("Mul", variance, b.constant(math.pi / 8, np.float32)),
            b.constant(1, np.float32),
        ),
    )
    return b.op("Div", b.op("Squeeze", mean, b.constant([1], np.int64)), spread)


def _joint(b: Builder, z_V: list[str], rule: str, classes: int, tiny: float) -> str:
    """train/evaluate.joint, of float64 logits (E, n, C)."""
    if rule == "logit-sum":
        return b.op("Sum", *z_V)
    if rule == "product":
        return b.op("Sum", *(b.op("LogSoftmax", z, axis=-1) for z in z_V))
    share = b.constant(1 / len(z_V), np.float64)  # onnxruntime has no Mean in float64
    mean = b.op("Mul", b.op("Sum", *(b.op("Softmax", z, axis=-1) for z in z_V)), share)
    if rule == "vote":
        every = b.constant(np.arange(classes), np.int64)
        firsts = [b.op("Equal", b.op("ArgMax", z, axis=-1, keepdims=1), every) for z in z_V]
        votes = b.op("Mul", b.op("Sum", *(b.double(first) for first in firsts)), share)
        mean = b.op(
            "Add",
            b.op("Mul", votes, b.constant(0.999, np.float64)),
            b.op("Mul", mean, b.constant(0.001, np.float64)),
        )
    return b.op("Log", b.op("Max", mean, b.constant(tiny, np.float64)))


def _expert(b: Builder, x_P: list[str], expert: Expert) -> str:
    """predict/network.Expert: (E, n, C) float64 log-probabilities."""
    unit_V = []
    for view in expert.views:
        length = b.op("ReduceL2", x_P[view], b.constant([1], np.int64), keepdims=1)
        zero = b.op("Equal", length, b.constant(0, np.float32))
        unit_V.append(
            b.op("Div", x_P[view], b.op("Where", zero, b.constant(1, np.float32), length))
        )
    x = b.op("Concat", *unit_V, axis=-1) if len(unit_V) > 1 else unit_V[0]
    x = b.double(b.op("Mul", x, b.constant(len(unit_V) ** -0.5, np.float32)))
    likeness = b.op(
        "MatMul",
        x,
        b.op("Transpose", b.double(b.constant(expert.nodes_MD, np.float32)), perm=[1, 0]),
    )
    length = b.reduce("ReduceSumSquare", x, 1, keep=1)
    found = []
    for offset_M, told_MC, k in zip(
        expert.offset_EM, expert.told_EMC, expert.neighbours_E, strict=True
    ):
        values, places = b.op(
            "TopK",
            b.op("Add", likeness, b.constant(offset_M, np.float64)),
            b.constant([k], np.int64),
            outputs=2,
            axis=-1,
        )
        told = b.op("Gather", b.constant(told_MC, np.float32), places, axis=0)  # (n, k, C)
        first = b.op("Slice", values, *(b.constant([at], np.int64) for at in (0, 1, 1)))
        is_node = b.op(
            "Less",
            b.op("Sub", length, b.op("Mul", first, b.constant(2, np.float64))),
            b.constant(SAME**2, np.float64),
        )
        own = b.op("Gather", told, b.constant(0, np.int64), axis=1)
        p = b.op("Where", is_node, own, b.reduce("ReduceMean", told, 1))
        found.append(
            b.op(
                "Unsqueeze",
                b.op("Log", b.op("Max", p, b.constant(LEAST, np.float32))),
                b.constant([0], np.int64),
            )
        )
    return b.double(b.op("Concat", *found, axis=0))


def _pooled(b: Builder, model: Model, scores_M: list[str]) -> str:
    """train/evaluate.pooled: (E, n, C) float64."""
    weight_ME11 = [
        b.constant(weight_E[:, None, None], np.float64) for weight_E in model.weight_ME.double()
    ]
    return b.op(
        "Sum",
        *(
            b.op("Mul", b.op("LogSoftmax", z, axis=-1), weight)
            for z, weight in zip(scores_M, weight_ME11, strict=True)
        ),
    )


def _mean(b: Builder, scores: str) -> str:
    """predict/network: the logarithm of the mean over the seeds of the distributions (E, n, C) -> (n, C), float64."""
    log_p = b.op("LogSoftmax", scores, axis=-1)
    E = b.op("Cast", b.op("Gather", b.op("Shape", scores), b.constant(0, np.int64)), to=11)
    return b.op(
        "Max",
        b.op("Sub", b.reduce("ReduceLogSumExp", log_p, 0), b.op("Log", E)),
        b.constant(FLOOR, np.float64),
    )
