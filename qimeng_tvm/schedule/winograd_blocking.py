"""Blocking of a convolution by Winograd's method: legal tiles and blocks, what they cost, the analytic choice.

The model is that of :mod:`qimeng_tvm.schedule.conv_estimate`; it ranks blockings, and tells whether the method pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily
from qimeng_tvm.schedule.blocking import WHOLE, divisors, split_kernel, unroll_of
from qimeng_tvm.schedule.contract import BlockInfo, Choose, Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.conv_blocking import FILTERS, Prices, descend, kernel_name, kernels_of
from qimeng_tvm.schedule.conv_estimate import rate
from qimeng_tvm.schedule.estimate import WIDTH, soft_max, step_cycles
from qimeng_tvm.schedule.winograd_form import TAPS, TILE, WinogradForm, form_of

#: Cycles around a call, and around a tile for each of its vectors: zeros, and the copy into the block.
_CALL, _AROUND = 12.0, 3.0
#: Cycles of a vector that a transform reads or writes, beside where it lies.
_READ, _WRITTEN = 0.75, 1.25
#: Exponent of the soft maximum of computing and streaming.
_OVERLAP = 4.0
#: How much faster a panel of filters comes than what is swept in pieces: it is one long run.
_LONG = 2.0
#: Copies and orders that go together, each tried; what the descent changes for each, in this order.
_WAYS = (("block", "m"), ("whole", "m"), ("whole", "n"))
_DESCENT = ("rows", "filters", "inner_order", "parallel")


@dataclass(frozen=True)
class WinogradPlan:
    """Decisions turned into numbers.

    Attributes
    ----------
    mr, nv : int
        Tiles of the image, and vectors of filters, of a register tile.
    copy : str
        ``whole``: all pixels are transformed first; ``block``: those of a block of rows.
    rows, row_blocks : int
        Rows of tiles in a block.
    panels, filter_blocks : int
        Panels of nr filters in a block.
    """

    form: WinogradForm
    family: IntrinFamily
    mr: int
    nv: int
    copy: str
    rows: int
    row_blocks: int
    panels: int
    filter_blocks: int
    order: str
    inner_order: str
    unroll: int
    threads: int

    @property
    def nr(self) -> int:
        """Filters of a register tile."""
        return self.nv * self.family.lanes

    @property
    def row_tiles(self) -> int:
        """Register tiles of a row."""
        return self.form.x // self.mr

    @property
    def pixel_lanes(self) -> int:
        """Channels that a transform of pixels takes at a time."""
        return max(d for d in divisors(self.family.lanes) if self.form.channels % d == 0)

    def intrin_name(self) -> str:
        """Canonical name of the micro-kernel."""
        return kernel_name(self.family, self.mr, self.nv, self.form.channels, self.unroll)


def winograd_plan(info: BlockInfo, families: tuple[IntrinFamily, ...], choose: Choose) -> WinogradPlan:
    """Turn decisions into loop extents."""
    form = form_of(info)
    name = choose("family")
    family = next(f for f in families if f.key == name)
    mr, nv = split_kernel(choose("micro_kernel"))
    rows = choose("rows")
    panels = form.filters // (nv * family.lanes)
    target = choose("filters") // (nv * family.lanes)
    in_block = max((d for d in divisors(panels) if d <= target), default=1)
    return WinogradPlan(
        form=form,
        family=family,
        mr=mr,
        nv=nv,
        copy=choose("copy"),
        rows=rows,
        row_blocks=form.tile_rows // rows,
        panels=in_block,
        filter_blocks=panels // in_block,
        order=choose("order"),
        inner_order=choose("inner_order"),
        unroll=unroll_of(form.channels, choose("unroll")),
        threads=info.threads if choose("parallel") == "yes" else 1,
    )


def winograd_illegal(info: BlockInfo, families: tuple[IntrinFamily, ...], values: Values) -> str | None:
    """Say why these decisions do not go together, or None."""
    form = form_of(info)
    family = next(f for f in families if f.key == values["family"])
    mr, nv = split_kernel(str(values["micro_kernel"]))
    if not family.fits(mr, nv):
        return f"a {mr}x{nv} micro-kernel does not fit {family.registers} registers"
    if form.x % mr or form.filters % (nv * family.lanes):
        return f"tiles of {mr}x{nv * family.lanes} do not make up {form.x} tiles of a row and {form.filters} filters"
    if values["copy"] == "block" and values["order"] != "m":
        return "transforming the pixels of a block needs rows outermost"
    return None


def winograd_space(info: BlockInfo, hardware: Hardware, families: tuple[IntrinFamily, ...]) -> SearchSpace:
    """Return the decisions, their defaults chosen by the working-set model."""
    form = form_of(info)
    kernels = tuple(dict.fromkeys(kernel for f in families for kernel in kernels_of(form, f)))
    choices: dict[str, tuple[tuple[Value, ...], str]] = {
        "family": (tuple(f.key for f in families), "micro-kernel family"),
        "micro_kernel": (kernels, "tiles of the image x vectors of filters held in registers"),
        "copy": (("block", "whole"), "pixels transformed block by block, or all of them first"),
        "rows": (tuple(divisors(form.tile_rows)), "rows of tiles in one block"),
        "filters": ((*(c for c in FILTERS if c < form.filters), WHOLE), "filters of one block"),
        "order": (("m", "n"), "what is blocked outermost: m rows, n filters"),
        "inner_order": (("n", "m"), "what register tiles keep: n a panel of filters, m pixels"),
        "unroll": ((1, 2, 4), "k steps unrolled in the micro-kernel"),
        "parallel": (("yes", "no") if info.threads > 1 else ("no",), "share blocks between the cores"),
    }
    best = _default_values(info, hardware, families, choices)
    decisions = tuple(Decision(name, values, best[name], doc) for name, (values, doc) in choices.items())
    return SearchSpace(decisions, lambda values: winograd_illegal(info, families, values))


def _default_values(
    info: BlockInfo,
    hardware: Hardware,
    families: tuple[IntrinFamily, ...],
    choices: dict[str, tuple[tuple[Value, ...], str]],
) -> dict[str, Value]:
    """Return the legal decisions of the fewest estimated cycles: every micro-kernel and copy, blocks by descent."""

    def price(values: Values) -> float:
        if winograd_illegal(info, families, values) is not None:
            return float("inf")
        return winograd_cycles(info, winograd_plan(info, families, values.__getitem__), hardware)

    prices = Prices(price)
    best: dict[str, Value] = {}
    best_cost = float("inf")
    start: dict[str, Value] = {name: values[0] for name, (values, _) in choices.items()}
    start |= {"rows": choices["rows"][0][-1], "filters": WHOLE, "unroll": 2}
    for family, kernel, (copy, order) in product(choices["family"][0], choices["micro_kernel"][0], _WAYS):
        fixed = {"family": family, "micro_kernel": kernel, "copy": copy, "order": order}
        values, cost = descend({**start, **fixed}, prices, choices, _DESCENT)
        if cost < best_cost:
            best, best_cost = values, cost
    if not best:
        raise ScheduleError(f"no legal blocking for {info.operator} with {families[0].key}")
    return best


def winograd_cycles(info: BlockInfo, plan: WinogradPlan, hardware: Hardware) -> float:
    """Estimate the cycles of the whole convolution on ``plan.threads`` cores."""
    form = plan.form
    blocks = form.batch * plan.row_blocks
    products = blocks * plan.filter_blocks * _products(plan, hardware)
    moved = _pixels(plan, info, hardware)
    back = blocks * plan.filter_blocks * _back(plan, info, hardware)
    if plan.threads <= 1:
        return products + moved + back
    chunks = blocks * (plan.filter_blocks if plan.copy == "whole" else 1)
    share = -(-chunks // plan.threads) / chunks
    forks = 1 if plan.copy == "block" else 3
    ways = share if plan.copy == "block" else 1 / plan.threads
    return (products + back) * share + moved * ways + forks * hardware.pipeline.fork


def _bytes(plan: WinogradPlan) -> tuple[float, float, float]:
    """Bytes of a block's transformed pixels, of its products, and of its filters."""
    form, width = plan.form, WIDTH[plan.family.dtypes[2]]
    tiles = plan.rows * form.x
    columns = plan.panels * plan.nr
    return (
        float(form.points * tiles * form.channels * width),
        float(form.points * tiles * columns * width),
        float(form.points * form.channels * columns * width),
    )


