"""`qimeng compile MODEL` as a user runs it."""

import json

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import relax as R


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.json"
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((16, 32), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(x, relax.const(np.eye(32, 48, dtype=np.float32))))
            out = builder.emit_output(relax.op.nn.relu(product))
        builder.emit_func_output(out)
    path.write_text(tvm.ir.save_json(builder.finalize()))
    return path


def test_a_library_and_what_became_of_the_functions(qimeng, model, tmp_path):
    library, report = tmp_path / "out" / "model.so", tmp_path / "report.json"
    done = qimeng("compile", model, "-o", library, "--threads", 1, "--report", report)
    assert done.returncode == 0, done.stderr
    for part in ("1 thread\n", "cpu.gemm@", "0 of 1 functions have one", "tensorized 100.0%", "schedule", str(library)):
        assert part in done.stdout
    (function,) = json.loads(report.read_text())["functions"]
    assert function["source"] == "default" and function["tensorized"]
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    x = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x)).numpy(), x @ np.eye(32, 48, dtype=np.float32))


def test_tuned_and_told_as_json(qimeng, model, tmp_path):
    options = ("--threads", 1, "--database", tmp_path / "records", "--json")
    done = qimeng("compile", model, "-o", tmp_path / "a.so", "--trials", 1, *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["tensorized"] == 1.0 and told["seconds"]["tune"] > 0 and told["library"].endswith("a.so")
    assert [f["source"] for f in told["functions"]] == ["record"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["gone.onnx", "-o", "x.so"], 2, "there is no file gone.onnx"),
        (["damaged.json", "-o", "x.so"], 1, "is damaged"),
        (["MODEL", "-o", "x.dll"], 2, "x.dll is not the name of a shared library: *.so"),
        (["MODEL", "-o", "model.h5/x.so"], 2, "cannot write to model.h5"),
        (["MODEL", "-o", "x.so", "--threads", "999"], 2, "999 threads asked for"),
        (["MODEL", "-o", "x.so", "--input", "x=16xa"], 2, "is not NAME=SHAPE"),
        (["MODEL", "-o", "x.so", "--input", "y=16"], 2, "the model has no input 'y'; it takes x (float32 16x32)"),
        (["MODEL", "-o", "x.so", "--report", "model.h5/r.json"], 2, "cannot write the report model.h5/r.json"),
        (["MODEL"], 2, "Missing option"),
    ],
)
def test_what_is_wrong_is_one_line(qimeng, model, tmp_path, arguments, code, says):
    (tmp_path / "model.h5").write_text("x")
    (tmp_path / "damaged.json").write_text("{")
    done = qimeng("compile", *(str(model) if a == "MODEL" else a for a in arguments), cwd=tmp_path)
    assert done.returncode == code and says in done.stderr, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("qimeng: ") and "Traceback" not in done.stderr
