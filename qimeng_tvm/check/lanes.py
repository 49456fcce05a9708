"""Loops and cases to check a lane-wise micro-kernel with: a window of some taps slides over a row of pixels.

As with the micro-kernels of matrix products the loops and the oracle are written here, and the values around the tiles
show when they are read (NaN) or written. Tap t of the window reads pixel ``i * step + t``, so that tiles overlap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qimeng_tvm.check.numbers import Argument, Case
from qimeng_tvm.check.placement import CASES, Placement, around, start
from qimeng_tvm.check.tolerance import dot_bound
from qimeng_tvm.intrin.lanewise import LaneShape
from qimeng_tvm.intrin.microkernel import load, widen
from qimeng_tvm.numerics import make_inputs
from qimeng_tvm.request import Request

Shape = tuple[int, ...]
#: Taps of the window, where one call is not all: more than LLVM writes out, which would keep what taps share of A, and
#: so many that the loop over them is the inner one that the audit looks at.
_TAPS = 75


def lane_placements() -> tuple[Placement, ...]:
    """Return where to try a lane-wise kernel: a read beyond the tile may end the process in the tight one."""
    return Placement("inside", (2, 2, _TAPS), (1, 3), (2, 2)), Placement("tight")


def lane_buffers(s: LaneShape, p: Placement) -> tuple[Shape, Shape, Shape]:
    """Shapes of A, B and C with what lies around the tiles."""
    pixels, columns = s.mr * p.tiles[0], s.nr * p.tiles[1] + p.before[1] + p.after[1]
    rows = p.before[0] + p.after[0]
    image = (pixels - 1) * s.step + p.tiles[2]
    return (image + rows, columns), (p.tiles[2] + rows, columns), (pixels + rows, columns)


def lane_loops(s: LaneShape, p: Placement, lanes: int) -> Any:
    """Tiles of C in registers: loaded, added to for each tap, stored; A and B in memory or loaded for each tap."""
    return _from_registers(s, p, lanes) if s.in_local else _from_memory(s, p, lanes)


def _from_memory(s: LaneShape, p: Placement, lanes: int) -> Any:
    from tvm.script import tirx as T  # noqa: PLC0415

    (a_shape, b_shape, c_shape), term = lane_buffers(s, p), _term(s)
    (tm, tn, taps), (r, c) = p.tiles, p.before
    mr, nr, nv, vec, step = s.mr, s.nr, s.nr // lanes, f"{s.acc_dtype}x{lanes}", s.step

    @T.prim_func(s_tir=True)
    def main(a: T.handle, b: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
        A = T.match_buffer(a, a_shape, s.a_store)
        B = T.match_buffer(b, b_shape, s.b_store)
        C = T.match_buffer(out, c_shape, s.acc_dtype)
        L = T.sblock_alloc_buffer((tm * mr, tn * nr), s.acc_dtype, scope="local")
        for io, jo in T.grid(tm, tn):
            for i0 in T.unroll(mr):
                for j0 in T.unroll(nv):
                    with T.sblock("load"):
                        ui = T.axis.spatial(tm * mr, io * mr + i0)
                        uj = T.axis.spatial(tn * nv, jo * nv + j0)
                        T.reads(C[ui + r, uj * lanes + c : uj * lanes + c + lanes])
                        T.writes(L[ui, uj * lanes : uj * lanes + lanes])
                        L[ui, T.ramp(uj * lanes, 1, lanes)] = C.vload([ui + r, uj * lanes + c], vec)
            for t in range(taps):
                for i, j in T.grid(mr, nr):
                    with T.sblock("update"):
                        vi = T.axis.spatial(tm * mr, io * mr + i)
                        vj = T.axis.spatial(tn * nr, jo * nr + j)
                        vt = T.axis.reduce(taps, t)
                        L[vi, vj] = L[vi, vj] + term(A, (vi * step + vt + r, vj + c), B, (vt + r, vj + c))
            for i1 in T.unroll(mr):
                for j1 in T.unroll(nv):
                    with T.sblock("store"):
                        wi = T.axis.spatial(tm * mr, io * mr + i1)
                        wj = T.axis.spatial(tn * nv, jo * nv + j1)
                        T.reads(L[wi, wj * lanes : wj * lanes + lanes])
                        T.writes(C[wi + r, wj * lanes + c : wj * lanes + c + lanes])
                        C[wi + r, T.ramp(wj * lanes + c, 1, lanes)] = L.vload([wi, wj * lanes], vec)

    return main


def _from_registers(s: LaneShape, p: Placement, lanes: int) -> Any:
    from tvm.script import tirx as T  # noqa: PLC0415

    (a_shape, b_shape, c_shape), term = lane_buffers(s, p), _term(s)
    (tm, tn, taps), (r, c) = p.tiles, p.before
    mr, nr, nv, step = s.mr, s.nr, s.nr // lanes, s.step
    vec, a_vec, b_vec = (f"{dtype}x{lanes}" for dtype in (s.acc_dtype, s.a_store, s.b_store))
    rows, pixels = s.a_shape[0], a_shape[0] - p.before[0] - p.after[0]

    @T.prim_func(s_tir=True)
    def main(a: T.handle, b: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
        A = T.match_buffer(a, a_shape, s.a_store)
        B = T.match_buffer(b, b_shape, s.b_store)
        C = T.match_buffer(out, c_shape, s.acc_dtype)
        L = T.sblock_alloc_buffer((tm * mr, tn * nr), s.acc_dtype, scope="local")
        LA = T.sblock_alloc_buffer((pixels, tn * nr), s.a_store, scope="local")
        LB = T.sblock_alloc_buffer((taps, tn * nr), s.b_store, scope="local")
        for io, jo in T.grid(tm, tn):
            for i0 in T.unroll(mr):
                for j0 in T.unroll(nv):
                    with T.sblock("load"):
                        ui = T.axis.spatial(tm * mr, io * mr + i0)
                        uj = T.axis.spatial(tn * nv, jo * nv + j0)
                        T.reads(C[ui + r, uj * lanes + c : uj * lanes + c + lanes])
                        T.writes(L[ui, uj * lanes : uj * lanes + lanes])
                        L[ui, T.ramp(uj * lanes, 1, lanes)] = C.vload([ui + r, uj * lanes + c], vec)
            for t in range(taps):
                for i2 in T.unroll(rows):
                    for j2 in T.unroll(nv):
                        with T.sblock("load_a"):
                            xi = T.axis.spatial(pixels, io * mr * step + t + i2)
                            xj = T.axis.spatial(tn * nv, jo * nv + j2)
                            T.reads(A[xi + r, xj * lanes + c : xj * lanes + c + lanes])
                            T.writes(LA[xi, xj * lanes : xj * lanes + lanes])
                            LA[xi, T.ramp(xj * lanes, 1, lanes)] = A.vload([xi + r, xj * lanes + c], a_vec)
                for j3 in T.unroll(nv):
                    with T.sblock("load_b"):
                        yt = T.axis.spatial(taps, t)
                        yj = T.axis.spatial(tn * nv, jo * nv + j3)
                        T.reads(B[yt + r, yj * lanes + c : yj * lanes + c + lanes])
                        T.writes(LB[yt, yj * lanes : yj * lanes + lanes])
                        LB[yt, T.ramp(yj * lanes, 1, lanes)] = B.vload([yt + r, yj * lanes + c], b_vec)
                for i, j in T.grid(mr, nr):
                    with T.sblock("update"):
                        vi = T.axis.spatial(tm * mr, io * mr + i)
                        vj = T.axis.spatial(tn * nr, jo * nr + j)
                        vt = T.axis.reduce(taps, t)
                        L[vi, vj] = L[vi, vj] + term(LA, (vi * step + vt, vj), LB, (vt, vj))
            for i1 in T.unroll(mr):
                for j1 in T.unroll(nv):
                    with T.sblock("store"):
                        wi = T.axis.spatial(tm * mr, io * mr + i1)
                        wj = T.axis.spatial(tn * nv, jo * nv + j1)
                        T.reads(L[wi, wj * lanes : wj * lanes + lanes])
                        T.writes(C[wi + r, wj * lanes + c : wj * lanes + c + lanes])
                        C[wi + r, T.ramp(wj * lanes + c, 1, lanes)] = L.vload([wi, wj * lanes], vec)

    return main


def _term(s: LaneShape) -> Any:
    def term(a: Any, at: Shape, b: Any, tap: Shape) -> Any:
        left = widen(load(a, at), s.a_store, s.a_dtype, s.acc_dtype)
        return left * widen(load(b, tap), s.b_store, s.b_dtype, s.acc_dtype)

    return term


def lane_cases(s: LaneShape, p: Placement) -> tuple[list[Argument], list[Case]]:
    """Return the buffers of a placement, and what must come out."""
    shapes = lane_buffers(s, p)
    arguments = [
        Argument("A", shapes[0], s.a_store),
        Argument("B", shapes[1], s.b_store),
        Argument("C", shapes[2], s.acc_dtype, "inout"),
    ]
    return arguments, [_case(s, p, kind, seed) for kind, seed in CASES]


def _case(s: LaneShape, p: Placement, kind: str, seed: int) -> Case:
    (a_shape, b_shape, c_shape), (r, c), taps = lane_buffers(s, p), p.before, p.tiles[2]
    pixels, channels = s.mr * p.tiles[0], s.nr * p.tiles[1]
    count = (pixels - 1) * s.step + taps
    one = Request("matmul", 1, 1, 1, a_dtype=s.a_dtype, b_dtype=s.b_dtype, out_dtype=s.acc_dtype)
    image = make_inputs(replace(one, m=count, k=channels), seed, kind)["A"]
    filters = make_inputs(replace(one, n=channels, k=taps), seed, kind)["B"]
    rng = np.random.default_rng([seed, pixels, channels, taps])
    left, right = around(rng, a_shape, s.a_store), around(rng, b_shape, s.b_store)
    own = slice(c, c + channels)
    left[r : r + count, own] = image.astype(left.dtype)
    right[r : r + taps, own] = filters.astype(right.dtype)
    before = start(rng, c_shape, s.acc_dtype, kind)
    tile = (slice(r, r + pixels), own)
    exact = before[tile].astype(np.float64)
    magnitude = np.abs(exact)
    for t in range(taps):
        seen = image[t : t + (pixels - 1) * s.step + 1 : s.step].astype(np.float64)
        products = seen * filters[t].astype(np.float64)
        exact, magnitude = exact + products, magnitude + np.abs(products)
    wide = np.int64 if s.acc_dtype == "int32" else np.float64
    expected, bounds = before.astype(wide), np.zeros(c_shape)
    expected[tile] = exact.astype(wide)
    # Small integers are summed exactly in any order; what lies around the tiles must not change at all.
    if s.acc_dtype != "int32" and kind != "small":
        bounds[tile] = dot_bound(magnitude, exact, taps + 1, accumulate=s.acc_dtype, out=s.acc_dtype)
    return Case(f"{p.label}, {kind}, seed {seed}", (left, right, before), (expected,), (bounds,))
