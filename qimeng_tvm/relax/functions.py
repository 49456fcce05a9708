"""The fused functions of a model: how often each is called, and which rule serves it, or why none does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm import relax, s_tir, tirx

from qimeng_tvm.errors import ModelError, last_words
from qimeng_tvm.hardware import Hardware, target_of
from qimeng_tvm.relax.prepare import legalize_and_fuse
from qimeng_tvm.relax.rewriting import is_constant, shape_of
from qimeng_tvm.relax.slicing import together_of
from qimeng_tvm.schedule.analysis import is_reduction, root_blocks
from qimeng_tvm.schedule.apply import L3, MEMORY, NEAR, REFUSALS, Task, make_task
from qimeng_tvm.schedule.readers import analyze
from qimeng_tvm.search.records import task_key

_CALLS = ("relax.call_tir", "relax.call_tir_inplace")


@dataclass(frozen=True)
class ModelFunction:
    """One fused function of a model.

    Attributes
    ----------
    name : str
        In the fused module; of several that are the same operator, the first one's.
    calls : int
        How often one run of the model calls it; both branches of a condition count.
    task : Task or None
        What can be tuned of it.
    why : str
        Why no rule serves it; empty when one does.
    """

    name: str
    calls: int
    task: Task | None
    why: str = ""


def functions_of(model: tvm.IRModule, hardware: Hardware, threads: int = 1) -> tuple[ModelFunction, ...]:
    """Take a model through the passes of the one-line path and return the functions that it becomes.

    Functions that are the same operator are one, with the sum of their calls.

    Parameters
    ----------
    model : tvm.IRModule
        Relax functions; weights are constants, or the parameters behind ``num_input``.
    hardware : Hardware
        The machine.
    threads : int
        Cores that an operator may use.

    Raises
    ------
    ModelError
        If TVM cannot legalize or fuse it.
    """
    try:
        fused = legalize_and_fuse(model, target_of(hardware, threads))
    except REFUSALS as error:
        raise ModelError(f"TVM cannot legalize the model ({last_words(error)})") from error
    return functions_in(fused, hardware, threads)


def functions_in(fused: tvm.IRModule, hardware: Hardware, threads: int) -> tuple[ModelFunction, ...]:
    """Return the functions of a fused module, those that are the same operator as one; see :func:`functions_of`."""
    calls, weights = calls_of(fused), weights_of(fused, hardware, threads)
    found: dict[str, ModelFunction] = {}
    for gv, func in fused.functions.items():
        if not isinstance(func, tirx.PrimFunc):
            continue
        name = str(gv.name_hint)
        for part, times, cores in _parts(func, threads):
            task, why = served(part, hardware, cores, weights)
            key = name if task is None else task_key(task)
            first = found.get(key)
            count = calls.get(name, 0) * times + (first.calls if first else 0)
            found[key] = ModelFunction(first.name if first else name, count, task, why)
    return tuple(f for f in found.values() if f.calls)


def _parts(func: tirx.PrimFunc, threads: int) -> list[tuple[tirx.PrimFunc, int, int]]:
    """Return what rules serve of a function, itself or its parts: how often in turns, and on how many cores."""
    together = together_of(func)
    if together is None:
        return [(func, 1, threads)]
    return [(part, math.ceil(together.slices / threads), 1) for part in together.parts]


def calls_of(module: tvm.IRModule) -> Mapping[str, int]:
    """Return how often one run of the module's public functions, each of them once, calls every function."""
    inner = {str(gv.name_hint): _calls_in(f) for gv, f in module.functions.items() if isinstance(f, relax.Function)}
    public = [str(gv.name_hint) for gv, f in module.functions.items() if "global_symbol" in (f.attrs or {})]
    total: dict[str, int] = {}

    def visit(name: str, times: int, path: tuple[str, ...]) -> None:
        for callee, count in inner[name].items():
            total[callee] = total.get(callee, 0) + times * count
            if callee in inner and callee not in path:
                visit(callee, times * count, (*path, callee))

    for name in [n for n in public if n in inner] or list(inner):
        visit(name, 1, (name,))
    return total


def _calls_in(function: relax.Function) -> dict[str, int]:
    found: dict[str, int] = {}

    def visit(expr: relax.Expr) -> None:
        if not isinstance(expr, relax.Call):
            return
        callee = expr.args[0] if isinstance(expr.op, tvm.ir.Op) and str(expr.op.name) in _CALLS else expr.op
        if isinstance(callee, tvm.ir.GlobalVar):
            found[str(callee.name_hint)] = found.get(str(callee.name_hint), 0) + 1

    relax.analysis.post_order_visit(function, visit)
    return found


def weights_of(module: tvm.IRModule, hardware: Hardware, threads: int) -> str:
    """Tell where the weights of a model's operators are when a run of it comes to them; see :class:`Task`.

    What counts is all that a run reads: constants, and parameters of known shape.
    """
    tensors: set[relax.Expr] = set()

    def visit(expr: relax.Expr) -> None:
        if is_constant(expr):
            tensors.add(expr)

    for function in (f for f in module.functions.values() if isinstance(f, relax.Function)):
        relax.analysis.post_order_visit(function, visit)
        tensors.update(p for p in function.params if shape_of(p) is not None)
    read = sum(math.prod(shape_of(x) or ()) * tvm.DataType(str(x.ty.dtype)).itemsize for x in tensors)
    if read <= hardware.cache(2).size * threads:
        return NEAR
    return L3 if read <= hardware.cache(3).size else MEMORY


def served(func: tirx.PrimFunc, hardware: Hardware, threads: int, weights: str = NEAR) -> tuple[Task | None, str]:
    """Return the task of a function, or None and why no rule serves it; ``weights`` as in :class:`Task`."""
    extents = [x for p in func.params for x in getattr(p, "shape", ())]
    if not all(isinstance(x, tirx.IntImm) for x in extents):
        return None, "symbolic shapes"
    try:
        task = make_task(func, hardware, threads, weights)
        return (task, "") if task is not None else (None, _why(func, hardware, threads))
    except REFUSALS as error:
        told = (str(error).splitlines() or [""])[0][:100]
        return None, f"not understood ({type(error).__name__}: {told})"


def _why(func: tirx.PrimFunc, hardware: Hardware, threads: int) -> str:
    info = analyze(func, threads)
    if info is not None:
        return f"no rule or intrinsic for {info.operator} on {hardware.name}"
    sch = s_tir.Schedule(func)
    reductions = sum(is_reduction(sch, block) for block in root_blocks(sch))
    if reductions > 1:
        return "several reductions, of no kind that a rule knows"
    return (
        "its reduction is of no kind that a rule knows" if reductions else "its blocks are of no kind that a rule knows"
    )
