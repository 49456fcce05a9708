"""What a blocking asks of registers and caches: for the cost model, and for telling what limits a point.

The working sets are those of :mod:`qimeng_tvm.schedule.estimate`, each beside the cache that should hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule.blocking import GemmPlan, gemm_plan
from qimeng_tvm.schedule.contract import BlockInfo, Values
from qimeng_tvm.schedule.estimate import WIDTH, footprint, gemm_cycles, tile_cycles

#: Decisions without which a point is no blocking.
_NEEDS = frozenset(("family", "micro_kernel", "kc", "mc", "nc", "pack_a", "pack_b", "order", "inner_order"))


@dataclass(frozen=True)
class Pressure:
    """What one point asks for; shares are of what the machine has, and may exceed 1.

    Attributes
    ----------
    registers : float
        Of the vector registers, those that hold sums, operands and scratch.
    l1, l2, l3 : float
        Of each cache, the working set that should stay in it: the panel that tiles share, the block swept past it, what
        all blocks of C share.
    padding : float
        Of all multiply-adds, those on padding.
    packing : float
        Bytes written by packing at run time, for each multiply-add (padding included).
    calls : float
        Micro-kernel calls for each million multiply-adds.
    kernel : float
        Of the micro-kernel's cycles, those that its multiply-adds alone would take.
    chunks : float
        Pieces of work for each core that shares it.
    cycles : float
        The whole estimate.
    """

    registers: float
    l1: float
    l2: float
    l3: float
    padding: float
    packing: float
    calls: float
    kernel: float
    chunks: float
    cycles: float


def plan_of(values: Values, info: BlockInfo) -> GemmPlan | None:
    """Return the loops of a blocking's decisions; None when they are not a blocking's."""
    from qimeng_tvm.intrin import families  # noqa: PLC0415 (it imports TVM)

    family = families().get(str(values.get("family", "")))
    if family is None or not set(values) >= _NEEDS:
        return None
    return gemm_plan(info, (family,), values.__getitem__)


def pressure_of(info: BlockInfo, plan: GemmPlan, hardware: Hardware) -> Pressure:
    """Return what a plan asks of a machine."""
    f = footprint(info, plan)
    family = plan.family
    held = plan.mr * plan.nv + min(plan.mr, plan.nv) + 1 + family.scratch + plan.nv * family.scratch_columns
    if plan.inner_order == "n":
        kept, swept = f.b_panel, f.a_block
    else:
        kept, swept = f.a_panel, f.b_block
    shared = (f.a_all + f.b_block if plan.order == "n" else f.b_all + f.a_block) / plan.k_blocks
    computed = float(plan.padded_m) * plan.padded_n * plan.padded_k
    packed = (f.a_all if plan.pack_a in ("whole", "block") else 0.0) + (
        f.b_all if plan.pack_b in ("whole", "block") else 0.0
    )
    alone = plan.kc / family.k_step * plan.mr * plan.nv / hardware.pipeline.fma
    tiles = computed / (plan.mr * plan.nr * plan.kc)
    return Pressure(
        registers=held / family.registers,
        l1=kept / _size(hardware, 1),
        l2=swept / _size(hardware, 2),
        l3=shared / _size(hardware, 3),
        padding=1.0 - float(info.m) * info.n * info.k / computed,
        packing=packed / computed,
        calls=1e6 * tiles / computed,
        kernel=alone / tile_cycles(plan, hardware),
        chunks=info.batch * plan.m_blocks * plan.n_blocks / plan.threads,
        cycles=gemm_cycles(info, plan, hardware),
    )


def _size(hardware: Hardware, level: int) -> float:
    """Bytes of a cache that one core may count on; the last one's where there is no such level."""
    cache = hardware.cache(level)
    return cache.size / max(1, cache.shared_by if level == cache.level else 1)


def features_of(info: BlockInfo, plan: GemmPlan, hardware: Hardware) -> list[float]:
    """Return numbers that mean the same for every shape and type: what a cost model may learn from other operators."""
    p, family = pressure_of(info, plan, hardware), plan.family
    ways = {"none": 0.0, "constant": 1.0, "whole": 2.0, "block": 3.0}
    return [
        *(math.log2(x) for x in (info.m, info.n, info.k, info.batch, info.threads)),
        *(float(x) for x in (info.transpose_a, info.transpose_b, info.constant_b, plan.a_panel)),
        *(float(WIDTH.get(d, 8)) for d in (family.storage[0], family.storage[1], info.acc_dtype, info.out_dtype)),
        *(float(x) for x in (family.lanes, family.k_pack, family.uops, family.column_uops)),
        *(float(x) for x in (plan.mr, plan.nv, plan.mr * plan.nv, plan.unroll, plan.ahead)),
        *(math.log2(x) for x in (plan.kc, plan.mc * plan.mr, plan.nc * plan.nr, plan.mc, plan.nc)),
        *(math.log2(x) for x in (plan.k_blocks, plan.m_blocks, plan.n_blocks)),
        *(float(x == "n") for x in (plan.order, plan.inner_order)),
        *(ways[x] for x in (plan.pack_a, plan.pack_b)),
        float(plan.threads > 1),
        p.registers,
        *(math.log2(max(x, 1e-6)) for x in (p.l1, p.l2, p.l3, p.packing, p.calls, p.chunks)),
        p.padding,
        p.kernel,
        math.log(p.cycles / max(1, info.flops)),
    ]
