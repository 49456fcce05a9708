"""bfloat16 GEMM on AVX2 + FMA, which has no bfloat16 arithmetic: widened in registers, vfmadd231ps.

A bfloat16 is the upper half of a float32. In the k-pair layout one 32-bit word holds (k, k + 1) of a
column: ``word << 16`` is element k as float32, ``word & 0xffff0000`` is element k + 1, one cheap
operation each, exact. So B stays two bytes wide in memory and the product runs at the float32 peak.
A is small beside B in a tile and every element of it is broadcast, so packing widens it to float32 once.

author: hand
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin import GemmShape, gemm_desc, intrin_family, lines_ahead, load, prefetch_ahead, whole

LANES = 8
VEC = f"float32x{LANES}"
INT = f"int32x{LANES}"


def _widen(word: Any, half: int) -> Any:
    """Element ``half`` (0 or 1) of a vector of bfloat16 pairs, as float32."""
    if half == 0:
        bits = tirx.shift_left(word, tirx.Broadcast(tirx.const(16, "int32"), LANES))
    else:
        bits = tirx.bitwise_and(word, tirx.Broadcast(tirx.const(-65536, "int32"), LANES))
    return tirx.reinterpret(VEC, bits)


@intrin_family(
    isa="x86",
    requires=("avx2", "fma"),
    dtypes=("bfloat16", "bfloat16", "float32"),
    storage=("float32", "bfloat16"),
    lanes=LANES,
    registers=16,
    scratch=3,
    k_pack=2,
    k_step=1,
    mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",),
    version=2,
)
def gemm(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[mr, nv*8] += A[mr, kc] @ B[kc, nv*8], k in pairs, A widened to float32 by packing."""
    nr, kp = nv * LANES, kc // 2
    s = GemmShape(mr, nr, kc, "bfloat16", "bfloat16", "float32", "float32", "bfloat16", 2, False, bool(c_local))
    rows_outside = mr >= nv
    outer, inner = (mr, nv) if rows_outside else (nv, mr)

    def slot(x: Any, y: Any) -> Any:
        i, j = (x, y) if rows_outside else (y, x)
        return (i * nv + j) * LANES

    def step(a: tirx.Buffer, b: tirx.Buffer, acc: tirx.Buffer, x: Any, y: Any, k: Any, half: int) -> Any:
        i, j = (x, y) if rows_outside else (y, x)
        return tirx.call_llvm_pure_intrin(
            VEC,
            "llvm.fma",
            tirx.Broadcast(load(a, (i, k * 2 + half)), LANES),
            _widen(b.vload([k, j * LANES], INT), half),
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
            Bw = T.decl_buffer((kp, nr), "int32", data=B.data, elem_offset=B.elem_offset // 2, strides=[sb // 2, 1])
            acc = T.alloc_buffer((mr * nr,), "float32", scope="local")
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    acc[T.ramp((i * nv + j) * LANES, 1, LANES)] = C.vload([i, j * LANES], VEC)
            for ko in range(kp // ku):
                for line in T.unroll(lines_ahead(s, ku, ahead)):
                    T.evaluate(prefetch_ahead(s, A, B, sa, ko, ku, ahead, line))
                for ki in T.unroll(ku):
                    for x in T.unroll(outer):
                        for y in T.unroll(inner):
                            acc[T.ramp(slot(x, y), 1, LANES)] = step(A, Bw, acc, x, y, ko * ku + ki, 0)
                    for x in T.unroll(outer):
                        for y in T.unroll(inner):
                            acc[T.ramp(slot(x, y), 1, LANES)] = step(A, Bw, acc, x, y, ko * ku + ki, 1)
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * LANES, 1, LANES)] = acc.vload([(i * nv + j) * LANES], VEC)

    return gemm_desc(s), impl
