"""Time what a model wrote: what happens in the worker.

Micro-kernels run by themselves, in turns with the machine's peak loop. Operands lie as a schedule leaves them: B one
packed panel (level-1 cache), A rows in place or panels behind each other (level 2), C a register tile that is stored
once. So the figure is the micro-kernel's own, without packing. Rules are timed as whole operators, in pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.bench.ceiling import NAME as PEAK
from qimeng_tvm.bench.ceiling import Ceiling
from qimeng_tvm.bench.timing import QUICK, Sample, Sampler, interleave_calmly, time_calls
from qimeng_tvm.check.audit import AuditReport
from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.check.intrinsic import big_tile
from qimeng_tvm.check.placement import Placement
from qimeng_tvm.check.tile import IntrinsicSpec, buffer_shapes, products, tensorized
from qimeng_tvm.errors import CheckError
from qimeng_tvm.generate.rule_sandbox import Scheduled
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.hardware.tables import with_implied
from qimeng_tvm.intrin import IntrinFamily, LaneShape

#: Multiply-adds of one call, about: enough that the call itself does not count.
_WORK = 2_000_000
#: Taps that a lane-wise kernel is called for on each tile: enough that loading and storing its sums does not count.
_TAPS = 75
#: Of every accumulator type that there is (float32, int32).
_ACCUMULATOR_BITS = 32
#: Samples of a millisecond: what a neighbour takes away for a moment is in few of them.
_PLAN = replace(QUICK, repeats=15, total_seconds=0.03, again=2)


@dataclass(frozen=True)
class Speed:
    """How fast a micro-kernel is.

    Attributes
    ----------
    share : float
        Of the peak loop, timed in turns with it; 0 when the machine has no such loop.
    gops : float
        Operations (a multiply-add is two) in a nanosecond, by the median.
    spread : float
        (75th percentile - 25th percentile) / median.
    """

    share: float
    gops: float
    spread: float


def timed_variants(family: IntrinFamily) -> dict[str, dict[str, int]]:
    """Return the micro-kernels that stand for a family: its best tile, one row, and the tile on a panel of A."""
    mr, nv = big_tile(family)
    row = max(v for v in range(1, 9) if family.fits(1, v))
    if family.lanewise:
        return _timed_lanes(family, (mr, nv), (1, row))
    common = {"kc": 192 * family.k_pack, "ku": 4, "a_panel": 0, "c_local": 1, "ahead": 0}
    drafts = {f"{mr}x{nv}": {"mr": mr, "nv": nv, **common}, f"1x{row}": {"mr": 1, "nv": row, **common}}
    if "a_panel" in family.parameters:
        drafts[f"{mr}x{nv} panel"] = {"mr": mr, "nv": nv, **common, "a_panel": 1}
    return {label: {p: draft[p] for p in family.parameters} for label, draft in drafts.items()}


def _timed_lanes(family: IntrinFamily, best: tuple[int, int], row: tuple[int, int]) -> dict[str, dict[str, int]]:
    """The best tile, one pixel, and the best tile with operands that the caller loads."""
    drafts = {"": (best, 0), " one pixel": (row, 0), " loaded": (best, 1)}
    found = {}
    for what, ((mr, nv), local) in drafts.items():
        label = f"{mr}x{nv}" if mr == 1 else f"{mr}x{nv}{what}"
        found[label] = {p: {"mr": mr, "nv": nv, "step": 1, "in_local": local}[p] for p in family.parameters}
    return found


def as_seen_by(family: IntrinFamily, hardware: Hardware) -> Hardware:
    """Return the machine with a family's instructions and vectors alone: its peak is one that the family can reach."""
    return replace(
        hardware,
        features=with_implied(hardware.isa, family.requires) & hardware.features,
        vector_bits=_ACCUMULATOR_BITS * family.lanes,
        vector_registers=family.registers,
        peaks={},
        peaks_all={},
    )


