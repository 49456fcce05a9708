"""Skinny products (M <= 8): B is streamed once, at memory bandwidth.

The same loops as ``cpu.gemm`` around a micro-kernel that holds all M rows, so that each vector of B
that is loaded serves every row. What differs is what matters: B is far larger than A and C together
and is used once, so narrow operands stay narrow in memory (families of kind ``gemv``), a constant B is
one sequential stream of panels, and a row-major B at run time is read in place, a few whole rows at a
time (each row is a stream of its own for the prefetcher) while C stays in the first-level cache.

author: hand
"""

from __future__ import annotations

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily, families_for
from qimeng_tvm.schedule import BlockInfo, SearchSpace, blocking

from .gemm import PackedGemm

#: Rows from which re-reading B from a cache is cheaper than holding all of C's rows.
MAX_ROWS = 8


class StreamedGemv(PackedGemm):
    """C += A B for a few rows of A, bound by reading B."""

    name = "cpu.gemv"
    version = 2
    priority = 1

    def families(self, block: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
        """Families that keep B narrow in memory where there are such, else those of GEMM."""
        dtypes = (block.a_dtype, block.b_dtype, block.acc_dtype)
        skinny = families_for(hardware.isa, dtypes, hardware.features, kind="gemv")
        general = families_for(hardware.isa, dtypes, hardware.features)
        # A wider instruction beats a narrower store.
        if skinny and general and general[0].lanes * general[0].k_pack > skinny[0].lanes * skinny[0].k_pack:
            return general
        return skinny + general

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """At most ``MAX_ROWS`` rows."""
        return block.m <= MAX_ROWS and super().match(block, hardware)

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """The decisions of ``cpu.gemm``, with micro-kernels of all M rows and shallow calls for a B in place."""
        return blocking.gemv_space(block, hardware, self.families(block, hardware))
