"""The operators that rules of other kinds than matrix products are checked on: as Relax, and in float64 with bounds.

A bound follows each number through the steps: how far the roundings before may have put it off, and that of the step
itself. Sums are bounded as matrix products are (:func:`qimeng_tvm.check.tolerance.dot_bound`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from qimeng_tvm.check.tolerance import dot_bound
from qimeng_tvm.generate.winograd_value import by_tiles, sizes_by_tiles
from qimeng_tvm.graph_fuzz import evaluate
from qimeng_tvm.graph_fuzz.graph import Node

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
#: As in ``dot_bound``: with overwhelming probability.
_SPREAD = 8.0
#: Roundings of a function that is computed in a few steps, such as by a polynomial.
_STEPS = 16
_FLOATS = ("float32", "float16", "bfloat16")
#: Axes of an image as it is stored and as ONNX has it, of filters HWIO and OIHW.
_NCHW, _NHWC, _OIHW = (0, 3, 1, 2), (0, 2, 3, 1), (3, 2, 0, 1)


@dataclass(frozen=True, eq=False)
class Known:
    """A value and how far a right implementation may be from it.

    Attributes
    ----------
    exact : ndarray
        In float64, or integers.
    error : ndarray or float
        Largest right error of each element.
    dtype : str
        That it is stored as.
    """

    exact: Array
    error: Array | float
    dtype: str


@dataclass(frozen=True)
class StepKind:
    """An operator.

    Attributes
    ----------
    relax : callable
        ``(relax.op, operands, attributes) -> expression``.
    value : callable
        ``(operands, attributes) -> Known``.
    """

    relax: Callable[[Any, Sequence[Any], Attributes], Any]
    value: Callable[[Sequence[Known], Attributes], Known]


def rounded(exact: Array, error: Any, dtype: str, terms: int = 1, magnitude: Any = None) -> Known:
    """Return a value after a step of so many roundings of numbers of that magnitude (default: the result's own)."""
    size = np.abs(exact) if magnitude is None else magnitude
    if dtype not in _FLOATS:
        return Known(exact, 0.0, dtype)
    accumulate = dtype if terms == 1 else "float32"
    return Known(exact, error + dot_bound(size, exact, terms, accumulate=accumulate, out=dtype, spread=_SPREAD), dtype)


def _node(op: str, attributes: Attributes, kernel: tuple[int, int] = (0, 0)) -> Node:
    padding = list(attributes.get("padding", (0, 0, 0, 0)))
    named = {
        "kernel_shape": list(attributes.get("size", kernel)),
        "strides": list(attributes.get("strides", (1, 1))),
        "dilations": list(attributes.get("dilation", (1, 1))),
        "pads": padding,
        "group": attributes.get("groups", 1),
        "count_include_pad": int(attributes.get("border_counts", False)),
    }
    return Node(op, (), (), named)


def _conv(given: Sequence[Known], attributes: Attributes) -> Known:
    image, filters = (k.exact.transpose(axes) for k, axes in zip(given, (_NCHW, _OIHW), strict=True))
    node = _node("Conv", attributes)

    def of(x: Array, w: Array) -> Array:
        return np.asarray(evaluate.conv(node, x, w).transpose(_NHWC))

    out = attributes["out_dtype"]
    if out == "int32":
        return Known(of(image, filters).astype(np.int64), 0.0, out)
    terms = math.prod(filters.shape[1:])
    return rounded(of(image, filters), 0.0, out, max(2, terms), of(np.abs(image), np.abs(filters)))


def _conv_relax(op: Any, given: Sequence[Any], attributes: Attributes) -> Any:
    return op.nn.conv2d(*given, data_layout="NHWC", kernel_layout="HWIO", **attributes)


def _winograd(given: Sequence[Known], attributes: Attributes) -> Known:
    image, filters = (k.exact for k in given)
    padding = attributes["padding"]
    terms = filters.shape[1] + _STEPS
    return rounded(
        by_tiles(image, filters, padding), 0.0, given[0].dtype, terms, sizes_by_tiles(image, filters, padding)
    )


def _winograd_relax(_op: Any, given: Sequence[Any], attributes: Attributes) -> Any:
    from qimeng_tvm.generate.winograd_late import winograd_call  # noqa: PLC0415 (imports TVM)

    image, filters = given
    return winograd_call(image, filters, attributes["padding"])


def _max_pool(given: Sequence[Known], attributes: Attributes) -> Known:
    (x,) = given
    node = _node("MaxPool", attributes)
    lowest = -np.inf if x.dtype in _FLOATS else np.iinfo(x.dtype).min
    seen = evaluate.windows(x.exact.transpose(_NCHW), attributes["size"], node, lowest)
    return Known(seen.max((-2, -1)).transpose(_NHWC), 0.0, x.dtype)


def _avg_pool(given: Sequence[Known], attributes: Attributes) -> Known:
    (x,) = given
    node = _node("AveragePool", attributes)
    exact, size = (evaluate.pool(node, v.transpose(_NCHW)).transpose(_NHWC) for v in (x.exact, np.abs(x.exact)))
    return rounded(exact, 0.0, x.dtype, 1 + math.prod(attributes["size"]), size)


def _pool_relax(name: str) -> Callable[[Any, Sequence[Any], Attributes], Any]:
    def relax(op: Any, given: Sequence[Any], attributes: Attributes) -> Any:
        rest = {k: v for k, v in attributes.items() if k not in ("size", "border_counts")}
        if "border_counts" in attributes:
            rest["count_include_pad"] = attributes["border_counts"]
        return getattr(op.nn, name)(*given, pool_size=attributes["size"], layout="NHWC", **rest)

    return relax


def _global_pool(given: Sequence[Known], attributes: Attributes) -> Known:
    (x,) = given
    exact, size = (v.mean((1, 2), keepdims=True) for v in (x.exact, np.abs(x.exact)))
    return rounded(exact, 0.0, x.dtype, 1 + x.exact.shape[1] * x.exact.shape[2], size)


def _sum_of(sign: int) -> Callable[[Sequence[Known], Attributes], Known]:
    def value(given: Sequence[Known], attributes: Attributes) -> Known:
        a, b = given
        return rounded(a.exact + sign * b.exact, a.error + b.error, a.dtype)

    return value


def _multiply(given: Sequence[Known], attributes: Attributes) -> Known:
    a, b = given
    error = np.abs(a.exact) * b.error + np.abs(b.exact) * a.error + a.error * b.error
    return rounded(a.exact * b.exact, error, a.dtype)


def _moved(function: Callable[[Array, Attributes], Array]) -> Callable[[Sequence[Known], Attributes], Known]:
    """Make an operator of one that moves elements, or chooses among them: it rounds nothing."""

    def value(given: Sequence[Known], attributes: Attributes) -> Known:
        (x,) = given
        error = np.broadcast_to(np.asarray(x.error, np.float64), x.exact.shape)
        moved = function(error, attributes) if np.any(error) else 0.0
        return Known(function(x.exact, attributes), moved, x.dtype)

    return value


def _clipped(given: Sequence[Known], attributes: Attributes) -> Known:
    (x,) = given

    def clip(value: Any) -> Array:
        return np.asarray(np.clip(value, attributes.get("min", 0), attributes.get("max")))

    exact = clip(x.exact)
    # What is beyond a limit is there whatever its error.
    error = np.maximum(np.abs(clip(x.exact + x.error) - exact), np.abs(clip(x.exact - x.error) - exact))
    return Known(exact, error, x.dtype)


def _curve(function: Callable[[Array], Array], steepest: float) -> Callable[[Sequence[Known], Attributes], Known]:
    """Make an operator of an elementary function."""

    def value(given: Sequence[Known], attributes: Attributes) -> Known:
        (x,) = given
        with np.errstate(over="ignore"):
            exact = function(x.exact)
        size = np.maximum(np.abs(x.exact), np.abs(exact))
        return rounded(exact, steepest * x.error, x.dtype, _STEPS, size)

    return value


def _concat(given: Sequence[Known], attributes: Attributes) -> Known:
    axis = attributes["axis"]
    errors = [np.broadcast_to(np.asarray(k.error, np.float64), k.exact.shape) for k in given]
    return Known(np.concatenate([k.exact for k in given], axis), np.concatenate(errors, axis), given[0].dtype)


def _slice(x: Array, attributes: Attributes) -> Array:
    ranges = zip(attributes["axes"], attributes["begin"], attributes["end"], attributes["strides"], strict=True)
    index: list[slice] = [slice(None)] * x.ndim
    for axis, begin, end, stride in ranges:
        index[axis] = slice(begin, end, stride)
    return x[tuple(index)]


def _pad(x: Array, attributes: Attributes) -> Array:
    widths = list(attributes["widths"])
    return np.pad(x, list(zip(widths[::2], widths[1::2], strict=True)))


def _cast(given: Sequence[Known], attributes: Attributes) -> Known:
    (x,) = given
    return rounded(x.exact, x.error, attributes["dtype"])


def _softmax(given: Sequence[Known], attributes: Attributes) -> Known:
    (x,) = given
    axis = attributes["axis"]
    below = x.exact.max(axis, keepdims=True) - x.exact
    power = np.exp(-below)
    exact = power / power.sum(axis, keepdims=True)
    size = exact * (1 + below + math.sqrt(x.exact.shape[axis]))
    return rounded(exact, 0.0, x.dtype, _STEPS, size + 2.0**-120)


def _layer_norm(given: Sequence[Known], attributes: Attributes) -> Known:
    x, scale, shift = given
    mean, variance = x.exact.mean(-1, keepdims=True), x.exact.var(-1, keepdims=True) + 1e-5
    plain = (x.exact - mean) / np.sqrt(variance)
    largest = np.abs(x.exact).max(-1, keepdims=True)
    size = np.abs(scale.exact) * (2 * largest / np.sqrt(variance) + np.abs(plain)) + np.abs(shift.exact)
    terms = _STEPS + x.exact.shape[-1]
    return rounded(plain * scale.exact + shift.exact, 0.0, x.dtype, terms, size)


def _rms_norm(given: Sequence[Known], attributes: Attributes) -> Known:
    x, scale = given
    exact = x.exact / np.sqrt((x.exact**2).mean(-1, keepdims=True) + 1e-5) * scale.exact
    return rounded(exact, 0.0, x.dtype, _STEPS + x.exact.shape[-1])


def _reduced(name: str) -> Callable[[Sequence[Known], Attributes], Known]:
    """Make an operator of a reduction of NumPy's."""

    def value(given: Sequence[Known], attributes: Attributes) -> Known:
        (x,) = given
        axes, keep = tuple(attributes["axis"]), attributes.get("keepdims", False)
        exact = np.asarray(getattr(x.exact, name)(axes, keepdims=keep))
        if name in ("max", "min"):
            return Known(exact, 0.0, x.dtype)
        size = np.asarray(getattr(np.abs(x.exact), name)(axes, keepdims=keep))
        return rounded(exact, 0.0, x.dtype, 1 + x.exact.size // exact.size, size)

    return value


def _named(path: str) -> Callable[[Any, Sequence[Any], Attributes], Any]:
    """Return the Relax operator of that name, operands first, attributes by their names."""

    def relax(op: Any, given: Sequence[Any], attributes: Attributes) -> Any:
        found = op
        for part in path.split("."):
            found = getattr(found, part)
        return found(*given, **attributes)

    return relax


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


_erf = np.vectorize(math.erf, otypes=[float])

#: By name.
STEPS: Mapping[str, StepKind] = MappingProxyType(
    {
        "conv2d": StepKind(_conv_relax, _conv),
        "winograd": StepKind(_winograd_relax, _winograd),
        "max_pool": StepKind(_pool_relax("max_pool2d"), _max_pool),
        "avg_pool": StepKind(_pool_relax("avg_pool2d"), _avg_pool),
        "global_pool": StepKind(
            lambda op, given, a: op.nn.adaptive_avg_pool2d(*given, output_size=(1, 1), layout="NHWC"), _global_pool
        ),
        "add": StepKind(_named("add"), _sum_of(1)),
        "subtract": StepKind(_named("subtract"), _sum_of(-1)),
        "multiply": StepKind(_named("multiply"), _multiply),
        "relu": StepKind(_named("nn.relu"), _clipped),
        "clip": StepKind(_named("clip"), _clipped),
        "silu": StepKind(_named("nn.silu"), _curve(lambda x: x * _sigmoid(x), 1.1)),
        "gelu": StepKind(_named("nn.gelu"), _curve(lambda x: 0.5 * x * (1 + _erf(x * 0.5**0.5)), 1.13)),
        "tanh": StepKind(_named("tanh"), _curve(np.tanh, 1.0)),
        "permute_dims": StepKind(_named("permute_dims"), _moved(lambda x, a: x.transpose(a["axes"]))),
        "concat": StepKind(lambda op, given, a: op.concat(list(given), **a), _concat),
        "strided_slice": StepKind(_named("strided_slice"), _moved(_slice)),
        "pad": StepKind(lambda op, given, a: op.nn.pad(*given, pad_width=list(a["widths"])), _moved(_pad)),
        "astype": StepKind(_named("astype"), _cast),
        "softmax": StepKind(_named("nn.softmax"), _softmax),
        "layer_norm": StepKind(lambda op, given, a: op.nn.layer_norm(*given, axes=[-1]), _layer_norm),
        "rms_norm": StepKind(lambda op, given, a: op.nn.rms_norm(*given, axes=[-1]), _rms_norm),
        **{name: StepKind(_named(name), _reduced(name)) for name in ("sum", "mean", "max", "min")},
    }
)
