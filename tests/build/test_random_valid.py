"""Random valid (shape, dtype, layout, decisions) are computed rightly; ``scripts/fuzz.py`` runs any number of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("tvm")

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.fuzz import FuzzCase, random_request, run_case, run_random
from qimeng_tvm.hardware import host
from qimeng_tvm.request import describe, parse, validate

COUNT, SEED = 40, 20261

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")


#: What a random case once found wrong (the audit's choice of the hot loop, and its view of the runtime's calls).
FOUND = [
    (
        "s8s8 matmul M=3 N=37 K=19 batch=3, A transposed, constant B, with bias then relu, 1 thread",
        {"micro_kernel": "3x2", "kc": 4, "nc": 32, "inner_order": "m", "pack_a": "whole", "unroll": 4},
    ),
    (
        "u8s8 matmul M=17 N=48 K=8, B transposed, constant B, with relu then bias, 2 threads",
        {"mc": 16, "nc": 16, "order": "m", "inner_order": "m", "pack_a": "whole", "parallel": "yes"},
    ),
]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(preload=("tvm", "qimeng_tvm.fuzz", "qimeng_tvm.verify")) as w:
        yield w


@pytest.mark.parametrize("number", range(COUNT))
def test_random_case_is_right(worker: Worker, number: int) -> None:
    result = run_random(worker, SEED, number, host().cores)
    if "no rule serves" in result.message:
        pytest.skip(result.message)
    assert result.ok, f"{result.kind}: {result.message}\n{result.case.reproducer}"


@pytest.mark.parametrize(("line", "values"), FOUND, ids=[line for line, _ in FOUND])
def test_found_before(worker: Worker, line: str, values: dict[str, int | str]) -> None:
    request = parse(line)
    if (request.threads or 1) > host().cores:
        pytest.skip(f"needs {request.threads} cores")
    result = run_case(worker, FuzzCase(request, values))
    assert result.ok, f"{result.kind}: {result.message}"


def test_requests_are_valid_varied_and_reproducible() -> None:
    drawn = [random_request(np.random.default_rng([SEED, i]), 2) for i in range(300)]
    assert drawn == [random_request(np.random.default_rng([SEED, i]), 2) for i in range(300)]
    for request in drawn:
        assert parse(describe(validate(request))) == request
    for name in ("transpose_a", "transpose_b", "constant_b", "threads"):
        assert len({getattr(r, name) for r in drawn}) == 2, name
    assert {1, 2, 3} == {r.batch for r in drawn} and len({r.epilogue for r in drawn}) == 5
    assert len({(r.a_dtype, r.out_dtype) for r in drawn}) == 5
    assert min(r.m for r in drawn) == min(r.n for r in drawn) == min(r.k for r in drawn) == 1


def test_illegal_decisions_are_refused_not_run(worker: Worker) -> None:
    request = parse("f32 gemm 13x40x101 NT variable B 1 thread")
    result = run_case(worker, FuzzCase(request, {"pack_b": "none"}))
    assert result.kind == "refused" and "pack" in result.message
    assert "--values" in result.case.reproducer and describe(request) in result.case.reproducer
