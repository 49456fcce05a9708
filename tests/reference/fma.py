"""The outer-product micro-kernel on a fused multiply-add vector unit, for any lane count."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin.microkernel import GemmShape, gemm_desc, lines_ahead, load, prefetch_ahead, whole


def fma_gemm(
    mr: int, nv: int, kc: int, ku: int, lanes: int, a_panel: bool, c_local: bool, ahead: int
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Build C[mr, nv*lanes] += A[mr, kc] @ B[kc, nv*lanes] in float32 with ``llvm.fma``.

    Parameters
    ----------
    mr, nv, kc : int
        Rows, vectors a row, depth.
    ku : int
        k steps unrolled; must divide ``kc``.
    lanes : int
        float32 lanes of a vector register.
    a_panel : bool
        A packed (or transposed in place), else read in place by rows.
    c_local : bool
        C is the caller's register tile, else memory.
    ahead : int
        Row tiles that share a panel of B, for `prefetch_ahead`; 0: no prefetch.

    Notes
    -----
    Accumulators stay in registers over the whole k loop (Goto & van de Geijn 2008, "Anatomy of
    High-Performance Matrix Multiplication"): mr * nv of them, plus nv of B and one broadcast of A.
    """
    nr = nv * lanes
    s = GemmShape(mr, nr, kc, "float32", "float32", "float32", "float32", "float32", 1, a_panel, c_local)
    vec = f"float32x{lanes}"

    # The operand with fewer vectors is held in registers, the other is streamed past it.
    rows_outside = mr >= nv
    outer, inner = (mr, nv) if rows_outside else (nv, mr)

    def tile(x: Any, y: Any) -> tuple[Any, Any]:
        return (x, y) if rows_outside else (y, x)

    def step(a: tirx.Buffer, b: tirx.Buffer, acc: tirx.Buffer, x: Any, y: Any, k: Any) -> Any:
        i, j = tile(x, y)
        return tirx.call_llvm_pure_intrin(
            vec,
            "llvm.fma",
            tirx.Broadcast(load(a, s.a_index(i, k)), lanes),
            b.vload([k, j * lanes], vec),
            acc.vload([(i * nv + j) * lanes], vec),
        )

    def slot(x: Any, y: Any) -> Any:
        i, j = tile(x, y)
        return tirx.Ramp((i * nv + j) * lanes, 1, lanes)

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sb = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, "float32", offset_factor=1, strides=s.a_strides(sa))
        B = T.match_buffer(b, (kc, nr), "float32", offset_factor=1, strides=[sb, 1])
        C = T.match_buffer(c, (mr, nr), "float32", offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            acc = T.alloc_buffer((mr * nr,), "float32", scope="local")
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    acc[T.ramp((i * nv + j) * lanes, 1, lanes)] = C.vload([i, j * lanes], vec)
            for ko in range(kc // ku):
                for line in T.unroll(lines_ahead(s, ku, ahead)):
                    T.evaluate(prefetch_ahead(s, A, B, sa, ko, ku, ahead, line))
                for ki in T.unroll(ku):
                    for x in T.unroll(outer):
                        for y in T.unroll(inner):
                            acc[slot(x, y)] = step(A, B, acc, x, y, ko * ku + ki)
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * lanes, 1, lanes)] = acc.vload([(i * nv + j) * lanes], vec)

    return gemm_desc(s), impl
