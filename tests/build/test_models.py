"""Whole models: read, taken apart into operators, tuned; a line and a model find each other's records."""

import json
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import tvm
from tvm import relax, te
from tvm.script import relax as R

from qimeng_tvm import tune_line, tune_model
from qimeng_tvm.errors import ModelError, QimengError, UsageError
from qimeng_tvm.hardware import host, target_of
from qimeng_tvm.operators import prim_func
from qimeng_tvm.relax.functions import calls_of, functions_of
from qimeng_tvm.relax.sources import _tensors_alone, is_model, read_model
from qimeng_tvm.request import Request, parse
from qimeng_tvm.schedule.apply import make_task
from qimeng_tvm.search import RecordDatabase, workload_key

#: What the MLP below is made of, as lines.
LINES = (
    "f32 matmul 16x64x48 with weights with bias with relu",
    "f32 matmul 16x64x64 NT with weights with bias with relu",
)


@pytest.fixture(scope="module", autouse=True)
def _served():
    request = Request("matmul", 16, 16, 16)
    try:
        task = make_task(prim_func(request, target_of(host(), 1))[1], host(), 1)
    except QimengError as error:
        pytest.skip(str(error))
    if task is None:
        pytest.skip(f"{host().name} has no micro-kernel for float32")


def weight(*shape):
    rng = np.random.default_rng(len(shape))
    return rng.standard_normal(shape, dtype=np.float32)


def onnx_file(path, rows=16):
    onnx = pytest.importorskip("onnx", reason="ONNX models need the package onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = {"w0": weight(48, 64), "b0": weight(64), "w1": weight(64, 64), "b1": weight(64), "w2": weight(64, 64)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["m0"]),
        helper.make_node("Add", ["m0", "b0"], ["a0"]),
        helper.make_node("Relu", ["a0"], ["h0"]),
        helper.make_node("Gemm", ["h0", "w1", "b1"], ["a1"], transB=1),
        helper.make_node("Relu", ["a1"], ["h1"]),
        helper.make_node("Gemm", ["h1", "w2", "b1"], ["a2"], transB=1),
        helper.make_node("Relu", ["a2"], ["h2"]),
        helper.make_node("Softmax", ["h2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 64])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def keys_of(functions):
    return {workload_key(f.task.func, f.task.info.threads): f for f in functions if f.task is not None}


def key_of(line):
    task = make_task(prim_func(parse(line), target_of(host(), 1))[1], host(), 1)
    return workload_key(task.func, 1)


def test_an_onnx_model_is_made_of_the_operators_of_the_lines(tmp_path):
    functions = functions_of(read_model(onnx_file(tmp_path / "mlp.onnx")), host())
    served = keys_of(functions)
    first, second, other = served.items()
    assert [first[0], second[0]] == [key_of(line) for line in LINES]
    assert [f.calls for f in served.values()] == [1, 2, 1]
    assert other[1].task.rule.name == "cpu.rowwise" and "softmax" in other[1].name


def test_a_torch_export_is_made_of_the_operators_of_the_lines(tmp_path):
    torch = pytest.importorskip("torch", reason="torch.export archives need the package torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)])

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return torch.softmax(x, -1)

    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(16, 64),)), path)
    served, _ = keys_of(functions_of(read_model(path), host())).items()
    assert served[0] == key_of(LINES[1]) and served[1].calls == 2
    # A flexible size is told, not tried.
    batch = torch.export.Dim("batch", min=2, max=64)
    flexible = torch.export.export(Net().eval(), (torch.zeros(16, 64),), dynamic_shapes=({0: batch},))
    torch.export.save(flexible, path)
    functions = functions_of(read_model(path), host())
    assert functions and all(f.task is None and f.why == "symbolic shapes" for f in functions)
    with pytest.raises(ModelError, match=r"no rule serves anything in .*net\.pt2 .*symbolic shapes"):
        tune_model(path, trials=2, database=tmp_path / "records", buckets={})


def chain(calls=3):
    """``main`` calls an inner function, which multiplies, ``calls`` times."""
    builder = relax.BlockBuilder()
    x, w = relax.Var("x", R.Tensor((16, 64), "float32")), relax.Var("w", R.Tensor((64, 64), "float32"))
    with builder.function("layer", [x, w], private=True):
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.relu(relax.op.matmul(x, w)))
        builder.emit_func_output(out)
    layer = builder.get().get_global_var("layer")
    x, w = relax.Var("x", R.Tensor((16, 64), "float32")), relax.Var("w", R.Tensor((64, 64), "float32"))
    with builder.function("main", [x, w], attrs={"num_input": 1}):
        with builder.dataflow():
            value = x
            for _ in range(calls):
                value = builder.emit(relax.Call(layer, [value, w]))
            out = builder.emit_output(value)
        builder.emit_func_output(out)
    return builder.finalize()


