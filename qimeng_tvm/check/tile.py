"""Run one tensorized micro-kernel by itself, in larger buffers, against the oracle: what happens in the worker.

Three placements of the same intrinsic. *Tight*: one tile fills its buffers, whose ends lie against guard pages.
*Inside*: several tiles, wide row strides, odd offsets, and values around them that show when they are read (NaN) or
written. *Packed*: A and B are first copied, in vectors, to buffers of the function's own, as operators pack them: TVM
rounds the start of a vector down to whole vectors where all that touch such a buffer see it as another type
(StorageRewrite, 0.27).
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qimeng_tvm.check.audit import AuditReport, audit
from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.check.emulator import Emulator, run_emulated
from qimeng_tvm.check.lanes import lane_buffers, lane_cases, lane_loops, lane_placements
from qimeng_tvm.check.meaning import desc_problem, operand_problem, trusted_desc
from qimeng_tvm.check.numbers import Argument, Case, NumbersReport, check_function
from qimeng_tvm.check.placement import CASES, Placement, around, start
from qimeng_tvm.check.tolerance import dot_bound
from qimeng_tvm.intrin.lanewise import LaneShape
from qimeng_tvm.intrin.microkernel import GemmShape, load, packed_index, packed_shape, whole, widen
from qimeng_tvm.numerics import make_inputs, product
from qimeng_tvm.request import Request

Array = npt.NDArray[Any]

#: Bytes that packing copies at a time.
_COPIED = 32


def placements(shape: GemmShape | LaneShape) -> tuple[Placement, ...]:
    """Return where to try an intrinsic.

    Inside first: there a read beyond the tile answers with NaN; in the tight one it may end the process. A tile of C
    in registers is for a whole reduction in one call; how A and B are read does not depend on it.
    """
    if isinstance(shape, LaneShape):
        return lane_placements()
    inside, tight = Placement("inside", (2, 2, 1 if shape.c_local else 2), (1, 3), (2, 2)), Placement("tight")
    return (inside, tight) if shape.c_local else (inside, Placement("packed", (2, 2, 2), packed=True), tight)


@dataclass(frozen=True)
class IntrinsicSpec:
    """What a worker needs to check one intrinsic, as plain data.

    Attributes
    ----------
    name : str
        Canonical name, for messages.
    shape : GemmShape or LaneShape
        What it should compute.
    lanes : int
        Accumulator lanes of a vector.
    desc, impl : str
        Its two halves, as TVM's JSON.
    target : mapping
        TVM target in dictionary form.
    mnemonics : tuple of str
        What the audit must find in the inner loop.
    max_spills : int, optional
        Vector spills in the inner loop that are still accepted; None accepts any.
    run : bool
        Whether it is run; else it is compiled and audited only.
    emulator : Emulator, optional
        What runs it; none: this machine.
    """

    name: str
    shape: GemmShape | LaneShape
    lanes: int
    desc: str
    impl: str
    target: Mapping[str, Any]
    mnemonics: tuple[str, ...]
    max_spills: int | None = None
    run: bool = True
    emulator: Emulator | None = None


def run_intrinsic(spec: IntrinsicSpec) -> tuple[NumbersReport, AuditReport | None]:
    """Compile, audit and run an intrinsic in every placement."""
    import tvm  # noqa: PLC0415 (a second or two; the parent may not need it)

    from qimeng_tvm.lowering import build  # noqa: PLC0415

    problem = _reads_as(spec)
    if problem is not None:
        return problem, None
    stage(f"{spec.name}: tensorizing and compiling")
    functions = {}
    for placement in placements(spec.shape):
        try:
            functions[placement.label] = tensorized(spec, placement)
        except (RuntimeError, ValueError, TypeError) as error:
            return refused("tensorize", error), None
    try:
        library = build(tvm.IRModule(functions), tvm.target.Target(dict(spec.target)))
    except (RuntimeError, ValueError, TypeError) as error:
        return refused("compile", error), None
    with tempfile.TemporaryDirectory() as folder:
        code, loaded = _code(spec, library, Path(folder))
    return _explained(_ran(spec, library, loaded)), code


def _explained(report: NumbersReport) -> NumbersReport:
    """Say what is behind an answer that is wrong only where A and B are packed."""
    if report.ok or not report.case.startswith("packed"):
        return report
    reason = (
        "right where A and B come from the caller, wrong where the same function packs them first (as operators do): "
        "TVM rounds the start of a vector load from such a buffer down to a multiple of the vector's elements, so let "
        "every vector load of A and B, in whatever view, begin at such a multiple"
    )
    return replace(report, message=f"{report.message}. It is {reason}")


def _ran(spec: IntrinsicSpec, library: Any, loaded: Any) -> NumbersReport:
    """Run an intrinsic in every placement."""
    if not spec.run:
        return NumbersReport("ok", "compiled, not run")
    if spec.emulator is not None:
        stage(f"{spec.name}: running under {spec.emulator.name}")
        return run_emulated(spec.emulator, library, {p.label: _cases(spec, p) for p in placements(spec.shape)})
    worst, count = 0.0, 0
    for placement in placements(spec.shape):
        stage(f"{spec.name}: running, {placement.label} placement")
        arguments, cases = _cases(spec, placement)
        report = check_function(loaded[placement.label], arguments, cases)
        if not report.ok:
            return report
        worst, count = max(worst, report.error_ratio), count + report.cases
    return NumbersReport("ok", f"{count} cases right", cases=count, error_ratio=worst)


def _code(spec: IntrinsicSpec, library: Any, folder: Path) -> tuple[AuditReport, Any]:
    """Audit the machine code; return the report, and the loaded library where this machine can run it."""
    import tvm  # noqa: PLC0415

    if not spec.run or spec.emulator is not None:
        path = folder / "intrinsic.o"
        library.write_to_file(str(path))
        # The disassemblers at hand may not know all of another machine's instructions; LLVM's own text has them.
        text = library.inspect_source("asm")
        return audit(path, spec.mnemonics, max_spills=spec.max_spills, assembly=text), None
    path = folder / "intrinsic.so"
    library.export_library(str(path))
    return audit(path, spec.mnemonics, max_spills=spec.max_spills), tvm.runtime.load_module(str(path))


def _reads_as(spec: IntrinsicSpec) -> NumbersReport | None:
    """Report on an intrinsic whose desc, or whose impl's operands, are not what they should be; else None."""
    import tvm  # noqa: PLC0415

    stage(f"{spec.name}: reading")
    desc, impl = tvm.ir.load_json(spec.desc), tvm.ir.load_json(spec.impl)
    problem = desc_problem(desc, spec.shape)
    if problem:
        return NumbersReport("wrong", f"the desc of {spec.name} {problem}", argument="desc")
    problem = operand_problem(desc, impl)
    if problem:
        text = f"the impl of {spec.name} does not take what its desc does: {problem}"
        return NumbersReport("error", text, argument="impl")
    return None


