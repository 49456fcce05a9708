# author: hand
"""float32 depthwise convolution on AVX-512: vfmadd231ps, 16 lanes.

One tap of the window a call: each of mr pixels' nv vectors of channels is multiplied by the filters' values at that tap
and added to the caller's register tile in place. The sums stay in registers over all taps, pixels are independent, and
no instruction but loads is needed besides the multiply-adds.

promise: 70 % of peak
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin import LaneShape, intrin_family, lane_desc, whole

LANES = 16
VEC = "float32x16"


@intrin_family(
    isa="x86",
    requires=("avx512f",),
    dtypes=("float32", "float32", "float32"),
    lanes=16,
    registers=32,
    mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",),
    version=1,
)
def depthwise(mr: int, nv: int, step: int, in_local: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[i, c] += A[i * step, c] * B[c], nv * 16 channels."""
    nr = nv * LANES
    s = LaneShape(mr, nr, step, "float32", "float32", "float32", "float32", "float32", bool(in_local))

    def added(a: Any, b: Any, c: Any, i: Any, j: Any) -> Any:
        return tirx.call_llvm_pure_intrin(
            VEC,
            "llvm.fma",
            a.vload([i * step, j * LANES], VEC),
            b.vload([j * LANES], VEC),
            c.vload([i, j * LANES], VEC),
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
                    C[i, T.ramp(j * LANES, 1, LANES)] = added(A, B, C, i, j)

    return lane_desc(s), impl
