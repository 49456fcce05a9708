"""Operators over rows and over elements that rules are checked on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qimeng_tvm.generate.graphs import Given, Graph, Step, by


def graph(title: str, shapes: Mapping[str, tuple[int, ...]], *steps: Step, threads: int = 1, dtype: str = "") -> Graph:
    """Return a chain of operators on tensors of one type; the title goes before their shapes."""
    given = tuple(Given(name, shape, dtype or "float32") for name, shape in shapes.items())
    extents = " ".join(by(g.shape) for g in given)
    return Graph(f"{title} {extents}{f' {dtype}' if dtype else ''}", given, steps, threads)


def softmax(shape: tuple[int, ...], axis: int = -1, **more: Any) -> Graph:
    """Return a softmax along an axis."""
    return graph(f"softmax over axis {axis} of", {"x": shape}, Step("softmax", ("x",), (("axis", axis),)), **more)


def layer_norm(shape: tuple[int, ...], *then: Step, **more: Any) -> Graph:
    """Return a layer normalization over the last axis."""
    shapes = {"x": shape, "scale": shape[-1:], "shift": shape[-1:]}
    return graph("layer_norm of", shapes, Step("layer_norm", ("x", "scale", "shift")), *then, **more)


def reduction(op: str, shape: tuple[int, ...], axes: tuple[int, ...], *then: Step, **more: Any) -> Graph:
    """Return a sum, mean, maximum or minimum over some axes."""
    step = Step(op, ("x",), (("axis", axes),))
    return graph(f"{op} over axes {axes} of", {"x": shape}, step, *then, **more)


def _global_pool(image: tuple[int, ...], dtype: str = "float32") -> Graph:
    """Return the mean of all pixels, which is read as that of rows."""
    return Graph(
        f"global_pool of {by(image)} {dtype}", (Given("image", image, dtype),), (Step("global_pool", ("image",)),)
    )


def rows() -> tuple[Graph, ...]:
    """Rows long, short and odd, a single row, rows stored side by side, epilogues, two cores."""
    norm = {"x": (6, 96), "scale": (96,)}
    return (
        softmax((3, 5, 64)),
        softmax((3, 5, 129), threads=2),
        softmax((4, 1000), threads=2),
        softmax((5, 7)),
        softmax((2, 10, 6, 14), 1),
        layer_norm((2, 5, 129)),
        layer_norm((2, 5, 768), Step("relu"), threads=2),
        graph("rms_norm of", norm, Step("rms_norm", ("x", "scale"))),
        reduction("mean", (2, 7, 7, 64), (1, 2)),
        reduction("mean", (2, 7, 7, 77), (1, 2), threads=2),
        _global_pool((1, 7, 7, 96), "bfloat16"),
        reduction("sum", (2, 3, 7, 7), (2, 3)),
        reduction("sum", (5, 96), (0, 1)),
        reduction("max", (5, 33), (-1,)),
        reduction("min", (4, 7, 33), (1,)),
    )


def timed_rows() -> tuple[Graph, ...]:
    """Softmax and norms of language models, means and sums."""
    return (
        softmax((12, 128, 128)),
        softmax((12, 128, 128), threads=2),
        layer_norm((128, 768)),
        _global_pool((1, 7, 7, 2048)),
        reduction("sum", (512, 1000), (-1,)),
    )


def permuted(shape: tuple[int, ...], axes: tuple[int, ...], **more: Any) -> Graph:
    """Return a transpose."""
    step = Step("permute_dims", ("x",), (("axes", axes),))
    return graph(f"permute_dims {axes} of", {"x": shape}, step, **more)


def joined(shape: tuple[int, ...], *widths: int, threads: int = 1) -> Graph:
    """Return tensors put together along their last axis, and an activation."""
    names = tuple("xyzw"[: len(widths)])
    shapes = {name: (*shape, width) for name, width in zip(names, widths, strict=True)}
    axis = Step("concat", names, (("axis", len(shape)),))
    return graph("concat of", shapes, axis, Step("relu"), threads=threads)


def elements() -> tuple[Graph, ...]:
    """Odd extents, broadcasts, scalars, transposes, what is put together, cut out or padded, two cores."""
    cut = (("axes", (0, 1)), ("begin", (1, 3)), ("end", (8, 80)), ("strides", (2, 3)))
    return (
        graph("add of", {"x": (3, 5, 64), "y": (3, 5, 64)}, Step("add", ("x", "y")), Step("relu")),
        graph("add of", {"x": (9, 129), "y": (129,)}, Step("add", ("x", "y")), threads=2),
        graph("multiply of", {"x": (4, 6, 48), "y": (6, 1)}, Step("multiply", ("x", "y"))),
        graph("relu of", {"x": (1009,)}, Step("relu", ("x",)), threads=2),
        graph("relu of", {"x": (7,)}, Step("relu", ("x",))),
        graph("relu of", {"x": ()}, Step("relu", ("x",))),
        graph("gelu of", {"x": (16, 100)}, Step("gelu", ("x",)), threads=2),
        graph("tanh of", {"x": (5, 40)}, Step("tanh", ("x",)), dtype="bfloat16"),
        graph("astype of", {"x": (5, 40)}, Step("astype", ("x",), (("dtype", "float16"),))),
        permuted((2, 12, 5, 64), (0, 2, 1, 3), threads=2),
        permuted((77, 131), (1, 0), threads=2),
        permuted((2, 3, 9, 11), (0, 2, 3, 1)),
        permuted((2, 9, 11, 40), (0, 3, 1, 2)),
        joined((2, 5), 64, 41, 7, threads=2),
        graph("pad of", {"x": (2, 8, 33)}, Step("pad", ("x",), (("widths", (0, 0, 1, 2, 3, 4)),))),
        graph("strided_slice of", {"x": (8, 90)}, Step("strided_slice", ("x",), cut)),
    )


def timed_elements() -> tuple[Graph, ...]:
    """Residuals, activations, transposes and a concatenation of whole models."""
    large = {"x": (1, 56, 56, 256), "y": (1, 56, 56, 256)}
    return (
        graph("add of", large, Step("add", ("x", "y")), Step("relu")),
        graph("add of", large, Step("add", ("x", "y")), Step("relu"), threads=2),
        graph("gelu of", {"x": (128, 3072)}, Step("gelu", ("x",))),
        permuted((1024, 1024), (1, 0)),
        permuted((1, 128, 12, 64), (0, 2, 1, 3)),
        joined((1, 28, 28), 128, 32),
    )
