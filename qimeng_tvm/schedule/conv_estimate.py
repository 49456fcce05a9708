"""How many cycles the blocking of a convolution costs, in the manner of :mod:`qimeng_tvm.schedule.estimate`.

Tiles are computed at the speed of the core's units; pixels and filters are charged to the nearest cache that holds what
is touched between two uses of them. It ranks blockings; it does not predict time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule.estimate import WIDTH, soft_max, step_cycles

if TYPE_CHECKING:
    from qimeng_tvm.schedule.contract import BlockInfo
    from qimeng_tvm.schedule.conv_blocking import ConvPlan

#: Share of a cache that a working set may take before it no longer stays.
_SHARE = 0.6
#: Cycles around a call, and around a tile for each of its vectors. With more than 25 for a call the first layer of a
#: model (3 channels, 9 calls) would gather runs of pixels, which takes 1.3 times as long on Zen 5.
_CALL, _AROUND = 20.0, 2.5
#: Exponent of the soft maximum of computing and streaming.
_OVERLAP = 4.0
#: How much faster a panel of filters comes from the caches than what is swept in pieces: it is one long run.
_LONG = 2.0
#: How much slower pixels come that were copied, or made, long before.
_LATE = 0.6
#: Cycles to begin the copy of a run, and runs of bytes that it moves at a time.
_RUN, _MOVED = 3.0, 16.0


def rate(hardware: Hardware, size: float, run: float = 1.0) -> float:
    """Bytes a cycle at which something of that working set streams into the core: from caches, ``run`` times."""
    for level, rate in zip((1, 2, 3), hardware.pipeline.stream, strict=False):
        cache = hardware.cache(level)
        if cache.level == level and size <= cache.size * _SHARE:
            return rate * run
    return hardware.pipeline.stream[3]


def _again(hardware: Hardware, size: float, between: float, run: float = 1.0) -> float:
    """Cycles to read something once more after ``between`` bytes; none from the first cache: loads are counted."""
    if between <= hardware.cache(1).size * _SHARE:
        return 0.0
    return size / rate(hardware, between, run)


def tile_cycles(plan: ConvPlan, hardware: Hardware) -> float:
    """Cycles of a tile over all taps with its operands in the first-level cache."""
    step = step_cycles(plan.family, plan.mr, plan.nv, hardware)
    return plan.calls * (plan.kc / plan.family.k_step * step + _CALL) + plan.mr * plan.nv * _AROUND


def conv_cycles(info: BlockInfo, plan: ConvPlan, hardware: Hardware) -> float:
    """Estimate the cycles of the whole convolution on ``plan.threads`` cores."""
    compute = plan.rows * plan.row_tiles * plan.panels * tile_cycles(plan, hardware)
    filters, pixels = _streamed(info, plan, hardware)
    blocks = info.batch * plan.form.groups * plan.row_blocks * plan.filter_blocks
    # Filters come in while tiles are computed; pixels, a few lines here and there, are waited for.
    work = blocks * (soft_max(_OVERLAP, compute, filters) + pixels) + _copying(info, plan, hardware)
    return _shared_out(info, plan, hardware, work)


def _panel(plan: ConvPlan) -> float:
    """Bytes of a panel of filters."""
    return float(plan.calls * plan.kc * plan.nr * WIDTH[plan.family.storage[1]])


def _row(plan: ConvPlan, info: BlockInfo) -> float:
    """Bytes of a row of pixels as the micro-kernel reads them."""
    form = plan.form
    width = WIDTH[plan.family.storage[0] if plan.copy != "none" else info.a_dtype]
    if plan.gather == "runs":
        return float(form.x * plan.kc * width)
    return float(form.columns * form.window.stride[1] * form.c * width)


def _rows_read(plan: ConvPlan) -> float:
    """Rows of the input that a block of rows of the output reads."""
    window = plan.form.window
    return float((plan.rows - 1) * window.stride[0] + (window.kernel[0] - 1) * window.dilation[0] + 1)


def _streamed(info: BlockInfo, plan: ConvPlan, hardware: Hardware) -> tuple[float, float]:
    """Cycles of bringing in a block's filters, and its pixels."""
    panel, row = _panel(plan), _row(plan, info)
    pixels = row * _rows_read(plan)
    filters = panel * plan.panels
    tile = row * plan.form.window.kernel[0] / plan.row_tiles
    tiles = plan.rows * plan.row_tiles
    all_pixels, all_filters = pixels * plan.row_blocks, filters * plan.filter_blocks
    # What a block copies for itself is near; what was copied long before is not.
    copied = pixels / rate(hardware, all_pixels + all_filters, _LATE)
    if plan.copy == "block":
        copied = _again(hardware, pixels, pixels)
    written = plan.rows * plan.form.x * plan.nr * WIDTH[info.acc_dtype]
    if plan.order == "m":
        first = filters / rate(hardware, all_filters + pixels, _LONG)
    else:
        far = filters / rate(hardware, (all_filters + all_pixels) * plan.form.groups * info.batch, _LONG)
        near = filters / rate(hardware, filters + pixels, _LONG)
        first = (far + (plan.row_blocks - 1) * near) / plan.row_blocks
    if plan.inner_order == "n":
        again = (tiles - 1) * plan.panels * _again(hardware, panel, panel + tile, _LONG)
        return first + again, copied + (plan.panels - 1) * _again(hardware, pixels, pixels + panel + written)
    again = (tiles - 1) * _again(hardware, filters, filters + tile, _LONG)
    return first + again, copied + tiles * (plan.panels - 1) * _again(hardware, tile, tile + panel)


def _copying(info: BlockInfo, plan: ConvPlan, hardware: Hardware) -> float:
    """Cycles of copying pixels: short runs at a time, or as fast as they come."""
    if plan.copy == "none":
        return 0.0
    form, row = plan.form, _row(plan, info)
    rows = _rows_read(plan) * plan.row_blocks if plan.copy == "block" else float(form.rows)
    lies = row * (_rows_read(plan) if plan.copy == "block" else rows)
    runs = form.x * (form.window.kernel[1] if plan.gather == "runs" else 1)
    source = form.columns * form.window.stride[1] * form.c * WIDTH[info.a_dtype]
    far = source / rate(hardware, source * form.rows)
    moved = row / min(_MOVED, rate(hardware, lies)) + far + runs * _RUN
    return info.batch * form.groups * rows * moved


def _shared_out(info: BlockInfo, plan: ConvPlan, hardware: Hardware, work: float) -> float:
    """Cycles until the last core is done."""
    if plan.threads <= 1:
        return work
    chunks = info.batch * plan.form.groups * (plan.row_blocks if plan.order == "m" else plan.filter_blocks)
    if plan.copy != "block":
        chunks *= plan.filter_blocks if plan.order == "m" else plan.row_blocks
    rounds = -(-chunks // plan.threads)
    forks = 1 + (plan.copy == "whole")
    return work * rounds / chunks + forks * hardware.pipeline.fork
