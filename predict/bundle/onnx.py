"""The model after the backbones as one ONNX graph: embeddings of each view -> log-probabilities,
for programs without torch.

    inputs      one (n, D_v) float32 for each view, called as the view; raw, as the cache has them
    outputs     joint (n, C) float32 log-probabilities, calibrated; and view.NAME (n, C) for each
                view, where it has an opinion of its own

Everything is in it: standardisation, the probes of all seeds and members, graphs, pool or joint
rule, the mean over the seeds, temperature. The nodes are written out one by one with onnx.helper,
as train/algorithm/probe.py, train/algorithm/evaluate.py and predict/model.py compute; no exporter
of torch traces anything (its exporter wants onnxscript, one more dependency). From the logits on it
computes in float64, as they do.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_specs.text import SHORTEST
from predict.model import FLOOR, SAME, ClassNames, Expert, Model, of_joint
from train.algorithm.probe import Params
from train.algorithm.propagation import LEAST
from train.data import towers

OPSET = 18
# bytes of tensors in the file itself; protobuf ends at 2 GB, and more goes into joint.onnx.data
# beside it
INLINE = 1_500_000_000
# begins the names of what is neither input nor output; no view's name has a slash
INNER = "coview/"


class Builder:
    """Nodes and constants of a graph in the making; `op` adds a node and gives the name of its
    output. onnx: the package, which is an extra."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any, dtype: Any = None) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"{INNER}c{len(self.constants)}"
        whole = np.ascontiguousarray(array, dtype or array.dtype)
        self.constants[name] = whole.reshape(array.shape)
        return name

    def single(self, value: Any) -> str:
        return self.constant(value, np.float32)

    def double(self, value: Any) -> str:
        return self.constant(value, np.float64)

    def whole(self, value: Any) -> str:
        return self.constant(value, np.int64)

    def ops(self, outputs: int, kind: str, *inputs: str, **attributes: Any) -> list[str]:
        names = [f"{INNER}t{len(self.nodes)}.{i}" for i in range(outputs)]
        node = self.onnx.helper.make_node(kind, list(inputs), names, **attributes)
        self.nodes.append(node)
        return names

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(1, kind, *inputs, **attributes)[0]

    def reduce(self, kind: str, x: str, axis: int, keep: int = 0) -> str:
        return self.op(kind, x, self.whole([axis]), keepdims=keep)

    def as_double(self, x: str) -> str:
        return self.op("Cast", x, to=self.onnx.TensorProto.DOUBLE)

    def output(self, x: str, name: str) -> None:
        """What the graph gives under this name, in float32."""
        to = self.onnx.TensorProto.FLOAT
        self.nodes.append(self.onnx.helper.make_node("Cast", [x], [name], to=to))


def write_onnx(model: Model, path: Path) -> list[Path]:
    """Write the graph; returns the files that it lies in. Raises ImportError without onnx."""
    import onnx  # noqa: PLC0415  an extra

    b = Builder(onnx)
    groups = [model.names] if model.method == "concat" else [[name] for name in model.names]
    x_P = []
    for group, probe in zip(groups, model.probes, strict=True):
        x_P.append(_standardised(b, group, probe))
    own_P = []
    for x, probe in zip(x_P, model.probes, strict=True):
        own_P.append(_logits(b, x, {key: probe[key] for key in of_joint(probe)}))
    outputs = ["joint"]
    if model.method == "concat":
        joint = own_P[0]
    else:
        for name, own in zip(model.names, own_P, strict=True):
            outputs.append(f"view.{name}")
            b.output(_floored(b, _mean(b, b.as_double(own))), f"view.{name}")
        joint = _fused(b, model, x_P)
    together = b.reduce("ReduceMean", b.op("LogSoftmax", b.as_double(joint), axis=-1), 0)
    cool = b.op("Div", together, b.double(model.temperature))
    b.output(_floored(b, b.op("LogSoftmax", cool, axis=-1)), "joint")
    return _save(b, model, outputs, path)


