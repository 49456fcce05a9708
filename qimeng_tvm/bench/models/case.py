"""One model at one batch and data type: where its files are, and what a right answer is."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from qimeng_tvm.bench.models.zoo import EDITION, model_named
from qimeng_tvm.errors import UsageError

Array = np.ndarray[Any, Any]

#: Data types of weights and activations, as TVM calls that of a product's left operand. Sums are of float32; in a
#: quantized model those of bytes are of int32, and what is not quantized is of float32.
DTYPES: Mapping[str, str] = MappingProxyType({"f32": "float32", "bf16": "bfloat16", "int8": "uint8"})
#: Those in which roundings are so coarse that who rounds otherwise gets other results.
NARROW = ("bf16", "int8")
#: Relative rounding error of one operation in float32, and of storing its result.
_ROUNDING = 2.0**-24
_LAMBDA = 4.0
#: In units of how far a narrow model's results are from the exact ones: how far another one's may be, what the two then
#: differ by where their roundings are independent, and the largest difference in units of the largest error.
_FARTHER = 1.25
_APART, _LARGEST = (1.0 + _FARTHER**2) ** 0.5, 2.0

#: Files of a case. The module is pickled: only what this program itself wrote is read.
MODULE, PROGRAM, ONNX, ABOUT = "module.pt", "program.pt2", "model.onnx", "about.json"
INPUTS, EXPECTED = "inputs.npz", "expected.npz"
#: Exact results, in the folder of a model in narrow arithmetic.
PLAIN = "plain.npz"


@dataclass(frozen=True)
class ModelCase:
    """A model to time.

    Attributes
    ----------
    model : str
        Of :data:`qimeng_tvm.bench.models.zoo.MODELS`.
    batch : int
        Independent inputs at a time.
    dtype : str
        Of :data:`DTYPES`.
    layers : int or None
        How many of its layers, where it has a choice.
    cache : Path
        Folder under which the files of all models are.
    threads : int
        Of the systems that time it.
    """

    model: str
    batch: int
    dtype: str
    layers: int | None
    cache: Path
    threads: int = 1

    @property
    def name(self) -> str:
        """Name in tables and JSON."""
        layers = f"-{self.layers}layers" if self.layers != model_named(self.model).layers else ""
        return f"{self.model}{layers}-b{self.batch}"

    @property
    def folder(self) -> Path:
        """Where its files are; what they were made by is in the name."""
        return self.cache / f"{self.model}-{self.layers or 'all'}-b{self.batch}-{self.dtype}-e{EDITION[self.dtype]}"

    @property
    def a_dtype(self) -> str:
        """Data type of the operands, as TVM calls it."""
        return DTYPES[self.dtype]

    @property
    def flops(self) -> int:
        """Operations of a call, a multiply-add counted as two; known once the files are there."""
        return int(about(self.folder)["flops"])

    @property
    def saving(self) -> float:
        """Winograd's F(4x4, 3x3), where the model convolves images in float32."""
        return 4.0 if self.dtype == "f32" and model_named(self.model).images else 1.0

    def request(self, threads: int = 1) -> ModelCase:
        """Return what the systems are told."""
        return replace(self, threads=threads)


def make_case(model: str, cache: Path, batch: int = 1, dtype: str = "f32", layers: int | None = None) -> ModelCase:
    """Return a case.

    Raises
    ------
    UsageError
        If there is no such model or data type.
    """
    known = model_named(model)
    if dtype not in DTYPES:
        raise UsageError(f"models are not timed in {dtype!r}; choose from {', '.join(DTYPES)}")
    return ModelCase(model, batch, dtype, (layers or known.layers) if known.layers else None, cache)


@functools.cache
def about(folder: Path) -> dict[str, Any]:
    """Return what is known of a case's files: operations, depth, what could not be exported and why."""
    return dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Files:
    """What a system is given: the folder, and the inputs in it."""

    folder: Path
    inputs: tuple[Array, ...]

    @property
    def plain(self) -> tuple[Array, ...]:
        """The inputs as the ONNX file takes them: floats are of 32 bits."""
        return tuple(a.astype(np.float32) if a.dtype == ml_dtypes.bfloat16 else a for a in self.inputs)

    @property
    def about(self) -> dict[str, Any]:
        """See :func:`about`."""
        return about(self.folder)


