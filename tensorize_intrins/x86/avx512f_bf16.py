# author: offline-exchange, prompt intrinsic@2, 1 round, the answer of round 1
# instruction: vfmadd231ps (bfloat16 GEMM on AVX-512, without its bfloat16 arithmetic)
# checked on: AMD EPYC (znver5) with code for skylake_sp (skylake-avx512), 2026-11-25: 5 intrinsics right, no spills
# speed: 3x6 97%, 1x8 63% of peak
"""bfloat16 GEMM on AVX-512 without its bfloat16 arithmetic: vfmadd231ps, 16 lanes.

A comes as float32, so its elements are broadcast as they are. B lies as words of two consecutive k of a column: a
bfloat16 is the upper half of a float32, so a word shifted left by 16 is element k and a word with its lower half
cleared is element k + 1, both exact. One load of 16 words thus serves two steps of fma on 16 columns, and the two cheap
operations are shared by all rows: tall tiles lose least, mr / (mr + 1) of the peak at best.

Both elements are one expression of the half h: (word << (16 - 16 * h)) & -65536. Once the loops are unrolled LLVM drops
the mask for h = 0 and the shift for h = 1. With rows outside, the two halves are two full passes over the tile (words
of nv vectors wait for the second pass); with vectors outside, both halves of a vector are used up before the next one,
so that only one word is live.

promise: 88 % of peak
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin import GemmShape, gemm_desc, intrin_family, lines_ahead, load, prefetch_ahead, whole

LANES = 16
PACK = 2
VEC = "float32x16"
WORDS = "int32x16"


@intrin_family(isa="x86", requires=("avx512f",), dtypes=("bfloat16", "bfloat16", "float32"), storage=("float32", "bfloat16"), lanes=16, registers=32, k_pack=2, k_step=1, mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",), version=1, scratch=8)
def gemm(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[mr, nv*16] += A[mr, kc] @ B[kc, nv*16]."""
    nr = nv * LANES
    s = GemmShape(mr, nr, kc, "bfloat16", "bfloat16", "float32", "float32", "bfloat16", PACK, False, bool(c_local))

    # The operand with fewer vectors is held in registers over the inner loop, the other is streamed past it.
    rows_outside = mr >= nv
    outer, inner = (mr, nv) if rows_outside else (nv, mr)
    # The two halves of a word: two passes over the tile, or both at once for each vector of B.
    passes, together = (PACK, 1) if rows_outside else (1, PACK)

    def slot(x: Any, y: Any) -> Any:
        return (x * nv + y if rows_outside else y * nv + x) * LANES

    def widened(bw: Any, word: Any, j: Any, h: Any) -> Any:
        return tirx.reinterpret(
            VEC,
            tirx.bitwise_and(
                tirx.shift_left(bw.vload([word, j * LANES], WORDS), tirx.Broadcast(16 - h * 16, LANES)),
                tirx.Broadcast(tirx.const(-65536, "int32"), LANES),
            ),
        )

    def step(a: Any, bw: Any, acc: Any, x: Any, y: Any, word: Any, h: Any) -> Any:
        i, j = (x, y) if rows_outside else (y, x)
        return tirx.call_llvm_pure_intrin(
            VEC,
            "llvm.fma",
            tirx.Broadcast(load(a, s.a_index(i, word * PACK + h)), LANES),
            widened(bw, word, j, h),
            acc.vload([slot(x, y)], VEC),
        )

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sb = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, "float32", offset_factor=1, strides=s.a_strides(sa))
        B = T.match_buffer(b, s.b_shape, "bfloat16", offset_factor=2, strides=s.b_strides(sb))
        C = T.match_buffer(c, (mr, nr), "float32", offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            Bw = T.decl_buffer((kc // PACK, nr), "int32", data=B.data, elem_offset=B.elem_offset // PACK, strides=[sb // PACK, 1])
            acc = T.alloc_buffer((mr * nr,), "float32", scope="local")
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    acc[T.ramp((i * nv + j) * LANES, 1, LANES)] = C.vload([i, j * LANES], VEC)
            for ko in range(kc // (PACK * ku)):
                for line in T.unroll(lines_ahead(s, ku, ahead)):
                    T.evaluate(prefetch_ahead(s, A, B, sa, ko, ku, ahead, line))
                for ki in T.unroll(ku):
                    for p in T.unroll(passes):
                        for x in T.unroll(outer):
                            for q in T.unroll(together):
                                for y in T.unroll(inner):
                                    acc[T.ramp(slot(x, y), 1, LANES)] = step(A, Bw, acc, x, y, ko * ku + ki, p + q)
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * LANES, 1, LANES)] = acc.vload([(i * nv + j) * LANES], VEC)

    return gemm_desc(s), impl
