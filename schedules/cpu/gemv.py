# author: offline-exchange, prompt rule@1, 1 round, the answer of round 1
# checked on: AMD EPYC (znver3), 2026-11-23: 75 operators right
# speed: 1.00 of the reference
"""Skinny matrix products: at most eight rows, bound by reading B, which is used once.

The loops are those of the packed GEMM. The micro-kernel holds all rows of C, so that each vector of B that is
loaded serves every row. B stays as narrow in memory as it is given and is widened in registers, unless a general
micro-kernel does more products an instruction: a wider instruction beats a narrower store.
"""

from __future__ import annotations

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily, families_for
from qimeng_tvm.schedule import BlockInfo, SearchSpace, blocking
from qimeng_tvm.schedules.cpu.gemm import PackedGemm

MAX_ROWS = 8


class SkinnyGemm(PackedGemm):
    """C += A B with few rows: all of M in one micro-tile, B streamed once."""

    name = "cpu.gemv"
    version = 3
    priority = 1

    def families(self, block: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
        """Families that widen B in registers, then the general ones; wider instructions go alone."""
        dtypes = (block.a_dtype, block.b_dtype, block.acc_dtype)
        general = tuple(families_for(hardware.isa, dtypes, hardware.features))
        narrow = tuple(families_for(hardware.isa, dtypes, hardware.features, kind="gemv"))
        if not narrow:
            return general
        if general and general[0].lanes * general[0].k_pack > narrow[0].lanes * narrow[0].k_pack:
            return general
        return narrow + tuple(f for f in general if f not in narrow)

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """What the packed GEMM serves, of at most eight rows."""
        return block.m <= MAX_ROWS and super().match(block, hardware)

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions of a skinny product: micro-kernels of all rows, shallow calls for a B in place."""
        return blocking.gemv_space(block, hardware, self.families(block, hardware))
