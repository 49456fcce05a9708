"""How many cycles a blocking costs, from the caches and the core's issue widths.

A working-set model after Low et al., "Analytical Modeling Is Enough for High-Performance BLIS"
(TOMS 2016): each operand is charged to the nearest cache that holds what is reused between two
touches of it. It ranks blockings; it does not predict time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin.microkernel import lines_of_bytes

if TYPE_CHECKING:
    from qimeng_tvm.intrin import IntrinFamily
    from qimeng_tvm.schedule.blocking import GemmPlan
    from qimeng_tvm.schedule.contract import BlockInfo

#: Bytes of one element.
WIDTH = {"float32": 4, "bfloat16": 2, "int32": 4, "int16": 2, "int8": 1, "uint8": 1}
#: Share of a cache that one operand's working set may take before it no longer stays.
_SHARE = 0.75
#: Bytes of a row of B beyond which a panel of it in place takes more of a cache than its size.
_IN_PLACE = 256.0
#: Rows of B that the prefetcher follows at once.
_FEW_ROWS = 16
#: Cycles around a call, and for each vector of its tile: in registers from beginning to end, or read and written back.
_CALL, _AROUND_LOCAL, _AROUND = 12, 1.5, 3.0
#: How much larger than its operands a result is that most of the time goes into; what writing rows in pieces adds.
_MOST_OF_IT, _PIECES = 4.0, 1.0
#: Cycles that a call waits for its tile of C when that is not in the first-level cache.
_WAIT = 80
#: What the prefetches of a panel cost in issue slots, where there is nothing left to fetch (measured: 2 to 4 %).
_HINTS = 1.03
#: Exponents of the soft maximum that models overlap: of a core's units, of computing and streaming, of computing
#: and what is prefetched.
_UNITS, _OVERLAP, _FETCHED = 8.0, 2.0, 2.5

#: Packing that takes time when the product is computed.
_PACKED = ("whole", "block")
#: A bound stays one though sums are rounded.
_EXACT = 1 - 1e-9


def soft_max(power: float, *times: float) -> float:
    """Return how long things take that overlap, though not perfectly: the less so, the lower the power."""
    return float(sum(t**power for t in times) ** (1 / power))


@dataclass(frozen=True)
class Footprint:
    """Bytes of the operands at each level of blocking."""

    a_panel: float
    b_panel: float
    a_block: float
    b_block: float
    a_all: float
    b_all: float


def rate(hardware: Hardware, size: float) -> float:
    """Return the bytes a cycle at which something of that working set streams into the core."""
    for cache in hardware.caches:
        if cache.level <= 3 and size <= cache.size * _SHARE:
            return hardware.pipeline.stream[cache.level - 1]
    return hardware.pipeline.stream[3]


def footprint(info: BlockInfo, plan: GemmPlan) -> Footprint:
    """Return the bytes that one micro-kernel call, one block and the whole product touch."""
    a = WIDTH[plan.family.storage[0] if plan.pack_a != "none" else info.a_dtype]
    b = WIDTH[plan.family.storage[1] if plan.pack_b != "none" else info.b_dtype]
    # Rows of B in place lie a whole row of B apart, in few cache sets and many pages.
    # A few whole rows at a time are as many streams.
    in_place = plan.pack_b == "none" and plan.kc > _FEW_ROWS
    spread = max(1.0, info.n * b / _IN_PLACE) if in_place else 1.0
    return Footprint(
        a_panel=plan.mr * plan.kc * a,
        b_panel=plan.nr * plan.kc * b * spread,
        a_block=plan.mc * plan.mr * plan.kc * a,
        b_block=plan.nc * plan.nr * plan.kc * b * spread,
        a_all=plan.padded_m * plan.padded_k * a,
        b_all=plan.padded_n * plan.padded_k * b,
    )


def step_cycles(family: IntrinFamily, mr: int, nv: int, hardware: Hardware) -> float:
    """Cycles of one k step of a micro-kernel, by the units that it keeps busy."""
    p = hardware.pipeline
    # What is nearly as slow as the slowest gets in its way now and then.
    vectors = mr * nv * family.uops + nv * family.column_uops
    return soft_max(
        _UNITS,
        mr * nv / p.fma,
        (mr + nv) / p.load,
        vectors / p.vector,
        (vectors + mr + nv) / p.issue,
        family.latency or p.latency,
    )


def tile_cycles(plan: GemmPlan, hardware: Hardware) -> float:
    """Cycles of one micro-kernel call with its operands in the first-level cache."""
    mr, nv = plan.mr, plan.nv
    step = step_cycles(plan.family, mr, nv, hardware)
    around = mr * nv * (_AROUND_LOCAL if plan.c_local else _AROUND) + _CALL
    if not plan.c_local and plan.mc * plan.nc * mr * plan.nr * 4 > hardware.cache(1).size * _SHARE:
        around += _WAIT
    return plan.kc / plan.family.k_step * step + around


def gemm_cycles(info: BlockInfo, plan: GemmPlan, hardware: Hardware) -> float:
    """Estimate the cycles of the whole product on ``plan.threads`` cores."""
    f = footprint(info, plan)
    blocks = plan.m_blocks * plan.n_blocks * plan.k_blocks * info.batch
    tiles = plan.mc * plan.nc
    compute = tiles * tile_cycles(plan, hardware)
    # The panel of the outer micro-loop is reused at once; the other operand's block is swept past it.
    if plan.inner_order == "n":
        kept, swept, sweeps = f.b_panel, f.a_block, plan.nc
        first = _first(info, plan, f, hardware, "b") / _streams(plan, f, hardware)
    else:
        kept, swept, sweeps = f.a_panel, f.b_block, plan.mc
        first = _first(info, plan, f, hardware, "a")
    other = "a" if plan.inner_order == "n" else "b"
    sweep_first = _first(info, plan, f, hardware, other)
    sweep_again = swept * (sweeps - 1) / rate(hardware, swept + kept)
    # The next panel comes in beside the one in use.
    room = 2.5 if plan.ahead else 2.0
    kept_again = kept * (tiles - sweeps) / rate(hardware, room * kept)
    stream = sweep_first + sweep_again + max(0.0, kept_again - compute / 2)
    if plan.k_blocks > 1:
        c_block = tiles * plan.mr * plan.nr * WIDTH[info.acc_dtype]
        stream += 2 * c_block / rate(hardware, c_block + swept)
    # What is not fetched ahead comes in while a panel's first tile runs: of the rest of that time nothing is computed.
    hidden = 1 / sweeps_kept(plan)
    fetched = first * fetched_share(plan)
    late = first - fetched
    busy = soft_max(_OVERLAP, compute * (_HINTS if plan.ahead else 1.0), stream + late * hidden)
    work = blocks * (soft_max(_FETCHED, busy, fetched) + late * (1 - hidden))
    work += _packing(info, plan, hardware, f) + _pieces(info, plan, hardware, f)
    return _shared_out(info, plan, hardware, work)


def _pieces(info: BlockInfo, plan: GemmPlan, hardware: Hardware, f: Footprint) -> float:
    """Cycles lost where a result that is most of the traffic goes far away, and its rows are written in pieces.

    Measured with cold caches: whole rows take 12 % less than pieces of two vectors for 12544x96x16, 6 % less for
    3136x144x24, and 7 % more for 3136x256x64, whose operands are a quarter of the result.
    """
    result = float(info.batch * plan.padded_m * plan.padded_n * WIDTH[info.acc_dtype])
    if result < _MOST_OF_IT * (f.a_all + f.b_all) or result <= hardware.cache(2).size:
        return 0.0
    vectors = plan.nc * plan.nv if plan.inner_order == "m" else plan.nv
    written = vectors * plan.family.lanes / plan.padded_n
    return result / rate(hardware, result) * _PIECES * (1 - written)


def least_cycles(
    info: BlockInfo, family: IntrinFamily, mr: int, nv: int, pack_a: str, pack_b: str, hardware: Hardware
) -> float:
    """Return a bound of :func:`gemm_cycles` for every blocking with this micro-kernel and packing.

    All that may be free is: nothing is padded but the last tiles, operands come from nowhere, cores share evenly.
    """
    calls = info.batch * ceil(info.m / mr) * ceil(info.n / (nv * family.lanes))
    step = step_cycles(family, mr, nv, hardware)
    work = calls * (info.k / family.k_step * step + mr * nv * _AROUND_LOCAL + _CALL)
    for mode, elements, dtype in ((pack_a, info.m * info.k, info.a_dtype), (pack_b, info.n * info.k, info.b_dtype)):
        if mode in _PACKED:
            raw = elements * WIDTH[dtype]
            work += info.batch * 2 * raw / rate(hardware, raw)
    return work / max(1, info.threads) * _EXACT


def fetched_share(plan: GemmPlan) -> float:
    """Return how much of a panel its prefetches bring in: each row tile that shares it asks for a line a round.

    See :func:`qimeng_tvm.intrin.microkernel.prefetch_ahead`; a lone row tile asks for all lines of a round.
    """
    if plan.ahead < 2:
        return float(plan.ahead)
    a_round = plan.nr * plan.family.k_pack * plan.unroll * WIDTH[plan.family.storage[1]]
    return min(1.0, plan.ahead / lines_of_bytes(a_round))


def sweeps_kept(plan: GemmPlan) -> int:
    """Tiles that use a panel of the operand that stays in the first-level cache."""
    return plan.mc if plan.inner_order == "n" else plan.nc


def _streams(plan: GemmPlan, f: Footprint, hardware: Hardware) -> float:
    """How much faster B comes from afar because its panels are read a short run at a time, in turns."""
    in_turns = plan.k_blocks > 1 and 2 <= plan.nc <= 8 and plan.order == "n"
    from_afar = rate(hardware, f.b_all) <= hardware.pipeline.stream[2]  # beyond a core's own caches
    if not (in_turns and from_afar and f.b_panel <= hardware.pipeline.run):
        return 1.0
    # The more is computed with each vector of B, the fewer of its loads does the core have in flight.
    return float(hardware.pipeline.overlap ** (1 / plan.mr))


def _revisit(info: BlockInfo, plan: GemmPlan, f: Footprint, operand: str) -> float:
    """Bytes touched between two visits of the same block of an operand."""
    outer, inner = ("b", "a") if plan.order == "n" else ("a", "b")
    if operand == inner:
        return f.a_all + f.b_block if inner == "a" else f.b_all + f.a_block
    return (f.a_all if outer == "a" else f.b_all) * max(1, info.batch)


def _first(info: BlockInfo, plan: GemmPlan, f: Footprint, hardware: Hardware, operand: str) -> float:
    """Cycles of the first touch of an operand's block, on average over the blocks.

    The outer loop's block comes from far once, and then stays as near as it can for the inner loop's other blocks.
    """
    block = f.a_block if operand == "a" else f.b_block
    far = block / rate(hardware, _revisit(info, plan, f, operand))
    outer, again = ("b", plan.m_blocks) if plan.order == "n" else ("a", plan.n_blocks)
    if operand != outer or again == 1:
        return far
    near = block / rate(hardware, (f.a_block + f.b_block) * plan.k_blocks)
    return (far + (again - 1) * near) / again


def _packing(info: BlockInfo, plan: GemmPlan, hardware: Hardware, f: Footprint) -> float:
    """Cycles of packing at run time: what is read and written, at the rate of where it lies."""
    cycles = 0.0
    for mode, stored, raw in (
        (plan.pack_a, f.a_all, info.m * info.k * WIDTH[info.a_dtype]),
        (plan.pack_b, f.b_all, info.n * info.k * WIDTH[info.b_dtype]),
    ):
        if mode in _PACKED:
            near = stored if mode == "whole" else stored / max(plan.m_blocks, plan.n_blocks)
            cycles += 2 * raw / rate(hardware, raw) + 2 * stored / rate(hardware, near)
    return cycles * info.batch


def _shared_out(info: BlockInfo, plan: GemmPlan, hardware: Hardware, work: float) -> float:
    """Cycles until the last core is done."""
    cores = plan.threads
    if cores <= 1:
        return work
    outer = plan.n_blocks if plan.order == "n" else plan.m_blocks
    packs_blocks = "block" in (plan.pack_a, plan.pack_b)
    chunks = info.batch * (outer if packs_blocks else plan.m_blocks * plan.n_blocks)
    rounds = -(-chunks // cores)
    # What is packed whole is packed by a parallel loop of its own.
    forks = 1 + (plan.pack_a == "whole") + (plan.pack_b == "whole")
    return work * rounds / chunks + forks * hardware.pipeline.fork