def stage(text: str) -> None:
    """Say what is being done: if the process dies, this line is in the worker's message."""
    print(text, file=sys.stderr, flush=True)


def refused(what: str, error: Exception) -> NumbersReport:
    """Report what TVM said when it would not take an intrinsic."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return NumbersReport("error", f"TVM refuses to {what} it: {' '.join(lines[-3:])[-800:]}")


def tensorized(spec: IntrinsicSpec, placement: Placement) -> Any:
    """Return the loops of a placement with the intrinsic in place of the inner ones."""
    import tvm  # noqa: PLC0415

    name = "qimeng.check.intrinsic"
    s = spec.shape
    tvm.s_tir.TensorIntrin.register(name, trusted_desc(s), tvm.ir.load_json(spec.impl), override=True)
    if isinstance(s, LaneShape):
        loops = lane_loops(s, placement, spec.lanes)
    else:
        make = packed_tiles if placement.packed else local_tiles if s.c_local else memory_tiles
        loops = make(s, placement, spec.lanes)
    # As operators are: without it LLVM must keep every accumulator in memory.
    loops = loops.with_attr("tirx.noalias", True).with_attr("global_symbol", placement.label)
    sch = tvm.s_tir.Schedule(loops)
    inner = sch.get_loops(sch.get_sblock("update"))
    i, j = inner[-2:] if isinstance(s, LaneShape) else inner[-3:-1]
    # As in a schedule: a micro-tile of one row has no loop over rows.
    sch.tensorize(i if s.mr > 1 else j, name)
    return sch.mod["main"]


def products(s: GemmShape | LaneShape, p: Placement) -> int:
    """Multiply-adds of all tiles."""
    return math.prod(p.tiles) * s.mr * s.nr * (1 if isinstance(s, LaneShape) else s.kc)


def buffer_shapes(s: GemmShape | LaneShape, p: Placement) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of A, B and C with what lies around the tiles (k before and after in whole packs)."""
    if isinstance(s, LaneShape):
        return lane_buffers(s, p)
    m, n, k = s.mr * p.tiles[0], s.nr * p.tiles[1], s.kc * p.tiles[2]
    rows, columns = (p.before[x] + p.after[x] for x in (0, 1))
    depth = k + (p.before[0] + p.after[0]) * s.k_pack
    a = packed_shape(depth, m + columns, s.k_pack) if s.a_panel else (m + rows, depth)
    return a, packed_shape(depth, n + columns, s.k_pack), (m + rows, n + columns)


