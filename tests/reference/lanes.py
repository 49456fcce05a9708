"""The lane-wise micro-kernel on a fused multiply-add vector unit, for any lane count."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin import LaneShape, lane_desc, whole


def fma_lanes(mr: int, nv: int, step: int, lanes: int, in_local: bool) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Build C[i, c] += A[i * step, c] * B[c], nv * lanes channels, in float32 with ``llvm.fma``.

    Parameters
    ----------
    mr, nv, step : int
        Pixels, vectors of channels, and pixels of A between those that are read.
    lanes : int
        float32 lanes of a vector register.
    in_local : bool
        A and B are the caller's registers, else memory.

    Notes
    -----
    C is a tile of registers that the caller keeps over all taps, so nothing is copied: each product is added in place.
    """
    nr, vec = nv * lanes, f"float32x{lanes}"
    s = LaneShape(mr, nr, step, "float32", "float32", "float32", "float32", "float32", in_local)

    def added(a: tirx.Buffer, b: tirx.Buffer, c: tirx.Buffer, i: Any, j: Any) -> Any:
        return tirx.call_llvm_pure_intrin(
            vec,
            "llvm.fma",
            a.vload([i * step, j * lanes], vec),
            b.vload([j * lanes], vec),
            c.vload([i, j * lanes], vec),
        )

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, "float32", offset_factor=1, strides=[sa, 1], scope=s.in_scope)
        B = T.match_buffer(b, (nr,), "float32", offset_factor=1, strides=[1], scope=s.in_scope)
        C = T.match_buffer(c, (mr, nr), "float32", offset_factor=1, strides=[sc, 1], scope="local")
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * lanes, 1, lanes)] = added(A, B, C, i, j)

    return lane_desc(s), impl
