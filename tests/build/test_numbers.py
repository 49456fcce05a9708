"""Right and wrong TensorIR functions, compiled and classified."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qimeng_tvm.check.numbers import Argument, Case, NumbersReport, check_function, check_library, make_cases
from qimeng_tvm.check.tolerance import dot_bound, wrong_elements
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError

tvm = pytest.importorskip("tvm")
from tvm.script import tirx as T  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers and guard pages need Linux")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as w:
        yield w


def double(n: int, dtype: str, loops: int, shift: int = 0, first: int = 0) -> Any:
    """B[i] = A[i + shift] * 2 for i in first..loops."""

    @T.prim_func(s_tir=True)
    def main(a: T.handle, b: T.handle) -> None:
        T.func_attr({"tirx.noalias": True})
        A = T.match_buffer(a, (n,), dtype)
        B = T.match_buffer(b, (n,), dtype)
        for i in range(loops - first):
            with T.sblock("double"):
                v = T.axis.spatial(loops, i + first)
                B[v] = A[v + shift] * T.Cast(dtype, 2)

    return main


def clobber(n: int) -> Any:
    """B = 2 A, and A[5] goes to 0 afterwards."""

    @T.prim_func(s_tir=True)
    def main(A: T.Buffer((n,), "float32"), B: T.Buffer((n,), "float32")) -> None:
        for i in range(n):
            with T.sblock("double"):
                v = T.axis.spatial(n, i)
                B[v] = A[v] * T.float32(2)
        for i in range(1):
            with T.sblock("clobber"):
                v = T.axis.spatial(n, i + 5)
                A[v] = T.float32(0)

    return main


def matmul(n: int, init: bool, dtype: str = "float32") -> Any:
    @T.prim_func(s_tir=True)
    def main(A: T.Buffer((n, n), dtype), B: T.Buffer((n, n), dtype), C: T.Buffer((n, n), dtype)) -> None:
        T.func_attr({"tirx.noalias": True})
        for i, j, k in T.grid(n, n, n):
            with T.sblock("matmul"):
                vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                with T.init():
                    C[vi, vj] = T.Cast(dtype, 0)
                C[vi, vj] = C[vi, vj] + A[vi, vk] * B[vk, vj]

    @T.prim_func(s_tir=True)
    def stale(A: T.Buffer((n, n), dtype), B: T.Buffer((n, n), dtype), C: T.Buffer((n, n), dtype)) -> None:
        T.func_attr({"tirx.noalias": True})
        for i, j, k in T.grid(n, n, n):
            with T.sblock("matmul"):
                vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                C[vi, vj] = C[vi, vj] + A[vi, vk] * B[vk, vj]

    return main if init else stale


def build(function: Any, folder: Path) -> Path:
    path = folder / "f.so"
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    tvm.compile(module, target=tvm.target.Target("llvm")).export_library(str(path))
    return path


def twice(n: int, dtype: str = "float32") -> tuple[tuple[Argument, ...], tuple[Case, ...]]:
    from qimeng_tvm.check.buffers import numpy_dtype

    arguments = (Argument("A", (n,), dtype), Argument("B", (n,), dtype, "out"))
    rng = np.random.default_rng(n)
    inputs = {
        "random": [(rng.integers(1, 50, n)).astype(numpy_dtype(dtype))],
        "ramp": [(np.arange(n) % 50 + 1).astype(numpy_dtype(dtype))],
    }

    def oracle(a: Any) -> list[tuple[Any, float]]:
        exact = a.astype(np.float64) * 2
        return [(exact if "float" in dtype else exact.astype(np.int64), 0.0)]

    return arguments, make_cases(arguments, inputs, oracle)


def product(n: int, dtype: str, role: Any = "out") -> tuple[tuple[Argument, ...], tuple[Case, ...]]:
    arguments = (Argument("A", (n, n), dtype), Argument("B", (n, n), dtype), Argument("C", (n, n), dtype, role))
    rng = np.random.default_rng(1)
    shape = (3 if role == "inout" else 2, n, n)
    arrays = rng.normal(0.5, 1, shape) if dtype == "float32" else rng.integers(-9, 9, shape)

    def oracle(a: Any, b: Any, *c: Any) -> list[tuple[Any, Any]]:
        if dtype == "int32":
            return [(a.astype(np.int64) @ b + (c[0] if c else 0), 0)]
        a, b, extra = a.astype(np.float64), b.astype(np.float64), c[0].astype(np.float64) if c else np.zeros((n, n))
        exact = a @ b + extra
        return [(exact, dot_bound(np.abs(a) @ np.abs(b) + np.abs(extra), exact, n))]

    return arguments, make_cases(arguments, {"random": list(arrays.astype(dtype))}, oracle)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "int32", "float16", "bfloat16"])
@pytest.mark.parametrize("n", [128, 100])
def test_right_in_every_dtype(worker: Worker, tmp_path: Path, dtype: str, n: int) -> None:
    report = check_library(worker, build(double(n, dtype, n), tmp_path), *twice(n, dtype))
    assert report.ok and report.cases == 2, report


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        # 128 floats end on a 64-byte boundary, flush against the guard page; 100 leave a canary of 48 bytes.
        ((128, {"loops": 129}), "crash", "SIGSEGV"),
        ((100, {"loops": 101}), "canary", "outside B: 4 bytes written past the end, the first 0 elements"),
        ((128, {"loops": 128, "shift": 1}), "crash", "guard page at its end"),
        ((100, {"loops": 100, "shift": 1}), "wrong", "outside the buffers"),
        ((128, {"loops": 128, "shift": -1}), "crash", "guard page at its start"),
        ((100, {"loops": 97}), "unwritten", "3 of 100 elements of B were never written, first [97]"),
        ((100, {"loops": 100, "first": 2}), "unwritten", "first [0]"),
    ],
    ids=["write-past", "write-past-canary", "read-past", "read-past-canary", "read-before", "tail", "head"],
)
def test_reaching_outside_and_leaving_out(
    worker: Worker, tmp_path: Path, case: tuple[int, dict[str, int]], kind: str, words: str
) -> None:
    n, options = case
    report = check_library(worker, build(double(n, "float32", **options), tmp_path), *twice(n))
    assert report.kind == kind and words in report.message, report


def test_off_by_one_inside_the_buffer(worker: Worker, tmp_path: Path) -> None:
    arguments, cases = twice(64)
    # The operator reads one element of a longer array late: in bounds, and wrong from the first element on.
    arguments = (Argument("A", (65,), "float32"), arguments[1])
    long = tuple(
        Case(c.label, (np.concatenate([c.inputs[0], [99]]).astype("float32"),), c.expected, c.bounds) for c in cases
    )

    @T.prim_func(s_tir=True)
    def main(A: T.Buffer((65,), "float32"), B: T.Buffer((64,), "float32")) -> None:
        for i in range(64):
            with T.sblock("double"):
                v = T.axis.spatial(64, i)
                B[v] = A[v + 1] * T.float32(2)

    report = check_library(worker, build(main, tmp_path), arguments, long)
    assert report.kind == "wrong" and report.argument == "B" and report.case == "random"
    (i,) = report.index
    assert report.expected == 2 * long[0].inputs[0][i] and report.got == 2 * long[0].inputs[0][i + 1]
    assert "of 64 elements are wrong" in report.message


def test_changed_input(worker: Worker, tmp_path: Path) -> None:
    report = check_library(worker, build(clobber(64), tmp_path), *twice(64))
    assert (report.kind, report.argument, report.index, report.got) == ("input-changed", "A", (5,), 0.0)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_stale_accumulator(worker: Worker, tmp_path: Path, dtype: str) -> None:
    assert check_library(worker, build(matmul(16, True, dtype), tmp_path), *product(16, dtype)).ok
    # At the same path as the right one: a worker must not answer from the library it has loaded already.
    library = build(matmul(16, False, dtype), tmp_path)
    report = check_library(worker, library, *product(16, dtype))
    assert report.kind == "wrong" and "what the output held" in report.message, report
    # The same function is right when it is asked for: C += A @ B.
    assert check_library(worker, library, *product(16, dtype, "inout")).ok


def test_a_function_that_hangs(worker: Worker, tmp_path: Path) -> None:
    def forever(*_: Any) -> np.ndarray[Any, Any]:
        while True:
            pass

    library = build(double(64, "float32", 64), tmp_path)
    assert check_library(worker, library, *twice(64), timeout=8, compare=forever).kind == "timeout"


def test_wrong_signature_is_an_error_not_a_crash(worker: Worker, tmp_path: Path) -> None:
    report = check_library(worker, build(double(64, "float32", 64), tmp_path), *twice(65))
    assert report.kind == "error" and "hape" in report.message, report


def test_a_missing_library_is_an_error(worker: Worker, tmp_path: Path) -> None:
    assert check_library(worker, tmp_path / "none.so", *twice(8)).kind == "error"


# The same checks on plain Python functions: what no compiled function does so easily.


def python(body: Callable[..., None]) -> Callable[..., None]:
    """Give a function of NumPy arrays the calling convention of a compiled one."""
    return lambda *tensors: body(*(np.from_dlpack(t) for t in tensors))


def check(body: Callable[..., None]) -> NumbersReport:
    return check_function(python(body), *twice(24))


def test_python_right() -> None:
    report = check(lambda a, b: np.multiply(a, 2, out=b))
    assert report.ok and report.error_ratio == 0


def test_random_output() -> None:
    rng = np.random.default_rng(0)

    def noisy(a: Any, b: Any) -> None:
        b[:] = a * 2
        b[3] += rng.random()

    report = check(noisy)
    assert report.kind == "not-deterministic" and report.index == (3,)


def test_result_cached_by_its_first_call() -> None:
    kept: list[Any] = []

    def cached(a: Any, b: Any) -> None:
        if not kept:
            kept.append(a * 2)
        b[:] = kept[0]

    report = check(cached)
    assert report.kind == "wrong" and report.case == "random"


def test_result_cached_by_the_address_of_an_input() -> None:
    kept: dict[int, Any] = {}

    def cached(a: Any, b: Any) -> None:
        b[:] = kept.setdefault(a.ctypes.data, a * 2)

    assert check(cached).kind == "wrong"


def test_nan_where_a_number_belongs_and_the_reverse() -> None:
    def nan(a: Any, b: Any) -> None:
        b[:] = a * 2
        b[7] = np.nan

    report = check(nan)
    assert report.kind == "wrong" and report.index == (7,) and np.isnan(report.got or 0.0)
    expected, got = np.array([np.nan, np.inf, -np.inf, 1.0]), np.array([1.0, np.inf, np.inf, np.nan])
    assert wrong_elements(got, expected, np.full(4, 1e30)).tolist() == [True, False, True, True]
    assert not wrong_elements(expected, expected, np.zeros(4)).any()


def test_integers_are_compared_without_overflow() -> None:
    low, high = np.array([-(2**31)], dtype=np.int32), np.array([2**31 - 1], dtype=np.int64)
    assert wrong_elements(low, high, np.zeros(1)).all()


def test_no_cases_is_not_a_pass() -> None:
    with pytest.raises(CheckError, match="no cases"):
        check_function(lambda *_: None, twice(8)[0], [])


def test_cases_must_fit_the_arguments() -> None:
    arguments, cases = twice(8)
    short = Case("short", (), cases[0].expected, cases[0].bounds)
    with pytest.raises(CheckError, match="short"):
        check_function(lambda *_: None, arguments, [short])
    scalar = Case("scalar", cases[0].inputs, (np.float64(1.0).reshape(()),), (0.0,))
    with pytest.raises(CheckError, match="shape"):
        check_function(lambda *_: None, arguments, [scalar])


def test_bound_is_from_dtype_and_depth() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((32, 1024)), rng.random((1024, 32))
    magnitude = a @ b
    sharp, worst = (dot_bound(magnitude, magnitude, 1024, spread=s) for s in (8.0, 0.0))
    assert (sharp < worst).all()
    error = np.abs(
        (a.astype(np.float32) @ b.astype(np.float32)) - a.astype(np.float32).astype(float) @ b.astype(np.float32)
    )
    assert (error < sharp).all()
    # Sums kept in half precision do not pass for single precision.
    half = np.zeros((32, 32), np.float16)
    for k in range(1024):
        half += np.outer(a[:, k], b[k]).astype(np.float16)
    assert (np.abs(half - magnitude) > worst).any()
    assert (dot_bound(magnitude, magnitude, 1024, out="int32") == 0).all()
    assert (dot_bound(magnitude, magnitude, 1024, out="bfloat16") > np.abs(magnitude) * 2.0**-9).all()
