"""Operands of a convolution, and what the right answer is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qimeng_tvm.bench.conv_suite import ConvCase
from qimeng_tvm.bench.data import Array, Reference

_FILES = ("x", "w", "values", "magnitude", "depth")


@dataclass(frozen=True)
class ConvInputs:
    """Pixels ``x[n, c, h, w]`` and filters ``w[k, c / groups, r, s]``."""

    x: Array
    w: Array


def make_inputs(case: ConvCase, seed: int = 0) -> ConvInputs:
    """Return random operands, the same for the same case and seed; the mean is not zero."""
    rng = np.random.default_rng([seed, case.n, case.c, case.h, case.w, case.k, case.r, case.s])
    x = rng.random((case.n, case.c, case.h, case.w), dtype=np.float32) * np.float32(2) - np.float32(0.75)
    w = rng.random((case.k, case.c // case.groups, case.r, case.s), dtype=np.float32) * np.float32(2) - np.float32(0.75)
    return ConvInputs(x, w)


def reference(case: ConvCase, inputs: ConvInputs) -> Reference:
    """Compute the answer in float64, and the size of its terms by Cauchy-Schwarz."""
    values = np.empty((case.n, case.k, *case.out))
    magnitude = np.empty_like(values)
    filters = inputs.w.astype(np.float64).reshape(case.groups, case.k // case.groups, case.depth)
    lengths = np.linalg.norm(filters, axis=2).reshape(case.k, 1, 1)
    for image in range(case.n):
        border = ((0, 0), (case.pad, case.pad), (case.pad, case.pad))
        padded = np.pad(inputs.x[image].astype(np.float64), border)
        windows = sliding_window_view(padded, (case.r, case.s), axis=(1, 2))[:, :: case.stride, :: case.stride]
        # (group, position, term): channel, row and column of the window, as the filters have them
        terms = windows.transpose(0, 3, 4, 1, 2).reshape(case.groups, case.depth, -1)
        values[image] = (filters @ terms).reshape(case.k, *case.out)
        sizes = np.repeat(np.linalg.norm(terms, axis=1), case.k // case.groups, axis=0)
        magnitude[image] = sizes.reshape(case.k, *case.out) * lengths
    return Reference(values, magnitude, case.depth)


def load_inputs(folder: Path) -> ConvInputs:
    """Read the operands of a case."""
    return ConvInputs(np.load(folder / "x.npy"), np.load(folder / "w.npy"))


def load_reference(folder: Path) -> Reference:
    """Read the answer to a case."""
    values, magnitude, depth = (np.load(folder / f"{name}.npy") for name in _FILES[2:])
    return Reference(values, magnitude, int(depth))


@contextmanager
def placed(case: ConvCase) -> Iterator[Path]:
    """Write operands and answer to a folder that is gone afterwards."""
    inputs = make_inputs(case)
    right = reference(case, inputs)
    with TemporaryDirectory(prefix="qimeng-bench-") as folder:
        arrays = (inputs.x, inputs.w, right.values, right.magnitude, np.array(right.depth))
        for name, array in zip(_FILES, arrays, strict=True):
            np.save(Path(folder) / f"{name}.npy", array)
        yield Path(folder)
