"""Run-time packing: each packing intrinsic alone, whole products with odd shapes, replay, and clean interiors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import s_tir, te, tirx  # noqa: E402
from tvm.s_tir.schedule import Trace  # noqa: E402

from qimeng_tvm.comparison import compare  # noqa: E402
from qimeng_tvm.compiler import compile_task  # noqa: E402
from qimeng_tvm.hardware import host, target_of  # noqa: E402
from qimeng_tvm.intrin import ensure_registered, families, families_for  # noqa: E402
from qimeng_tvm.numerics import make_inputs, numpy_dtype  # noqa: E402
from qimeng_tvm.operators import prim_func  # noqa: E402
from qimeng_tvm.request import parse  # noqa: E402
from qimeng_tvm.schedule import packing  # noqa: E402
from qimeng_tvm.schedule.apply import Task, build_schedule, make_task, narrow_indices  # noqa: E402

PACKS = [key for key, one in families().items() if one.isa == "generic" and one.kind.startswith("pack_")]
#: P that micro-kernels ask for, by (stored, packed) type.
K_PACKS = {("float32", "float32"): (1,), ("int8", "int16"): (2,), ("int8", "int8"): (2, 4), ("uint8", "uint8"): (2, 4)}


@pytest.fixture(scope="module")
def target() -> Any:
    return target_of(host(), 1)


def panels(matrix: np.ndarray, width: int, k_pack: int, dtype: str) -> np.ndarray:
    """Pack a (K, N) matrix the slow way, padded with zeros: (N / width, K / P, width[, P])."""
    k, n = matrix.shape
    full = np.zeros((-(-k // k_pack) * k_pack, -(-n // width) * width), matrix.dtype)
    full[:k, :n] = matrix
    cut = full.reshape(full.shape[0] // k_pack, k_pack, full.shape[1] // width, width).transpose(2, 0, 3, 1)
    packed = np.ascontiguousarray(cut).astype(numpy_dtype(dtype))
    return packed[..., 0] if k_pack == 1 else packed


def values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Distinct neighbours, both signs where there are any."""
    low, high = (0, 256) if dtype == "uint8" else (-128, 128)
    return np.random.default_rng(0).integers(low, high, shape).astype(numpy_dtype(dtype))


