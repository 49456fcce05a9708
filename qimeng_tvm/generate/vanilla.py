"""What the same model writes when it is only asked for a fast C GEMM: the baseline that prompts are compared with.

The code is compiled with the system's compiler and run in the confined worker, checked as operators are, and timed in
turns with the product's own operator for the same request (analytic decisions, nothing tuned).
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError
from qimeng_tvm.generate.answer import code_of
from qimeng_tvm.generate.loop import Judged
from qimeng_tvm.generate.verdict import ACCEPTED
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.llm.messages import Reply
from qimeng_tvm.llm.prompts.render import Prompt, render
from qimeng_tvm.request import Request

#: Operand types of the baseline: TVM's names of A, B and C, C's names, and what they mean.
OPERANDS = {
    "f32": (("float32", "float32", "float32"), ("float", "float", "float"), ""),
    "bf16": (
        ("bfloat16", "bfloat16", "float32"),
        ("uint16_t", "uint16_t", "float"),
        "A and B hold bfloat16 values as their 16 bits; products are summed in float.",
    ),
    "u8s8": (("uint8", "int8", "int32"), ("uint8_t", "int8_t", "int32_t"), "Sums are exact in 32 bits."),
    "s8s8": (("int8", "int8", "int32"), ("int8_t", "int8_t", "int32_t"), "Sums are exact in 32 bits."),
}
#: Sizes that the answer is checked at, beside the one that is timed.
_SHAPES = ((1, 1, 1), (7, 13, 5), (64, 64, 64), (65, 33, 129))
_SIDE = 1024
_SECONDS = 240.0
_STAGES = ("form", "build", "numbers", ACCEPTED)
_C = ("C", "", "c", "h")


@dataclass(frozen=True)
class Vanilla:
    """What came of one answer.

    Attributes
    ----------
    stage : str
        ``form``, ``build``, ``numbers`` or ``accepted``.
    findings : str
        What is wrong; empty when accepted.
    gflops, ours : float
        Speed of the answer and of the product's operator, taken in turns.
    """

    stage: str
    findings: str = ""
    gflops: float = 0.0
    ours: float = 0.0


@dataclass(frozen=True)
class VanillaSubject:
    """A C GEMM to be written from one sentence.

    Attributes
    ----------
    dtype : str
        Key of `OPERANDS`.
    hardware : Hardware
        This machine.
    """

    dtype: str
    hardware: Hardware

    @property
    def label(self) -> str:
        """``vanilla x86.f32``."""
        return f"vanilla {self.hardware.isa}.{self.dtype}"

    @property
    def machine(self) -> str:
        """On what the answers are checked."""
        return f"{self.hardware.name} ({self.hardware.cpu})"

    @cached_property
    def prompt(self) -> Prompt:
        """What the model is told."""
        _, (a, b, c), types = OPERANDS[self.dtype]
        return render("vanilla", {"machine": self.machine, "a": a, "b": b, "c": c, "types": types})

    def judge(self, reply: Reply, timed: bool = True) -> Judged:
        """Check an answer, and time it when it is right."""
        found = self.measure(reply)
        told = found.findings or f"{found.gflops:.1f} GFLOP/s, {found.gflops / found.ours:.3f} of ours"
        return Judged(found.stage, _STAGES.index(found.stage), told, score=found.gflops, enough=found.stage == ACCEPTED)

    def measure(self, reply: Reply) -> Vanilla:
        """Compile, check and time an answer in a worker of its own."""
        answer = code_of(reply.text, reply.truncated, _C)
        if answer.problem:
            return Vanilla("form", answer.problem)
        with Worker(preload=("tvm",)) as worker:
            outcome = worker.call(
                "qimeng_tvm.generate.vanilla:run", (answer.source, self.dtype, self.hardware), _SECONDS
            )
        if outcome.ok:
            found: Vanilla = outcome.value
            return found
        if outcome.kind == "refused":
            raise CheckError(f"the answer could not be checked: {outcome.message}")
        return Vanilla("numbers", f"{outcome.kind}: {outcome.message}")


def _request(dtype: str, m: int, n: int, k: int) -> Request:
    a, b, out = OPERANDS[dtype][0]
    return Request("matmul", m, n, k, a_dtype=a, b_dtype=b, out_dtype=out, threads=1)


def run(source: str, dtype: str, hardware: Hardware) -> Vanilla:
    """Compile, check and time: what runs in the worker."""
    path, problem = _compiled(source)
    if problem:
        return Vanilla("build", problem)
    gemm = ctypes.CDLL(str(path)).gemm
    gemm.restype, gemm.argtypes = None, [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3
    for shape in (*_SHAPES, (_SIDE, _SIDE, _SIDE)):
        wrong = _wrong(gemm, _request(dtype, *shape))
        if wrong:
            return Vanilla("numbers", f"{'x'.join(map(str, shape))}: {wrong}")
    theirs, ours = _timed(gemm, _request(dtype, _SIDE, _SIDE, _SIDE), hardware)
    return Vanilla(ACCEPTED, "", theirs, ours)


def _compiled(source: str) -> tuple[Path, str]:
    path = Path("vanilla.so").resolve()
    path.with_suffix(".c").write_text(source, encoding="utf-8")
    command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", str(path), str(path.with_suffix(".c")), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    return path, "" if done.returncode == 0 else "; ".join(errors[:4]) or "cc failed"


def _wrong(gemm: Callable[..., None], request: Request) -> str:
    """Check one shape between guard pages; empty when right."""
    from qimeng_tvm.check.numbers import Argument, Case, check_function  # noqa: PLC0415 (only in the worker)
    from qimeng_tvm.check.tolerance import wrong_elements  # noqa: PLC0415
    from qimeng_tvm.numerics import make_inputs, oracle, tolerance  # noqa: PLC0415

    inputs = make_inputs(request, 0)
    arguments = [
        Argument("A", request.a_shape, request.a_dtype),
        Argument("B", request.b_shape, request.b_dtype),
        Argument("C", (request.m, request.n), request.out_dtype, "out"),
    ]
    case = Case("normal, seed 0", (inputs["A"], inputs["B"]), (oracle(request, inputs),), (tolerance(request, inputs),))
    report = check_function(_on_tensors(gemm, request), arguments, [case], wrong_elements)
    return "" if report.ok else report.message


def _on_tensors(gemm: Callable[..., None], request: Request) -> Callable[..., None]:
    return lambda *tensors: gemm(request.m, request.n, request.k, *(t.data_ptr() for t in tensors))


def _timed(gemm: Callable[..., None], request: Request, hardware: Hardware) -> tuple[float, float]:
    """GFLOP/s of the answer and of ours, in turns."""
    import tvm  # noqa: PLC0415 (only in the worker)

    from qimeng_tvm.bench.timing import FULL, Sample, interleave_calmly, time_calls  # noqa: PLC0415
    from qimeng_tvm.compiler import compile_task  # noqa: PLC0415
    from qimeng_tvm.hardware import configure_threads, target_of  # noqa: PLC0415
    from qimeng_tvm.numerics import flops, make_inputs  # noqa: PLC0415
    from qimeng_tvm.operators import prim_func  # noqa: PLC0415
    from qimeng_tvm.schedule.apply import make_task  # noqa: PLC0415

    configure_threads(1)
    task = make_task(prim_func(request, target_of(hardware, 1))[1], hardware, 1)
    if task is None:
        raise CheckError(f"no rule for {request.a_dtype} x {request.b_dtype} on {hardware.name}")
    inputs = make_inputs(request, 0)
    a, b = (tvm.runtime.tensor(inputs[x]) for x in ("A", "B"))
    c = tvm.runtime.empty((request.m, request.n), request.out_dtype)
    main, theirs = compile_task(task)["main"], _on_tensors(gemm, request)
    calls: dict[str, Callable[[], Any]] = {"theirs": lambda: theirs(a, b, c), "ours": lambda: main(a, b, c)}

    def sampler(call: Callable[[], Any]) -> Callable[[int], float]:
        return lambda inner: time_calls(call, inner)

    found, _ = interleave_calmly({name: sampler(call) for name, call in calls.items()}, FULL)
    speeds = [flops(request) / s.seconds_median / 1e9 for s in found.values() if isinstance(s, Sample)]
    if len(speeds) != len(calls):
        raise CheckError("the operators could not be timed")
    return speeds[0], speeds[1]
