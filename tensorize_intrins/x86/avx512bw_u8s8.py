# author: offline-exchange, prompt intrinsic@2, 4 rounds, the answer of round 3
# instruction: vpmaddwd, vpaddd (unsigned by signed int8 GEMM on AVX-512 without VNNI, exact)
# checked on: AMD EPYC (znver5) with code for skylake_sp (skylake-avx512), 2026-11-25: 5 intrinsics right, no spills
# speed: 6x4 84%, 1x8 36% of peak
"""uint8 x int8 GEMM on AVX-512BW without VNNI, exact: vpmaddwd and vpaddd, 16 columns of two k an instruction.

Packing has widened both operands to int16, so vpmaddwd multiplies and adds two consecutive k in 32 bits without
saturation (vpmaddubsw would saturate at 16 bits). One 32-bit word of a row of A, two k, is broadcast to all lanes by a
load (vpbroadcastd from memory costs no vector port); B holds the two k of a column side by side, so 32 int16 are 16
columns. The chain through an accumulator is only the vpaddd, one cycle, so the two vector ports are the limit. Measured,
a k step of 3x6 and one of 5x4 lose the same four cycles or so beside their products, and both have nine loads: what
helps is more products for the same loads. So tiles of 24 accumulators (6x4, 8x3) are let in: 24 sums, 4 vectors of B,
a broadcast and a product are 30 registers. Large tiles have a single step as their body, in which LLVM has no later
step to load ahead from. Smaller tiles unroll at most two steps: from three additions to one sum on, LLVM's machine
combiner may turn the chain into a tree, which keeps the products of a whole step alive.
promise: 86 % of peak
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin import GemmShape, gemm_desc, intrin_family, lines_ahead, load, prefetch_ahead, whole

LANES = 16
PACK = 2
VEC = "int32x16"
PAIRS = "int16x32"
# Accumulators, held vectors and a broadcast up to which two unrolled steps do without a spill.
ROOMY = 24


@intrin_family(isa="x86", requires=("avx512bw",), dtypes=("uint8", "int8", "int32"), storage=("int16", "int16"), lanes=16, registers=32, k_pack=2, uops=2, latency=1, mnemonics=("vpdpwssd|vpmaddwd", "vpdpwssd|vpaddd"), version=1, scratch=3)
def gemm(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[mr, nv*16] += A[mr, kc] @ B[kc, nv*16]."""
    nr = nv * LANES
    s = GemmShape(mr, nr, kc, "uint8", "int8", "int32", "int16", "int16", PACK, False, bool(c_local))

    # The operand with fewer vectors is held in registers over the inner loop, the other is streamed past it.
    rows_outside = mr >= nv
    outer, inner = (mr, nv) if rows_outside else (nv, mr)

    # Steps (of two k) in the loop body: a divisor of ku, at most two so that each sum stays a chain, one in large tiles.
    steps = 2 if ku % 2 == 0 and mr * nv + inner + 1 <= ROOMY else 1
    trips = kc // (PACK * steps)

    def slot(x: Any, y: Any) -> Any:
        return (x * nv + y if rows_outside else y * nv + x) * LANES

    def step(a: Any, b: Any, acc: Any, x: Any, y: Any, k: Any) -> Any:
        i, j = (x, y) if rows_outside else (y, x)
        word = tirx.reinterpret("int32", a.vload([i, k * PACK], "int16x2"))
        product = tirx.call_llvm_pure_intrin(
            "int32x16",
            "llvm.x86.avx512.pmaddw.d.512",
            tirx.reinterpret(PAIRS, tirx.Broadcast(word, LANES)),
            b.vload([k, j * LANES, 0], PAIRS),
        )
        return acc.vload([slot(x, y)], VEC) + product

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sb = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, "int16", offset_factor=1, strides=s.a_strides(sa))
        B = T.match_buffer(b, s.b_shape, "int16", offset_factor=1, strides=s.b_strides(sb))
        C = T.match_buffer(c, (mr, nr), "int32", offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            acc = T.alloc_buffer((mr * nr,), "int32", scope="local")
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    acc[T.ramp((i * nv + j) * LANES, 1, LANES)] = C.vload([i, j * LANES], VEC)
            for ko in range(trips):
                for line in T.unroll(lines_ahead(s, steps, ahead)):
                    T.evaluate(prefetch_ahead(s, A, B, sa, ko, steps, ahead, line))
                for ki in T.unroll(steps):
                    for x in T.unroll(outer):
                        for y in T.unroll(inner):
                            acc[T.ramp(slot(x, y), 1, LANES)] = step(A, B, acc, x, y, ko * steps + ki)
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * LANES, 1, LANES)] = acc.vload([(i * nv + j) * LANES], VEC)

    return gemm_desc(s), impl
