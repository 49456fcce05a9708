"""How far a computed number may be from the exact one, and which are further."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from qimeng_tvm.check.buffers import numpy_dtype

Array = npt.NDArray[Any]
#: (got, expected, bound) -> mask of the wrong elements.
Compare = Callable[[Array, Array, Array], npt.NDArray[np.bool_]]


def wrong_elements(got: Array, expected: Array, bound: Array) -> npt.NDArray[np.bool_]:
    """Mark elements further from ``expected`` than ``bound``; NaN and infinities must match exactly."""
    if np.issubdtype(expected.dtype, np.integer) or expected.dtype == np.bool_:
        # Python-sized or int64 arithmetic: the difference of two int32 does not fit an int32.
        return np.abs(got.astype(np.int64) - expected.astype(np.int64)) > bound
    with np.errstate(invalid="ignore"):
        close = np.abs(got - expected) <= bound  # False for any NaN
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return np.asarray(~np.where(np.isfinite(expected), close, same))


_UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}


def dot_bound(
    magnitude: Array, expected: Array, k: int, *, accumulate: str = "float32", out: str = "float32", spread: float = 0.0
) -> Array:
    """Bound the error of sums of ``k`` products, from dtypes and K (Higham, Accuracy and Stability, 3.1; 2019).

    Parameters
    ----------
    magnitude : ndarray
        ``|A| @ |B|`` (plus ``|C|`` for ``+=``).
    expected : ndarray
        The exact result; its rounding to ``out`` is allowed for.
    k : int
        Number of terms.
    accumulate : str
        Dtype of the running sum.
    out : str
        Dtype of the stored result.
    spread : float
        0 gives the worst case, about ``k`` roundings in one direction. Otherwise that many times ``sqrt(k)``
        roundings: far sharper, right for random inputs with overwhelming probability at 8 or more (Higham and
        Mary 2019), wrong for inputs whose roundings all agree, such as a constant.
    """
    if np.issubdtype(numpy_dtype(out), np.integer):
        return np.zeros(np.shape(expected))
    unit = _UNIT[accumulate]
    steps = float(k + 1)
    if spread:
        steps = min(steps, spread * math.sqrt(k + 1))
    gamma = steps * unit / (1 - steps * unit)
    total = gamma * np.asarray(magnitude, np.float64)
    if out != accumulate:
        total = total + _UNIT[out] * (np.abs(expected) + total)
    # Products and results that underflow, or are flushed to zero as VDPBF16PS does.
    return np.asarray(total + (k + 1) * max(_TINY[accumulate], _TINY[out]))
