"""Blocking of a matrix product: legal tile sizes, and the analytic choice among them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily
from qimeng_tvm.schedule.contract import BlockInfo, Choose, Decision, SearchSpace, Values

#: Bytes of one element.
WIDTH = {"float32": 4, "bfloat16": 2, "int32": 4, "int16": 2, "int8": 1, "uint8": 1}


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of ``unit`` that is >= ``value``."""
    return -(-value // unit) * unit


def divisors(value: int) -> list[int]:
    """Return the divisors of ``value``, ascending."""
    return [d for d in range(1, value + 1) if value % d == 0]


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
        }
        return self.family.intrin_name(**{p: values[p] for p in self.family.parameters})


def split_kernel(text: str) -> tuple[int, int]:
    """Read ``"6x2"``: rows and vectors a row."""
    mr, nv = text.split("x")
    return int(mr), int(nv)


def balanced(tiles: int, target: int) -> int:
    """Return the block size near ``target`` that wastes the fewest of ``tiles``; ties go to the closest."""
    if target >= tiles:
        return tiles
    low, high = max(1, (target + 1) // 2), min(tiles, target + target // 2)
    return min(range(low, high + 1), key=lambda t: (round_up(tiles, t) - tiles, abs(t - target)))


def split_k(k: int, target: int, k_pack: int) -> tuple[int, int]:
    """Return (kc, calls) with kc a multiple of ``k_pack`` near ``target``, wasting as little of K as can be."""
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
        threads=info.threads,
        a_panel=info.transpose_a and "a_panel" in family.parameters,
    )


def gemm_illegal(info: BlockInfo, families: tuple[IntrinFamily, ...], values: Values) -> str | None:
    """Say why these decisions do not go together, or None."""
    plan = gemm_plan(info, families, values.__getitem__)
    family = plan.family
    if not family.fits(plan.mr, plan.nv):
        return f"a {plan.mr}x{plan.nv} micro-kernel does not fit {family.registers} registers"
    if plan.pack_a == "none" and not _in_place_a(info, plan):
        return "A in place needs whole tiles of M and K in the micro-kernel's own type and order: pack it"
    if plan.pack_b == "none" and not _in_place_b(info, plan):
        return "B in place needs whole tiles of N and K, k_pack 1 and row-major order: pack it"
    if plan.pack_a == "block" and plan.order != "m":
        return "packing a block of A needs M outermost"
    if plan.pack_b == "block" and plan.order != "n":
        return "packing a block of B needs N outermost"
    return None


def _in_place_a(info: BlockInfo, plan: GemmPlan) -> bool:
    whole = plan.padded_m == info.m and plan.padded_k == info.k
    return whole and info.transpose_a == plan.a_panel and plan.family.storage[0] == info.a_dtype


def _in_place_b(info: BlockInfo, plan: GemmPlan) -> bool:
    f = plan.family
    whole = plan.padded_n == info.n and plan.padded_k == info.k
    return whole and f.k_pack == 1 and not info.transpose_b and f.storage[1] == info.b_dtype


def kernels_of(family: IntrinFamily, m: int) -> tuple[str, ...]:
    """Micro-kernels worth trying: all that fit the registers and are not dominated in both directions."""
    shapes = [
        (mr, nv)
        for mr in range(1, min(m, 16) + 1)
        for nv in range(1, 13)
        if family.fits(mr, nv) and (mr * nv * 2 >= family.registers or not family.fits(mr, nv + 1))
    ]
    return tuple(f"{mr}x{nv}" for mr, nv in shapes)


def gemm_space(info: BlockInfo, hardware: Hardware, families: tuple[IntrinFamily, ...]) -> SearchSpace:
    kernels = tuple(dict.fromkeys(k for f in families for k in kernels_of(f, info.m)))
    d = (
        Decision("family", tuple(f.key for f in families), families[0].key, "micro-kernel family"),
        Decision("micro_kernel", kernels, kernels[-1], "rows x vectors of C held in registers"),
        Decision("kc", (128, 256, 384, 512, 768, 1024, 2048, 4096, 1 << 30), 1024, ""),
        Decision("mc", (12, 24, 48, 96, 192, 384, 768, 1 << 30), 96, ""),
        Decision("nc", (16, 32, 64, 128, 256, 512, 1024, 1 << 30), 256, ""),
        Decision("order", ("n", "m"), "n", ""),
        Decision("inner_order", ("n", "m"), "n", ""),
        Decision("pack_a", ("none", "whole", "block"), "none", ""),
        Decision("pack_b", ("constant",) if info.constant_b else ("none", "whole", "block"), "constant" if info.constant_b else "whole", ""),
        Decision("unroll", (1, 2, 4), 4, ""),
    )
    return SearchSpace(d, lambda values: gemm_illegal(info, families, values))
