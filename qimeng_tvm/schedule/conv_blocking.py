"""Blocking of a convolution: legal tiles and blocks, and the analytic choice among them.

A tile is mr pixels of a row of the output by nr filters. It stays in registers over all taps of the window, so that
nothing but the order of tiles and the copies of pixels is left to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily
from qimeng_tvm.schedule.blocking import WHOLE, divisors, split_kernel, unroll_of
from qimeng_tvm.schedule.contract import BlockInfo, Choose, Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.conv_estimate import conv_cycles
from qimeng_tvm.schedule.conv_form import PAD, ConvForm, form_of

#: Rows of a tile at most: more hold no more in registers.
_MOST_ROWS = 30
#: Filters of a block, as targets.
FILTERS = (16, 32, 64, 128, 256, 512, WHOLE)


def kernel_name(family: IntrinFamily, mr: int, nv: int, kc: int, unroll: int) -> str:
    """Canonical name of a micro-kernel on rows of A, whose tile of C is in registers."""
    values = {"mr": mr, "nv": nv, "kc": kc, "ku": unroll, "a_panel": 0, "c_local": 1, "ahead": 0}
    return family.intrin_name(**{p: values[p] for p in family.parameters})


class Tiled(Protocol):
    """What register tiles make up: pixels of a row by filters."""

    @property
    def x(self) -> int:
        """Pixels of a row."""
        raise NotImplementedError

    @property
    def f(self) -> int:
        """Filters."""
        raise NotImplementedError


@dataclass(frozen=True)
class ConvPlan:
    """Decisions turned into numbers.

    Attributes
    ----------
    mr, nv : int
        Pixels and vectors of filters of a tile.
    kc, calls : int
        Depth of one micro-kernel call, and calls for a tile.
    gather : str
        ``rows``: a call takes the channels of one pixel of the window; ``runs``: those of one row of it.
    copy : str
        ``none``: pixels are read in place; ``whole``: all are copied first; ``block``: those of a block of rows.
    rows, row_blocks : int
        Rows of the output in a block.
    panels, filter_blocks : int
        Panels of nr filters in a block.
    """

    form: ConvForm
    family: IntrinFamily
    mr: int
    nv: int
    kc: int
    calls: int
    gather: str
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
        """Filters of a tile."""
        return self.nv * self.family.lanes

    @property
    def row_tiles(self) -> int:
        """Tiles of a row."""
        return self.form.x // self.mr

    def intrin_name(self) -> str:
        """Canonical name of the micro-kernel."""
        return kernel_name(self.family, self.mr, self.nv, self.kc, self.unroll)


def conv_plan(info: BlockInfo, families: tuple[IntrinFamily, ...], choose: Choose) -> ConvPlan:
    """Turn decisions into loop extents."""
    form = form_of(info)
    name = choose("family")
    family = next(f for f in families if f.key == name)
    mr, nv = split_kernel(choose("micro_kernel"))
    gather = choose("gather")
    taps_y, taps_x = form.window.kernel
    kc, calls = (form.c * taps_x, taps_y) if gather == "runs" else (form.c, taps_y * taps_x)
    rows = choose("rows")
    panels = form.f // (nv * family.lanes)
    target = choose("filters") // (nv * family.lanes)
    in_block = max((d for d in divisors(panels) if d <= target), default=1)
    return ConvPlan(
        form=form,
        family=family,
        mr=mr,
        nv=nv,
        kc=kc,
        calls=calls,
        gather=gather,
        copy=choose("copy"),
        rows=rows,
        row_blocks=form.window.out[0] // rows,
        panels=in_block,
        filter_blocks=panels // in_block,
        order=choose("order"),
        inner_order=choose("inner_order"),
        unroll=unroll_of(max(1, kc // family.k_pack), choose("unroll")),
        threads=info.threads if choose("parallel") == "yes" else 1,
    )


def conv_illegal(info: BlockInfo, families: tuple[IntrinFamily, ...], values: Values) -> str | None:
    """Say why these decisions do not go together, or None."""
    form = form_of(info)
    family = next(f for f in families if f.key == values["family"])
    mr, nv = split_kernel(str(values["micro_kernel"]))
    if not family.fits(mr, nv):
        return f"a {mr}x{nv} micro-kernel does not fit {family.registers} registers"
    if form.x % mr or form.f % (nv * family.lanes):
        return f"tiles of {mr}x{nv * family.lanes} do not make up {form.x} pixels of a row and {form.f} filters"
    plan = conv_plan(info, families, values.__getitem__)
    if plan.kc % family.k_pack or plan.kc < 2 * family.k_pack:
        return f"{plan.kc} channels are no two steps of {family.k_pack}: gather runs"
    if plan.copy == "none" and (plan.gather != "rows" or family.storage[0] != info.a_dtype):
        return "pixels in place need rows, in the micro-kernel's own type: copy them"
    if plan.copy == "block" and plan.order != "m":
        return "copying the pixels of a block needs rows outermost"
    return None


def kernels_of(form: Tiled, family: IntrinFamily) -> tuple[str, ...]:
    """Micro-kernels that make up a row and the filters, less those that a larger one could stand for."""
    vectors = form.f // family.lanes if form.f % family.lanes == 0 else 0
    fitting = [
        (mr, nv)
        for mr in divisors(form.x)
        for nv in (divisors(vectors) if vectors else [])
        if mr <= _MOST_ROWS and family.fits(mr, nv)
    ]

    def stood_for(mr: int, nv: int) -> bool:
        larger = any(other != (mr, nv) and other[0] >= mr and other[1] >= nv for other in fitting)
        return larger and 2 * mr * nv < family.registers

    return tuple(f"{mr}x{nv}" for mr, nv in fitting if not stood_for(mr, nv))


def conv_space(info: BlockInfo, hardware: Hardware, families: tuple[IntrinFamily, ...]) -> SearchSpace:
    """Return the decisions of a convolution, their defaults chosen by the working-set model."""
    form = form_of(info)
    kernels = tuple(dict.fromkeys(k for f in families for k in kernels_of(form, f)))
    # Without a border, pixels may be read in place.
    copies = ("whole", "block") if PAD in info.producers else ("none", "whole", "block")
    choices: dict[str, tuple[tuple[Value, ...], str]] = {
        "family": (tuple(f.key for f in families), "micro-kernel family"),
        "micro_kernel": (kernels, "pixels x vectors of filters held in registers"),
        "gather": (("rows", "runs"), "what a call takes: the channels of a pixel, or of a row of the window, gathered"),
        "copy": (copies, "pixels in place, copied once, or block by block"),
        "rows": (tuple(divisors(form.window.out[0])), "rows of the output in one block"),
        "filters": ((*(c for c in FILTERS if c < form.f), WHOLE), "filters of one block"),
        "order": (("m", "n"), "what is blocked outermost: m rows, n filters"),
        "inner_order": (("n", "m"), "what tiles keep: n a panel of filters, m pixels"),
        "unroll": ((1, 2, 4), "k steps unrolled in the micro-kernel"),
        "parallel": (("yes", "no") if info.threads > 1 else ("no",), "share blocks between the cores"),
    }
    best = _default_values(info, hardware, families, choices)
    decisions = tuple(Decision(name, values, best[name], doc) for name, (values, doc) in choices.items())
    return SearchSpace(decisions, lambda values: conv_illegal(info, families, values))


#: What the descent changes, in this order.
_DESCENT = ("rows", "filters", "inner_order", "order", "parallel")


@dataclass
class Prices:
    """What points cost, each of them worked out once."""

    price: Callable[[Values], float]
    known: dict[tuple[Value, ...], float] = field(default_factory=dict)

    def of(self, values: Mapping[str, Value]) -> float:
        """Return the price of a point."""
        key = tuple(values.values())
        if key not in self.known:
            self.known[key] = self.price(values)
        return self.known[key]


def _default_values(
    info: BlockInfo,
    hardware: Hardware,
    families: tuple[IntrinFamily, ...],
    choices: dict[str, tuple[tuple[Value, ...], str]],
) -> dict[str, Value]:
    """Return the legal decisions of the fewest estimated cycles.

    Micro-kernels and copies are tried exhaustively, and for each the blocks are improved one decision at a time.
    """

    def price(values: Values) -> float:
        if conv_illegal(info, families, values) is not None:
            return float("inf")
        return conv_cycles(info, conv_plan(info, families, values.__getitem__), hardware)

    prices = Prices(price)
    start: dict[str, Value] = {name: values[0] for name, (values, _) in choices.items()}
    start |= {"rows": choices["rows"][0][-1], "filters": WHOLE, "unroll": 2}
    best, best_cost = start, float("inf")
    for family in families:
        for kernel in kernels_of(form_of(info), family):
            for gather in choices["gather"][0]:
                for copy in choices["copy"][0]:
                    fixed = {"family": family.key, "micro_kernel": kernel, "gather": gather, "copy": copy}
                    values, cost = descend({**start, **fixed}, prices, choices, _DESCENT)
                    if cost < best_cost:
                        best, best_cost = values, cost
    if best_cost == float("inf"):
        raise ScheduleError(f"no legal blocking for a convolution to {info.m}x{info.n} with {families[0].key}")
    return best


def descend(
    values: dict[str, Value],
    prices: Prices,
    choices: dict[str, tuple[tuple[Value, ...], str]],
    names: tuple[str, ...],
) -> tuple[dict[str, Value], float]:
    """Coordinate descent: change one of the named decisions at a time while it helps."""
    best = prices.of(values)
    improved = best < float("inf")
    while improved:
        improved = False
        for name in names:
            for candidate in choices[name][0]:
                trial = {**values, name: candidate}
                price = prices.of(trial)
                if price < best * 0.999:
                    values, best, improved = trial, price, True
    return values, best
