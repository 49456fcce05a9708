"""Guarded arrays: layout, canaries, poison, and the way into TVM."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

import numpy as np
import pytest

from qimeng_tvm.check.buffers import ALIGNMENT, PAGE, GuardedArray, numpy_dtype, poison_bits
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int32", "bool"]
PLACES: list[Any] = ["end", "start"]


def values(shape: tuple[int, ...], dtype: str) -> Any:
    return (np.arange(np.prod(shape)).reshape(shape) % 100).astype(numpy_dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (16, 64), (1025,)])
def test_holds_values_and_is_clean(dtype: str, place: Any, shape: tuple[int, ...]) -> None:
    a = GuardedArray(shape, dtype, place=place)
    a.fill(values(shape, dtype))
    np.testing.assert_array_equal(a.array, values(shape, dtype))
    assert a.check() == () and a.address % ALIGNMENT == 0 and a.address == a.array.ctypes.data


@pytest.mark.parametrize("place", PLACES)
def test_flush_against_the_guard_page(place: Any) -> None:
    a = GuardedArray((16, 16), "float32", place=place)
    edge = a.address + a.nbytes if place == "end" else a.address
    assert edge % PAGE == 0


@pytest.mark.parametrize("misalign", [4, 12, 32, 60])
@pytest.mark.parametrize("place", PLACES)
def test_misaligned(misalign: int, place: Any) -> None:
    a = GuardedArray((7, 9), "float32", place=place, misalign=misalign)
    assert a.address % ALIGNMENT == misalign
    a.fill(values((7, 9), "float32"))
    assert a.check() == ()


@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("where", "word"), [(-1, "before the start"), (35, "past the end")])
def test_one_byte_outside_is_seen(dtype: str, place: Any, where: int, word: str) -> None:
    a = GuardedArray((5, 7), dtype, place=place, misalign=0)
    if place == "start" and where < 0:
        pytest.skip("that byte is in the guard page")
    at = a.address + where * a.array.dtype.itemsize
    byte = ctypes.c_uint8.from_address(at)
    byte.value ^= 1
    (problem,) = a.check()
    assert word in problem and (("the nearest 1 elements" in problem) if where < 0 else ("the first 0" in problem))
    byte.value ^= 1
    assert a.check() == ()


def test_rows_with_a_pitch_have_canaries_between() -> None:
    a = GuardedArray((4, 6), "float32", strides=(9, 1))
    a.fill(values((4, 6), "float32"))
    assert a.check() == ()
    ctypes.c_float.from_address(a.address + 4 * 7).value = 1.0
    (problem,) = a.check()
    assert "between rows" in problem and "flat element 7" in problem


@pytest.mark.parametrize("dtype", DTYPES)
def test_poison_is_told_from_values(dtype: str) -> None:
    a = GuardedArray((8, 3), dtype)
    for which in (0, 1):
        a.poison(which)
        assert a.poisoned(which).all() and not a.poisoned(1 - which).any()
    if dtype.startswith(("float", "bfloat")):
        a.poison(0)
        assert np.isnan(a.array.astype(np.float64)).all()
        a.poison(1)
        assert np.isfinite(a.array.astype(np.float64)).all()
    a.array[2, 1] = a.array.dtype.type(1 - poison_bits("bool", 1)) if dtype == "bool" else a.array.dtype.type(3)
    assert (~a.poisoned(1)).sum() == 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_float_canaries_are_nan_and_differ_by_seed(dtype: str) -> None:
    a, b = GuardedArray((3,), dtype, seed=1), GuardedArray((3,), dtype, seed=2)
    item = a.array.dtype.itemsize
    tails = [np.frombuffer(ctypes.string_at(x.address + 3 * item, 4 * item), a.array.dtype) for x in (a, b)]
    assert all(np.isnan(t.astype(np.float64)).all() for t in tails)
    assert tails[0].tobytes() != tails[1].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_shares_memory(dtype: str) -> None:
    a = GuardedArray((3, 5), dtype)
    a.fill(values((3, 5), dtype))
    t = a.tensor()
    assert str(t.dtype) == dtype and tuple(t.shape) == (3, 5) and t.data_ptr() == a.address
    a.array[1, 2] = a.array.dtype.type(1)
    assert ctypes.string_at(t.data_ptr(), a.nbytes) == a.array.tobytes()


def test_tensor_keeps_memory_alive() -> None:
    t = GuardedArray((1024,), "float32").tensor()
    gc.collect()
    ctypes.memset(t.data_ptr(), 0, 4096)
    assert ctypes.string_at(t.data_ptr(), 4096) == bytes(4096)


def test_memory_is_given_back() -> None:
    from qimeng_tvm.check import dlpack

    before = len(dlpack._alive)
    t = GuardedArray((4,), "int8").tensor()
    assert len(dlpack._alive) == before + 1
    del t
    gc.collect()
    assert len(dlpack._alive) == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (3,), "dtype": "float32", "misalign": 3},
        {"shape": (3,), "dtype": "float32", "misalign": 64},
        {"shape": (0,), "dtype": "float32"},
        {"shape": (3, 3), "dtype": "float32", "strides": (3,)},
        {"shape": (3,), "dtype": "no_such"},
    ],
)
def test_bad_requests(arguments: dict[str, Any]) -> None:
    with pytest.raises(CheckError):
        GuardedArray(**arguments)


def test_values_of_another_dtype_are_not_cast_silently() -> None:
    with pytest.raises(CheckError, match="cast them first"):
        GuardedArray((3,), "float32").fill(np.zeros(3))


def touch(place: Any, step: int, write: bool, misalign: int = 0) -> int:
    a = GuardedArray((16, 4), "float32", place=place, misalign=misalign)
    at = a.address + (a.nbytes if step > 0 else -1)
    byte = ctypes.c_uint8.from_address(at)
    if write:
        byte.value = 1
    return int(byte.value)


@pytest.mark.parametrize("write", [False, True])
def test_guard_pages_bite(write: bool) -> None:
    with Worker(preload=()) as w:
        for place, step in (("end", 1), ("start", -1)):
            outcome = w.call(touch, (place, step, write), timeout=60)
            assert outcome.kind == "crash" and "SIGSEGV" in outcome.message
            # On the other side there is a canary, which may be read.
            assert w.call(touch, (place, -step, False), timeout=60).ok