def test_a_relax_module_in_json_and_calls_through_functions(tmp_path):
    path = tmp_path / "chain.json"
    path.write_text(tvm.ir.save_json(chain()))
    module = read_model(path)
    assert calls_of(module)["layer"] == 3
    (function,) = functions_of(module, host())
    assert function.calls == 3 and function.task.info.m == 16


def test_bias_plus_product_is_product_plus_bias():
    def key(body):
        builder = relax.BlockBuilder()
        shapes = {"x": (16, 64), "w": (64, 32), "b": (32,), "r": (16, 32)}
        params = {name: relax.Var(name, R.Tensor(shape, "float32")) for name, shape in shapes.items()}
        with builder.function("main", list(params.values()), attrs={"num_input": 1}):
            with builder.dataflow():
                out = builder.emit_output(builder.normalize(body(**params)))
            builder.emit_func_output(out)
        return list(keys_of(functions_of(builder.finalize(), host())))

    def product(x, w):
        return relax.op.matmul(x, w)

    (plain,) = key(lambda x, w, b, r: relax.op.add(product(x, w), b))
    assert key(lambda x, w, b, r: relax.op.add(b, product(x, w))) == [plain]
    assert plain == key_of("f32 matmul 16x32x64 with weights with bias")
    # A difference is not a sum, and two of the same rank stay as they are.
    assert key(lambda x, w, b, r: relax.op.subtract(b, product(x, w))) != key(
        lambda x, w, b, r: relax.op.subtract(product(x, w), b)
    )
    scale = relax.const(np.full((16, 32), 2, np.float32))
    assert key(lambda x, w, b, r: relax.op.multiply(scale, product(x, w))) == key(
        lambda x, w, b, r: relax.op.multiply(product(x, w), scale)
    )


def pooled(a):
    return relax.op.nn.max_pool1d(relax.op.reshape(a, (16, 1, 16)), 3)


@pytest.mark.parametrize(
    ("dtype", "body", "why"),
    [
        ("float64", relax.op.matmul, "no rule or intrinsic for matmul 16x16x16 float64 float64 float64"),
        ("float32", lambda a, _: pooled(a), "its reduction is of no kind that a rule knows"),
    ],
)
def test_what_no_rule_serves_is_listed_with_the_reason(dtype, body, why):
    builder = relax.BlockBuilder()
    a, b = (relax.Var(name, R.Tensor((16, 16), dtype)) for name in "ab")
    with builder.function("main", [a, b]):
        with builder.dataflow():
            out = builder.emit_output(body(a, b))
        builder.emit_func_output(out)
    (function,) = functions_of(builder.finalize(), host())
    assert function.task is None and function.why.startswith(why)
    with pytest.raises(ModelError, match="no rule serves anything in the model"):
        tune_model(builder.finalize(), trials=2)