@dataclass(frozen=True)
class ModelReference:
    """The results of a model in float32 in higher precision, and what they may be off by.

    Attributes
    ----------
    values : tuple of ndarray
        One for every result of the model.
    depth, terms : int
        Layers with weights, and the longest sum in one of them.
    """

    values: tuple[Array, ...]
    depth: int
    terms: int

    @property
    def tolerance(self) -> float:
        """Relative to a typical value of a result.

        Every layer adds the rounding of its sums, ``sqrt(terms)`` steps of float32, and of storing its result. What the
        layers add is independent: it grows with the square root of their number.
        """
        return float(_LAMBDA * self.depth**0.5 * (self.terms**0.5 + 1) * _ROUNDING)

    def error(self, answer: Array, quantum: float = 0.0) -> float:
        """Return the largest error of any result in units of what is tolerated: over 1 is wrong.

        ``answer`` has all results flat, one behind the other (see :func:`flat`).
        """
        if answer.shape != (sum(v.size for v in self.values),):
            return float("inf")
        worst, start = 0.0, 0
        for value in self.values:
            part = answer[start : start + value.size].astype(np.float64)
            wanted = value.ravel().astype(np.float64)
            start += value.size
            typical = float(np.sqrt(np.mean(wanted**2)))
            allowed = self.tolerance * (typical + np.abs(wanted)) + quantum
            with np.errstate(invalid="ignore"):
                off = float(np.max(np.abs(part - wanted) / allowed))
            worst = max(worst, off if np.isfinite(off) else float("inf"))
        return worst


@dataclass(frozen=True)
class NarrowReference:
    """The results of a model in narrow arithmetic, bytes or bfloat16, and what they may be off by.

    Who sums in another order, or scales sums of integers, rounds a value in the middle of two to the other one; each
    such step leads to more of them, until after some layers all roundings are others, and how much of them arrives at
    the end depends on the weights. So the yardstick is what narrow arithmetic does as the model is written, by ONNX
    Runtime or PyTorch: how far these results are from the exact ones. The errors of another computation, whose
    roundings have nothing to do with these, are about as large, up to a quarter more, and independent: the two differ
    by the root of the sum of their squares. Where the difference is largest, it may be twice the largest error: that of
    some numbers is less certain than their mean.

    Attributes
    ----------
    values : tuple of ndarray
        One for every result of the model.
    plain : tuple of ndarray
        The results of the same model in float32 or float64.
    """

    values: tuple[Array, ...]
    plain: tuple[Array, ...]

    def error(self, answer: Array, quantum: float = 0.0) -> float:
        """See :meth:`ModelReference.error`."""
        if answer.shape != (sum(v.size for v in self.values),):
            return float("inf")
        worst, start = 0.0, 0
        for value, plain in zip(self.values, self.plain, strict=True):
            part = answer[start : start + value.size]
            start += value.size
            own, off, real = (_distance(*pair) for pair in ((value, plain), (part, value), (part, plain)))
            found = (
                off.mean / (_APART * own.mean + quantum),
                off.largest / (_LARGEST * own.largest + quantum),
                real.mean / (_FARTHER * own.mean + quantum),
            )
            worst = max(worst, *found) if np.isfinite(found).all() else float("inf")
        return worst


class _Distance(NamedTuple):
    mean: float
    largest: float


def _distance(one: Array, other: Array) -> _Distance:
    """Return the quadratic mean of the differences, and the largest."""
    off = np.abs(one.ravel().astype(np.float64) - other.ravel().astype(np.float64))
    return _Distance(float(np.sqrt(np.mean(off**2))), float(off.max()))


def flat(results: Sequence[Array]) -> Array:
    """Return all results of a model as one array of float32."""
    return np.concatenate([np.asarray(r).astype(np.float32).ravel() for r in results])


def load_files(folder: Path) -> Files:
    """Return the inputs of a case."""
    arrays = _arrays(folder / INPUTS)
    return Files(folder, tuple(a.view(ml_dtypes.bfloat16) if a.dtype == np.uint16 else a for a in arrays))


def load_reference(folder: Path) -> ModelReference | NarrowReference:
    """Return what the results of a case are compared with."""
    known, values = about(folder), _arrays(folder / EXPECTED)
    if known["dtype"] in NARROW:
        return NarrowReference(values, _arrays(folder / PLAIN))
    return ModelReference(values, known["depth"], known["terms"])


def _arrays(path: Path) -> tuple[Array, ...]:
    with np.load(path) as stored:
        return tuple(stored[name] for name in stored.files)
