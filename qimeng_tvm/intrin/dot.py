"""The outer-product micro-kernel on an instruction that multiplies and adds several narrow k at once.

Such instructions (x86 vpdpbusd and vdpbf16ps, and their like) take, for every 32-bit lane, P consecutive k of
one row of A and of one column of B. So A is broadcast one 32-bit word at a time, and B comes with its P k of a
column side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin.microkernel import GemmShape, gemm_desc, lines_ahead, prefetch_ahead, whole

#: (accumulator, vector of A words, vector of B words) -> accumulator; words are int32 lanes.
MultiplyAdd = Callable[[Any, Any, Any], Any]


def dot_gemm(
    shape: GemmShape,
    lanes: int,
    ku: int,
    multiply_add: MultiplyAdd,
    *,
    ahead: int = 0,
    llvm: str = "",
    flip: Any = None,
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Build C[mr, nr] += A[mr, kc] @ B[kc, nr], A by rows, B packed, ``shape.k_pack`` k a step.

    Parameters
    ----------
    shape : GemmShape
        The call; ``kc`` is a multiple of ``k_pack`` and of it ``ku`` steps.
    lanes : int
        32-bit lanes of a vector register.
    ku : int
        k steps unrolled; must divide ``kc / k_pack``.
    multiply_add : callable
        The instruction.
    ahead : int
        Row tiles that share a panel of B, for `prefetch_ahead`; 0: no prefetch.
    llvm : str
        LLVM IR that ``multiply_add`` and ``flip`` call into, if any.
    flip : expression, optional
        A vector of bytes 0x80, for an instruction that reads A as unsigned bytes though A is signed. With A + 128
        (one exclusive or) in its place the sum is too large by 128 times the column's sum of B, which the
        instruction itself adds up, once for all rows. All of it is modulo 2**32, so the result is exact.

    Notes
    -----
    Both operands are read as 32-bit words, so A's row stride must be a multiple of ``k_pack`` elements: that is
    so when K is (in place), and in packed panels.
    """
    s = shape
    p, mr, nv = s.k_pack, s.mr, s.nr // lanes
    kp = s.kc // p
    vec, words = f"{s.acc_dtype}x{lanes}", f"int32x{lanes}"

    # The operand with fewer vectors is held in registers, the other is streamed past it.
    rows_outside = mr >= nv
    outer, inner = (mr, nv) if rows_outside else (nv, mr)

    def tile(x: Any, y: Any) -> tuple[Any, Any]:
        return (x, y) if rows_outside else (y, x)

    def slot(x: Any, y: Any) -> Any:
        i, j = tile(x, y)
        return (i * nv + j) * lanes

    def step(a: tirx.Buffer, b: tirx.Buffer, acc: tirx.Buffer, x: Any, y: Any, k: Any) -> Any:
        i, j = tile(x, y)
        left = tirx.Broadcast(tirx.BufferLoad(a, [i, k]), lanes)
        if flip is not None:
            left = tirx.bitwise_xor(left, flip)
        return multiply_add(acc.vload([slot(x, y)], vec), left, b.vload([k, j * lanes], words))

    def column(b: tirx.Buffer, extra: tirx.Buffer, k: Any, j: Any) -> Any:
        return multiply_add(extra.vload([j * lanes], vec), flip, b.vload([k, j * lanes], words))

    def corrected(acc: tirx.Buffer, extra: tirx.Buffer, i: Any, j: Any) -> Any:
        return acc.vload([(i * nv + j) * lanes], vec) - extra.vload([j * lanes], vec)

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle):  # noqa: PLR0912 (each unrolled loop counts as a branch)
        sa = T.int32()
        sb = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, s.a_store, offset_factor=p, strides=s.a_strides(sa))
        B = T.match_buffer(b, s.b_shape, s.b_store, offset_factor=p, strides=s.b_strides(sb))
        C = T.match_buffer(c, (mr, s.nr), s.acc_dtype, offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0 : s.mr, 0 : s.nr], whole(A), whole(B))
            T.writes(C[0 : s.mr, 0 : s.nr])
            if bool(llvm):
                T.attr(0, "pragma_import_llvm", llvm)
            Aw = T.decl_buffer((mr, kp), "int32", data=A.data, elem_offset=A.elem_offset // p, strides=[sa // p, 1])
            Bw = T.decl_buffer((kp, s.nr), "int32", data=B.data, elem_offset=B.elem_offset // p, strides=[sb // p, 1])
            acc = T.alloc_buffer((mr * s.nr,), s.acc_dtype, scope="local")
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    acc[T.ramp((i * nv + j) * lanes, 1, lanes)] = C.vload([i, j * lanes], vec)
            if flip is not None:
                extra = T.alloc_buffer((s.nr,), s.acc_dtype, scope="local")
                for j in T.unroll(nv):
                    extra[T.ramp(j * lanes, 1, lanes)] = T.broadcast(T.int32(0), lanes)
            for ko in range(kp // ku):
                for line in T.unroll(lines_ahead(s, ku, ahead)):
                    T.evaluate(prefetch_ahead(s, A, B, sa, ko, ku, ahead, line))
                for ki in T.unroll(ku):
                    if flip is not None and rows_outside:
                        for j in T.unroll(nv):
                            extra[T.ramp(j * lanes, 1, lanes)] = column(Bw, extra, ko * ku + ki, j)
                    for x in T.unroll(outer):
                        if flip is not None and not rows_outside:
                            extra[T.ramp(x * lanes, 1, lanes)] = column(Bw, extra, ko * ku + ki, x)
                        for y in T.unroll(inner):
                            acc[T.ramp(slot(x, y), 1, lanes)] = step(Aw, Bw, acc, x, y, ko * ku + ki)
            if flip is not None:
                for i in T.unroll(mr):
                    for j in T.unroll(nv):
                        acc[T.ramp((i * nv + j) * lanes, 1, lanes)] = corrected(acc, extra, i, j)
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * lanes, 1, lanes)] = acc.vload([(i * nv + j) * lanes], vec)

    return gemm_desc(s), impl
