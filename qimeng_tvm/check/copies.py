"""Check one packing intrinsic by itself: the copy that it should be, in larger buffers, exact to the bit.

Two kinds (see ``tensorize_intrins/generic/pack.py``): *rows*, (P, L) -> (L, P), and *tile*, (S, S * P) -> (S, S[, P]).
As with micro-kernels the loops are written here; the family's ``desc`` only has to be equal to them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qimeng_tvm.check.audit import AuditReport, audit
from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.check.numbers import Argument, Case, NumbersReport, check_function
from qimeng_tvm.check.tile import refused, stage
from qimeng_tvm.errors import IntrinError
from qimeng_tvm.intrin import IntrinFamily

Array = npt.NDArray[Any]
#: Tiles along either side, and columns before and after them.
_TILES, _BEFORE, _AFTER = 2, 3, 2


@dataclass(frozen=True)
class CopySpec:
    """What a worker needs to check a packing intrinsic, as plain data.

    Attributes
    ----------
    name : str
        Canonical name, for messages.
    source, target_dtype : str
        Types on either side.
    k_pack, width : int
        P, and the columns (rows of a tile) that one call moves.
    transposes : bool
        A tile; else rows.
    desc, impl : str
        The family's two halves, as TVM's JSON.
    target : mapping
        TVM target in dictionary form.
    """

    name: str
    source: str
    target_dtype: str
    k_pack: int
    width: int
    transposes: bool
    desc: str
    impl: str
    target: Mapping[str, Any]

    @property
    def depth(self) -> int:
        """Elements of k that one call moves."""
        return self.k_pack * (self.width if self.transposes else 1)


def is_packing(family: IntrinFamily) -> bool:
    """Tell whether a family packs operands."""
    return family.kind.startswith(("pack_rows_", "pack_tile_"))


def packing_variants(family: IntrinFamily) -> tuple[dict[str, int], ...]:
    """Return parameters that rules ask a packing family for."""
    size = numpy_dtype(family.storage[1]).itemsize
    packs = [p for p in (1, 2, 4) if p * size in (2, 4)]
    if family.kind.startswith("pack_rows_"):
        return tuple({"k_pack": p, "lanes": lanes} for p in packs if p > 1 for lanes in (16, 8, 4))
    return tuple({"k_pack": p, "side": side} for p in packs if p * size == 4 for side in (8, 4))


def copy_spec(
    family: IntrinFamily, name: str, parameters: Mapping[str, int], halves: tuple[Any, Any], target: Mapping[str, Any]
) -> CopySpec:
    """Say what a packing intrinsic should be.

    Raises
    ------
    IntrinError
        If the parameters are not those of a packing family.
    """
    import tvm  # noqa: PLC0415

    transposes = family.kind.startswith("pack_tile_")
    size = "side" if transposes else "lanes"
    if set(parameters) != {"k_pack", size}:
        raise IntrinError(f"{family.key} takes parameters k_pack, {size}; got {', '.join(parameters)}")
    desc, impl = (tvm.ir.save_json(half) for half in halves)
    source, packed = family.storage
    return CopySpec(name, source, packed, parameters["k_pack"], parameters[size], transposes, desc, impl, target)


def run_copy(spec: CopySpec) -> tuple[NumbersReport, AuditReport | None]:
    """Compile, audit and run a packing intrinsic: what runs in the worker."""
    import tvm  # noqa: PLC0415

    stage(f"{spec.name}: tensorizing and compiling")
    try:
        function = _tensorized(spec)
    except (RuntimeError, ValueError, TypeError) as error:
        return refused("tensorize", error), None
    try:
        library = tvm.tirx.build(tvm.IRModule({"main": function}), target=tvm.target.Target(dict(spec.target)))
    except (RuntimeError, ValueError, TypeError) as error:
        return refused("compile", error), None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "intrinsic.so"
        library.export_library(str(path))
        code = audit(path, ())
        loaded = tvm.runtime.load_module(str(path))
    stage(f"{spec.name}: running")
    shapes = _shapes(spec)
    arguments = [Argument("A", shapes[0], spec.source), Argument("B", shapes[1], spec.target_dtype, "inout")]
    return check_function(loaded["main"], arguments, [_case(spec, seed) for seed in (0, 1)]), code


def _shapes(s: CopySpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of source and target, with what lies around the tiles (one pack of k before and after)."""
    columns, depth = _TILES * s.width + _BEFORE + _AFTER, _TILES * s.depth + 2 * s.k_pack
    packed = (depth, columns) if s.k_pack == 1 else (depth // s.k_pack, columns, s.k_pack)
    return ((columns, depth) if s.transposes else (depth, columns)), packed


def _tensorized(s: CopySpec) -> Any:
    import tvm  # noqa: PLC0415

    name = "qimeng.check.copy"
    tvm.s_tir.TensorIntrin.register(name, tvm.ir.load_json(s.desc), tvm.ir.load_json(s.impl), override=True)
    sch = tvm.s_tir.Schedule(_loops(s).with_attr("global_symbol", "main"))
    sch.tensorize(sch.get_loops(sch.get_sblock("copy"))[2], name)
    return sch.mod["main"]


def _loops(s: CopySpec) -> Any:
    """The copy as plain loops, in the order of the desc: k before columns, or the reverse for tiles."""
    from tvm import tirx  # noqa: PLC0415
    from tvm.script import tirx as T  # noqa: PLC0415

    a_shape, b_shape = _shapes(s)
    p = s.k_pack
    outer, inner = (s.width, s.depth) if s.transposes else (s.depth, s.width)

    def store(a: tirx.Buffer, b: tirx.Buffer, x: Any, y: Any) -> None:
        column, k = (x, y) if s.transposes else (y, x)
        column, k = column + _BEFORE, k + p
        value = tirx.BufferLoad(a, [column, k] if s.transposes else [k, column])
        value = value if s.source == s.target_dtype else tirx.Cast(s.target_dtype, value)
        T.buffer_store(b, value, [k, column] if p == 1 else [k // p, column, k % p])

    @T.prim_func(s_tir=True)
    def main(a: T.handle, b: T.handle):  # type: ignore[no-untyped-def]
        A = T.match_buffer(a, a_shape, s.source)
        B = T.match_buffer(b, b_shape, s.target_dtype)
        for xo, yo in T.grid(_TILES, _TILES):
            for x, y in T.grid(outer, inner):
                with T.sblock("copy"):
                    vx = T.axis.spatial(_TILES * outer, xo * outer + x)
                    vy = T.axis.spatial(_TILES * inner, yo * inner + y)
                    store(A, B, vx, vy)

    return main


def _case(s: CopySpec, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    a_shape, b_shape = _shapes(s)
    source, start = _values(rng, a_shape, s.source), _values(rng, b_shape, s.target_dtype)
    wide = np.int64 if start.dtype.kind in "iu" else np.float64
    expected = start.astype(wide)
    columns, packs = slice(_BEFORE, _BEFORE + _TILES * s.width), slice(1, 1 + _TILES * s.depth // s.k_pack)
    rows = source.T if s.transposes else source
    moved = rows[s.k_pack : s.k_pack + _TILES * s.depth, columns].astype(wide)
    if s.k_pack > 1:
        moved = moved.reshape(-1, s.k_pack, moved.shape[1]).transpose(0, 2, 1)
    expected[packs, columns] = moved
    return Case(f"seed {seed}", (source, start), (expected,), (0.0,))


def _values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    target = numpy_dtype(dtype)
    if target.kind in "iu":
        info = np.iinfo(target)
        return rng.integers(info.min, info.max + 1, size=shape, dtype=target)
    return rng.standard_normal(shape).astype(target)
