"""int8 GEMM on AVX2, exact: operands widened to int16 while packing, vpmaddwd + vpaddd.

The usual AVX2 sequence (vpmaddubsw) saturates its 16-bit pair sums, 255 * 127 * 2 being too large;
vpmaddwd on int16 pairs is exact and does as many products a cycle on the machine's two multipliers.

author: hand
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin import GemmShape, gemm_desc, intrin_family, lines_ahead, prefetch_ahead, whole

LANES = 8
VEC = f"int32x{LANES}"
PAIRS = f"int16x{2 * LANES}"


def _madd_gemm(
    a_dtype: str, b_store: str, mr: int, nv: int, kc: int, ku: int, c_local: bool, ahead: int
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    nr, kp = nv * LANES, kc // 2
    s = GemmShape(mr, nr, kc, a_dtype, "int8", "int32", "int16", b_store, 2, False, c_local)
    rows_outside = mr >= nv
    outer, inner = (mr, nv) if rows_outside else (nv, mr)

    def slot(x: Any, y: Any) -> Any:
        i, j = (x, y) if rows_outside else (y, x)
        return (i * nv + j) * LANES

    def b_vector(b: tirx.Buffer, k: Any, j: Any) -> Any:
        stored = b.vload([k, j * LANES, 0], f"{b_store}x{2 * LANES}")
        return stored if b_store == "int16" else tirx.Cast(PAIRS, stored)

    def step(a: tirx.Buffer, b: tirx.Buffer, acc: tirx.Buffer, x: Any, y: Any, k: Any) -> Any:
        i, j = (x, y) if rows_outside else (y, x)
        pair = tirx.reinterpret("int32", a.vload([i, k * 2], "int16x2"))
        products = tirx.call_llvm_pure_intrin(
            VEC,
            "llvm.x86.avx2.pmadd.wd",
            tirx.reinterpret(PAIRS, tirx.Broadcast(pair, LANES)),
            b_vector(b, k, j),
        )
        return acc.vload([slot(x, y)], VEC) + products

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sb = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, "int16", offset_factor=1, strides=s.a_strides(sa))
        B = T.match_buffer(b, s.b_shape, b_store, offset_factor=1, strides=s.b_strides(sb))
        C = T.match_buffer(c, (mr, nr), "int32", offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            acc = T.alloc_buffer((mr * nr,), "int32", scope="local")
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    acc[T.ramp((i * nv + j) * LANES, 1, LANES)] = C.vload([i, j * LANES], VEC)
            for ko in range(kp // ku):
                for line in T.unroll(lines_ahead(s, ku, ahead)):
                    T.evaluate(prefetch_ahead(s, A, B, sa, ko, ku, ahead, line))
                for ki in T.unroll(ku):
                    for x in T.unroll(outer):
                        for y in T.unroll(inner):
                            acc[T.ramp(slot(x, y), 1, LANES)] = step(A, B, acc, x, y, ko * ku + ki)
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * LANES, 1, LANES)] = acc.vload([(i * nv + j) * LANES], VEC)

    return gemm_desc(s), impl


def _family(a_dtype: str, b_store: str) -> Any:
    return intrin_family(
        isa="x86",
        requires=("avx2",),
        dtypes=(a_dtype, "int8", "int32"),
        storage=("int16", b_store),
        lanes=LANES,
        registers=16,
        scratch=1 if b_store == "int16" else 4,
        k_pack=2,
        uops=2,
        column_uops=0 if b_store == "int16" else 1,
        latency=1,  # of vpaddd: the products do not wait for the sum
        mnemonics=("vpdpwssd|vpmaddwd", "vpdpwssd|vpaddd"),  # on cores with VNNI, LLVM makes one of the two
        version=2,
    )


@_family("uint8", "int16")
def gemm_u8s8(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """u8 x s8: C[mr, nv*8] += A[mr, kc] @ B[kc, nv*8], k in pairs, A and B packed as int16."""
    return _madd_gemm("uint8", "int16", mr, nv, kc, ku, bool(c_local), ahead)


@_family("int8", "int16")
def gemm_s8s8(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """s8 x s8: C[mr, nv*8] += A[mr, kc] @ B[kc, nv*8], k in pairs, A and B packed as int16."""
    return _madd_gemm("int8", "int16", mr, nv, kc, ku, bool(c_local), ahead)


@_family("uint8", "int8")
def gemv_u8s8(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Skinny u8 x s8: B stays one byte wide in memory and is widened in registers (vpmovsxbw)."""
    return _madd_gemm("uint8", "int8", mr, nv, kc, ku, bool(c_local), ahead)


@_family("int8", "int8")
def gemv_s8s8(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Skinny s8 x s8: B stays one byte wide in memory and is widened in registers (vpmovsxbw)."""
    return _madd_gemm("int8", "int8", mr, nv, kc, ku, bool(c_local), ahead)
