"""Build one fused function the way the package does, run it, and look for calls of the C library in its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.script import relax as R

from qimeng_tvm import lowering
from qimeng_tvm.hardware import Hardware, target_of
from qimeng_tvm.relax.prepare import legalize_and_fuse
from qimeng_tvm.schedule import fallback
from qimeng_tvm.schedule.apply import Task, build_schedule, make_task

#: Elementary functions that vector code must not call.
LIBM = re.compile(r"\b(expf?|erff?|tanhf?|logf?|powf?)(@PLT)?$")


@dataclass(frozen=True)
class Built:
    """A compiled function and the task it came from."""

    task: Task | None
    library: Any
    out: tirx.Buffer

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        poison = np.full([int(x) for x in self.out.shape], 77).astype(str(self.out.dtype))
        out = tvm.runtime.tensor(poison)
        self.library["main"](*(tvm.runtime.tensor(x) for x in inputs), out)
        return out.numpy()

    def library_calls(self) -> list[str]:
        """Elementary functions that are called."""
        called = [line.split()[1] for line in self.library.inspect_source("asm").splitlines() if "\tcall" in line]
        return [name for name in called if LIBM.search(name)]


def fused(shapes: Sequence[Any], body: Callable[..., relax.Expr], dtypes: Sequence[str] = ()) -> tirx.PrimFunc:
    """The one PrimFunc that a Relax expression of tensors becomes."""
    kinds = dtypes or ["float32"] * len(shapes)
    params = [relax.Var(f"x{n}", R.Tensor(s, d)) for n, (s, d) in enumerate(zip(shapes, kinds, strict=True))]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(body(*params)))
        builder.emit_func_output(out)
    mod = legalize_and_fuse(builder.finalize(), tvm.target.Target({"kind": "llvm", "num-cores": 1}))
    (func,) = (f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc))
    return func


def build(func: tirx.PrimFunc, threads: int = 1, *, rule: str | None = None, values: Any = None) -> Built:
    """Schedule by rule (which must be that one) or, with ``rule=None``, by the fallback; compile for this machine."""
    hardware = Hardware.host(threads)
    task = make_task(func, hardware, threads) if rule is not None else None
    if rule is not None:
        assert task is not None and task.rule.name == rule
        func = build_schedule(task, values).mod["main"]
    else:
        func = fallback.schedule(func, threads)
    func = func.with_attr("global_symbol", "main")
    library = lowering.build(tvm.IRModule({"main": func}), target_of(hardware, threads))
    return Built(task, library, func.params[-1])


def near(got: np.ndarray, want: np.ndarray, tolerance: float = 2e-6) -> bool:
    """Tell whether results are as close as float32 allows, infinities and NaN in the same places."""
    return np.allclose(got.astype("float64"), want, rtol=tolerance, atol=tolerance, equal_nan=True)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers around 0.3."""
    return np.random.default_rng(seed).normal(0.3, 1, shape).astype("float32")
