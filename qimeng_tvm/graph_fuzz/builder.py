"""Nodes added one by one, each run in float64 at once: shapes and the range of values are then known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qimeng_tvm.errors import QimengError
from qimeng_tvm.graph_fuzz.evaluate import run_node, widened
from qimeng_tvm.graph_fuzz.graph import Array, Graph, Node

#: Elements of a value, and the size of the largest, in a graph that is run in a moment and rounds like any model.
_ELEMENTS, _LARGEST = 1 << 17, 1e3
#: Extents at and around the vectors and tiles of machines, primes, and one.
EXTENTS = (1, 2, 3, 4, 5, 7, 8, 13, 15, 16, 17, 24, 31, 32, 33, 40, 48, 64, 65)


class Unfit(QimengError):
    """A node that the graph cannot take; another one is drawn."""


class Builder:
    """A graph that grows.

    Parameters
    ----------
    rng : numpy.random.Generator
        What every draw comes from.
    opset : int
        ONNX operator set.
    dtype : str
        Of floating-point numbers.
    """

    def __init__(self, rng: np.random.Generator, opset: int, dtype: str) -> None:
        self.rng, self.opset, self.dtype = rng, opset, dtype
        self.nodes: list[Node] = []
        self.feeds: dict[str, Array] = {}
        self.weights: dict[str, Array] = {}
        self.values: dict[str, Array] = {}
        self._count = 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value."""
        return tuple(self.values[name].shape)

    def feed(self, shape: Sequence[int]) -> str:
        """Add an input of normally distributed numbers."""
        return self._array(self.feeds, "x", self.rng.standard_normal(tuple(shape)).astype(self.dtype))

    def feed_array(self, array: Array) -> str:
        """Add an input of given numbers."""
        return self._array(self.feeds, "x", array)

    def weight(self, shape: Sequence[int], fan_in: int = 1) -> str:
        """Add a constant whose product with normal numbers, summed over ``fan_in``, is about normal."""
        return self.constant(self.rng.standard_normal(tuple(shape)) / math.sqrt(fan_in))

    def positive(self, shape: Sequence[int]) -> str:
        """Add a constant of numbers from a half to three halves."""
        return self.constant(self.rng.uniform(0.5, 1.5, tuple(shape)))

    def constant(self, array: Array) -> str:
        """Add a constant; floating-point numbers in the graph's dtype."""
        return self._array(self.weights, "w", array.astype(self.dtype) if array.dtype.kind == "f" else array)

    def integers(self, values: Sequence[int]) -> str:
        """Add a constant of integers: axes, shapes and the like."""
        return self.constant(np.asarray(values, np.int64))

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its (first) output.

        Raises
        ------
        Unfit
            If a value would be empty, too big, or too large.
        """
        node = Node(op, tuple(inputs), tuple(self._name("v") for _ in range(outputs)), attributes)
        made = run_node(node, [self.values[name] if name else None for name in inputs])
        for array in made:
            if not 0 < array.size <= _ELEMENTS or not np.all(np.abs(array) <= _LARGEST):
                raise Unfit(f"{op} gives {array.shape}")
        self.nodes.append(node)
        self.values.update(zip(node.outputs, made, strict=True))
        return node.outputs[0]

    def unused(self) -> list[str]:
        """Return what nodes made and no node reads."""
        read = {name for node in self.nodes for name in node.inputs}
        return [name for node in self.nodes for name in node.outputs if name not in read]

    def pick(self, fits: Callable[[tuple[int, ...]], bool] = lambda _: True) -> str:
        """Draw a value of a fitting shape, more likely one made lately.

        Raises
        ------
        Unfit
            If there is none.
        """
        known = [*self.feeds, *(name for node in self.nodes for name in node.outputs)]
        fitting = [name for name in known if self.values[name].dtype.kind == "f" and fits(self.shape(name))]
        if not fitting:
            raise Unfit("no value fits")
        return fitting[-min(int(self.rng.geometric(0.6)), len(fitting))]

    def chance(self, share: float) -> bool:
        """Draw whether."""
        return bool(self.rng.random() < share)

    def choice(self, among: Sequence[Any]) -> Any:
        """Draw one of some."""
        return among[int(self.rng.integers(len(among)))]

    def extent(self, most: int = 65) -> int:
        """Draw the extent of an axis."""
        return int(self.choice([x for x in EXTENTS if x <= most]))

    def state(self) -> tuple[Any, ...]:
        """Return what :meth:`restore` takes."""
        return list(self.nodes), dict(self.feeds), dict(self.weights), dict(self.values)

    def restore(self, state: tuple[Any, ...]) -> None:
        """Forget what was added since."""
        self.nodes, self.feeds, self.weights, self.values = state

    def graph(self, outputs: Sequence[str]) -> Graph:
        """Return the graph of what outputs need."""
        return Graph(tuple(self.nodes), self.feeds, self.weights, tuple(outputs), self.opset).used()

    def _array(self, into: dict[str, Array], prefix: str, array: Array) -> str:
        name = self._name(prefix)
        into[name] = array
        self.values[name] = widened(array)
        return name

    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"
