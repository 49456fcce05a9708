"""Graph passes: what they leave, and that it computes the same."""

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm.relax.attention import decompose_attention  # noqa: E402
from qimeng_tvm.relax.flatten import flatten  # noqa: E402
from qimeng_tvm.relax.safe_softmax import fuse_safe_softmax  # noqa: E402
from qimeng_tvm.relax.transposes import fold_transposes  # noqa: E402

op = relax.op


def module(build, *shapes):
    """One function of ``build(emit, *parameters)``."""
    params = [relax.Var(f"x{i}", R.Tensor(shape, "float32")) for i, shape in enumerate(shapes)]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(build(builder.emit, *params))
        builder.emit_func_output(result)
    return builder.finalize()


def run(mod, inputs):
    executable = relax.build(mod, tvm.target.Target("llvm"))
    return relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, inputs)).numpy()


def names(mod):
    """Operators and called functions of ``main``, in order."""
    found = []

    def visit(expr):
        if isinstance(expr, relax.Call):
            calls = expr.op.name == "relax.call_tir" if isinstance(expr.op, tvm.ir.Op) else False
            found.append(str(expr.args[0].name_hint) if calls else str(expr.op.name).removeprefix("relax."))

    relax.analysis.post_order_visit(mod["main"], visit)
    return found


def passed(mod, *passes):
    clean = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
    return tvm.transform.Sequential([*passes, *clean])(mod)


def same(before, after, *shapes, rtol=1e-4, draw=None):
    rng = np.random.default_rng(0)
    inputs = draw(rng) if draw else [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    np.testing.assert_allclose(run(after, inputs), run(before, inputs), rtol=rtol, atol=1e-5)


def test_a_product_of_many_axes_becomes_one_of_matrices_and_its_epilogue_stays_beside_it():
    shapes = ((2, 5, 8), (8, 6), (6,), (2, 5, 6))

    def build(emit, x, w, bias, other):
        y = emit(op.add(emit(op.matmul(x, w)), bias))
        return emit(op.add(emit(op.nn.relu(y)), other))

    before = module(build, *shapes)
    after = passed(before, flatten())
    assert names(after) == ["reshape", "matmul", "add", "nn.relu", "reshape", "add", "reshape"]
    same(before, after, *shapes)


def test_reshapes_of_reshapes_and_to_the_same_shape_vanish():
    def build(emit, x):
        y = emit(op.reshape(emit(op.reshape(x, (3, 8))), (4, 6)))
        return emit(op.squeeze(emit(op.expand_dims(y, 0)), 0))

    after = passed(module(build, (2, 12)), flatten())
    assert names(after) == ["reshape"]


def test_clip_keeps_its_limits_behind_a_permutation():
    def build(emit, x):
        return emit(op.clip(emit(op.permute_dims(x, [1, 0])), 0, 1))

    before = module(build, (3, 4))
    after = passed(before, flatten())
    assert names(after) == ["clip", "permute_dims"]
    same(before, after, (3, 4))


@pytest.mark.parametrize("name", ["layer_norm", "softmax"])
def test_what_works_along_the_last_axis_does_so_on_the_matrix(name):
    def build(emit, x, w, gamma, beta):
        y = emit(op.matmul(x, w))
        return emit(op.nn.softmax(y, -1) if name == "softmax" else op.nn.layer_norm(y, gamma, beta, axes=[-1]))

    shapes = ((2, 3, 4), (4, 5), (5,), (5,))
    before = module(build, *shapes)
    after = passed(before, flatten())
    assert names(after) == ["reshape", "matmul", f"nn.{name}", "reshape"]
    same(before, after, *shapes)


def attention(emit, q, k, v):
    """As PyTorch exports it: heads outside, batch axes merged for the products."""
    heads = [emit(op.permute_dims(x, [0, 2, 1, 3])) for x in (q, k, v)]
    keys = emit(op.permute_dims(heads[1], [0, 1, 3, 2]))
    scaled = emit(op.multiply(heads[0], relax.const(0.25, "float32")))
    merged = [emit(op.reshape(x, (6, *[int(d) for d in x.ty.shape][2:]))) for x in (scaled, keys, heads[2])]
    scores = emit(op.reshape(emit(op.matmul(merged[0], merged[1])), (2, 3, 5, 7)))
    weights = emit(op.reshape(emit(op.nn.softmax(scores, -1)), (6, 5, 7)))
    mixed = emit(op.reshape(emit(op.matmul(weights, merged[2])), (2, 3, 5, 16)))
    return emit(op.reshape(emit(op.permute_dims(mixed, [0, 2, 1, 3])), (2, 5, 48)))


def test_attention_copies_nothing_to_permute_it():
    shapes = ((2, 5, 3, 16), (2, 7, 3, 16), (2, 7, 3, 16))
    before = module(attention, *shapes)
    after = passed(before, flatten(), relax.transform.CanonicalizeBindings(), *fold_transposes())
    assert names(after) == ["multiply", "matmul_nt", "nn.softmax", "matmul_nn", "reshape"]
    same(before, after, *shapes)


def test_a_permuted_result_that_others_read_as_it_is_stays():
    def build(emit, x, w):
        y = emit(op.matmul(x, w))
        return emit(op.add(emit(op.permute_dims(y, [1, 0, 2])), y))

    before = module(build, (4, 4, 6), (4, 6, 5))
    after = passed(before, *fold_transposes())
    assert "permute_dims" in names(after)
    same(before, after, (4, 4, 6), (4, 6, 5))


@pytest.mark.parametrize("causal", [None, "TopLeft", "BottomRight"])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_is_two_products_and_a_softmax(causal, bias):
    shapes = [(2, 4, 3, 8), (2, 6, 3, 8), (2, 6, 3, 8), *([(2, 3, 4, 6)] if bias else [])]

    def build(emit, q, k, v, *more):
        return emit(op.nn.attention(q, k, v, *more, causal_mask=causal))

    after = passed(module(build, *shapes), decompose_attention())
    assert names(after).count("matmul") == 2 and "nn.attention" not in names(after)
    rng = np.random.default_rng(0)
    q, k, v, *more = (rng.standard_normal(s, dtype=np.float32) for s in shapes)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8)
    scores = scores + more[0] if more else scores
    if causal:
        scores = np.where(np.tril(np.ones((4, 6), bool), 2 if causal == "BottomRight" else 0), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(run(after, [q, k, v, *more]), expected, rtol=1e-4, atol=1e-5)


def test_the_softmax_that_gives_zeros_for_masked_rows_is_one_function():
    def build(emit, x):
        y = emit(op.nn.softmax(x, -1))
        there = emit(op.astype(emit(op.logical_not(emit(op.equal(x, relax.const(float("-inf"), "float32"))))), "int8"))
        none = emit(op.logical_not(emit(op.astype(emit(op.max(there, -1, True)), "bool"))))
        return emit(op.where(none, emit(op.full_like(y, relax.const(0.0, "float32"))), y))

    def draw(rng):
        x = rng.standard_normal((4, 9), dtype=np.float32)
        x[1], x[2, :5] = -np.inf, -np.inf
        return [x]

    before = module(build, (4, 9))
    after = passed(before, fuse_safe_softmax())
    assert names(after) == ["softmax"]
    assert not run(after, draw(np.random.default_rng(0)))[1].any()
    same(before, after, draw=draw)
