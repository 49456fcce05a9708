"""TVM without tuning: its default rules for the CPU (dlight), outermost loop parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qimeng_tvm.bench.data import Inputs
from qimeng_tvm.bench.peers import tvmlib
from qimeng_tvm.bench.systems import Offer, Peer, Refusal, Variant
from qimeng_tvm.request import Request


@dataclass(frozen=True)
class TvmDefault(Peer):
    """Plain loops where no rule of dlight applies, so large cases are refused: they take seconds to minutes a call."""

    name: str = "tvm_default"
    max_flops: float = 6e8

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        import tvm  # noqa: PLC0415
        from tvm.s_tir import dlight  # noqa: PLC0415

        flops = 2.0 * request.batch * request.m * request.n * request.k
        if flops > self.max_flops:
            return Refusal(f"left out above {self.max_flops:.0e} operations: plain loops take too long")
        tvmlib.use_threads(threads)
        target = tvmlib.host_target(threads)
        module = tvmlib.product_module(request)
        with target:
            module = dlight.ApplyDefaultSchedule(dlight.cpu.GEMV(), dlight.cpu.Reduction())(module)
        if threads > 1 and "tirx.is_scheduled" not in module["main"].attrs:
            module = _parallel(module)
        library = tvm.compile(module, target=target)
        call, fetch = tvmlib.bind(library, inputs, request)
        return Variant(call, fetch)


def _parallel(module: Any) -> Any:
    from tvm import s_tir  # noqa: PLC0415

    schedule = s_tir.Schedule(module)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        schedule.parallel(schedule.get_loops(block)[0])
    return schedule.mod
