"""GEMM by the GotoBLAS / BLIS loops around a tensorized micro-kernel.

For C[M, N] += A[M, K] B[K, N] (a batch loop outside):

    for jc, ic  (nc columns, mc rows)          order, parallel over blocks of C
      for pc    (kc of K)                      when K is split
        for jr, ir  (nr columns, mr rows)      inner_order
          micro-kernel C[mr, nr] += A[mr, kc] B[kc, nr]

Sources: Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 2008;
Van Zee & van de Geijn, "BLIS", TOMS 2015; Low et al., "Analytical Modeling Is Enough for
High-Performance BLIS", TOMS 2016 (the default decisions, in ``qimeng_tvm.schedule.blocking``).

author: hand
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily, families_for
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, blocking, packing, steps
from qimeng_tvm.schedule.estimate import gemm_cycles


@dataclass(frozen=True)
class Nest:
    """The loops of the anchor after tiling, by their place."""

    block: LoopRV
    pc: LoopRV | None
    tile: LoopRV
    inside: LoopRV


class PackedGemm(ScheduleRule):
    """C += A B with packed operands, edges padded inside packing and written back without a padded C."""

    name = "cpu.gemm"
    version = 2

    def families(self, block: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
        """Micro-kernel families that this machine has for the block's dtypes, the widest first.

        Those of skinny products come last: they keep B narrow in memory, which pays when it comes from there.
        """
        dtypes = (block.a_dtype, block.b_dtype, block.acc_dtype)
        general = families_for(hardware.isa, dtypes, hardware.features)
        return general + families_for(hardware.isa, dtypes, hardware.features, kind="gemv")

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Any matrix product for which the machine has a micro-kernel."""
        return block.kind == "matmul" and bool(self.families(block, hardware))

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions: micro_kernel, kc, mc, nc, order, inner_order, pack_a, pack_b, unroll, prefetch."""
        return blocking.gemm_space(block, hardware, self.families(block, hardware))

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Return estimated cycles of legal decisions."""
        return gemm_cycles(info, blocking.gemm_plan(info, self.families(info, hardware), values.__getitem__), hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Tile, pack, fuse the epilogue and tensorize."""
        plan = blocking.gemm_plan(info, self.families(info, hardware), choose)
        family = plan.family
        steps.pad(sch, block, {"m": plan.padded_m, "n": plan.padded_n, "k": plan.padded_k})
        parts = steps.parts_of(sch, block)
        a_copy = b_copy = None
        if plan.pack_a != "none":
            to_panels = (
                steps.k_panels(parts.a.axes, "m", plan.mr, family.k_pack)
                if plan.a_panel
                else steps.row_panels(parts.a.axes, plan.mr, plan.kc)
            )
            shuffled = packing.needs_shuffles(family.k_pack, transposed=False) and plan.a_panel
            a_copy = steps.pack(sch, block, parts.a, to_panels, family.storage[0], separate=shuffled)
        if plan.pack_b != "none":
            to_panels = steps.k_panels(parts.b.axes, "n", plan.nr, family.k_pack)
            shuffled = packing.needs_shuffles(family.k_pack, info.transpose_b) and plan.pack_b != "constant"
            b_copy = steps.pack(sch, block, parts.b, to_panels, family.storage[1], separate=shuffled)
        out = steps.write_back(sch, block, make=plan.c_local, scope="local")
        nest = self._tile(sch, block, parts.loops, plan)
        if out is not None:
            self._place_write_back(sch, block, out, nest, plan)
        self._place_packing(sch, a_copy, b_copy, nest, plan, info)
        init = sch.decompose_reduction(block, nest.inside if nest.pc is None else nest.pc)
        steps.vectorize_inner(sch, init, family.lanes, unroll=2 if plan.c_local else 0)
        steps.tensorize(sch, nest.inside, plan.intrin_name())

    def _tile(self, sch: Schedule, block: SBlockRV, axes: tuple[str, ...], plan: blocking.GemmPlan) -> Nest:
        """Split and reorder the anchor's loops; run the outermost in parallel."""
        loops = dict(zip(axes, sch.get_loops(block), strict=True))
        ic, ir, i = sch.split(loops["m"], [plan.m_blocks, plan.mc, plan.mr])
        jc, jr, j = sch.split(loops["n"], [plan.n_blocks, plan.nc, plan.nr])
        pc, k = (None, loops["k"])
        if plan.k_blocks > 1:
            pc, k = sch.split(loops["k"], [plan.k_blocks, plan.kc])
        outer = [jc, ic] if plan.order == "n" else [ic, jc]
        inner = [jr, ir] if plan.inner_order == "n" else [ir, jr]
        batch = [loops[x] for x in axes if x in ("b", "1")]
        middle = [] if pc is None else [pc]
        sch.reorder(*batch, *outer, *middle, *inner, i, j, k)
        # A block packed just before use belongs to the outermost block loop, so only that one is shared out.
        packs_blocks = "block" in (plan.pack_a, plan.pack_b)
        shared = [*batch, *(outer[:1] if packs_blocks else outer)]
        block_loop = outer[0]
        if plan.threads > 1:
            block_loop = sch.fuse(*shared) if len(shared) > 1 else shared[0]
            sch.parallel(block_loop)
        if plan.c_local:
            # Only the last panel of columns needs its stores checked. Rows are checked one by one, which is cheap.
            packing.peel(sch, jr if plan.nc > 1 or plan.threads > 1 else jc)
        # A micro-tile of one row has no loop over rows to replace.
        return Nest(block_loop, pc, inner[1], i if plan.mr > 1 else j)

    def _place_write_back(
        self, sch: Schedule, block: SBlockRV, out: SBlockRV, nest: Nest, plan: blocking.GemmPlan
    ) -> None:
        """Write C (epilogue included) as soon as a tile, or a block of C when K is split, is complete."""
        if plan.c_local:
            sch.reverse_compute_at(out, nest.tile, preserve_unit_loops=True)
            sch.set_scope(block, 0, "local")
        else:
            loops = sch.get_loops(block)
            assert nest.pc is not None
            at = next(i for i, loop in enumerate(loops) if sch.get(loop).same_as(sch.get(nest.pc)))
            sch.reverse_compute_at(out, loops[at - 1], preserve_unit_loops=True)
        steps.vectorize_inner(sch, out, plan.family.lanes, unroll=2 if plan.c_local else 0)
        if not plan.c_local:
            packing.peel(sch, sch.get_loops(out)[-2])

    def _place_packing(
        self,
        sch: Schedule,
        a_copy: SBlockRV | None,
        b_copy: SBlockRV | None,
        nest: Nest,
        plan: blocking.GemmPlan,
        info: BlockInfo,
    ) -> None:
        """Pack at compile time, once per call, or once per block just before use."""
        if a_copy is not None:
            if plan.pack_a == "block":
                sch.compute_at(a_copy, nest.block, preserve_unit_loops=True)
            share = plan.pack_a == "whole" and plan.threads > 1
            if plan.a_panel:
                packing.pack_panels(sch, a_copy, plan.mr, k_pack=plan.family.k_pack, transposed=False, parallel=share)
            else:
                packing.pack_rows(sch, a_copy, plan.kc, transposed=info.transpose_a, parallel=share)
        if b_copy is None:
            return
        if plan.pack_b == "constant":
            sch.annotate(b_copy, steps.PREPACK, True)
            return
        if plan.pack_b == "block":
            sch.compute_at(b_copy, nest.block, preserve_unit_loops=True)
        share = plan.pack_b == "whole" and plan.threads > 1
        packing.pack_panels(
            sch, b_copy, plan.nr, k_pack=plan.family.k_pack, transposed=info.transpose_b, parallel=share
        )
