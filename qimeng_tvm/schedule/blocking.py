"""Blocking of a matrix product: legal tile sizes, and the analytic choice among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import ceil, inf

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily
from qimeng_tvm.schedule.contract import BlockInfo, Choose, Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.estimate import gemm_cycles, least_cycles


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of ``unit`` that is >= ``value``."""
    return -(-value // unit) * unit


def divisors(value: int) -> list[int]:
    """Return the divisors of ``value``, ascending."""
    return [d for d in range(1, value + 1) if value % d == 0]


#: Row tiles up to which a panel of B passes so quickly that the next one is better fetched meanwhile. With more of
#: them the prefetches cost more than they bring (measured: M = 16 gains 40 %, M = 128 loses 10 %).
_FEW_TILES = 4


@dataclass(frozen=True)
class GemmPlan:
    """Decisions turned into numbers.

    Attributes
    ----------
    mc, nc : int
        Micro-tiles (of mr rows, of nr columns) in one block of C.
    kc, k_blocks : int
        Depth of one micro-kernel call, and calls over K.
    c_local : bool
        The whole reduction is one call: C stays in registers.
    """

    family: IntrinFamily
    mr: int
    nv: int
    kc: int
    mc: int
    nc: int
    k_blocks: int
    m_blocks: int
    n_blocks: int
    order: str
    inner_order: str
    pack_a: str
    pack_b: str
    unroll: int
    threads: int
    a_panel: bool
    prefetch: bool

    @property
    def ahead(self) -> int:
        """Row tiles that share a panel of B, whose prefetches are worth having; 0: no prefetch."""
        if not self.prefetch or self.pack_b not in ("constant", "whole"):
            return 0
        if self.mc == self.m_blocks == self.k_blocks == 1:
            return 1
        # What lies behind in memory must be what comes next; and the place of a tile be told by A's offset.
        follows = self.k_blocks == 1 or (self.nc == 1 and self.order == "n")
        placed = self.k_blocks == 1 or (self.pack_a == "none" and not self.a_panel)
        reused = self.inner_order == "n" and 1 < self.mc <= _FEW_TILES
        return self.mc if reused and follows and placed else 0

    @property
    def nr(self) -> int:
        """Columns of a micro-tile."""
        return self.nv * self.family.lanes

    @property
    def c_local(self) -> bool:
        """C stays in registers."""
        return self.k_blocks == 1

    @property
    def padded_m(self) -> int:
        """M in whole blocks."""
        return self.m_blocks * self.mc * self.mr

    @property
    def padded_n(self) -> int:
        """N in whole blocks."""
        return self.n_blocks * self.nc * self.nr

    @property
    def padded_k(self) -> int:
        """K in whole calls."""
        return self.k_blocks * self.kc

    def intrin_name(self) -> str:
        """Canonical name of the micro-kernel."""
        values = {
            "mr": self.mr,
            "nv": self.nv,
            "kc": self.kc,
            "ku": self.unroll,
            "a_panel": int(self.a_panel),
            "c_local": int(self.c_local),
            "ahead": self.ahead,
        }
        return self.family.intrin_name(**{p: values[p] for p in self.family.parameters})


@cache
def split_kernel(text: str) -> tuple[int, int]:
    """Read ``"6x2"``: rows and vectors a row."""
    mr, nv = text.split("x")
    return int(mr), int(nv)


@cache
def balanced(tiles: int, target: int) -> int:
    """Return the block size near ``target`` that wastes the fewest of ``tiles``; ties go to the closest."""
    if target >= tiles:
        return tiles
    low, high = max(1, (target + 1) // 2), min(tiles, target + target // 2)
    return min(range(low, high + 1), key=lambda t: (round_up(tiles, t) - tiles, abs(t - target)))


@cache
def split_k(k: int, target: int, k_pack: int) -> tuple[int, int]:
    """Return (kc, calls) with kc a multiple of ``k_pack`` near ``target``, wasting as little of K as can be."""
    if k < 2 * k_pack:
        # A loop of one step is simplified away, and with it what tensorize and the audit look for.
        return 2 * k_pack, 1
    calls = max(1, ceil(k / target))
    for more in range(calls, calls + 3):
        if k % (more * k_pack) == 0:
            return k // more, more
    return round_up(ceil(k / calls), k_pack), calls


def unroll_of(steps: int, wanted: int) -> int:
    """Return the largest power-of-two unroll <= ``wanted`` that divides the k steps."""
    while steps % wanted:
        wanted //= 2
    return wanted


def gemm_plan(info: BlockInfo, families: tuple[IntrinFamily, ...], choose: Choose) -> GemmPlan:
    """Turn decisions into loop extents."""
    name = choose("family")
    family = next(f for f in families if f.key == name)
    mr, nv = split_kernel(choose("micro_kernel"))
    nr = nv * family.lanes
    kc, k_blocks = split_k(info.k, choose("kc"), family.k_pack)
    m_tiles, n_tiles = ceil(info.m / mr), ceil(info.n / nr)
    mc, nc = balanced(m_tiles, max(1, choose("mc") // mr)), balanced(n_tiles, max(1, choose("nc") // nr))
    return GemmPlan(
        family=family,
        mr=mr,
        nv=nv,
        kc=kc,
        mc=mc,
        nc=nc,
        k_blocks=k_blocks,
        m_blocks=ceil(m_tiles / mc),
        n_blocks=ceil(n_tiles / nc),
        order=choose("order"),
        inner_order=choose("inner_order"),
        pack_a=choose("pack_a"),
        pack_b=choose("pack_b"),
        unroll=unroll_of(kc // family.k_pack, choose("unroll")),
        threads=info.threads if choose("parallel") == "yes" else 1,
        a_panel=info.transpose_a and "a_panel" in family.parameters,
        prefetch=choose("prefetch") == "yes",
    )


def gemm_illegal(info: BlockInfo, families: tuple[IntrinFamily, ...], values: Values) -> str | None:
    """Say why these decisions do not go together, or None."""
    return _refused(info, gemm_plan(info, families, values.__getitem__))


def _refused(info: BlockInfo, plan: GemmPlan) -> str | None:
    family = plan.family
    if not family.fits(plan.mr, plan.nv):
        return f"a {plan.mr}x{plan.nv} micro-kernel does not fit {family.registers} registers"
    if plan.pack_a == "none" and not _in_place_a(info, plan):
        return "A in place needs whole matrices and tiles of M and K, in the micro-kernel's own type and order: pack it"
    if plan.pack_b == "none" and not _in_place_b(info, plan):
        return "B in place needs whole matrices and tiles of N and K, k_pack 1 and row-major order: pack it"
    if plan.pack_a == "block" and plan.order != "m":
        return "packing a block of A needs M outermost"
    if plan.pack_b == "block" and plan.order != "n":
        return "packing a block of B needs N outermost"
    return None


def _in_place_a(info: BlockInfo, plan: GemmPlan) -> bool:
    whole = plan.padded_m == info.m and plan.padded_k == info.k
    same = info.transpose_a == plan.a_panel and plan.family.storage[0] == info.a_dtype
    return whole and same and info.planes_a


def _in_place_b(info: BlockInfo, plan: GemmPlan) -> bool:
    f = plan.family
    whole = plan.padded_n == info.n and plan.padded_k == info.k
    same = f.k_pack == 1 and not info.transpose_b and f.storage[1] == info.b_dtype
    return whole and same and info.planes_b


def kernels_of(family: IntrinFamily, m: int) -> tuple[str, ...]:
    """Micro-kernels worth trying: they fit the registers and use at least half of them, or all of M.

    Rows beyond M are waste, so mr stops there; a wider tile than the registers hold spills.
    """
    shapes = [
        (mr, nv)
        for mr in range(1, min(m, 16) + 1)
        for nv in range(1, 13)
        if family.fits(mr, nv) and (mr * nv * 2 >= family.registers or not family.fits(mr, nv + 1))
    ]
    return tuple(f"{mr}x{nv}" for mr, nv in shapes)


#: "The whole dimension", as a target.
WHOLE = 1 << 30
_KC = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, WHOLE)
_MC = (16, 24, 48, 72, 96, 144, 192, 288, 384, 768, WHOLE)
_NC = (16, 32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, WHOLE)


def _targets(candidates: tuple[int, ...], extent: int) -> tuple[int, ...]:
    """Candidates below the extent, and the whole of it."""
    return (*(c for c in candidates if c < extent), WHOLE)


#: Depths of a micro-kernel call that reads a few rows of B in place.
_SHALLOW = (4, 8, 16, 32)


def gemv_space(info: BlockInfo, hardware: Hardware, families: tuple[IntrinFamily, ...]) -> SearchSpace:
    """Return the decisions of a skinny product: all of M in one micro-tile, B streamed once."""
    nvs = range(1, max(f.registers for f in families))
    kernels = tuple(f"{info.m}x{nv}" for nv in nvs if any(f.fits(info.m, nv) for f in families))
    return _space(info, hardware, families, kernels, (*_SHALLOW, *_KC))


def gemm_space(info: BlockInfo, hardware: Hardware, families: tuple[IntrinFamily, ...]) -> SearchSpace:
    """Return the decisions of a packed GEMM, their defaults chosen by the working-set model."""
    kernels = tuple(dict.fromkeys(k for f in families for k in kernels_of(f, info.m)))
    return _space(info, hardware, families, kernels, _KC)


def _space(
    info: BlockInfo,
    hardware: Hardware,
    families: tuple[IntrinFamily, ...],
    kernels: tuple[str, ...],
    depths: tuple[int, ...],
) -> SearchSpace:
    pack_b = ("constant",) if info.constant_b else ("none", "whole", "block")
    choices: dict[str, tuple[tuple[Value, ...], str]] = {
        "family": (tuple(f.key for f in families), "micro-kernel family"),
        "micro_kernel": (kernels, "rows x vectors of C held in registers"),
        "kc": (_targets(depths, info.k), "depth of one micro-kernel call, elements of K"),
        "mc": (_targets(_MC, info.m), "rows of one block of C"),
        "nc": (_targets(_NC, info.n), "columns of one block of C"),
        "order": (("n", "m"), "which dimension of C is blocked outermost"),
        "inner_order": (("n", "m"), "whose panel stays in the first-level cache: n keeps B's, m keeps A's"),
        "pack_a": (("none", "whole", "block"), "A in place, packed once, or packed block by block"),
        "pack_b": (pack_b, "the same for B; constant: at compile time"),
        "unroll": ((1, 2, 4), "k steps unrolled in the micro-kernel"),
        "prefetch": (("yes", "no"), "bring in B before it is used: the next panel, or a page ahead"),
        "parallel": (("yes", "no") if info.threads > 1 else ("no",), "share blocks of C between the cores"),
    }
    best = default_values(info, hardware, families, choices)
    decisions = tuple(Decision(name, values, best[name], doc) for name, (values, doc) in choices.items())
    return SearchSpace(decisions, lambda values: gemm_illegal(info, families, values))


def default_values(
    info: BlockInfo,
    hardware: Hardware,
    families: tuple[IntrinFamily, ...],
    choices: dict[str, tuple[tuple[Value, ...], str]],
) -> dict[str, Value]:
    """Return the legal decisions of the fewest estimated cycles, by descent from several starts.

    The full product of the candidates is too large to price; micro-kernel and packing are tried
    exhaustively, but for those that no blocking makes good enough, and for each the blocking is improved one
    decision at a time.
    """
    start = {name: values[0] for name, (values, _) in choices.items()}
    start |= {"kc": choices["kc"][0][-1], "mc": choices["mc"][0][-1], "nc": choices["nc"][0][-1], "unroll": 2}
    starts = _starts(info, choices)
    known: dict[tuple[Value, ...], float] = {}

    def cost(values: dict[str, Value]) -> float:
        key = tuple(values.values())  # descents from several starts meet
        if key not in known:
            plan = gemm_plan(info, families, values.__getitem__)
            known[key] = gemm_cycles(info, plan, hardware) if _refused(info, plan) is None else inf
        return known[key]

    tried: list[tuple[float, int, dict[str, Value]]] = []
    for family in families:
        kernels = [k for k in choices["micro_kernel"][0] if family.fits(*split_kernel(str(k)))]
        for kernel, pack_a, pack_b in product(kernels, choices["pack_a"][0], choices["pack_b"][0]):
            fixed = {"family": family.key, "micro_kernel": kernel, "pack_a": pack_a, "pack_b": pack_b}
            least = least_cycles(info, family, *split_kernel(str(kernel)), str(pack_a), str(pack_b), hardware)
            tried.append((least, len(tried), fixed))
    best, best_cost, best_place = start, inf, 0
    for least, place, fixed in sorted(tried, key=lambda t: t[:2]):
        if least > best_cost:
            break
        for first in starts:
            values = {**start, **fixed, "order": "m" if fixed["pack_a"] == "block" else "n", **first}
            values, price = _descend(values, cost, choices)
            # Of the equally good ones the first, wherever the bounds put it.
            if price < best_cost or (price == best_cost and place < best_place):
                best, best_cost, best_place = values, price, place
    if best_cost == inf:
        raise ScheduleError(f"no legal blocking for {info.m}x{info.n}x{info.k} with {families[0].key}")
    plan = gemm_plan(info, families, best.__getitem__)
    # What is said to be done is done.
    best = {**best, "prefetch": "yes" if plan.ahead else "no"}
    return {**best, "unroll": 1} if _may_spill(plan) else best


def _may_spill(plan: GemmPlan) -> bool:
    """Tell whether LLVM has no register left to load a second step's operands across a prefetch.

    Then it spills half of the sums now and then: 784x256x512 takes 1.6 times as long.
    """
    held = plan.mr * plan.nv + min(plan.mr, plan.nv) + 1
    return plan.ahead > 0 and held >= plan.family.registers - 1


def _starts(info: BlockInfo, choices: dict[str, tuple[tuple[Value, ...], str]]) -> list[dict[str, Value]]:
    """Return what descents start from, where that is not the whole of every dimension.

    No single step leads to what goes together: several streams from memory to a shallow call and a narrow block,
    prefetching the next panel of a split K to a single one in a block.
    """
    together: tuple[dict[str, int], ...] = (
        {"kc": 8, "nc": 128},
        {"kc": 1024, "nc": 16},
        {"kc": 1024, "nc": 16, "mc": 16},
    )
    starts: list[dict[str, Value]] = [{}]
    for target in together:
        # A target beyond the extent means the whole of it; calls may not be shallower than the rule has them.
        reached: dict[str, Value] = {
            name: v if v in choices[name][0] else choices[name][0][-1] for name, v in target.items()
        }
        if reached["kc"] == target["kc"] or target["kc"] >= info.k:
            starts.append({**reached, "order": "n"})
    return starts


#: What the descent changes, in this order.
_DESCENT = ("kc", "nc", "mc", "inner_order", "order", "prefetch", "unroll", "parallel")


def _descend(
    values: dict[str, Value],
    cost: Callable[[dict[str, Value]], float],
    choices: dict[str, tuple[tuple[Value, ...], str]],
) -> tuple[dict[str, Value], float]:
    """Coordinate descent: change one decision at a time while it helps."""
    best = cost(values)
    improved = True
    while improved:
        improved = False
        for name in _DESCENT:
            for candidate in choices[name][0]:
                if candidate == values[name]:
                    continue
                trial = {**values, name: candidate}
                price = cost(trial)
                if price < best * 0.999:
                    values, best, improved = trial, price, True
    return values, best
