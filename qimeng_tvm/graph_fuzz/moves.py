"""Draws of operators that move elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qimeng_tvm.graph_fuzz.builder import Builder, Unfit


def transpose(b: Builder) -> str:
    """Add a permutation of axes."""
    x = b.pick(lambda shape: len(shape) >= 2)
    return b.add("Transpose", [x], perm=[int(a) for a in b.rng.permutation(len(b.shape(x)))])


def reshape(b: Builder) -> str:
    """Add one of the operators that make a view."""
    x = b.pick(lambda shape: len(shape) >= 1)
    shape = b.shape(x)
    rank = len(shape)
    how = b.choice(("Reshape", "Reshape", "Flatten", "Squeeze", "Unsqueeze"))
    if how == "Flatten":
        return b.add("Flatten", [x], axis=int(b.rng.integers(0, rank + 1)))
    if how == "Unsqueeze":
        if rank >= 4:
            raise Unfit("it has axes enough")
        return b.add("Unsqueeze", [x, b.integers([int(b.rng.integers(0, rank + 1))])])
    if how == "Squeeze":
        single = [axis for axis, extent in enumerate(shape) if extent == 1]
        if not single or rank == 1:
            raise Unfit("no axis to drop")
        return b.add("Squeeze", [x, b.integers([b.choice(single)])])
    return b.add("Reshape", [x, b.integers(_other_shape(b, shape))])


def _other_shape(b: Builder, shape: tuple[int, ...]) -> Sequence[int]:
    """Draw how to split an axis or to join two."""
    axis = int(b.rng.integers(len(shape)))
    divisors = [d for d in range(2, shape[axis]) if shape[axis] % d == 0]
    if divisors and len(shape) < 4 and b.chance(0.5):
        first = b.choice(divisors)
        return [*shape[:axis], first, shape[axis] // first, *shape[axis + 1 :]]
    if axis + 1 < len(shape):
        return [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
    return [-1, shape[-1]] if b.chance(0.5) else [math.prod(shape)]


def concat(b: Builder) -> str:
    """Join two or three values along an axis."""
    x = b.pick(lambda shape: len(shape) >= 1)
    shape = b.shape(x)
    axis = int(b.rng.integers(len(shape)))

    def fits(other: tuple[int, ...]) -> bool:
        return len(other) == len(shape) and all(
            a == c for i, (a, c) in enumerate(zip(other, shape, strict=True)) if i != axis
        )

    parts = [x, *(b.pick(fits) for _ in range(b.choice((1, 1, 2))))]
    order = [int(i) for i in b.rng.permutation(len(parts))]
    return b.add("Concat", [parts[i] for i in order], axis=axis)


def split(b: Builder) -> str:
    """Take a value apart along an axis."""
    x = b.pick(lambda shape: max(shape, default=0) >= 2)
    shape = b.shape(x)
    axis = b.choice([i for i, extent in enumerate(shape) if extent >= 2])
    first = int(b.rng.integers(1, shape[axis]))
    return b.add("Split", [x, b.integers([first, shape[axis] - first])], 2, axis=axis)


def cut(b: Builder) -> str:
    """Add a slice, with any step."""
    x = b.pick(lambda shape: max(shape, default=0) >= 3)
    shape = b.shape(x)
    axis = b.choice([i for i, extent in enumerate(shape) if extent >= 3])
    start = int(b.rng.integers(0, shape[axis] - 1))
    stop = int(b.rng.integers(start + 1, shape[axis] + 1))
    operands = [[start], [stop if b.chance(0.7) else stop - shape[axis] or 1 << 31], [axis], [b.choice((1, 1, 2, 3))]]
    return b.add("Slice", [x, *(b.integers(o) for o in operands)])


def pad(b: Builder) -> str:
    """Add a padding by a constant, of the inner axes."""
    x = b.pick(lambda shape: len(shape) >= 2)
    rank = len(b.shape(x))
    around: list[Any] = [int(b.rng.integers(0, 3)) if axis >= rank - 2 else 0 for axis in (*range(rank), *range(rank))]
    value = [b.constant(np.asarray(b.choice((0.0, 1.0))))] if b.chance(0.7) else []
    return b.add("Pad", [x, b.integers(around), *value], mode="constant")


def gather(b: Builder) -> str:
    """Take elements of an axis by indices, of the model's or given to it."""
    x = b.pick(lambda shape: len(shape) >= 1)
    shape = b.shape(x)
    axis = int(b.rng.integers(len(shape)))
    most = 2 if len(shape) < 4 else 1
    count = tuple(b.extent(17) for _ in range(int(b.rng.integers(0 if len(shape) > 1 else 1, most + 1))))
    indices = np.asarray(b.rng.integers(0, shape[axis], count), np.int64)
    name = b.constant(indices) if b.chance(0.5) or not count else b.feed_array(indices)
    return b.add("Gather", [x, name], axis=axis)