def _indices(s: GemmShape, p: Placement) -> Any:
    """Return functions from tile coordinates to the buffers' indices."""
    rows, columns = p.before
    first_k = rows * s.k_pack

    def a_index(i: Any, k: Any) -> tuple[Any, ...]:
        if s.a_panel:
            return packed_index(k + first_k, i + columns, s.k_pack)
        return (i + rows, k + first_k)

    return a_index, lambda k, j: packed_index(k + first_k, j + columns, s.k_pack)


def _term(s: GemmShape, p: Placement) -> Any:
    a_index, b_index = _indices(s, p)

    def term(a: Any, b: Any, i: Any, j: Any, k: Any) -> Any:
        left = widen(load(a, a_index(i, k)), s.a_store, s.a_dtype, s.acc_dtype)
        return left * widen(load(b, b_index(k, j)), s.b_store, s.b_dtype, s.acc_dtype)

    return term


def memory_tiles(s: GemmShape, p: Placement, lanes: int) -> Any:
    """Tiles of C that lie in memory: several calls over k add to the same tile."""
    from tvm.script import tirx as T  # noqa: PLC0415

    a_shape, b_shape, c_shape = buffer_shapes(s, p)
    (tm, tn, tk), (r, c), term = p.tiles, p.before, _term(s, p)
    mr, nr, kc = s.mr, s.nr, s.kc

    @T.prim_func(s_tir=True)
    def main(a: T.handle, b: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
        A = T.match_buffer(a, a_shape, s.a_store)
        B = T.match_buffer(b, b_shape, s.b_store)
        C = T.match_buffer(out, c_shape, s.acc_dtype)
        for io, jo, ko in T.grid(tm, tn, tk):
            for i, j, k in T.grid(mr, nr, kc):
                with T.sblock("update"):
                    vi = T.axis.spatial(tm * mr, io * mr + i)
                    vj = T.axis.spatial(tn * nr, jo * nr + j)
                    vk = T.axis.reduce(tk * kc, ko * kc + k)
                    C[vi + r, vj + c] = C[vi + r, vj + c] + term(A, B, vi, vj, vk)

    return main


def packed_tiles(s: GemmShape, p: Placement, lanes: int) -> Any:
    """As `memory_tiles`, of copies of A and B that are made as packing makes them: in vectors of plain bits."""
    from tvm.script import tirx as T  # noqa: PLC0415

    a_shape, b_shape, c_shape = buffer_shapes(s, p)
    (tm, tn, tk), term = p.tiles, _term(s, p)
    mr, nr, kc = s.mr, s.nr, s.kc
    (a_count, a_width, a_bits), (b_count, b_width, b_bits) = (
        _copied(shape, store) for shape, store in ((a_shape, s.a_store), (b_shape, s.b_store))
    )

    @T.prim_func(s_tir=True)
    def main(a: T.handle, b: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
        A = T.match_buffer(a, a_shape, s.a_store)
        B = T.match_buffer(b, b_shape, s.b_store)
        C = T.match_buffer(out, c_shape, s.acc_dtype)
        PA = T.sblock_alloc_buffer(a_shape, s.a_store)
        PB = T.sblock_alloc_buffer(b_shape, s.b_store)
        for x in range(a_count):
            with T.sblock("pack_a"):
                vx = T.axis.spatial(a_count, x)
                T.reads(whole(A))
                T.writes(whole(PA))
                a_from = T.decl_buffer((a_count * a_width,), a_bits, data=A.data)
                a_to = T.decl_buffer((a_count * a_width,), a_bits, data=PA.data)
                a_to[T.ramp(vx * a_width, 1, a_width)] = a_from.vload([vx * a_width], f"{a_bits}x{a_width}")
        for y in range(b_count):
            with T.sblock("pack_b"):
                vy = T.axis.spatial(b_count, y)
                T.reads(whole(B))
                T.writes(whole(PB))
                b_from = T.decl_buffer((b_count * b_width,), b_bits, data=B.data)
                b_to = T.decl_buffer((b_count * b_width,), b_bits, data=PB.data)
                b_to[T.ramp(vy * b_width, 1, b_width)] = b_from.vload([vy * b_width], f"{b_bits}x{b_width}")
        for io, jo, ko in T.grid(tm, tn, tk):
            for i, j, k in T.grid(mr, nr, kc):
                with T.sblock("update"):
                    vi = T.axis.spatial(tm * mr, io * mr + i)
                    vj = T.axis.spatial(tn * nr, jo * nr + j)
                    vk = T.axis.reduce(tk * kc, ko * kc + k)
                    C[vi, vj] = C[vi, vj] + term(PA, PB, vi, vj, vk)

    return main


def _copied(shape: tuple[int, ...], store: str) -> tuple[int, int, str]:
    """Return how an operand is copied: vectors, elements in each, and their type."""
    size = math.prod(shape)
    width = math.gcd(size, _COPIED // numpy_dtype(store).itemsize)
    return size // width, width, {"bfloat16": "int16", "float16": "int16"}.get(store, store)


def local_tiles(s: GemmShape, p: Placement, lanes: int) -> Any:
    """Tiles of C in registers: loaded, added to, stored.

    In vectors of fixed length: a vectorized loop would become one of scalable vectors where the target has them.
    """
    from tvm.script import tirx as T  # noqa: PLC0415

    a_shape, b_shape, c_shape = buffer_shapes(s, p)
    (tm, tn, _), (r, c), term = p.tiles, p.before, _term(s, p)
    mr, nr, kc, nv, vec = s.mr, s.nr, s.kc, s.nr // lanes, f"{s.acc_dtype}x{lanes}"

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
            for i, j, k in T.grid(mr, nr, kc):
                with T.sblock("update"):
                    vi = T.axis.spatial(tm * mr, io * mr + i)
                    vj = T.axis.spatial(tn * nr, jo * nr + j)
                    vk = T.axis.reduce(kc, k)
                    L[vi, vj] = L[vi, vj] + term(A, B, vi, vj, vk)
            for i1 in T.unroll(mr):
                for j1 in T.unroll(nv):
                    with T.sblock("store"):
                        wi = T.axis.spatial(tm * mr, io * mr + i1)
                        wj = T.axis.spatial(tn * nv, jo * nv + j1)
                        T.reads(L[wi, wj * lanes : wj * lanes + lanes])
                        T.writes(C[wi + r, wj * lanes + c : wj * lanes + c + lanes])
                        C[wi + r, T.ramp(wj * lanes + c, 1, lanes)] = L.vload([wi, wj * lanes], vec)

    return main


def _cases(spec: IntrinsicSpec, p: Placement) -> tuple[list[Argument], list[Case]]:
    s = spec.shape
    if isinstance(s, LaneShape):
        return lane_cases(s, p)
    shapes = buffer_shapes(s, p)
    arguments = [
        Argument("A", shapes[0], s.a_store),
        Argument("B", shapes[1], s.b_store),
        Argument("C", shapes[2], s.acc_dtype, "inout"),
    ]
    return arguments, [_case(s, p, kind, seed) for kind, seed in CASES]


def _case(s: GemmShape, p: Placement, kind: str, seed: int) -> Case:
    """Operands of values that the family's *dtypes* can hold, wherever they are stored wider."""
    m, n, k = s.mr * p.tiles[0], s.nr * p.tiles[1], s.kc * p.tiles[2]
    request = Request("matmul", m, n, k, a_dtype=s.a_dtype, b_dtype=s.b_dtype, out_dtype=s.acc_dtype)
    inputs = make_inputs(request, seed, kind)
    rng = np.random.default_rng([seed, m, n, k])
    a_shape, b_shape, c_shape = buffer_shapes(s, p)
    first_k, (rows, columns) = p.before[0] * s.k_pack, p.before
    left = around(rng, a_shape, s.a_store)
    if s.a_panel:
        _panel(left, inputs["A"].T, first_k, columns, s.k_pack)
    else:
        left[rows : rows + m, first_k : first_k + k] = inputs["A"].astype(left.dtype)
    right = around(rng, b_shape, s.b_store)
    _panel(right, inputs["B"], first_k, columns, s.k_pack)
    begin = start(rng, c_shape, s.acc_dtype, kind)
    own = (slice(rows, rows + m), slice(columns, columns + n))
    exact = product(inputs["A"], inputs["B"]) + begin[own].astype(np.float64)
    magnitude = product(inputs["A"], inputs["B"], absolute=True) + np.abs(begin[own].astype(np.float64))
    wide = np.int64 if s.acc_dtype == "int32" else np.float64
    expected = begin.astype(wide)
    expected[own] = exact.astype(wide)
    bounds = np.zeros(c_shape)
    # Small integers are summed exactly in any order; what lies around the tiles must not change at all.
    if s.acc_dtype != "int32" and kind != "small":
        bounds[own] = dot_bound(magnitude, exact, k + 1, accumulate=s.acc_dtype, out=s.acc_dtype)
    return Case(f"{p.label}, {kind}, seed {seed}", (left, right, begin), (expected,), (bounds,))


def _panel(into: Array, values: Array, first_k: int, column: int, k_pack: int) -> None:
    """Store (k, width) values as a panel."""
    k, width = values.shape
    values = values.astype(into.dtype)
    if k_pack == 1:
        into[first_k : first_k + k, column : column + width] = values
        return
    packs = values.reshape(k // k_pack, k_pack, width).transpose(0, 2, 1)
    into[first_k // k_pack : (first_k + k) // k_pack, column : column + width] = packs
