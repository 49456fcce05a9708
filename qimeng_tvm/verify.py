"""Check a compiled operator from outside: numbers in a worker, then its machine code."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.check.audit import AuditReport, audit
from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.check.numbers import Argument, Case, NumbersReport, check_function, load_private
from qimeng_tvm.check.tolerance import wrong_elements
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.compiler import Compiled, Tensor
from qimeng_tvm.errors import CheckError
from qimeng_tvm.hardware import configure_threads
from qimeng_tvm.intrin import IntrinName, family
from qimeng_tvm.numerics import flops, make_inputs, oracle, tolerance
from qimeng_tvm.request import Request
from qimeng_tvm.schedule.prepack import MAIN, PACK

#: (kind of inputs, seed): random with a mean, extremes that saturate, and exact small values.
CASES = (("normal", 0), ("extreme", 1), ("small", 2), ("normal", 3))
#: Above this many operations two cases are enough to keep a check within seconds.
_LARGE = 4e9
#: What the cores do to each other shows in some runs only: checks of one case, and seconds that they take, unless so
#: many checks take longer; and seconds that no case exceeds.
_RACES, _RACE_SECONDS, _RACE_LIMIT = 12, 0.3, 2.0


@dataclass(frozen=True)
class OperatorSpec:
    """What a worker needs to check an operator, as plain data.

    Attributes
    ----------
    library : str
        Path of the shared library.
    request : Request
        What it should compute.
    parameters, pack_parameters : tuple of Tensor
        Of ``main`` and of ``pack_b`` (empty when B is not packed beforehand).
    """

    library: str
    request: Request
    parameters: tuple[Tensor, ...]
    pack_parameters: tuple[Tensor, ...]


def check_numbers(worker: Worker, spec: OperatorSpec, timeout: float = 300.0) -> NumbersReport:
    """Run every case of an operator in the worker; a crash or a hang is a report, not an exception.

    Raises
    ------
    CheckError
        If the worker would not take the job.
    """
    outcome = worker.call("qimeng_tvm.verify:run_cases", (spec,), timeout)
    if outcome.kind == "refused":
        raise CheckError(f"the numbers of {spec.library} could not be checked: {outcome.message}")
    if outcome.ok:
        report: NumbersReport = outcome.value
        return report
    return NumbersReport(outcome.kind, outcome.message)


def run_cases(spec: OperatorSpec) -> NumbersReport:
    """Check every case: what runs in the worker."""
    configure_threads(spec.request.threads or 1)
    library = load_private(spec.library)
    cases = CASES[:2] if flops(spec.request) > _LARGE else CASES
    report = NumbersReport("ok")
    checked, worst = 0, 0.0
    for kind, seed in cases:
        inputs = make_inputs(spec.request, seed, kind)
        arrays = [inputs["A"], inputs["B"], *([inputs["bias"]] if "bias" in inputs else [])]
        if spec.pack_parameters:
            packed = _pack(library[PACK], spec.pack_parameters, arrays[1], kind)
            if isinstance(packed, NumbersReport):
                return packed
            arrays[1] = packed
        case = Case(
            f"{kind}, seed {seed}",
            tuple(arrays),
            (oracle(spec.request, inputs),),
            (tolerance(spec.request, inputs),),
        )
        report = _checked(library[MAIN], spec, case)
        if not report.ok:
            return report
        checked, worst = checked + report.cases, max(worst, report.error_ratio)
    return NumbersReport("ok", cases=checked, error_ratio=worst)


def _checked(main: Callable[..., Any], spec: OperatorSpec, case: Case) -> NumbersReport:
    """Check one case; on several cores again and again, until a race would have shown."""
    start, runs = time.monotonic(), 0
    while True:
        report = check_function(main, _arguments(spec.parameters), [case], wrong_elements)
        runs, seconds = runs + 1, time.monotonic() - start
        enough = (runs >= _RACES and seconds > _RACE_SECONDS) or seconds > _RACE_LIMIT
        if not report.ok or enough or (spec.request.threads or 1) == 1:
            return report


def _arguments(tensors: tuple[Tensor, ...]) -> list[Argument]:
    *inputs, out = tensors
    return [Argument(t.name, t.shape, t.dtype) for t in inputs] + [Argument(out.name, out.shape, out.dtype, "out")]


def _pack(
    func: Callable[..., Any], tensors: tuple[Tensor, ...], b: np.ndarray, kind: str
) -> np.ndarray | NumbersReport:
    """Pack B under the same guards: every element written, nothing else touched, the same twice."""
    seen: list[np.ndarray] = []

    def compare(got: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> np.ndarray:
        seen.append(np.array(got).astype(numpy_dtype(tensors[-1].dtype)))
        return np.zeros(got.shape, bool)

    out = tensors[-1]
    blank = np.zeros(out.shape, numpy_dtype(out.dtype))
    case = Case(f"packing, {kind}", (b,), (blank,), (0.0,))
    report = check_function(func, _arguments(tensors), [case], compare)
    return seen[-1] if report.ok else report


def check_code(compiled: Compiled, library: Path) -> AuditReport:
    """Audit the final library: the micro-kernel's instructions are there, nothing outside is called."""
    info = compiled.task.info
    return audit(library, mnemonics_of(compiled.intrins, info.n, info.k))


def mnemonics_of(intrins: Sequence[str], n: int, k: int) -> tuple[str, ...]:
    """Return what the audit must find in an operator of N columns and depth K made with these intrinsics."""
    mnemonics: dict[str, None] = {}
    for name in intrins:
        owner = family(IntrinName.parse(name).key)
        # LLVM folds the accumulation of one or two steps into the products; the products must be there.
        folded = k <= 2 * owner.k_pack
        # Of fewer columns than a vector has lanes LLVM computes no more than there are, with scalar instructions too.
        narrow = n < owner.lanes
        mnemonics |= {} if narrow else dict.fromkeys(owner.mnemonics[:1] if folded else owner.mnemonics)
    return tuple(mnemonics)