def _save(b: Builder, model: Model, outputs: list[str], path: Path) -> list[Path]:
    onnx, value_info = b.onnx, b.onnx.helper.make_tensor_value_info
    number, classes = onnx.TensorProto.FLOAT, len(model.classes)
    tensors = []
    for name, array in b.constants.items():
        tensors.append(onnx.numpy_helper.from_array(array, name))
    graph = onnx.helper.make_graph(
        b.nodes,
        "joint",
        [value_info(view.name, number, ["n", view.width]) for view in model.views],
        [value_info(name, number, ["n", classes]) for name in outputs],
        tensors,
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    made = onnx.helper.make_model(
        graph, opset_imports=[opset], producer_name="coview", ir_version=10
    )
    data = path.with_name(f"{path.name}.data")
    large = sum(array.nbytes for array in b.constants.values()) > INLINE
    location = data.name if large else None
    onnx.save_model(made, str(path), save_as_external_data=large, location=location)
    onnx.checker.check_model(str(path))
    return [path, data] if large else [path]


def difference(model: Model, path: Path, emb_V: list[np.ndarray]) -> float:
    """The largest |difference| of log-probabilities, joint and of each view, between onnxruntime
    and torch on these rows; NaN where either says NaN. Raises ImportError."""
    import onnxruntime  # noqa: PLC0415  an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {}
    for name, emb_nD in zip(model.names, emb_V, strict=True):
        given[name] = emb_nD.astype(np.float32)
    views_VnC, joint_nC = model.log_probabilities(*model.scores(emb_V))
    far = []
    for told, expected in zip(session.run(None, given), [joint_nC, *views_VnC], strict=True):
        far.append(np.abs(told - np.asarray(expected.cpu())).max())
    return float(np.max(far))


def _standardised(b: Builder, group: list[str], probe: Params) -> str:
    x = group[0] if len(group) == 1 else b.op("Concat", *group, axis=-1)
    centred = b.op("Sub", x, b.single(probe["input_mean"]))
    return b.op("Div", centred, b.single(probe["input_std"]))


def _logits(b: Builder, x: str, params: Params) -> str:
    """(n, D) -> (E, n, C), as train/algorithm/probe.py: the parameters' leading axes, E and the M
    members, are broadcast."""
    layers, h = sum(key.startswith("gain") for key in params), x
    for i in range(layers + 1):
        product = b.op("MatMul", h, b.single(params[f"w{i}"]))
        h = b.op("Add", product, b.single(params[f"b{i}"]))
        if i < layers:
            one = b.single(np.ones(params[f"gain{i}"].shape[-1]))
            normed = b.op("LayerNormalization", h, one, axis=-1, epsilon=1e-5)
            scaled = b.op("Mul", normed, b.single(params[f"gain{i}"]))
            h = b.op("Relu", b.op("Add", scaled, b.single(params[f"shift{i}"])))
    return h if params["b0"].dim() == 3 else _combined(b, h)


def _combined(b: Builder, h: str) -> str:
    """Of the members: mean / sqrt(1 + pi/8 variance)."""
    mean = b.reduce("ReduceMean", h, 1, keep=1)
    gap = b.op("Sub", h, mean)
    variance = b.reduce("ReduceMean", b.op("Mul", gap, gap), 1)
    scaled = b.op("Mul", variance, b.single(math.pi / 8))
    spread = b.op("Sqrt", b.op("Add", scaled, b.single(1)))
    return b.op("Div", b.op("Squeeze", mean, b.whole([1])), spread)


def _fused(b: Builder, model: Model, x_P: list[str]) -> str:
    """Model.scores: the joint of the views' probes, with the experts where there are any."""
    fused_P = []
    for x, probe in zip(x_P, model.probes, strict=True):
        fused_P.append(b.as_double(_logits(b, x, of_joint(probe))))
    if model.weight_ME is None:
        tiny = torch.finfo(model.probes[0]["b0"].dtype).tiny
        return _joint(b, fused_P, model.rule, len(model.classes), tiny)
    told_F = [_named(b, model, model.named)] if model.named else []
    told_F += [_expert(b, x_P, expert) for expert in model.experts]
    return _pooled(b, model.weight_ME, [*fused_P, *told_F])


def _joint(b: Builder, z_V: list[str], rule: str, classes: int, tiny: float) -> str:
    """evaluate.joint, of float64 logits (E, n, C)."""
    if rule == "logit-sum":
        return b.op("Sum", *z_V)
    if rule == "product":
        return b.op("Sum", *[b.op("LogSoftmax", z, axis=-1) for z in z_V])
    share = b.double(1 / len(z_V))  # onnxruntime has no Mean in float64
    mean = b.op("Mul", b.op("Sum", *[b.op("Softmax", z, axis=-1) for z in z_V]), share)
    if rule == "vote":
        every = b.whole(np.arange(classes))
        firsts = []
        for z in z_V:
            is_first = b.op("Equal", b.op("ArgMax", z, axis=-1, keepdims=1), every)
            firsts.append(b.as_double(is_first))
        votes = b.op("Mul", b.op("Sum", *firsts), share)
        most, rest = b.op("Mul", votes, b.double(0.999)), b.op("Mul", mean, b.double(0.001))
        mean = b.op("Add", most, rest)
    return b.op("Log", b.op("Max", mean, b.double(tiny)))


def _side_by_side(b: Builder, x_V: list[str]) -> str:
    """predict/model.py: (n, D) float32 rows of length 1."""
    unit_V = []
    for x in x_V:
        length = b.op("ReduceL2", x, b.whole([1]), keepdims=1)
        zero = b.op("Equal", length, b.single(0))
        unit_V.append(b.op("Div", x, b.op("Where", zero, b.single(1), length)))
    together = b.op("Concat", *unit_V, axis=-1) if len(unit_V) > 1 else unit_V[0]
    return b.op("Mul", together, b.single(len(unit_V) ** -0.5))


def _expert(b: Builder, x_P: list[str], expert: Expert) -> str:
    """`Expert` of predict/model.py: (E, n, C) float64 log-probabilities."""
    plain = _side_by_side(b, [x_P[view] for view in expert.views])
    nodes = b.single(expert.nodes_MD)
    found = {}
    for group in expert.groups:
        factor_D = expert.factor_ED[group[0]]
        x = b.as_double(b.op("Mul", plain, b.single(factor_D)))
        scaled = b.as_double(b.op("Mul", nodes, b.single(factor_D)))
        likeness = b.op("MatMul", x, b.op("Transpose", scaled, perm=[1, 0]))
        length = b.reduce("ReduceSumSquare", x, 1, keep=1)
        for e in group:
            offset_M = expert.offset(e, (expert.nodes_MD * factor_D).double())
            near = b.op("Add", likeness, b.double(offset_M))
            values, places = b.ops(2, "TopK", near, b.whole([expert.neighbours_E[e]]), axis=-1)
            told = b.op("Gather", b.single(expert.told_EMC[e]), places, axis=0)  # (n, k, C)
            first = b.op("Slice", values, *[b.whole([at]) for at in (0, 1, 1)])
            distance = b.op("Sub", length, b.op("Mul", first, b.double(2)))
            is_node = b.op("Less", distance, b.double(SAME**2))
            own = b.op("Gather", told, b.whole(0), axis=1)
            p = b.op("Where", is_node, own, b.reduce("ReduceMean", told, 1))
            log_p = b.op("Log", b.op("Max", p, b.single(LEAST)))
            found[e] = b.op("Unsqueeze", log_p, b.whole([0]))
    every = [found[e] for e in range(len(found))]
    return b.as_double(b.op("Concat", *every, axis=0))


def _named(b: Builder, model: Model, named: ClassNames) -> str:
    """`ClassNames` of predict/model.py: (E, n, C) float64 log-probabilities."""
    said_T = []
    for view, text in named.towers.items():
        x = model.names[view]
        if "projection" in text:
            x = b.op("MatMul", x, b.single(text["projection"]))
        if "offset" in text:
            x = b.op("Add", x, b.single(text["offset"]))
        length = b.op("ReduceL2", x, b.whole([1]), keepdims=1)
        unit = b.op("Div", x, b.op("Max", length, b.single(SHORTEST)))
        like = b.op("MatMul", unit, b.single(text["classes"].T))
        logits = b.op("Add", b.op("Mul", like, b.single(text["scale"])), b.single(text["bias"]))
        said_T.append(b.op("Softmax", b.as_double(logits), axis=-1))
    p = b.op("Mul", b.op("Sum", *said_T), b.double(1 / len(said_T)))
    log_p = b.op("Log", b.op("Max", p, b.double(towers.LEAST)))
    shifted = b.op("Add", log_p, b.double(named.bias_EC[:, None]))
    return b.op("LogSoftmax", shifted, axis=-1)


def _pooled(b: Builder, weight_ME: Tensor, scores_M: list[str]) -> str:
    """evaluate.pooled: (E, n, C) float64."""
    terms = []
    for z, weight_E in zip(scores_M, weight_ME.double(), strict=True):
        weight = b.double(weight_E[:, None, None])
        terms.append(b.op("Mul", b.op("LogSoftmax", z, axis=-1), weight))
    return b.op("Sum", *terms)


def _mean(b: Builder, scores: str) -> str:
    """predict/model.py: the logarithm of the mean over the seeds of the distributions (E, n, C) ->
    (n, C), float64."""
    log_p = b.op("LogSoftmax", scores, axis=-1)
    count = b.as_double(b.op("Gather", b.op("Shape", scores), b.whole(0)))
    return b.op("Sub", b.reduce("ReduceLogSumExp", log_p, 0), b.op("Log", count))


def _floored(b: Builder, log_p: str) -> str:
    return b.op("Max", log_p, b.double(FLOOR))
