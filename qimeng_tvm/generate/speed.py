"""Time micro-kernels by themselves, in turns with the machine's peak loop: what happens in the worker.

Operands lie as a schedule leaves them: B one packed panel (level-1 cache), A rows in place or panels behind each other
(level 2), C a register tile that is stored once. So the figure is the micro-kernel's own, without packing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.bench.ceiling import NAME as PEAK
from qimeng_tvm.bench.ceiling import Ceiling
from qimeng_tvm.bench.timing import QUICK, Sample, Sampler, interleave_calmly, time_calls
from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.check.intrinsic import big_tile
from qimeng_tvm.check.tile import IntrinsicSpec, Placement, buffer_shapes, tensorized
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily

#: Multiply-adds of one call, about: enough that the call itself does not count.
_WORK = 2_000_000
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
    common = {"kc": 192 * family.k_pack, "ku": 4, "a_panel": 0, "c_local": 1, "ahead": 0}
    drafts = {f"{mr}x{nv}": {"mr": mr, "nv": nv, **common}, f"1x{row}": {"mr": 1, "nv": row, **common}}
    if "a_panel" in family.parameters:
        drafts[f"{mr}x{nv} panel"] = {"mr": mr, "nv": nv, **common, "a_panel": 1}
    return {label: {p: draft[p] for p in family.parameters} for label, draft in drafts.items()}


def time_intrinsics(contenders: Mapping[str, IntrinsicSpec], hardware: Hardware) -> dict[str, Speed]:
    """Time micro-kernels of one operand type in turns; those that cannot be timed are left out."""
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
    tiles = max(1, min(_WORK // (s.mr * s.nr * s.kc), 32))
    placement = Placement("speed", (tiles, 1, 1))
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
    return lambda: main(*operands), 2.0 * tiles * s.mr * s.nr * s.kc
