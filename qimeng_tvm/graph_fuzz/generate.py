"""A random graph of a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qimeng_tvm.graph_fuzz import elementwise, moves, products, rows, windows
from qimeng_tvm.graph_fuzz.builder import Builder, Unfit
from qimeng_tvm.graph_fuzz.graph import Graph

_NODES, _TRIES = 12, 60


def _residual(b: Builder) -> str:
    """Add two convolutions whose result is added to what they read."""
    x = windows.image(b)
    channels = b.shape(x)[1]
    y = windows.conv(b, x, channels, kernel=b.choice(((1, 1), (3, 3))))
    y = windows.batch_norm(b, y) if b.chance(0.5) else y
    y = b.add("Relu", [y])
    y = windows.conv(b, y, channels, kernel=(3, 3))
    return b.add("Relu", [b.add("Add", [y, x] if b.chance(0.5) else [x, y])])


def _conv_norm(b: Builder) -> str:
    """Add a convolution, a batch normalization and an activation."""
    return elementwise.activation(b, windows.batch_norm(b, windows.conv(b)))


def _excitation(b: Builder) -> str:
    """Scale the channels of an image by what is computed from their means."""
    x = windows.image(b)
    channels = b.shape(x)[1]
    y = windows.conv(b, b.add("GlobalAveragePool", [x]), b.choice((2, 5, 8)), kernel=(1, 1))
    y = windows.conv(b, b.add("Relu", [y]), channels, kernel=(1, 1))
    return b.add("Mul", [x, b.add("Sigmoid", [y])])


def _mlp(b: Builder) -> str:
    """Add a product, a bias, an activation and a product back, around which what is read is added."""
    x = b.pick(lambda shape: len(shape) in (2, 3))
    width, inner = b.shape(x)[-1], b.extent()
    y = b.add("Add", [b.add("MatMul", [x, b.weight((width, inner), width)]), b.weight((inner,))])
    y = b.choice((elementwise.gelu, elementwise.swish, elementwise.activation))(b, y)
    return b.add("Add", [x, b.add("MatMul", [y, b.weight((inner, width), inner)])])


@dataclass(frozen=True)
class Draw:
    """A way to add nodes: how often it is taken, and the most nodes that it adds."""

    add: Callable[[Builder], str]
    weight: float
    nodes: int = 1
    wide: bool = False


#: ``wide``: ONNX Runtime has all of it in float64.
DRAWS: tuple[Draw, ...] = (
    Draw(windows.conv, 6),
    Draw(windows.conv_transpose, 1),
    Draw(windows.pool, 2),
    Draw(windows.batch_norm, 2, wide=True),
    Draw(windows.resize, 0.7),
    Draw(products.matmul, 4, 3, wide=True),
    Draw(products.gemm, 2, wide=True),
    Draw(products.attention, 1, 14),
    Draw(products.small_attention, 1.5, 8),
    Draw(elementwise.activation, 4, wide=True),
    Draw(elementwise.clip, 1, wide=True),
    Draw(elementwise.binary, 5, 3, wide=True),
    Draw(elementwise.gelu, 1.5, 5),
    Draw(elementwise.swish, 1, 2, wide=True),
    Draw(rows.reduce, 1.5, wide=True),
    Draw(rows.softmax, 1.5, wide=True),
    Draw(rows.layer_norm, 1.5, wide=True),
    Draw(rows.composed_norm, 1, 8, wide=True),
    Draw(moves.transpose, 1.5, wide=True),
    Draw(moves.reshape, 1.5, wide=True),
    Draw(moves.concat, 1, wide=True),
    Draw(moves.split, 0.7, wide=True),
    Draw(moves.cut, 0.7, wide=True),
    Draw(moves.pad, 0.7, wide=True),
    Draw(moves.gather, 0.8, wide=True),
    Draw(_residual, 1.5, 6),
    Draw(_conv_norm, 2, 3),
    Draw(_excitation, 0.7, 6),
    Draw(_mlp, 1.5, 8),
)


def random_graph(seed: int | Sequence[int]) -> Graph:
    """Draw a graph; the same seed gives the same one.

    Parameters
    ----------
    seed : int or sequence of int
        As ``numpy.random.default_rng`` takes it.
    """
    rng = np.random.default_rng(seed)
    dtype = "float64" if rng.random() < 0.05 else "float32"
    b = Builder(rng, int(rng.choice((17, 20))), dtype)
    for _ in range(b.choice((1, 1, 2))):
        b.feed(_input(b))
    size = int(rng.integers(1, _NODES + 1))
    draws = [draw for draw in DRAWS if draw.wide or dtype == "float32"]
    share = np.asarray([draw.weight for draw in draws])
    for _ in range(_TRIES):
        left = size - len(b.nodes)
        if left <= 0:
            break
        draw = draws[int(rng.choice(len(draws), p=share / share.sum()))]
        # Blocks larger than the graph that is wanted are taken where there is nothing yet.
        if draw.nodes <= left or (not b.nodes and size > _NODES // 2):
            _try(b, draw)
    if not b.nodes:
        b.add("Relu", [b.pick()])
    outputs = b.unused()
    inner = [name for node in b.nodes for name in node.outputs if name not in outputs]
    if inner and b.chance(0.2):
        outputs.append(b.choice(inner))
    return b.graph(outputs)


def _try(b: Builder, draw: Draw) -> None:
    before = b.state()
    try:
        draw.add(b)
    except Unfit:
        b.restore(before)


def _input(b: Builder) -> tuple[int, ...]:
    """Draw the shape of an image, a sequence or a matrix."""
    kind = b.choice(("image", "image", "sequence", "matrix"))
    batch = b.choice((1, 1, 2, 3))
    if kind == "image":
        return (batch, b.extent(40), b.extent(33), b.extent(33))
    if kind == "sequence":
        return (batch, b.extent(40), b.extent())
    return (b.choice((1, 2, b.extent())), b.extent())
