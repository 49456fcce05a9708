"""Our own system, as the benchmark sees it: the operator that ``qimeng run`` would make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm

from qimeng_tvm.bench.data import Inputs
from qimeng_tvm.bench.systems import Refusal, Variant
from qimeng_tvm.compiler import Compiled, compile_task
from qimeng_tvm.errors import QimengError
from qimeng_tvm.hardware import Hardware, configure_threads, settle_threads, target_of
from qimeng_tvm.operators import prim_func
from qimeng_tvm.request import Request
from qimeng_tvm.schedule.apply import Task, make_task
from qimeng_tvm.schedule.contract import Value

NAME = "qimeng"
#: Task -> decisions to use; the analytic ones when it returns None.
Choice = Callable[[Task], Mapping[str, Value] | None]


def analytic(task: Task) -> Mapping[str, Value] | None:
    """Use the analytic decisions."""
    return None


@dataclass(frozen=True)
class Qimeng:
    """Our operators, with decisions from ``choice`` (a database, or the analytic defaults)."""

    hardware: Hardware
    choice: Choice = analytic
    name: str = NAME
    isolated: bool = False
    prepare_seconds: float = 300.0
    compiled: Mapping[str, Compiled] = field(default_factory=dict)

    def available(self) -> str | None:
        """See :class:`qimeng_tvm.bench.systems.System`."""
        # TVM's pool keeps the size of its first use: make it before a case pins this process to fewer cores.
        configure_threads(self.hardware.cores)
        return None

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Variant | Refusal:
        """Compile, pack a constant B, and return the call of ``main`` with everything allocated."""
        try:
            _, func = prim_func(request, target_of(self.hardware, threads))
            task = make_task(func, self.hardware, threads)
            if task is None:
                return Refusal(f"no rule for {request.a_dtype} x {request.b_dtype} on this machine")
            compiled = compile_task(task, self.choice(task))
        except QimengError as error:
            return Refusal(str(error))
        return variant_of(compiled, inputs, threads)


def variant_of(compiled: Compiled, inputs: Inputs, threads: int = 1) -> Variant:
    """Return the timed call of a compiled operator on these operands (no epilogue operands)."""
    configure_threads(threads)
    a, b = tensor_of(inputs.a), tensor_of(inputs.b)
    if compiled.operator.packs:
        packed = compiled.pack_parameters[-1]
        room = tvm.runtime.empty(packed.shape, packed.dtype)
        compiled["pack_b"](b, room)
        b = room
    out = compiled.parameters[-1]
    c = tvm.runtime.empty(out.shape, out.dtype)
    main: Any = compiled["main"]
    settled = False

    def call() -> None:
        nonlocal settled
        if not settled:
            # The harness pins all threads of the process to the same cores after preparation: spread them again.
            settle_threads(threads)
            settled = True
        main(a, b, c)

    return Variant(
        call,
        fetch=lambda _: c.numpy(),
        extra={"decisions": dict(compiled.values), "rule": compiled.task.rule.name, "intrins": list(compiled.intrins)},
    )


def tensor_of(array: Any) -> Any:
    """A TVM tensor of the array's values."""
    return tvm.runtime.tensor(array)


def tuned(database: Path, trials: int, seed: int = 0) -> Choice:
    """Choose by tuning each task with ``trials`` measured trials, or from its records when they are there."""

    def choose(task: Task) -> Mapping[str, Value]:
        from qimeng_tvm.search import tune  # noqa: PLC0415 (xgboost and MetaSchedule are needed only here)

        found = tune(task, trials=trials, database_dir=database, hardware=task.hardware,
                     threads=task.info.threads, seed=seed)  # fmt: skip
        return found.values

    return choose
