"""ONNX operators in float64, one node at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from qimeng_tvm.graph_fuzz.graph import Array, Graph, Node


def evaluate(graph: Graph) -> dict[str, Array]:
    """Return every value of a graph, floating-point ones in float64."""
    values = {name: widened(array) for name, array in (*graph.feeds.items(), *graph.weights.items())}
    for node in graph.nodes:
        values.update(zip(node.outputs, run_node(node, read(node, values)), strict=True))
    return values


def widened(array: Array) -> Array:
    """Return floating-point numbers as float64, others as they are."""
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def read(node: Node, values: Mapping[str, Array]) -> list[Array | None]:
    """Return what a node is given; None for an operand left out."""
    return [values[name] if name else None for name in node.inputs]


def run_node(node: Node, given: Sequence[Array | None]) -> list[Array]:
    """Return the outputs of a node.

    Windows are taken here, which ONNX's own reference does an element at a time, and what it lacks is computed here.
    """
    if node.op in _OWN:
        return [_OWN[node.op](node, given)]
    from onnx import helper  # noqa: PLC0415 (an extra)
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    # Names of their own: one value may be read twice.
    names = [f"i{i}" if array is not None else "" for i, array in enumerate(given)]
    proto = helper.make_node(node.op, names, list(node.outputs), **node.attributes)
    feeds = {name: array for name, array in zip(names, given, strict=True) if array is not None}
    return [np.asarray(array) for array in ReferenceEvaluator(proto).run(None, feeds)]


def _attributes(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    rank = len(kernel)
    attributes = node.attributes
    return (
        list(attributes.get("strides", [1] * rank)),
        list(attributes.get("dilations", [1] * rank)),
        list(attributes.get("pads", [0] * 2 * rank)),
    )


def windows(x: Array, kernel: Sequence[int], node: Node, fill: float) -> Array:
    """Return the windows of a node over (N, C, H, W) as (N, C, OH, OW, KH, KW)."""
    strides, dilations, pads = _attributes(node, kernel)
    rank = len(kernel)
    around = [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))]
    padded = np.pad(x, around, constant_values=fill)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    return view[(*steps, *(slice(None, None, d) for d in dilations))]


def conv(node: Node, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Grouped convolution in two dimensions."""
    groups = int(node.attributes.get("group", 1))
    seen = windows(x, weight.shape[2:], node, 0.0)
    parts = [
        np.einsum("nchwij,ocij->nohw", part, filters, optimize=True)
        for part, filters in zip(np.split(seen, groups, 1), np.split(weight, groups, 0), strict=True)
    ]
    return _biased(np.concatenate(parts, 1), bias)


def conv_transpose(node: Node, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Grouped transposed convolution in two dimensions; filters are (C, O / groups, KH, KW)."""
    kernel = weight.shape[2:]
    strides, dilations, pads = _attributes(node, kernel)
    more = node.attributes.get("output_padding", (0, 0))
    groups = int(node.attributes.get("group", 1))
    full = [
        (x.shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + max(0, more[i] - pads[2 + i])
        for i in range(2)
    ]
    out = np.zeros((x.shape[0], weight.shape[1] * groups, *full))
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        parts = [
            np.einsum("nchw,co->nohw", part, filters[:, :, i, j])
            for part, filters in zip(np.split(x, groups, 1), np.split(weight, groups, 0), strict=True)
        ]
        top, left = i * dilations[0], j * dilations[1]
        rows = slice(top, top + (x.shape[2] - 1) * strides[0] + 1, strides[0])
        columns = slice(left, left + (x.shape[3] - 1) * strides[1] + 1, strides[1])
        out[:, :, rows, columns] += np.concatenate(parts, 1)
    sizes = [
        (x.shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + more[i] - pads[i] - pads[2 + i]
        for i in range(2)
    ]
    kept = out[:, :, pads[0] : pads[0] + sizes[0], pads[1] : pads[1] + sizes[1]]
    return _biased(kept, bias)


def _biased(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias[:, None, None]


def pool(node: Node, x: Array) -> Array:
    """Largest or mean element of each window."""
    kernel = node.attributes["kernel_shape"]
    if node.op == "MaxPool":
        return np.asarray(windows(x, kernel, node, -np.inf).max((-2, -1)))
    total = windows(x, kernel, node, 0.0).sum((-2, -1))
    counted = np.ones_like(x) if not node.attributes.get("count_include_pad", 0) else None
    count = windows(counted, kernel, node, 0.0).sum((-2, -1)) if counted is not None else kernel[0] * kernel[1]
    return np.asarray(total / count)


def enlarged(x: Array, scales: Array) -> Array:
    """Every element repeated a whole number of times along each axis."""
    for axis, scale in enumerate(scales):
        x = np.repeat(x, int(scale), axis)
    return x


def gelu(node: Node, x: Array) -> Array:
    """GELU, or its approximation by a hyperbolic tangent."""
    if node.attributes.get("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))))


#: Operators that are computed here.
_OWN: Mapping[str, Callable[[Node, Sequence[Any]], Array]] = MappingProxyType(
    {
        "AveragePool": lambda node, given: pool(node, given[0]),
        "Conv": lambda node, given: conv(node, *given),
        "ConvTranspose": lambda node, given: conv_transpose(node, *given),
        "Gelu": lambda node, given: gelu(node, given[0]),
        "MaxPool": lambda node, given: pool(node, given[0]),
        "Resize": lambda node, given: enlarged(given[0], given[2]),
    }
)
