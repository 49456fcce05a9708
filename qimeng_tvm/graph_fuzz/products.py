"""Draws of matrix products and what is made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qimeng_tvm.graph_fuzz.builder import Builder, Unfit

#: Multiply-adds of one node.
_WORK = 1 << 24


def matmul(b: Builder) -> str:
    """Add a product with a weight, or of two values, with any batch axes."""
    x = b.pick(lambda shape: len(shape) >= 2)
    shape = b.shape(x)
    k, n = shape[-1], b.extent()
    if math.prod(shape) * n > _WORK:
        raise Unfit("too much work")
    draw = b.rng.random()
    if draw < 0.5:
        return b.add("MatMul", [x, b.weight((k, n), k)])
    if draw < 0.65:  # weights with batch axes of their own
        batch = tuple(extent if b.chance(0.7) else 1 for extent in shape[:-2])
        return b.add("MatMul", [x, b.weight((*batch, k, n), k)])
    if draw < 0.75:  # a weight in front
        return b.add("MatMul", [b.weight((n, shape[-2]), shape[-2]), x])
    axes = list(range(len(shape)))
    swapped = b.add("Transpose", [x], perm=[*axes[:-2], axes[-1], axes[-2]])
    pair = [x, swapped] if b.chance(0.5) else [swapped, x]
    return scaled(b, b.add("MatMul", pair), k if pair[0] == x else shape[-2])


def scaled(b: Builder, x: str, k: int) -> str:
    """Divide a sum of ``k`` products by what it grows with."""
    if b.chance(0.5):
        return b.add("Div", [x, b.constant(np.asarray(math.sqrt(k)))])
    return b.add("Mul", [x, b.constant(np.asarray(1.0 / math.sqrt(k)))])


def gemm(b: Builder) -> str:
    """Add a Gemm with any transposes and factors."""
    x = b.pick(lambda shape: len(shape) == 2)
    shape = b.shape(x)
    trans_a, trans_b = b.chance(0.2), b.chance(0.5)
    m, k = (shape[1], shape[0]) if trans_a else shape
    n = b.extent()
    operands = [x, b.weight((n, k) if trans_b else (k, n), k)]
    if b.chance(0.7):
        operands.append(b.weight(b.choice(((n,), (1, n), (m, 1), (m, n)))))
    factors: dict[str, Any] = {"alpha": 0.5, "beta": 2.0} if b.chance(0.25) else {}
    return b.add("Gemm", operands, transA=int(trans_a), transB=int(trans_b), **factors)


def attention(b: Builder) -> str:
    """Add attention of one sequence with itself: heads split, scores scaled and masked, values weighed."""
    x = b.pick(lambda shape: len(shape) == 3)
    batch, length, width = b.shape(x)
    heads, each = b.choice((1, 2, 3)), b.choice((4, 7, 8, 16))
    parts = []
    for _ in range(3):
        wide = b.add("MatMul", [x, b.weight((width, heads * each), width)])
        split = b.add("Reshape", [wide, b.integers((batch, length, heads, each))])
        parts.append(split)
    query, value = (b.add("Transpose", [part], perm=[0, 2, 1, 3]) for part in (parts[0], parts[2]))
    key = b.add("Transpose", [parts[1]], perm=[0, 2, 3, 1])
    scores = scaled(b, b.add("MatMul", [query, key]), each)
    if b.chance(0.6):
        allowed = np.tril(np.ones((length, length), bool))
        scores = b.add("Add", [scores, b.constant(np.where(allowed, 0.0, -100.0))])
    mixed = b.add("MatMul", [b.add("Softmax", [scores], axis=-1), value])
    back = b.add("Transpose", [mixed], perm=[0, 2, 1, 3])
    joined = b.add("Reshape", [back, b.integers((batch, length, heads * each))])
    return b.add("MatMul", [joined, b.weight((heads * each, width), heads * each)])


def small_attention(b: Builder) -> str:
    """Add attention whose operands are inputs, in one of the layouts that models keep them in."""
    batch, heads, length, width = b.choice((1, 2)), b.choice((1, 3)), b.extent(33), b.choice((4, 8, 13, 16))
    keys = b.choice((length, b.extent(33)))
    if b.chance(0.5):
        query, key, value = (b.feed((batch, heads, t, width)) for t in (length, keys, keys))
        key = b.add("Transpose", [key], perm=[0, 1, 3, 2])
    else:
        query, key, value = (b.feed((batch, t, heads, width)) for t in (length, keys, keys))
        query, value = (b.add("Transpose", [x], perm=[0, 2, 1, 3]) for x in (query, value))
        key = b.add("Transpose", [key], perm=[0, 2, 3, 1])
    scores = scaled(b, b.add("MatMul", [query, key]), width)
    if b.chance(0.5):
        scores = b.add("Add", [scores, b.feed(b.choice(((batch, 1, 1, keys), (length, keys), (1, 1, length, keys))))])
    return b.add("MatMul", [b.add("Softmax", [scores], axis=-1), value])
