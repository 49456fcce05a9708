"""A small inference graph with the numbers that it is run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Newest form of a model's file that all readers know.
_IR_VERSION = 9


@dataclass(frozen=True)
class Node:
    """One ONNX operator."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order that they can be run in, and all numbers that they read.

    Attributes
    ----------
    nodes : tuple of Node
        One at least.
    feeds : mapping of str to ndarray
        What the model's inputs are given.
    weights : mapping of str to ndarray
        Constants.
    outputs : tuple of str
        Values that the model returns.
    opset : int
        ONNX operator set.
    """

    nodes: tuple[Node, ...]
    feeds: Mapping[str, Array]
    weights: Mapping[str, Array]
    outputs: tuple[str, ...]
    opset: int = 17

    @property
    def made(self) -> dict[str, Node]:
        """By value, the node that makes it."""
        return {name: node for node in self.nodes for name in node.outputs}

    def used(self) -> Graph:
        """Return the graph without what no output needs."""
        wanted, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if wanted & set(node.outputs):
                kept.append(node)
                wanted.update(node.inputs)
        feeds = {name: array for name, array in self.feeds.items() if name in wanted}
        weights = {name: array for name, array in self.weights.items() if name in wanted}
        return replace(self, nodes=tuple(reversed(kept)), feeds=feeds, weights=weights)

    def describe(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> str:
        """Return the graph as lines; shapes of what nodes make are shown where they are given."""
        known = {name: array.shape for name, array in (*self.feeds.items(), *self.weights.items())}
        known.update(shapes or {})

        def value(name: str) -> str:
            array = self.weights.get(name)
            if array is not None and array.dtype.kind == "i" and array.size <= 8:
                return str(array.tolist())
            kind = "weight" if array is not None else name
            return f"{kind}{list(known[name])}" if name in known else kind

        lines = []
        for node in self.nodes:
            given = ", ".join([value(x) for x in node.inputs if x] + [f"{k}={v}" for k, v in node.attributes.items()])
            lines.append(f"{', '.join(value(x) for x in node.outputs)} = {node.op}({given})")
        return "\n".join([*lines, f"return {', '.join(self.outputs)}"])

    def save(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Write the model to ``path`` and what its inputs are given beside it, as ``.npz``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_model(self, shapes))
        np.savez(path.with_suffix(".npz"), allow_pickle=False, **self.feeds)


def to_model(graph: Graph, shapes: Mapping[str, tuple[int, ...]], outputs: tuple[str, ...] | None = None) -> bytes:
    """Return the graph as a serialized ONNX model, with the shapes of its outputs.

    Parameters
    ----------
    graph : Graph
        Whose floating-point numbers are all of one dtype.
    shapes : mapping of str to tuple of int
        Of its outputs.
    outputs : tuple of str, optional
        Others than the graph's own.
    """
    from onnx import checker, helper, numpy_helper  # noqa: PLC0415 (an extra)

    def info(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)

    dtype = float_dtype(graph)
    made = helper.make_graph(
        [helper.make_node(n.op, list(n.inputs), list(n.outputs), **n.attributes) for n in graph.nodes],
        "random",
        [info(name, array.dtype, array.shape) for name, array in graph.feeds.items()],
        [info(name, dtype, shapes[name]) for name in outputs or graph.outputs],
        [numpy_helper.from_array(array, name) for name, array in graph.weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=_IR_VERSION)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def float_dtype(graph: Graph) -> np.dtype[Any]:
    """Return the dtype of the graph's floating-point numbers."""
    arrays = (*graph.feeds.values(), *graph.weights.values())
    return next((array.dtype for array in arrays if array.dtype.kind == "f"), np.dtype(np.float32))
