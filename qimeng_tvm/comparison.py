"""Compare a result with the oracle, whatever its size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qimeng_tvm.errors import CheckError
from qimeng_tvm.numerics import (
    Array,
    Inputs,
    Planes,
    finish,
    float32_bound,
    flops,
    numpy_dtype,
    product,
    split_planes,
    with_rounding,
)
from qimeng_tvm.request import Request

_BIG = 2048**3  # multiply-adds from which the whole of the oracle in float64 takes too long
_SAMPLE = 64  # rows, and columns, that are then still compared with float64
_EXACT_K = 512  # products of 255 * 128 whose sum float32 holds exactly


@dataclass(frozen=True)
class Comparison:
    """What comparing a result with the oracle found.

    Attributes
    ----------
    ok : bool
        No element is off by more than its tolerance, and none is NaN.
    checked : int
        Distinct elements compared.
    bad : int
        How many were wrong (an element may count in several of the comparisons of a big result).
    max_error : float
        Largest absolute error; infinite when a NaN was found.
    first_bad : tuple of int or None
        Index of the first wrong element.
    expected, got : float
        The values there; NaN when nothing is wrong.
    """

    ok: bool
    checked: int
    bad: int
    max_error: float
    first_bad: tuple[int, ...] | None = None
    expected: float = math.nan
    got: float = math.nan

    def __str__(self) -> str:
        if self.ok:
            return f"{self.checked} elements right, largest error {self.max_error:.3g}"
        where = ", ".join(map(str, self.first_bad or ()))
        return (
            f"{self.bad} wrong of {self.checked}; first at [{where}]: expected {self.expected:.9g}, got {self.got:.9g}"
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """Expected values of some rows and columns of one batch element."""

    batch: int
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    expected: Array
    bound: Array

    def index(self, i: int, j: int, request: Request) -> tuple[int, ...]:
        plane = (int(self.rows[i]), int(self.columns[j]))
        return (self.batch, *plane) if request.batch > 1 else plane


@dataclass(frozen=True, eq=False)
class Reference:
    """The oracle's answer for given inputs, to compare several results with (see :func:`reference`)."""

    request: Request
    parts: tuple[_Part, ...]

    def compare(self, actual: Array) -> Comparison:
        """Compare a result; every element of it is looked at.

        Raises
        ------
        CheckError
            If it has another shape or dtype than the request's result.
        """
        request, wanted = self.request, numpy_dtype(self.request.out_dtype)
        if actual.shape != request.out_shape or actual.dtype != wanted:
            found = f"{actual.dtype}{list(actual.shape)}"
            raise CheckError(f"the result is {found}, the request wants {wanted}{list(request.out_shape)}")
        planes = actual.reshape(request.batch, request.m, request.n)
        wide = np.int64 if wanted.kind == "i" else np.float64
        bad, largest, first = 0, 0.0, None
        for part in self.parts:
            got: Array = _take(planes[part.batch], part.rows, part.columns).astype(wide)
            with np.errstate(invalid="ignore"):
                error = np.abs(got - part.expected.astype(wide))
            wrong = ~(error <= part.bound)  # a NaN compares false, so it is wrong
            worst = float(error.max())
            largest = max(largest, math.inf if math.isnan(worst) else worst)
            count = int(wrong.sum())
            bad += count
            if count and first is None:
                i, j = (int(x) for x in np.unravel_index(int(wrong.argmax()), wrong.shape))
                first = (part.index(i, j, request), float(part.expected[i, j]), float(got[i, j]))
        if first is None:
            return Comparison(True, actual.size, 0, largest)
        return Comparison(False, actual.size, bad, largest, *first)


def _take(plane: Array, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Array:
    if len(rows) == plane.shape[0] and len(columns) == plane.shape[1]:
        return plane
    return plane[np.ix_(rows, columns)]


def reference(request: Request, inputs: Inputs, rows: int | None = None, seed: int = 0) -> Reference:
    """Compute what results for these inputs are compared with.

    Small products are compared in full with float64 and the tight tolerance. Big ones (``rows`` given, or 2048^3
    multiply-adds and more) in two ways: ``rows`` random rows and as many columns, the first and last among them, with
    float64 and the tight tolerance; and every element with NumPy's float32 product, at twice the tolerance since both
    sides round. (A random projection would be cheaper, but it cannot see through a ReLU, and with rounding its
    tolerance grows until single wrong elements pass.) Integers are compared exactly, every element, at any size.
    """
    big = rows is not None or flops(request) // 2 >= _BIG
    every_row, every_column = np.arange(request.m), np.arange(request.n)
    rng = np.random.default_rng(seed)
    parts: list[_Part] = []
    for batch, plane in enumerate(split_planes(request, inputs)):
        if big:
            count = _SAMPLE if rows is None else rows
            parts.append(_whole(request, batch, plane))
            if request.acc_dtype == "float32":
                parts.append(_exact(request, batch, plane, _sample(rng, request.m, count), every_column))
                parts.append(_exact(request, batch, plane, every_row, _sample(rng, request.n, count)))
        else:
            parts.append(_exact(request, batch, plane, every_row, every_column))
    return Reference(request, tuple(parts))


def compare(request: Request, inputs: Inputs, actual: Array, rows: int | None = None) -> Comparison:
    """Compare a result with the oracle; for several results of the same inputs keep the :func:`reference`.

    ``rows`` is as in :func:`reference`. NaN is always wrong.
    """
    return reference(request, inputs, rows).compare(actual)


def _sample(rng: np.random.Generator, extent: int, count: int) -> NDArray[np.intp]:
    if count >= extent:
        return np.arange(extent)
    return np.unique(np.concatenate([[0, extent - 1], rng.choice(extent, size=count, replace=False)]))


def _exact(request: Request, batch: int, plane: Planes, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> _Part:
    """Float64 expectation and tight bound of some rows and columns."""
    a = plane.a if len(rows) == request.m else plane.a[rows]
    b = plane.b if len(columns) == request.n else plane.b[:, columns]
    some = Planes(a, b, None if plane.bias is None else plane.bias[columns])
    expected = finish(request, product(a, b), some.bias)
    if request.acc_dtype == "int32":
        return _Part(batch, rows, columns, expected, np.zeros((1, 1)))
    bound = with_rounding(request, expected, float32_bound(request, product(a, b, absolute=True), some))
    return _Part(batch, rows, columns, expected, bound)


def _whole(request: Request, batch: int, plane: Planes) -> _Part:
    """Every element by float32 products: exact for integers, at twice the bound for floats."""
    every = np.arange(request.m), np.arange(request.n)
    if request.acc_dtype == "int32":
        total = np.zeros((request.m, request.n), np.float64)
        for k in range(0, request.k, _EXACT_K):
            piece = slice(k, k + _EXACT_K)
            total += plane.a[:, piece].astype(np.float32) @ plane.b[piece].astype(np.float32)
        return _Part(batch, *every, finish(request, total, plane.bias), np.zeros((1, 1)))
    a, b = plane.a.astype(np.float32), plane.b.astype(np.float32)
    expected = finish(request, (a @ b).astype(np.float64), plane.bias)
    # Cauchy-Schwarz: |A| @ |B| is at most the product of the norms of the row and the column.
    norms_a = np.sqrt(np.einsum("ik,ik->i", a, a, dtype=np.float64))
    norms_b = np.sqrt(np.einsum("kj,kj->j", b, b, dtype=np.float64))
    bound = 2 * float32_bound(request, np.outer(norms_a, norms_b), plane)
    return _Part(batch, *every, expected, with_rounding(request, expected, bound))
