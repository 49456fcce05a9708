"""What a graph must give, and how far from it rounding may lead.

A bound from norms alone would grow with every node until it meant nothing. So the graph is run in float64 a few times
more with every node's result off by as much as rounding may put it off, up or down at random: how far the outputs then
are from the exact ones is what this graph makes of roundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from qimeng_tvm.check.tolerance import dot_bound, wrong_elements
from qimeng_tvm.errors import CheckError
from qimeng_tvm.graph_fuzz.evaluate import evaluate, read, run_node, widened
from qimeng_tvm.graph_fuzz.graph import Array, Graph, Node, float_dtype, to_model

#: Runs with roundings.
_DRAWS = 4
#: Roundings met may agree more than those drawn.
_SLACK = 2.0
#: As in `dot_bound`: with overwhelming probability.
_SPREAD = 8.0
#: Roundings of a function that is computed in a few steps, such as by a polynomial.
_STEPS = 16

#: They move elements, or choose among them.
_EXACT = frozenset(
    "Clip Concat Flatten Gather Identity MaxPool Pad ReduceMax Relu Reshape Resize Slice Split Squeeze Transpose "
    "Unsqueeze".split()
)


@dataclass(frozen=True, eq=False)
class Expected:
    """What outputs must be.

    Attributes
    ----------
    values : mapping of str to ndarray
        Of the outputs, exact.
    bounds : mapping of str to float
        How far an element of an output may be from it.
    source : str
        ``float64``; or ``onnxruntime``, when that disagrees with our own evaluation.
    """

    values: Mapping[str, Array]
    bounds: Mapping[str, float]
    source: str = "float64"

    def wrong(self, got: Mapping[str, Array]) -> dict[str, str]:
        """Return what is wrong with each wrong output."""
        found = {}
        for name, expected in self.values.items():
            array = got[name]
            if array.shape != expected.shape:
                found[name] = f"has shape {array.shape}, not {expected.shape}"
                continue
            mask = wrong_elements(array.astype(np.float64), expected, np.asarray(self.bounds[name]))
            if mask.any():
                found[name] = _first(array, expected, mask, self.bounds[name])
        return found


def _first(got: Array, expected: Array, mask: Array, bound: float) -> str:
    at = tuple(int(i) for i in np.argwhere(mask)[0])
    # NaN and infinities are wrong too, and would hide what else is.
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(got - expected).max())
    return (
        f"{int(mask.sum())} wrong of {mask.size}; first at {list(at)}: expected {float(expected[at]):.9g}, "
        f"got {float(got[at]):.9g}; largest error {largest:.3g}, allowed {bound:.3g}"
    )


def oracle(graph: Graph, seed: int = 0) -> Expected:
    """Return what the outputs of a graph must be.

    Raises
    ------
    CheckError
        If ONNX Runtime does not take the graph: it is no valid model.
    """
    exact = evaluate(graph)
    dtype = str(float_dtype(graph))
    rounding = {n.outputs: _rounding(n, exact, dtype) for n in graph.nodes}
    rng = np.random.default_rng(seed)
    spread = dict.fromkeys(graph.outputs, 0.0)
    for _ in range(_DRAWS):
        values = {name: widened(array) for name, array in (*graph.feeds.items(), *graph.weights.items())}
        for node in graph.nodes:
            for name, array in zip(node.outputs, run_node(node, read(node, values)), strict=True):
                values[name] = array + rounding[node.outputs] * rng.choice((-1.0, 1.0), array.shape)
        for name in graph.outputs:
            spread[name] = max(spread[name], float(np.abs(values[name] - exact[name]).max()))
    bounds = {name: _SLACK * error for name, error in spread.items()}
    ours = Expected({name: exact[name] for name in graph.outputs}, bounds)
    peer = run_onnxruntime(graph, {name: array.shape for name, array in exact.items()})
    if not ours.wrong(peer):
        return ours
    # Two of three agree, or nobody knows: then it is the peer's answer, which is rounded itself.
    doubled = {name: 2 * bound for name, bound in bounds.items()}
    return replace(ours, values={n: peer[n].astype(np.float64) for n in peer}, bounds=doubled, source="onnxruntime")


def run_onnxruntime(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return the outputs by ONNX Runtime, its rewriting of graphs off.

    Raises
    ------
    CheckError
        If it refuses the graph.
    """
    import onnxruntime  # noqa: PLC0415 (an extra)

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(to_model(graph, shapes), options, ["CPUExecutionProvider"])
        return dict(zip(graph.outputs, session.run(list(graph.outputs), dict(graph.feeds)), strict=True))
    except Exception as error:  # whatever its C++ raises
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckError(f"ONNX Runtime refuses the graph: {told}") from error


