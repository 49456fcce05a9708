"""Random valid operators: any shape, dtype, layout and legal decisions must schedule, build and compute rightly.

Everything happens in a worker: a case that makes TVM or LLVM abort or hang is a failure like any other.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qimeng_tvm.check.numbers import NumbersReport
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import BuildError, CheckError, ScheduleError
from qimeng_tvm.request import Request, describe

if TYPE_CHECKING:
    from qimeng_tvm.schedule.apply import Task
    from qimeng_tvm.schedule.contract import SearchSpace, Value

_DTYPES = (
    ("float32", "float32", "float32"),
    ("bfloat16", "bfloat16", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("uint8", "int8", "int32"),
    ("int8", "int8", "int32"),
)
_EPILOGUES = ((), (), ("bias",), ("relu",), ("bias", "relu"), ("relu", "bias"))
#: Tile sizes; extents are drawn at, just below and just above them, among primes, and anywhere.
_TILES = (2, 3, 4, 6, 8, 12, 14, 16, 24, 32, 48, 64, 96)
_PRIMES = (1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 53, 67, 83, 97, 101, 113, 127)
_DEEP = (128, 131, 192, 255, 256, 257, 300, 384, 509, 512, 521, 768, 1021)
_TRIES = 3000


@dataclass(frozen=True)
class FuzzCase:
    """An operator and the decisions to make it with."""

    request: Request
    values: Mapping[str, int | str]

    @property
    def reproducer(self) -> str:
        """Command that runs this case alone."""
        return f"python scripts/fuzz.py --line '{describe(self.request)}' --values '{json.dumps(dict(self.values))}'"


@dataclass(frozen=True)
class FuzzResult:
    """What came of a case.

    ``kind`` is that of its numbers (``ok``, ``wrong``, ``crash``...), ``refused`` (TVM or the rule would not take
    decisions that the space calls legal), ``build`` (it does not compile), or ``audit`` (right numbers, wrong machine
    code).
    """

    case: FuzzCase
    kind: str
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return self.kind == "ok"


def random_request(rng: np.random.Generator, cores: int = 1) -> Request:
    """Draw an operator: small, with extents where edges are."""
    a, b, out = _DTYPES[rng.integers(len(_DTYPES))]
    return Request(
        "matmul",
        _extent(rng),
        _extent(rng),
        int(rng.choice(_DEEP)) if rng.random() < 0.25 else _extent(rng),
        batch=int(rng.choice((1, 1, 1, 2, 3))),
        a_dtype=a,
        b_dtype=b,
        out_dtype=out,
        transpose_a=bool(rng.random() < 0.4),
        transpose_b=bool(rng.random() < 0.4),
        constant_b=bool(rng.random() < 0.4),
        epilogue=_EPILOGUES[rng.integers(len(_EPILOGUES))],
        threads=int(rng.integers(1, min(cores, 2) + 1)),
    )


def _extent(rng: np.random.Generator) -> int:
    draw = rng.random()
    if draw < 0.3:
        return int(rng.choice(_PRIMES))
    if draw < 0.8:
        return max(1, int(rng.choice(_TILES)) * int(rng.integers(1, 3)) + int(rng.integers(-1, 2)))
    return int(rng.integers(1, 150))


def random_values(rng: np.random.Generator, space: SearchSpace) -> dict[str, Value]:
    """Draw legal decisions, every candidate of each as likely; now and then the analytic ones."""
    if rng.random() < 0.1:
        return space.defaults()
    for _ in range(_TRIES):
        values = {d.name: d.candidates[int(rng.integers(len(d.candidates)))] for d in space.decisions}
        if space.illegal(values) is None:
            return values
    return space.defaults()


@lru_cache(maxsize=4)
def _task(request: Request) -> Task:
    from qimeng_tvm.hardware import host, target_of  # noqa: PLC0415 (they import TVM: in the worker only)
    from qimeng_tvm.operators import prim_func  # noqa: PLC0415
    from qimeng_tvm.schedule.apply import make_task  # noqa: PLC0415

    hardware, threads = host(), request.threads or 1
    task = make_task(prim_func(request, target_of(hardware, threads))[1], hardware, threads)
    if task is None:
        raise ScheduleError(f"no rule serves {describe(request)} on {hardware.name}")
    return task


def draw_values(request: Request, seed: tuple[int, ...]) -> dict[str, Value]:
    """Draw decisions for a request: what runs in the worker."""
    return random_values(np.random.default_rng(seed), _task(request).space)


def check_case(request: Request, values: Mapping[str, Value]) -> tuple[str, str]:
    """Schedule, build and check a case: what runs in the worker."""
    from qimeng_tvm.compiler import compile_task, export_library  # noqa: PLC0415
    from qimeng_tvm.verify import OperatorSpec, check_code, run_cases  # noqa: PLC0415

    _stage("scheduling and building")
    try:
        compiled = compile_task(_task(request), values)
    except ScheduleError as error:
        return "refused", str(error)
    except BuildError as error:
        return "build", str(error)
    with tempfile.TemporaryDirectory() as folder:
        path = export_library(compiled.library, Path(folder) / "operator.so")
        _stage("running")
        report: NumbersReport = run_cases(
            OperatorSpec(str(path), request, compiled.parameters, compiled.pack_parameters)
        )
        if not report.ok:
            return report.kind, report.message
        code = check_code(compiled, path)
    return ("ok", "") if code.ok else ("audit", "; ".join(code.problems))


def _stage(text: str) -> None:
    # If the process dies, this line is in the worker's message.
    print(text, file=sys.stderr, flush=True)


def run_case(worker: Worker, case: FuzzCase, timeout: float = 120.0) -> FuzzResult:
    """Check a case in a worker.

    Raises
    ------
    CheckError
        If the worker would not take the job.
    """
    outcome = worker.call("qimeng_tvm.fuzz:check_case", (case.request, dict(case.values)), timeout)
    if outcome.kind == "refused":
        raise CheckError(f"{case.reproducer} could not be checked: {outcome.message}")
    kind, message = outcome.value if outcome.ok else (outcome.kind, outcome.message)
    return FuzzResult(case, kind, message)


def run_random(worker: Worker, seed: int, number: int, cores: int, timeout: float = 120.0) -> FuzzResult:
    """Draw case ``number`` of a seed and check it; the same two numbers on the same machine give the same case."""
    request = random_request(np.random.default_rng([seed, number]), cores)
    drawn = worker.call("qimeng_tvm.fuzz:draw_values", (request, (seed, number, 1)), timeout)
    if drawn.kind == "refused":
        raise CheckError(f"decisions of {describe(request)} could not be drawn: {drawn.message}")
    if not drawn.ok:
        return FuzzResult(FuzzCase(request, {}), drawn.kind, drawn.message)
    return run_case(worker, FuzzCase(request, drawn.value), timeout)