def time_intrinsics(contenders: Mapping[str, IntrinsicSpec], hardware: Hardware) -> dict[str, Speed]:
    """Time micro-kernels of one operand type in turns; those that cannot be timed are left out.

    ``hardware`` is the machine whose peak they are held against, see `as_seen_by`.
    """
    calls = {label: _call(spec) for label, spec in contenders.items()}
    dtype = next(iter(contenders.values())).shape.a_dtype
    ceiling = Ceiling(hardware)
    samplers: dict[str, Sampler] = {label: _sampler(call) for label, (call, _) in calls.items()}
    samplers.update(ceiling.samplers(dtype, 1))
    found, _ = interleave_calmly(samplers, _PLAN, yardsticks=(PEAK,), floors=ceiling.floors(dtype, 1))
    peak = ceiling.gflops(found.get(PEAK), dtype, 1)
    speeds = {}
    for label, (_, operations) in calls.items():
        sample = found[label]
        if isinstance(sample, Sample):
            gops = operations / sample.seconds_median / 1e9
            speeds[label] = Speed(gops / peak if peak else 0.0, gops, sample.spread)
    return speeds


def density(code: AuditReport) -> Speed:
    """Return what stands in for the speed on a machine that is not here: multiply-adds by instructions of the loop."""
    products = next(iter(code.counts.values()), 0)
    share = products / max(1, len(code.inner_loop.splitlines()))
    return Speed(share, share, 0.0)


def compare_operators(ours: Sequence[Scheduled], theirs: Sequence[Scheduled]) -> list[float]:
    """Time pairs of scheduled operators in turns; return theirs over ours: above 1, ours is faster."""
    ratios = []
    for own, other in zip(ours, theirs, strict=True):
        calls = {"own": _operator(own), "other": _operator(other)}
        found, _ = interleave_calmly({name: _sampler(call) for name, call in calls.items()}, _PLAN)
        both = [s for s in found.values() if isinstance(s, Sample)]
        if len(both) != len(calls):
            raise CheckError(f"{own.operator.label} could not be timed")
        ratios.append(both[1].seconds_median / both[0].seconds_median)
    return ratios


def _operator(one: Scheduled) -> Any:
    """Return a closure that runs a scheduled operator; what is constant is packed beforehand."""
    import tvm  # noqa: PLC0415 (only in the worker)

    from qimeng_tvm.compiler import tensors_of  # noqa: PLC0415
    from qimeng_tvm.hardware import configure_threads, host, target_of  # noqa: PLC0415
    from qimeng_tvm.lowering import build  # noqa: PLC0415
    from qimeng_tvm.schedule.prepack import MAIN, split_prepack  # noqa: PLC0415

    configure_threads(one.operator.cores)
    operator = split_prepack(tvm.ir.load_json(one.module))
    library = build(operator.module, target_of(host(), one.operator.cores))
    tensors = one.operator.tensors(library, operator)
    out = tensors_of(operator.main)[-1]
    result = tvm.runtime.empty(out.shape, out.dtype)
    main = library[MAIN]
    return lambda: main(*tensors, result)


def _sampler(call: Any) -> Sampler:
    def sample(inner: int) -> float:
        call()
        return time_calls(call, inner)

    return sample


def _call(spec: IntrinsicSpec) -> tuple[Any, float]:
    """Return a closure that runs one micro-kernel over many row tiles, and its operations."""
    import tvm  # noqa: PLC0415 (a second or two; the parent may not need it)

    from qimeng_tvm.lowering import build  # noqa: PLC0415

    s = spec.shape
    calls = (1, 1, _TAPS) if isinstance(s, LaneShape) else (1, 1, 1)
    tiles = max(1, min(_WORK // products(s, Placement("one", calls)), 32))
    placement = Placement("speed", (tiles, *calls[1:]))
    library = build(tvm.IRModule({"speed": tensorized(spec, placement)}), tvm.target.Target(dict(spec.target)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speed.so"
        library.export_library(str(path))
        loaded = tvm.runtime.load_module(str(path))
    rng = np.random.default_rng(0)
    dtypes = (s.a_store, s.b_store, s.acc_dtype)
    operands = [
        tvm.runtime.tensor(rng.integers(0, 3, size=shape).astype(numpy_dtype(dtype)))
        for shape, dtype in zip(buffer_shapes(s, placement), dtypes, strict=True)
    ]
    main = loaded["speed"]
    return lambda: main(*operands), 2.0 * products(s, placement)