def _products(plan: WinogradPlan, hardware: Hardware) -> float:
    """Cycles of a block's products."""
    form = plan.form
    step = step_cycles(plan.family, plan.mr, plan.nv, hardware)
    tile = form.channels / plan.family.k_step * step + plan.mr * plan.nv * _AROUND + _CALL
    compute = form.points * plan.rows * plan.row_tiles * plan.panels * tile
    pixels, products, filters = _bytes(plan)
    point = (pixels + filters) / form.points
    # Filters come from where they stay from one block to the next; for a lone block, from wherever they are.
    blocks = plan.row_blocks * form.batch
    all_filters = filters * plan.filter_blocks
    between = filters + pixels + products if plan.order == "n" else all_filters + pixels + products
    far = filters / rate(hardware, all_filters, _LONG)
    near = filters / rate(hardware, between, _LONG)
    stream = (far + (blocks - 1) * near) / blocks
    # A point's panels pass one after the other, each by all tiles.
    panel = form.channels * plan.nr * WIDTH[plan.family.storage[1]]
    tiles = plan.rows * plan.row_tiles
    if plan.inner_order == "n":
        again = (tiles - 1) * filters / rate(hardware, 2 * panel, _LONG) if 2 * panel > hardware.cache(1).size else 0.0
        stream += again + plan.panels * pixels / rate(hardware, pixels + products)
    else:
        stream += (tiles - 1) * filters / rate(hardware, point, _LONG) + pixels / rate(hardware, pixels + products)
    return soft_max(_OVERLAP, compute, stream)


