# author: offline-exchange, prompt intrinsic@1, 1 round, the answer of round 1
# instruction: vdpbf16ps (bfloat16 GEMM on AVX512-BF16)
# checked on: AMD EPYC (znver5), 2026-11-25: 5 intrinsics right, no spills
# speed: 5x5 96%, 1x8 24% of peak; 1.00 of the reference
"""bfloat16 GEMM on AVX512-BF16: vdpbf16ps, 16 float32 lanes, two k a step.

A and B are read through int32 views: one word of A (two consecutive k of a row) is broadcast, 16 words of B (the same
two k of 16 columns) are loaded, and vdpbf16ps adds both products to one of mr * nv accumulators in registers. The
instruction takes bfloat vectors, so a small imported LLVM function takes integers and bitcasts them. The operand with
fewer vectors stays in registers over the inner loop, the other is streamed past it and is the last operand, the one
that can come from memory. Each sum gets one product a step, so mr * nv independent chains hide the latency of 6.

promise: 95 % of peak
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin import GemmShape, gemm_desc, intrin_family, lines_ahead, load, prefetch_ahead, whole

LANES = 16
P = 2
VEC = "float32x16"
WORDS = "int32x16"

LLVM = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define <16 x float> @qimeng_dpbf16ps(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
"""


@intrin_family(isa="x86", requires=("avx512f", "avx512bf16"), dtypes=("bfloat16", "bfloat16", "float32"), lanes=16, registers=32, k_pack=2, mnemonics=("vdpbf16ps",), version=3)
def gemm(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[mr, nv*16] += A[mr, kc] @ B[kc, nv*16]."""
    nr = nv * LANES
    s = GemmShape(mr, nr, kc, "bfloat16", "bfloat16", "float32", "bfloat16", "bfloat16", 2, False, bool(c_local))

    # The operand with fewer vectors is held in registers over the inner loop, the other is streamed past it.
    rows_outside = mr >= nv
    outer, inner = (mr, nv) if rows_outside else (nv, mr)

    def slot(x: Any, y: Any) -> Any:
        return (x * nv + y if rows_outside else y * nv + x) * LANES

    def step(aw: Any, bw: Any, acc: Any, x: Any, y: Any, k: Any) -> Any:
        i, j = (x, y) if rows_outside else (y, x)
        row = tirx.Broadcast(load(aw, [i, k]), LANES)
        col = bw.vload([k, j * LANES], WORDS)
        held, streamed = (col, row) if rows_outside else (row, col)
        return tirx.call_extern(VEC, "qimeng_dpbf16ps", acc.vload([slot(x, y)], VEC), held, streamed)

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sb = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, "bfloat16", offset_factor=2, strides=s.a_strides(sa))
        B = T.match_buffer(b, s.b_shape, "bfloat16", offset_factor=2, strides=s.b_strides(sb))
        C = T.match_buffer(c, (mr, nr), "float32", offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            acc = T.alloc_buffer((mr * nr,), "float32", scope="local")
            T.attr(0, "pragma_import_llvm", LLVM)
            Aw = T.decl_buffer((mr, kc // P), "int32", data=A.data, elem_offset=A.elem_offset // P, strides=[sa // P, 1])
            Bw = T.decl_buffer((kc // P, nr), "int32", data=B.data, elem_offset=B.elem_offset // P, strides=[sb // P, 1])
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    acc[T.ramp((i * nv + j) * LANES, 1, LANES)] = C.vload([i, j * LANES], VEC)
            for ko in range(kc // (P * ku)):
                for line in T.unroll(lines_ahead(s, ku, ahead)):
                    T.evaluate(prefetch_ahead(s, A, B, sa, ko, ku, ahead, line))
                for ki in T.unroll(ku):
                    for x in T.unroll(outer):
                        for y in T.unroll(inner):
                            acc[T.ramp(slot(x, y), 1, LANES)] = step(Aw, Bw, acc, x, y, ko * ku + ki)
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * LANES, 1, LANES)] = acc.vload([(i * nv + j) * LANES], VEC)

    return gemm_desc(s), impl