def test_a_model_finds_the_records_of_a_line_and_tunes_the_rest(tmp_path):
    line = tune_line(LINES[1], trials=3, database=tmp_path)
    told, said = [], []
    found = tune_model(
        onnx_file(tmp_path / "mlp.onnx"),
        trials=6,
        threads=1,
        database=tmp_path,
        say=said.append,
        bar=lambda *now: told.append(now),
    )
    first, second, softmax = found.functions
    assert second.result.trials >= 3 and first.result.measured >= 1 and softmax.result.measured >= 1
    assert found.tuning.trials == 6 and found.tuning.measured == 3 and told[-1][:2] == (6, 6)
    assert second.seconds <= 2 * line.record.seconds_min * 1.001
    assert sum(f.share for f in found.functions) == pytest.approx(1.0) and (first.calls, second.calls) == (1, 2)
    assert any("operators 3, functions without a rule 0" in text for text in said)
    again = tune_model(tmp_path / "mlp.onnx", trials=6, threads=1, database=tmp_path)
    assert again.tuning.measured == 0 and [f.result.values for f in again.functions] == [
        f.result.values for f in found.functions
    ]
    # And what the model tuned is what the line finds.
    task = make_task(prim_func(parse(LINES[0]), target_of(host(), 1))[1], host(), 1)
    assert RecordDatabase(tmp_path).best(task, verified_only=False).key == first.result.record.key


def test_what_is_no_model_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*gone\.onnx"):
        read_model(tmp_path / "gone.onnx")
    for name in ("model.h5", "folder.onnx"):
        (tmp_path / name).mkdir() if name.startswith("folder") else (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UsageError, match=r"not a model that can be read; these are: \*\.onnx, \*\.pt2, \*\.json"):
            read_model(tmp_path / name)
    other = te.create_prim_func([te.placeholder((4,), name="a")])
    texts = {"{": "damaged", '{"a": 1}': "damaged", "[]": "damaged", tvm.ir.save_json(other): "no Relax function"}
    for text, says in texts.items():
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ModelError, match=says):
            read_model(tmp_path / "x.json")
    whole = tvm.ir.save_json(chain())
    (tmp_path / "x.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="damaged"):
        read_model(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="damaged"):
        read_model(tmp_path / "x.json")


def test_damaged_onnx_and_operators_that_tvm_lacks(tmp_path):
    path = onnx_file(tmp_path / "mlp.onnx")
    whole = path.read_bytes()
    for content in (b"", b"not a model at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not an ONNX model, or is damaged"):
            read_model(path)
    import onnx

    model = onnx.load_from_string(whole)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"refused by TVM's ONNX front end: .*NoSuchOperator"):
        read_model(path)


def test_a_damaged_archive(tmp_path):
    torch = pytest.importorskip("torch", reason="torch.export archives need the package torch")
    path = tmp_path / "net.pt2"
    program = torch.export.export(torch.nn.Linear(8, 8).eval(), (torch.zeros(4, 8),))
    torch.export.save(program, path)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"not an archive of torch\.export\.save, or is damaged"):
            read_model(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", json.dumps({}))
    with pytest.raises(ModelError, match=r"not an archive of torch\.export\.save, or is damaged"):
        read_model(path)


class Hostile:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_what_is_pickled_in_an_archive_runs_nothing(tmp_path):
    torch = pytest.importorskip("torch", reason="torch.export archives need the package torch")
    torch.save(Hostile(tmp_path / "made"), tmp_path / "weights")
    with _tensors_alone(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "weights", weights_only=False)
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "weights", weights_only=False)
    assert (tmp_path / "made").exists(), "without the guard it would have"


@pytest.mark.parametrize(("package", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package, suffix):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match=rf"needs the package {package}: pip install 'qimeng-tvm\[models\]'"):
        read_model(path)


def test_what_names_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(b"")
    assert all(is_model(text) for text in ("gone.onnx", "A.PT2", "dir/x.json", "weights"))
    assert not any(is_model(text) for text in ("f32 gemm 8x8x8", "f32 gemm " + "8x" * 400 + "8", str(tmp_path), ""))
