"""Hand any memory to TVM as a tensor, without a copy.

NumPy's own DLPack export knows neither bfloat16 (a ``ml_dtypes`` extension type) nor a byte offset; a capsule made
by hand has both, and strides. Ownership: the capsule's record keeps the memory's owner alive until TVM lets go.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import tvm_ffi

from qimeng_tvm.errors import CheckError


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("index", ctypes.c_int))


class _Tensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """``DLManagedTensor`` of dlpack.h; ``context`` is our key into ``_alive``."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_alive: dict[int, Any] = {}
_keys = itertools.count(1)


def _release(managed: Any) -> None:
    _alive.pop(managed.contents.context, None)


_release_pointer = _Deleter(_release)


class _Producer:
    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU


# DLDataTypeCode
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}


def as_tensor(
    address: int, shape: tuple[int, ...], dtype: str, *, strides: tuple[int, ...], owner: object, byte_offset: int = 0
) -> Any:
    """Return a TVM tensor over memory at ``address``.

    Parameters
    ----------
    address : int
        The ``data`` field of the DLTensor.
    shape, strides : tuple of int
        In elements.
    dtype : str
        TVM dtype name.
    owner : object
        Kept alive as long as TVM holds the tensor.
    byte_offset : int
        Where the first element lies after ``address`` (for functions that declare an element offset).
    """
    name = dtype.rstrip("0123456789")
    if name not in _CODES:
        raise CheckError(f"dtype {dtype!r} cannot be handed to TVM; known are {', '.join(_CODES)} with their bits")
    bits = int(dtype[len(name) :] or 8)
    key = next(_keys)
    lengths = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    steps = (ctypes.c_int64 * max(len(shape), 1))(*strides)
    tensor = _Tensor(address, _Device(1, 0), len(shape), _CODES[name], bits, 1, lengths, steps, byte_offset)
    managed = _Managed(tensor, key, _release_pointer)
    _alive[key] = (managed, lengths, steps, owner)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    capsule = new(ctypes.addressof(managed), b"dltensor", None)
    # The kernel, not the import, is what has or lacks an alignment requirement.
    return tvm_ffi.from_dlpack(_Producer(capsule), require_alignment=0)
