"""Every kind of request becomes one PrimFunc that TVM's own build computes rightly."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm.comparison import compare  # noqa: E402
from qimeng_tvm.numerics import KINDS, make_inputs, numpy_dtype  # noqa: E402
from qimeng_tvm.operators import legalize_and_fuse, prim_func, relax_module  # noqa: E402
from qimeng_tvm.request import Request, describe, parse  # noqa: E402

DTYPES = ("f32", "bf16", "bf16 -> bf16", "s8s8", "u8s8")
EPILOGUES = ("", "bias", "relu", "bias relu", "relu bias")
LINES = [
    *(f"{dtype} gemm 7x9x11 {epilogue}" for dtype, epilogue in product(DTYPES, EPILOGUES)),
    *(f"{dtype} gemm 7x9x11 {layout} constant B bias" for dtype, layout in product(DTYPES, ("NT", "TN", "TT"))),
    *(f"{dtype} gemm 3 x 5x6x10 {layout}" for dtype, layout in product(DTYPES, ("NN", "NT", "TT"))),
    *(f"f32 gemm {shape} NT" for shape in ("1x9x11", "7x1x11", "7x9x1", "1x1x1", "2 x 1x1x3")),
]


@pytest.fixture(scope="module")
def target() -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "num-cores": 1})


def run(request: Request, function: tvm.tirx.PrimFunc, target: tvm.target.Target, kind: str) -> str | None:
    """Build and run a PrimFunc on poisoned output; None when it is right."""
    library = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target)
    inputs = make_inputs(request, 0, kind)
    wanted = numpy_dtype(request.out_dtype)
    poison = np.full(request.out_shape, -77 if wanted.kind == "i" else np.nan).astype(wanted)
    out = tvm.runtime.tensor(poison)
    library["main"](*(tvm.runtime.tensor(inputs[name]) for name in ("A", "B", "bias") if name in inputs), out)
    found = compare(request, inputs, out.numpy())
    return None if found.ok else f"{kind}: {found}"


@pytest.mark.parametrize("line", LINES)
def test_one_function_and_right(line: str, target: tvm.target.Target) -> None:
    request = parse(line)
    _, function = prim_func(request, target)
    assert [tuple(int(d) for d in p.shape) for p in function.params[:2]] == [
        request.a_shape,
        request.b_shape,
    ]
    blocks = function.script(show_meta=False).count('T.sblock("matmul')
    assert blocks == 1, "one anchor, and its transposes read in place"
    free = [int(i) for i in function.attrs["layout_free_buffers"]]
    assert (1 in free) == request.constant_b and 0 not in free
    for kind in KINDS if "7x9x11" in line and request.epilogue in ((), ("bias", "relu")) else ("normal",):
        assert run(request, function, target, kind) is None


@pytest.mark.parametrize("line", ["f32 gemm 64x48x32 NT constant B with bias", "u8s8 gemm 64x48x32 constant B"])
def test_packing_of_a_constant_b_is_a_function_of_its_own(line: str, target: tvm.target.Target) -> None:
    request = parse(line)
    mod = legalize_and_fuse(relax_module(request), target)
    name, function = prim_func(request, target)
    sch = tvm.s_tir.Schedule(function)
    block = sch.get_sblock("matmul")
    packing = sch.cache_read(block, 1, "global")
    if request.transpose_b:
        sch.transform_layout(block, ("read", 1), lambda j, k: (j // 16, k, j % 16))
    else:
        sch.transform_layout(block, ("read", 1), lambda k, j: (j // 16, k, j % 16))
    sch.annotate(packing, "meta_schedule.layout_rewrite_preproc", True)
    mod[mod.get_global_var(name)] = sch.mod["main"].with_attr("global_symbol", name)
    with target:
        lift = [relax.transform.SplitLayoutRewritePreproc(), relax.transform.LiftTransformParams()]
        mod = tvm.transform.Sequential(lift)(mod)
        machine = relax.VirtualMachine(relax.build(mod, target), tvm.cpu())
    inputs = {name: tvm.runtime.tensor(value) for name, value in make_inputs(request, 0).items()}
    packed = machine["main_transform_params"]([inputs[name] for name in ("B", "bias") if name in inputs])
    assert (3, 32, 16) in [tuple(tensor.shape) for tensor in packed]
    found = compare(request, make_inputs(request, 0), machine["main"](inputs["A"], *packed).numpy())
    assert found.ok, str(found)


@pytest.mark.parametrize(
    ("a_shape", "b_shape", "axes"),
    [((2, 3, 4), (5, 4), [1, 0]), ((4, 3), (2, 5, 4), None), ((2, 1, 3, 4), (6, 5, 4), [0, 2, 1])],
)
def test_transposes_fold_in_broadcast_products(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], axes: list[int] | None, target: tvm.target.Target
) -> None:
    """What models have: operands of different rank, default axes, and a transpose on either side."""
    a, b = relax.Var("A", R.Tensor(a_shape, "float32")), relax.Var("B", R.Tensor(b_shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [a, b]):
        with builder.dataflow():
            if axes:
                left, right = a, builder.emit(relax.op.permute_dims(b, axes))
            else:
                left, right = builder.emit(relax.op.permute_dims(a)), relax.op.permute_dims(b, [0, 2, 1])
            out = builder.emit_output(builder.emit(relax.op.matmul(left, right)))
        builder.emit_func_output(out)
    mod = legalize_and_fuse(builder.finalize(), target)
    assert sum(isinstance(f, tvm.tirx.PrimFunc) for f in mod.functions.values()) == 1
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-3, 4, size=shape).astype("float32") for shape in (a_shape, b_shape))
    machine = relax.VirtualMachine(relax.build(mod, target), tvm.cpu())
    got = machine["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(y)).numpy()
    want = x @ np.swapaxes(y, -1, -2) if axes else x.T @ np.swapaxes(y, -1, -2)
    assert got.shape == want.shape and np.array_equal(got, want)


def test_other_permutations_stay(target: tvm.target.Target) -> None:
    a, b = relax.Var("A", R.Tensor((4, 2, 3), "float32")), relax.Var("B", R.Tensor((3, 5), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [a, b]):
        with builder.dataflow():
            moved = builder.emit(relax.op.permute_dims(a, [1, 0, 2]))
            out = builder.emit_output(builder.emit(relax.op.matmul(moved, b)))
        builder.emit_func_output(out)
    mod = legalize_and_fuse(builder.finalize(), target)
    x, y = np.arange(24, dtype="float32").reshape(4, 2, 3), np.arange(15, dtype="float32").reshape(3, 5)
    machine = relax.VirtualMachine(relax.build(mod, target), tvm.cpu())
    got = machine["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(y)).numpy()
    assert np.array_equal(got, x.transpose(1, 0, 2) @ y)


def test_module_restates_the_request() -> None:
    request = parse("bf16 -> bf16 gemm 4x5x6 NT constant B with bias and relu")
    main = relax_module(request)["main"]
    assert [p.name for p in main.params] == ["A", "B", "bias"], describe(request)
    assert int(main.attrs["num_input"]) == 1
    plain = relax_module(parse("gemm 4x5x6"))["main"]
    assert [p.name for p in plain.params] == ["A", "B"]
    assert plain.attrs is None or "num_input" not in plain.attrs
