"""The contract of lane-wise micro-kernels: products element by element, as depthwise convolutions sum them.

A call adds one tap of a window to a tile of output pixels, some vectors of channels deep::

    C[i, c] += A[i * step, c] * B[c]        mr pixels i, nr = nv * VL channels c

======== ============================== ======================================================================
operand  shape                          strides
======== ============================== ======================================================================
A        ((mr - 1) * step + 1, nr)      (sa, 1): pixels of the image, every ``step``-th of which is read
B        (nr,)                          (1,): the filters' values at this tap
C        (mr, nr)                       (sc, 1): the caller's register tile (scope ``local``)
======== ============================== ======================================================================

A and B lie in memory, or in registers too: where there is a border to check, the schedule loads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin.microkernel import load, whole, widen


@dataclass(frozen=True)
class LaneShape:
    """The shapes of one lane-wise call, shared by its desc and its impl.

    Attributes
    ----------
    mr, nr : int
        Pixels, and channels.
    step : int
        Pixels of A between those that are read: the stride of the convolution.
    a_dtype, b_dtype, acc_dtype : str
        What the product means.
    a_store, b_store : str
        What A and B hold where they are read (loading may have widened them).
    in_local : bool
        A and B are the caller's registers, else memory.
    """

    mr: int
    nr: int
    step: int
    a_dtype: str
    b_dtype: str
    acc_dtype: str
    a_store: str
    b_store: str
    in_local: bool = False

    @property
    def a_shape(self) -> tuple[int, int]:
        """Shape of the A operand."""
        return ((self.mr - 1) * self.step + 1, self.nr)

    @property
    def in_scope(self) -> str:
        """Storage scope of A and B."""
        return "local" if self.in_local else "global"


@cache
def lane_desc(shape: LaneShape) -> tirx.PrimFunc:
    """Return C[i, c] += A[i * step, c] * B[c] as plain loops."""
    s = shape
    mr, nr, acc = s.mr, s.nr, s.acc_dtype

    def term(a: tirx.Buffer, b: tirx.Buffer, i: Any, j: Any) -> Any:
        left = widen(load(a, (i * s.step, j)), s.a_store, s.a_dtype, acc)
        return left * widen(load(b, (j,)), s.b_store, s.b_dtype, acc)

    @T.prim_func(s_tir=True)
    def desc(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, s.a_store, offset_factor=1, strides=[sa, 1], scope=s.in_scope)
        B = T.match_buffer(b, (nr,), s.b_store, offset_factor=1, strides=[1], scope=s.in_scope)
        C = T.match_buffer(c, (mr, nr), acc, offset_factor=1, strides=[sc, 1], scope="local")
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            for i, j in T.grid(mr, nr):
                with T.sblock("update"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = C[vi, vj] + term(A, B, vi, vj)

    @T.prim_func(s_tir=True)
    def desc_pixel(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, s.a_store, offset_factor=1, strides=[sa, 1], scope=s.in_scope)
        B = T.match_buffer(b, (nr,), s.b_store, offset_factor=1, strides=[1], scope=s.in_scope)
        C = T.match_buffer(c, (mr, nr), acc, offset_factor=1, strides=[sc, 1], scope="local")
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            for j in range(nr):
                with T.sblock("update"):
                    vj = T.axis.spatial(nr, j)
                    C[0, vj] = C[0, vj] + term(A, B, 0, vj)

    # A schedule drops the loop over a single pixel, and tensorize wants the same loops on both sides.
    return desc if mr > 1 else desc_pixel
