"""Which kinds of functions are understood: each has a reader, which finds the anchor and says what rules ask about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.schedule import analysis, convolution, elementwise, rowwise, windows, winograd
from qimeng_tvm.schedule.contract import BlockInfo


@dataclass(frozen=True)
class Reader:
    """How functions of one kind are read.

    Attributes
    ----------
    kind : str
        Of :class:`BlockInfo`.
    normalize : callable
        ``(schedule) -> anchor``: inlines what surrounds the anchor and returns it, or None when the function is of
        another kind (the schedule is then not used any more). A rule begins with what it leaves.
    describe : callable
        ``(schedule, anchor, func, threads) -> BlockInfo``, or None when rules could not serve it after all.
    """

    kind: str
    normalize: Callable[[s_tir.Schedule], SBlockRV | None]
    describe: Callable[[s_tir.Schedule, SBlockRV, tirx.PrimFunc, int], BlockInfo | None]


#: Asked in this order; the first that understands a function has it.
READERS = (
    Reader("rowwise", rowwise.normalize, rowwise.describe),
    Reader("winograd", winograd.normalize, winograd.describe),
    Reader("matmul", analysis.normalize, analysis.describe),
    Reader("conv2d", convolution.normalize, convolution.describe),
    Reader(windows.DEPTHWISE, windows.normalize_depthwise, windows.describe),
    Reader(windows.POOL, windows.normalize_pool, windows.describe),
    Reader("elementwise", elementwise.normalize, elementwise.describe),
)


def analyze(func: tirx.PrimFunc, threads: int = 1) -> BlockInfo | None:
    """Return what a rule needs to know of ``func``'s anchor, or None when no rule could serve it.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        A fused function: producers, an anchor, elementwise epilogue.
    threads : int
        Cores the operator may use.
    """
    for reader in READERS:
        sch = s_tir.Schedule(func)
        anchor = reader.normalize(sch)
        info = reader.describe(sch, anchor, func, threads) if anchor is not None else None
        if info is not None:
            return info
    return None


def normalize(sch: s_tir.Schedule, kind: str) -> SBlockRV | None:
    """Bring a function of that kind into the form that rules begin with; return the anchor, None when it has none."""
    return next((reader.normalize(sch) for reader in READERS if reader.kind == kind), None)