def _rounding(node: Node, exact: Mapping[str, Array], dtype: str) -> Array:
    """Return how far rounding may put each element of a node's result off."""
    given = read(node, exact)
    out = exact[node.outputs[0]]
    if node.op in _EXACT:
        return np.zeros(())
    if node.op in _SUMS:
        terms = _SUMS[node.op](node, given, out)
        magnitude = run_node(node, [None if x is None else np.abs(x) if x.dtype.kind == "f" else x for x in given])[0]
        return dot_bound(magnitude, out, terms, accumulate=dtype, out=dtype, spread=_SPREAD)
    return _STEPS * float(np.finfo(dtype).eps) / 2 * _MAGNITUDES.get(node.op, _largest)(node, given, out)


def _largest(_: Node, given: Sequence[Any], out: Array) -> Array:
    """Return what intermediate steps of an elementwise function may be as large as."""
    floats = [np.abs(x).max() for x in given if x is not None and x.dtype.kind == "f" and x.size]
    return np.asarray(max([float(np.abs(out).max()), *map(float, floats)]))


def _result(_: Node, given: Sequence[Any], out: Array) -> Array:
    """Return the result's own size: it is rounded once."""
    return np.abs(out)


def _batch_norm(_: Node, given: Sequence[Any], out: Array) -> Array:
    x, scale, bias, mean, variance = given
    shape = (-1, *[1] * (x.ndim - 2))
    factor = np.abs(scale) / np.sqrt(variance + 1e-5)
    return np.asarray(np.abs(x) * factor.reshape(shape) + (np.abs(mean) * factor + np.abs(bias)).reshape(shape))


def _layer_norm(node: Node, given: Sequence[Any], out: Array) -> Array:
    x, scale = given[:2]
    axes = tuple(range(int(node.attributes.get("axis", -1)) % x.ndim, x.ndim))
    variance = x.var(axes, keepdims=True) + float(node.attributes.get("epsilon", 1e-5))
    mean = x.mean(axes, keepdims=True)
    # The variance as a difference of squares, as some compute it.
    cancelled = (x**2).mean(axes, keepdims=True) / variance
    return np.asarray(np.abs(scale) * (np.abs(x) + np.abs(mean)) / np.sqrt(variance) + np.abs(out) * (1 + cancelled))


def _softmax(node: Node, given: Sequence[Any], out: Array) -> Array:
    x = given[0]
    axis = int(node.attributes.get("axis", -1))
    return np.asarray(out * (1 + (x.max(axis, keepdims=True) - x) + x.shape[axis]))


def _reduced(_: Node, given: Sequence[Any], out: Array) -> int:
    return int(given[0].size // out.size)


#: Of operators that are sums of products: how many.
_SUMS: Mapping[str, Callable[[Node, Sequence[Any], Array], int]] = MappingProxyType(
    {
        "AveragePool": lambda node, given, out: math.prod(node.attributes["kernel_shape"]),
        "Conv": lambda node, given, out: math.prod(given[1].shape[1:]),
        "ConvTranspose": lambda node, given, out: int(given[1].size // given[1].shape[1]),
        "Gemm": lambda node, given, out: int(given[0].size // out.shape[0]),
        "GlobalAveragePool": _reduced,
        "MatMul": lambda node, given, out: int(given[0].shape[-1]),
        "ReduceMean": _reduced,
        "ReduceSum": _reduced,
    }
)
#: Of other operators: what their steps may be as large as.
_MAGNITUDES: Mapping[str, Callable[[Node, Sequence[Any], Array], Array]] = MappingProxyType(
    {
        "BatchNormalization": _batch_norm,
        "LayerNormalization": _layer_norm,
        "Softmax": _softmax,
        **dict.fromkeys("Add Div LeakyRelu Mul Sqrt Sub".split(), _result),
    }
)
