"""Models with sizes that are not fixed: right in their buckets and off them, by functions that are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax, tirx  # noqa: E402
from tvm.script import relax as R  # noqa: E402

import qimeng_tvm  # noqa: E402
from qimeng_tvm import Pipeline  # noqa: E402
from qimeng_tvm.errors import UsageError  # noqa: E402
from qimeng_tvm.hardware import Hardware, host, target_of  # noqa: E402
from qimeng_tvm.relax.buckets import bucket_sizes, specialize  # noqa: E402
from qimeng_tvm.relax.prepare import legalize_and_fuse  # noqa: E402
from qimeng_tvm.relax.report import DEFAULT  # noqa: E402
from qimeng_tvm.schedule.row_tiles import independent_rows  # noqa: E402

op = relax.op
RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


W, BIAS = random(32, 48), random(48)


def model(body: Any, *shapes: tuple[Any, ...], **attrs: Any) -> tvm.IRModule:
    """One function of ``body(emit, *parameters)``; extents that are names are symbolic."""
    known: dict[str, tirx.Var] = {}
    builder = relax.BlockBuilder()
    params = [
        relax.Var(
            f"x{i}",
            R.Tensor([known.setdefault(d, tirx.Var(d, "int64")) if isinstance(d, str) else d for d in s], "float32"),
        )
        for i, s in enumerate(shapes)
    ]
    with builder.function("main", params, attrs=attrs):
        with builder.dataflow():
            out = builder.emit_output(body(builder.emit, *params))
        builder.emit_func_output(out)
    return builder.finalize()


def layer(emit: Any, x: Any) -> Any:
    return emit(op.nn.relu(emit(op.add(emit(op.matmul(x, relax.const(W))), relax.const(BIAS)))))


def compiled(module: tvm.IRModule, **options: Any) -> tuple[Any, Pipeline]:
    passes = Pipeline(threads=1, **options)
    executable = relax.build(module, target_of(host(), 1), relax_pipeline=passes)
    return relax.VirtualMachine(executable, tvm.cpu())["main"], passes


def ran(main: Any, *inputs: np.ndarray) -> Any:
    return main(*(tvm.runtime.tensor(x) for x in inputs))


def near(found: Any, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)


def functions(module: tvm.IRModule) -> list[str]:
    return sorted(str(gv.name_hint) for gv, f in module.functions.items() if isinstance(f, relax.Function))


def test_a_batch_in_the_buckets_and_off_them(tmp_path):
    main, passes = compiled(model(layer, ("n", 4, 32)), database=tmp_path, buckets={"n": (4, 1, 4)})
    for n in (1, 2, 3, 4, 5, 70):
        x = random(n, 4, 32)
        near(ran(main, x), np.maximum(x @ W + BIAS, 0))
    told = {f.callers: f for f in passes.report.functions}
    assert set(told) == {("main_n1",), ("main_n4",), ("main_general",)} and len(passes.report.functions) == 3
    for name, rows in (("main_n1", 4), ("main_n4", 16)):
        found = told[(name,)]
        assert found.source == DEFAULT and found.tensorized and found.decisions["pack_b"] == "constant"
        assert found.operator.startswith(f"matmul {rows}x48x32")
    general = told[("main_general",)]
    assert general.source == DEFAULT and general.tensorized
    assert general.why == "symbolic shapes" and general.flops == 4 * 48 * (2 * 32 + 2)  # of a batch of one


def test_the_pipeline_by_its_name_takes_sizes_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    limited = model(layer, ("n", 32), tir_var_lower_bound={"n": 2}, tir_var_upper_bound={"n": 3})
    main = relax.VirtualMachine(relax.build(limited, target_of(host(), 1), relax_pipeline="qimeng"), tvm.cpu())["main"]
    for n in (2, 3, 9):
        x = random(n, 32)
        near(ran(main, x), np.maximum(x @ W + BIAS, 0))


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((None, None), [1, 2, 4, 8]),
        ((3, None), [4, 8, 16, 32]),
        ((2, 5), [2, 3, 4, 5]),
        ((1, 100), [1, 32, 64, 100]),
        ((0, 16), [1, 4, 8, 16]),
        ((7, 7), [7]),
    ],
)
def test_sizes_by_default(limits, wanted):
    names = ("tir_var_lower_bound", "tir_var_upper_bound")
    attrs = {name: {"n": n} for name, n in zip(names, limits, strict=True) if n is not None}
    assert [sizes["n"] for sizes in bucket_sizes(model(layer, ("n", 32), **attrs))] == wanted


def test_what_is_asked_for_has_to_fit():
    fixed, one = model(layer, (4, 32)), model(layer, ("n", 32))
    assert bucket_sizes(fixed) == () and bucket_sizes(one, {}) == ()
    assert specialize(fixed, ()).same_as(fixed)
    for module, buckets in ((fixed, {"n": (1,)}), (one, {"m": (1,)}), (one, {"n": (1,), "m": (2,)})):
        with pytest.raises(UsageError, match="flexible dimensions are"):
            bucket_sizes(module, buckets)
    with pytest.raises(UsageError, match="a size of 1 or more"):
        bucket_sizes(one, {"n": (0, 1)})


def test_weights_that_are_parameters_are_packed_once_or_not_at_all():
    module = model(lambda emit, x, w: emit(op.matmul(x, w)), ("n", 32), (32, 48), num_input=1)
    assert functions(specialize(module, bucket_sizes(module))) == ["main"]


def test_functions_and_their_types():
    module = model(layer, ("n", 32))
    after = specialize(module, bucket_sizes(module, {"n": (2, 8)}))
    assert functions(after) == ["main", "main_general", "main_n2", "main_n8"]
    assert functions(module) == ["main"]
    relax.analysis.well_formed(after)
    assert [int(x) for x in after["main_n8"].ret_ty.shape] == [8, 48]


def attention(emit: Any, x: Any) -> Any:
    """One head over a sequence, and a layer behind it."""
    keys = emit(op.permute_dims(x, [0, 2, 1]))
    scores = emit(op.matmul(emit(op.multiply(x, relax.const(0.125, "float32"))), keys))
    weights = emit(op.nn.softmax(scores, -1))
    return layer(emit, emit(op.matmul(weights, x)))


def attended(x: np.ndarray) -> np.ndarray:
    scores = x @ x.swapaxes(1, 2) * 0.125
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.maximum(weights / weights.sum(-1, keepdims=True) @ x @ W + BIAS, 0)


def test_a_sequence_of_any_length(tmp_path):
    main, passes = compiled(model(attention, (1, "s", 32)), database=tmp_path, buckets={"s": (16,)})
    for s in (1, 7, 16, 17):
        x = random(1, s, 32)
        near(ran(main, x), attended(x))
    special = [f for f in passes.report.functions if f.callers == ("main_s16",)]
    assert sum(f.tensorized for f in special) == 3 and all(f.source == DEFAULT for f in special)


def test_two_sizes(tmp_path):
    two = model(attention, ("n", "s", 32))
    assert bucket_sizes(two) == ()
    main, passes = compiled(two, database=tmp_path)
    assert {f.callers for f in passes.report.functions} == {("main",)}
    for n, s in ((1, 5), (2, 3)):
        x = random(n, s, 32)
        near(ran(main, x), attended(x))
    assert [dict(s) for s in bucket_sizes(two, {"n": (1, 2), "s": (8,)})] == [{"n": 1, "s": 8}, {"n": 2, "s": 8}]


def with_arange(x: Any) -> Any:
    rows = op.expand_dims(op.arange(0, x.ty.shape[0], 1, "int64"), 1)
    return op.add(x, op.astype(rows, "float32"))


@pytest.mark.parametrize(
    ("shapes", "body", "axes"),
    [
        ([("n", 8), (8, 4)], lambda x, w: op.nn.relu(op.matmul(x, w)), {0: 0, 2: 0}),
        ([(1, "n", 8), (1, 8, 5)], op.matmul, {0: 1, 2: 1}),
        ([("n", 3, 8), ("n", 8, 5)], op.matmul, {0: 0, 1: 0, 2: 0}),
        ([("n", 8), (8,), (8,)], lambda x, g, b: op.nn.layer_norm(x, g, b, [-1]), {0: 0, 3: 0}),
        ([("n", 8)], op.nn.softmax, {0: 0, 1: 0}),
        # Rows apart in memory, other rows than one's own, and which row it is.
        ([(3, "n"), (3, "n")], op.add, None),
        ([("n", 8)], lambda x: op.nn.softmax(x, 0), None),
        ([("n", 8)], lambda x: op.mean(x, 0), None),
        ([("n", 8)], lambda x: op.flip(x, 0), None),
        ([("n", 8)], op.tril, None),
        ([("n", "n"), ("n", 5)], op.matmul, None),
        ([("n", 8), (8, "m")], op.matmul, None),
        ([("n", 8)], with_arange, None),
    ],
)
def test_whose_rows_are_independent(shapes, body, axes):
    fused = legalize_and_fuse(model(lambda emit, *x: emit(body(*map(emit, x))), *shapes), tvm.target.Target("llvm"))
    (func,) = (f for f in fused.functions.values() if isinstance(f, tirx.PrimFunc))
    found = independent_rows(func)
    assert (found.axes if found is not None else None) == axes


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [96, 1 << 12])
def test_rows_by_tiles(tmp_path, width, threads):
    """Short rows by many at a time, the last of them twice; long ones one by one."""
    w = random(width, 32)

    def body(emit: Any, x: Any) -> Any:
        return emit(op.nn.softmax(emit(op.nn.relu(emit(op.matmul(x, relax.const(w)))))))

    shape = ("n", width) if width < 1000 else ("n", 16, width)
    passes = Pipeline(threads=min(threads, host().cores), database=tmp_path, buckets={})
    executable = relax.build(model(body, shape), target_of(host(), 1), relax_pipeline=passes)
    main = relax.VirtualMachine(executable, tvm.cpu())["main"]
    assert {f.source for f in passes.report.functions} == {DEFAULT} and len(passes.report.functions) == 2
    for n in (1, 7, 8, 9, 63, 64, 65, 137) if width < 1000 else (1, 3):
        x = random(n, *shape[1:]) / 8
        product = np.maximum(x @ w, 0)
        weights = np.exp(product - product.max(-1, keepdims=True))
        near(ran(main, x), weights / weights.sum(-1, keepdims=True))


def test_other_machines_take_tiles_as_well(tmp_path):
    zen3 = Hardware.load("zen3")
    passes = Pipeline(zen3, tmp_path, threads=1, buckets={"n": (2,)})
    passes(model(layer, ("n", 32)))
    assert {f.callers: f.tensorized for f in passes.report.functions} == {("main_general",): True, ("main_n2",): True}


def test_a_model_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.GELU(), torch.nn.Linear(48, 8)).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (torch.zeros(4, 32),), dynamic_shapes=({0: batch},))
    compiled_net = qimeng_tvm.compile(program, threads=1, database=tmp_path)
    callers = {name for f in compiled_net.report.functions for name in f.callers}
    assert len(callers) == 5 and all(f.source == DEFAULT for f in compiled_net.report.functions if f.contraction)
    for n in (2, 5, 64):
        x = torch.randn(n, 32)
        with torch.no_grad():
            torch.testing.assert_close(compiled_net(x), net(x), rtol=1e-4, atol=1e-4)


def test_several_results(tmp_path):
    def body(emit: Any, x: Any) -> Any:
        return emit(relax.Tuple([layer(emit, x), emit(op.nn.relu(x))]))

    main, _ = compiled(model(body, ("n", 32)), database=tmp_path, buckets={"n": (2,)})
    for n in (2, 3):
        x = random(n, 32)
        first, second = ran(main, x)
        near(first, np.maximum(x @ W + BIAS, 0))
        near(second, np.maximum(x, 0))
