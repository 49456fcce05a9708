"""Operands of a case, and what the right answer is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from qimeng_tvm.request import Request

Array = np.ndarray[Any, Any]

_LINE = 64
# Relative rounding error of one operation in the output type.
_UNIT: Mapping[str, float] = MappingProxyType({"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11})


@dataclass(frozen=True)
class Inputs:
    """Row-major operands: ``a[batch, m, k]``, ``b[batch, k, n]``, without the batch axis when it is one.

    bfloat16 arrays have the dtype of ``ml_dtypes``; arrays loaded from a folder lie on 64-byte boundaries.
    """

    a: Array
    b: Array


@dataclass(frozen=True)
class Reference:
    """The answer in float64 (exact for integers) and the size of its terms, per element."""

    values: Array
    magnitude: Array
    depth: int

    def error(self, answer: Array, quantum: float = 0.0) -> float:
        """Return the largest error in units of what is tolerated: over 1 is wrong.

        An integer answer must be exact. A floating one may be off by a rounding in each of the ``depth`` steps of the
        sum, as a random walk: 4 sqrt(K) u |a_i| |b_j|, u of float32 since everybody accumulates in it, plus one
        rounding to the output's type. A dropped term at K = 11008 is still ten times over that. ``quantum`` adds an
        absolute step, for systems that only answer in a quantized type.
        """
        if answer.shape != self.values.shape:
            return float("inf")
        off = np.abs(answer.astype(np.float64) - self.values)
        if np.issubdtype(answer.dtype, np.integer):
            return float(off.max()) * 2.0 if not quantum else float(off.max()) / quantum
        unit = _UNIT.get(str(answer.dtype), 2.0**-24)
        allowed = 4.0 * self.depth**0.5 * 2.0**-24 * self.magnitude + unit * np.abs(self.values) + quantum
        with np.errstate(invalid="ignore"):
            worst = float(np.max(off / np.maximum(allowed, 1e-300)))
        return worst if np.isfinite(worst) else float("inf")


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array on a cache line's boundary, which NumPy's own allocation is not."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.empty(size + _LINE, np.uint8)
    skip = -raw.ctypes.data % _LINE
    return np.asarray(raw[skip : skip + size].view(kind).reshape(shape))


def _aligned(array: Array) -> Array:
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if dtype == "int8":
        return rng.integers(-128, 128, shape, dtype=np.int8)
    values = rng.random(shape, dtype=np.float32) * np.float32(2.0) - np.float32(0.75)  # the mean is not zero
    return values.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else values.astype(dtype)


def make_inputs(request: Request, seed: int = 0) -> Inputs:
    """Random operands, the same for the same request and seed; integers take their whole range."""
    shape = (request.batch, request.m, request.n, request.k)
    rng = np.random.default_rng([seed, *shape, zlib.crc32(request.a_dtype.encode())])
    lead = (request.batch,) if request.batch > 1 else ()
    return Inputs(
        _random(rng, (*lead, request.m, request.k), request.a_dtype),
        _random(rng, (*lead, request.k, request.n), request.b_dtype),
    )


def reference(inputs: Inputs) -> Reference:
    """Compute the answer in float64; products of 8-bit integers are exact in it for any K below 2^37."""
    a, b = inputs.a.astype(np.float64), inputs.b.astype(np.float64)
    # Cauchy-Schwarz bounds the sum of |a||b| without a second product.
    magnitude = np.linalg.norm(a, axis=-1)[..., :, None] * np.linalg.norm(b, axis=-2)[..., None, :]
    return Reference(np.matmul(a, b), magnitude, a.shape[-1])


def save(folder: Path, inputs: Inputs, ref: Reference) -> None:
    """Write operands and answer where a child process loads them from."""
    for name, array in (("a", inputs.a), ("b", inputs.b)):
        bits = array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
        np.save(folder / f"{name}.npy", bits)
    np.save(folder / "values.npy", ref.values)
    np.save(folder / "magnitude.npy", ref.magnitude)


def load_inputs(folder: Path) -> Inputs:
    """Read what :func:`save` wrote."""
    arrays = [_aligned(np.load(folder / f"{name}.npy")) for name in ("a", "b")]
    a, b = (x.view(ml_dtypes.bfloat16) if x.dtype == np.uint16 else x for x in arrays)
    return Inputs(a, b)


def load_reference(folder: Path) -> Reference:
    """Read what :func:`save` wrote."""
    depth = int(np.load(folder / "a.npy", mmap_mode="r").shape[-1])
    return Reference(np.load(folder / "values.npy"), np.load(folder / "magnitude.npy"), depth)