def _pixels(plan: WinogradPlan, info: BlockInfo, hardware: Hardware) -> float:
    """Cycles of giving pixels their border and transforming them, all blocks together."""
    form = plan.form
    pixels, products, _ = _bytes(plan)
    lies = pixels + products if plan.copy == "block" else pixels * plan.row_blocks * form.batch
    blocks = form.batch * plan.row_blocks
    padded = plan.rows * TILE + TAPS - 1
    copied = padded * form.padded[1] * form.channels * WIDTH[info.a_dtype]
    vectors = pixels / WIDTH[info.a_dtype] / plan.pixel_lanes
    source = form.rows * form.columns * form.channels * form.batch * WIDTH[info.a_dtype]
    cost = vectors * (_READ + _WRITTEN) + pixels / rate(hardware, lies)
    return blocks * (cost + copied / rate(hardware, source) + copied / rate(hardware, copied))


def _back(plan: WinogradPlan, info: BlockInfo, hardware: Hardware) -> float:
    """Cycles of transforming a block back."""
    form = plan.form
    pixels, products, filters = _bytes(plan)
    vectors = products / WIDTH[info.acc_dtype] / plan.family.lanes
    written = vectors * TILE**2 / form.points
    result = form.batch * form.rows * form.columns * form.filters * WIDTH[info.acc_dtype]
    size = written * plan.family.lanes * WIDTH[info.acc_dtype]
    near = products / rate(hardware, products + (pixels if plan.copy == "block" else 0) + filters / form.points)
    return vectors * _READ + written * _WRITTEN + near + size / rate(hardware, result)