def copy_schedule(
    stored: tuple[int, int], width: int, k_pack: int, transposed: bool, dtypes: tuple[str, str]
) -> tuple[s_tir.Schedule, s_tir.schedule.SBlockRV, tuple[int, ...]]:
    """A copy into panels as rules make it: over the operand as stored, padding in a block before it."""
    rows, columns = stored
    k, n = (columns, rows) if transposed else stored
    padded_k, padded_n = -(-k // k_pack) * k_pack, -(-n // width) * width
    shape = (padded_n, padded_k) if transposed else (padded_k, padded_n)
    source = te.placeholder(stored, dtypes[0], name="W")
    zero = tirx.const(0, dtypes[0])
    whole = source
    if shape != stored:
        inside = lambda x, y: tirx.if_then_else(tirx.all(x < rows, y < columns), source[x, y], zero)  # noqa: E731
        whole = te.compute(shape, inside, name="pad")
    packed = te.compute(shape, lambda x, y: whole[x, y].astype(dtypes[1]), name="packed")
    sch = s_tir.Schedule(te.create_prim_func([source, packed]))
    block = sch.get_sblock("packed")

    def place(k: Any, n: Any) -> list[Any]:
        return [n // width, k, n % width] if k_pack == 1 else [n // width, k // k_pack, n % width, k % k_pack]

    if transposed:
        sch.transform_layout(block, ("write", 0), lambda n, k: place(k, n))
    else:
        sch.transform_layout(block, ("write", 0), place)
    return sch, block, (padded_n // width, padded_k // k_pack, width, *((k_pack,) if k_pack > 1 else ()))


def run_copy(sch: s_tir.Schedule, weights: np.ndarray, shape: tuple[int, ...], dtype: str, target: Any) -> np.ndarray:
    library = tvm.tirx.build(sch.mod, target=target)
    out = tvm.runtime.tensor(np.full(shape, 77, numpy_dtype(dtype)))
    library["main"](tvm.runtime.tensor(weights), out)
    return out.numpy()


@pytest.mark.parametrize("key", PACKS)
def test_each_intrinsic_alone(key: str, target: Any) -> None:
    """One panel whose width is a few calls, source rows an odd number of elements apart."""
    family = families()[key]
    source, packed = family.storage
    transposed = family.parameters[1] == "side"
    packs = K_PACKS.get(family.storage, (2,))
    for k_pack in packs:
        for size in ((8, 4) if transposed else (16, 6))[: 2 if k_pack == packs[-1] else 1]:
            depth, width = (3 * size * k_pack, 2 * size) if transposed else (3 * k_pack, 2 * size)
            stored = (width, depth) if transposed else (depth, width)
            sch, block, shape = copy_schedule(stored, width, k_pack, transposed, (source, packed))
            first, second = sch.get_loops(block)[-2:]
            outer, inner = sch.split(first, [None, size if transposed else k_pack])
            more, last = sch.split(second, [None, size * k_pack if transposed else size])
            sch.reorder(outer, more, inner, last)
            name = family.intrin_name(k_pack=k_pack, **{family.parameters[1]: size})
            ensure_registered(name)
            sch.tensorize(inner, name)
            weights = values(stored, source)
            found = run_copy(sch, weights, shape, packed, target)
            wanted = panels(weights.T if transposed else weights, width, k_pack, packed)
            assert np.array_equal(found.astype("f8"), wanted.astype("f8")), name


@pytest.mark.parametrize("transposed", [False, True], ids=["KN", "NK"])
@pytest.mark.parametrize("stored", [(64, 48), (61, 47)], ids=["whole", "edges"])
@pytest.mark.parametrize("kind", ["float32 float32 1", "bfloat16 bfloat16 2", "int8 int16 2", "uint8 uint8 4"])
def test_panels_of_an_operand(kind: str, stored: tuple[int, int], transposed: bool, target: Any) -> None:
    """The steps that rules take, for every P, of whole panels and with edges in both axes."""
    source, packed, count = kind.split()
    k_pack = int(count)
    sch, block, shape = copy_schedule(stored, 16, k_pack, transposed, (source, packed))
    shuffles, edges = packing.needs_shuffles(k_pack, transposed), stored == (61, 47)
    if edges and not shuffles:
        sch.compute_inline(sch.get_sblock("pad"))
    packing.pack_panels(sch, block, 16, k_pack=k_pack, transposed=transposed, parallel=False)
    called = "pack_" in str(sch.trace)
    ragged = edges and k_pack == 1  # 47 k cannot be cut into squares
    assert called == (shuffles and not ragged), "the intrinsic is in place"
    weights = values(stored, source)
    found = run_copy(sch, weights, shape, packed, target)
    wanted = panels(weights.T if transposed else weights, 16, k_pack, packed)
    assert np.array_equal(found.astype("f8"), wanted.astype("f8"))


def task_of(line: str, threads: int = 1) -> Task:
    task = make_task(prim_func(parse(line), target_of(host(), threads))[1], host(), threads)
    if task is None:
        pytest.skip(f"no micro-kernel for {line!r} on this machine")
    return task


def decide(task: Task, **wanted: Any) -> dict[str, Any]:
    """Return the defaults with these decisions; A packed where it cannot stay in place."""
    chosen = {**task.space.defaults(), **wanted}
    if task.space.illegal(chosen):
        chosen["pack_a"] = "whole"
    assert task.space.illegal(chosen) is None
    return chosen


PRODUCTS = [
    ("f32 gemm 33x71x63", 1, {"pack_b": "whole"}),
    ("f32 gemm 40x257x40 NT", 2, {"pack_b": "whole"}),
    ("f32 gemm 33x71x63 NT", 1, {"pack_b": "block", "order": "n"}),
    ("f32 gemm 37x50x48 TN", 1, {"pack_b": "whole", "pack_a": "whole"}),
    ("f32 gemm 61x71x130 constant B bias relu", 1, {"pack_a": "whole", "kc": 64}),
    ("bf16 gemm 33x71x63", 2, {"pack_b": "whole", "pack_a": "whole"}),
    ("bf16 gemm 40x257x48 NT", 1, {"pack_b": "whole"}),
    ("bf16 gemm 3 x 17x40x50", 2, {"pack_b": "whole"}),
    ("bf16 -> bf16 gemm 33x71x63 NT bias", 1, {"pack_b": "block", "order": "n"}),
    ("u8s8 gemm 33x71x63", 1, {"pack_b": "block", "order": "n"}),
    ("u8s8 gemm 3 x 17x40x64 NT", 2, {"pack_b": "whole"}),
    ("s8s8 gemm 33x71x130 NT", 1, {"pack_b": "whole", "kc": 64}),
    ("s8s8 gemm 61x64x64", 1, {"pack_b": "whole", "pack_a": "block", "order": "m"}),
]


@pytest.mark.parametrize(("line", "threads", "wanted"), PRODUCTS, ids=[f"{p[0]} t{p[1]}" for p in PRODUCTS])
def test_products_with_odd_shapes(line: str, threads: int, wanted: dict[str, Any]) -> None:
    request = parse(line)
    task = task_of(line, threads)
    compiled = compile_task(task, decide(task, **wanted))
    inputs = make_inputs(request, 0)
    tensors = [tvm.runtime.tensor(inputs[name]) for name in ("A", "B", "bias") if name in inputs]
    if compiled.operator.packs:
        into = compiled.pack_parameters[1]
        packed = tvm.runtime.empty(into.shape, into.dtype)
        compiled["pack_b"](tensors[1], packed)
        tensors[1] = packed
    kind = numpy_dtype(request.out_dtype)
    out = tvm.runtime.tensor(np.full(request.out_shape, -77 if kind.kind == "i" else np.nan).astype(kind))
    compiled["main"](*tensors, out)
    found = compare(request, inputs, out.numpy())
    assert found.ok, str(found)


def test_a_single_column_written_by_a_single_row() -> None:
    """Both loops of the write-back have extent one: no loop of the tiles may be vectorised in their place."""
    task = task_of("f32 gemm 16x1x65")
    kernels = next(d.candidates for d in task.space.decisions if d.name == "micro_kernel")
    kernel = next((k for k in kernels if str(k).startswith("1x")), None)
    if kernel is None:
        pytest.skip("no micro-kernel of one row on this machine")
    sch = build_schedule(task, decide(task, micro_kernel=kernel, inner_order="n", pack_b="whole", pack_a="whole"))
    anchors = [b for b in ("matmul_update_o", "matmul_o") if f'T.sblock("{b}")' in sch.mod["main"].script()]
    kinds = {str(sch.get(loop).kind) for loop in sch.get_loops(sch.get_sblock(anchors[0]))}
    vectorized = str(int(tirx.ForKind.VECTORIZED))
    assert vectorized not in kinds


@pytest.mark.parametrize("line", ["f32 gemm 33x71x64 NT", "bf16 gemm 33x71x63", "u8s8 gemm 33x72x64"])
def test_the_trace_replays_from_json(line: str) -> None:
    task = task_of(line, 2)
    chosen = decide(task, pack_b="whole", pack_a="whole")
    sch, text = build_schedule(task, chosen), compile_task(task, chosen).trace
    assert packing.PEEL in text and "qimeng.generic.pack.pack_" in text
    fresh = s_tir.Schedule(task.func)
    Trace.apply_json_to_schedule(json.loads(text), fresh)
    tvm.ir.assert_structural_equal(fresh.mod, sch.mod)


def vector_and_scalar_stores(func: tirx.PrimFunc, target: Any) -> tuple[int, int]:
    """Lower up to vectorisation; count the vector and the scalar stores to the output."""
    before, mid, after = s_tir.transform, tirx.transform, tvm.transform
    passes = [
        before.CanonicalizeLoop(), before.LowerInitBlock(), before.PlanAndUpdateBufferAllocationLocation(),
        before.ConvertBlocksToOpaque(), before.CompactBufferAllocation(), before.LowerMatchBuffer(),
        before.StmtSimplify(), before.LowerOpaqueBlock(), mid.FlattenBuffer(), mid.BF16ComputeLegalize(),
        mid.NarrowDataType(32), before.LoopPartition(), mid.VectorizeLoop(True), before.StmtSimplify(),
    ]  # fmt: skip
    with target:
        func = after.Sequential([mid.BindTarget(target), *passes])(tvm.IRModule({"main": func}))["main"]
    name = str(func.params[-1].name)
    stores = [line.split(" = ")[0].strip() for line in func.script(show_meta=False).splitlines() if " = " in line]
    to_output = [s for s in stores if s.startswith((f"{name}_1[", f"{name}["))]
    vectors = sum(":" in s or "Ramp" in s for s in to_output)
    return vectors, len(to_output) - vectors


def test_only_the_last_panel_is_checked(target: Any) -> None:
    """N = 8 * VL - 1: all tiles but the last write whole vectors."""
    family = families_for(host().isa, ("float32", "float32", "float32"), host().features)
    if not family:
        pytest.skip("no float32 micro-kernel on this machine")
    task = task_of(f"f32 gemm 16x{8 * family[0].lanes - 1}x64")
    sch = build_schedule(task, decide(task, micro_kernel="4x2", pack_b="whole"))
    vectors, scalars = vector_and_scalar_stores(sch.mod["main"], target)
    assert vectors >= 1, "interior tiles write vectors"
    assert scalars >= 1, "the last tile checks each element"


def test_indices_are_narrowed_where_that_is_safe() -> None:
    def made(extent: int) -> tirx.PrimFunc:
        source = te.placeholder((tirx.const(extent, "int64"),), "int8")
        return te.create_prim_func([source, te.compute(source.shape, lambda i: source[i])])

    assert str(narrow_indices(made(1 << 20)).params[0].shape[0].ty) == "int32"
    assert str(narrow_indices(made(1 << 31)).params[0].shape[0].ty) == "int64"
