"""Where the tiles of an intrinsic that is checked lie in its buffers, and what lies around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.errors import CheckError

Array = npt.NDArray[Any]

#: (kind of inputs, seed): random with a mean, extremes that saturate, exact small values.
CASES = (("normal", 0), ("extreme", 1), ("small", 2), ("normal", 3))


@dataclass(frozen=True)
class Placement:
    """Where the tiles lie in the buffers.

    Attributes
    ----------
    label : str
        For messages, and the function's name.
    tiles : tuple of int
        Tiles along m, n, k; of a lane-wise kernel along pixels and channels, and taps.
    before, after : tuple of int
        Rows (or k) and columns of the buffers around the tiles.
    packed : bool
        A and B are read from copies of the function's own.
    """

    label: str
    tiles: tuple[int, int, int] = (1, 1, 1)
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    packed: bool = False


def around(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Values that show when they are read: NaN, or anything at all."""
    target = numpy_dtype(dtype)
    if target.kind in "iu":
        info = np.iinfo(target)
        return rng.integers(info.min, info.max + 1, size=shape, dtype=target)
    return np.full(shape, np.nan).astype(target)


def start(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> Array:
    """What C holds before: never zero throughout, far from overflow."""
    if kind == "small":
        return rng.integers(-3, 4, size=shape).astype(dtype)
    if dtype == "int32":
        return rng.integers(-(2**20), 2**20, size=shape, dtype=np.int32)
    if dtype != "float32":
        raise CheckError(f"accumulators of {dtype} are not checked yet: extend qimeng_tvm.check.placement")
    return rng.standard_normal(shape).astype(np.float32) + np.float32(0.4)
