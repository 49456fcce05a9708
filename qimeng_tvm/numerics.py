"""Inputs, oracle and tolerance of a request: what a right answer is.

Error bounds follow Higham, *Accuracy and Stability of Numerical Algorithms* (2nd ed., section 3.5), in the
probabilistic form of Higham and Mary (SIAM J. Sci. Comput. 41, 2019): a sum of K products in precision u, in whatever
order, with or without fused multiply-add, is off by at most ``min(K u, 4 sqrt(K) u) * (|A| @ |B|)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qimeng_tvm.errors import CheckError
from qimeng_tvm.request import Request, tensor_bytes

Array = NDArray[Any]
Inputs = Mapping[str, Array]

KINDS = ("normal", "extreme", "ones", "small")

_UNIT = 2.0**-24  # unit roundoff of float32
# Bounds each sum with probability 1 - 2 exp(-8) were every rounding as large as it can be; roundings are spread evenly
# and partial sums grow, so that a plain loop over k stays below a fifth of the bound, and blocked ones far below.
_LAMBDA = 4.0
_TINY = 2.0**-126  # a product or sum that underflows may be flushed to zero
_EXACT_F32 = 2.0**24  # integers up to here, and their sums in any order, are exact in float32
_BLOCK = 1024


def flops(request: Request) -> int:
    """Return the operations of the product, a multiply-add counted as two."""
    return 2 * request.batch * request.m * request.n * request.k


def bytes_moved(request: Request) -> int:
    """Return the least memory traffic: operands and bias read once, the result written once."""
    return tensor_bytes(request)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a TVM dtype name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


# -- inputs ---------------------------------------------------------------------------------------------------------


def make_inputs(request: Request, seed: int, kind: str = "normal") -> dict[str, Array]:
    """Make operands ``A``, ``B`` and, with a bias, ``bias``, as stored.

    Parameters
    ----------
    request : Request
        What they are for.
    seed : int
        Same seed, same inputs.
    kind : str
        ``"normal"``: mean away from zero. ``"extreme"``: floats of magnitudes 2^-35 to 2^35, whole rows of A and
        columns of B small or large (so that results are, too), zeros among them; integers at the ends of their
        range, equal in pairs along k (what saturates a 16-bit intermediate sum). ``"ones"``: all ones.
        ``"small"``: integers of -3..3 (0..3 unsigned), for which float32 is exact.

    Raises
    ------
    CheckError
        If ``kind`` is unknown.
    """
    if kind not in KINDS:
        raise CheckError(f"no kind of inputs {kind!r}; known: {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    k_axis_a, k_axis_b = (-2 if request.transpose_a else -1), (-1 if request.transpose_b else -2)
    inputs = {
        "A": _operand(rng, request.a_shape, request.a_dtype, kind, k_axis_a),
        "B": _operand(rng, request.b_shape, request.b_dtype, kind, k_axis_b),
    }
    if "bias" in request.epilogue:
        inputs["bias"] = _bias(rng, request, kind)
    return inputs


def _operand(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str, k_axis: int) -> Array:
    target = numpy_dtype(dtype)
    integer = dtype in ("int8", "uint8")
    if kind == "ones":
        return np.ones(shape, target)
    if kind == "small":
        return rng.integers(0 if dtype == "uint8" else -3, 4, size=shape, dtype=np.int8).astype(target)
    if not integer:
        values = _floats(rng, shape, kind, 10)
        if kind == "extreme":
            lines = list(shape)
            lines[k_axis] = 1
            values = np.ldexp(values, rng.integers(-25, 26, size=lines, dtype=np.int32))
        return values.astype(target)
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    if kind == "normal":
        return rng.integers(low + 16, high + 1, size=shape, dtype=target)
    pairs = list(shape)
    pairs[k_axis] = (pairs[k_axis] + 1) // 2
    ends = np.array([high, high, high, low] if dtype == "uint8" else [low, high], target)
    half = ends[rng.integers(0, len(ends), size=pairs, dtype=np.int8)]
    return np.ascontiguousarray(np.repeat(half, 2, axis=k_axis).take(range(shape[k_axis]), axis=k_axis))


def _bias(rng: np.random.Generator, request: Request, kind: str) -> Array:
    n, k = request.n, request.k
    if kind == "ones":
        return np.ones(n, request.acc_dtype)
    if request.acc_dtype == "float32":
        return rng.integers(-3, 4, size=n).astype("float32") if kind == "small" else _floats(rng, (n,), kind, 30)
    # Signed overflow is undefined in generated code: bias and the largest product stay within int32.
    room = max(2**31 - 1 - k * 255 * 128, 0)
    if kind == "extreme":
        return rng.choice(np.array([-room, room], np.int32), size=n)
    limit = min(room, 3 if kind == "small" else 1000)
    return rng.integers(-limit, limit + 1, size=n, dtype=np.int32)


def _floats(rng: np.random.Generator, shape: tuple[int, ...], kind: str, exponent: int) -> NDArray[np.float32]:
    values = rng.standard_normal(shape, dtype=np.float32)
    if kind == "extreme":
        exponents = rng.integers(-exponent, exponent + 1, size=shape, dtype=np.int32)
        exponents[rng.random(shape, dtype=np.float32) < 0.05] = -1000  # a zero
        return np.ldexp(values, exponents)
    values += np.float32(0.4)
    return values


# -- oracle ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planes:
    """One batch element, operands seen as (m, k) and (k, n) whatever their layout."""

    a: Array
    b: Array
    bias: Array | None


def split_planes(request: Request, inputs: Inputs) -> list[Planes]:
    """Return the operands of each batch element."""
    for name, shape in (("A", request.a_shape), ("B", request.b_shape)):
        if inputs[name].shape != shape:
            raise CheckError(f"input {name} has shape {inputs[name].shape}, the request wants {shape}")
    a = inputs["A"].reshape(request.batch, *request.a_shape[-2:])
    b = inputs["B"].reshape(request.batch, *request.b_shape[-2:])
    a = a.swapaxes(1, 2) if request.transpose_a else a
    b = b.swapaxes(1, 2) if request.transpose_b else b
    bias = inputs["bias"] if "bias" in request.epilogue else None
    return [Planes(a[i], b[i], bias) for i in range(request.batch)]


def _blocks(extent: int) -> Iterator[slice]:
    return (slice(i, i + _BLOCK) for i in range(0, extent, _BLOCK))


def product(a: Array, b: Array, *, absolute: bool = False) -> NDArray[np.float64]:
    """Return A @ B, or abs(A) @ abs(B), in float64, converting a block of each at a time."""
    out = np.empty((a.shape[0], b.shape[1]), np.float64)
    for columns in _blocks(b.shape[1]):
        right = b[:, columns].astype(np.float64)
        right = np.abs(right) if absolute else right
        for rows in _blocks(a.shape[0]):
            left = a[rows].astype(np.float64)
            np.matmul(np.abs(left) if absolute else left, right, out=out[rows, columns])
    return out


def finish(request: Request, value: NDArray[np.float64], bias: Array | None) -> Array:
    """Apply the epilogue; integers wrap around to int32 as the accumulators do."""
    shift = 0 if bias is None else bias
    if request.acc_dtype == "int32":
        # Every partial sum is an integer below 2^53, so float64 held it exactly.
        exact = value.astype(np.int64).astype(np.int32)
        for name in request.epilogue:
            exact = exact + shift if name == "bias" else np.maximum(exact, 0)
        return exact
    for name in request.epilogue:
        value = value + shift if name == "bias" else np.maximum(value, 0.0)
    return value


def oracle(request: Request, inputs: Inputs) -> Array:
    """Return the result in float64 (not rounded to the result's dtype), or exact in int32 with wraparound."""
    planes = [finish(request, product(p.a, p.b), p.bias) for p in split_planes(request, inputs)]
    return np.stack(planes).reshape(request.out_shape)


# -- tolerance ------------------------------------------------------------------------------------------------------


def _gamma(terms: int) -> float:
    """Relative error of a float32 sum of that many terms, against the sum of their magnitudes."""
    worst = terms * _UNIT / (1 - terms * _UNIT) if terms * _UNIT < 0.5 else math.inf
    return min(worst, math.expm1(_LAMBDA * math.sqrt(terms) * _UNIT + terms * _UNIT**2))


def float32_bound(request: Request, magnitude: NDArray[np.float64], plane: Planes) -> NDArray[np.float64]:
    """Largest error of a float32 accumulation, given ``|A| @ |B|``; zero where float32 is exact."""
    if request.acc_dtype == "int32":
        return np.zeros_like(magnitude)
    if plane.bias is not None:
        magnitude = magnitude + np.abs(plane.bias.astype(np.float64))
    # Integers by value are summed exactly, in any order, while no partial sum passes 2^24.
    if magnitude.max(initial=0.0) <= _EXACT_F32 and all(_integral(x) for x in (plane.a, plane.b, plane.bias)):
        return np.zeros_like(magnitude)
    return _gamma(request.k + 1) * magnitude + request.k * _TINY


def _integral(values: Array | None) -> bool:
    if values is None:
        return True
    head = values[:1].astype(np.float32)  # most arrays are told by their first row
    return bool((head == np.rint(head)).all()) and bool((np.rint(full := values.astype(np.float32)) == full).all())


def with_rounding(request: Request, expected: Array, bound: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add the rounding of the result: half an ulp of bfloat16 at the largest value that may be rounded."""
    if request.out_dtype != "bfloat16":
        return bound
    largest = np.abs(expected) + bound
    _, exponent = np.frexp(largest)
    half_ulp = np.where(largest > 0, np.ldexp(1.0, np.maximum(exponent, -125) - 9), 0.0)
    return bound + half_ulp


def tolerance(request: Request, inputs: Inputs) -> NDArray[np.float64]:
    """Return, for each element, the largest absolute error a right implementation can make; zero for integers.

    Zero too for float operands that are small integers by value (kinds ``"ones"`` and ``"small"``): float32 sums them
    exactly. A bfloat16 result adds half its ulp. Depends on the inputs, never on a constant picked by hand.
    """
    planes = []
    for p in split_planes(request, inputs):
        if request.acc_dtype == "int32":
            planes.append(np.zeros((request.m, request.n)))
            continue
        bound = float32_bound(request, product(p.a, p.b, absolute=True), p)
        expected = finish(request, product(p.a, p.b), p.bias)
        planes.append(with_rounding(request, expected, bound))
    return np.stack(planes).reshape(request.out_shape)
