"""`qimeng tune MODEL` as a user runs it."""

import json

import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from qimeng_tvm.generate.tasks import tasks
from qimeng_tvm.hardware import host

pytestmark = pytest.mark.skipif(not tasks()["x86.avx2_f32"].runs_on(host()), reason="this machine has no AVX2 and FMA")


def module(*products, dtype="float32"):
    """Return a model that multiplies its input by one weight after another, and takes the larger one of neighbours."""
    builder = relax.BlockBuilder()
    params = [relax.Var("x", R.Tensor((products[0][0], products[0][1]), dtype))]
    params += [relax.Var(f"w{i}", R.Tensor((k, n), dtype)) for i, (_, k, n) in enumerate(products)]
    with builder.function("main", params, attrs={"num_input": 1}):
        with builder.dataflow():
            value = params[0]
            for w in params[1:]:
                value = builder.emit(relax.op.matmul(value, w))
            line = builder.emit(relax.op.reshape(value, (products[0][0], 1, products[-1][2])))
            out = builder.emit_output(relax.op.nn.max_pool1d(line, 3))
        builder.emit_func_output(out)
    return builder.finalize()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(tvm.ir.save_json(module((16, 32, 64), (16, 64, 64), (16, 64, 64), (16, 64, 48))))
    return path


def test_a_model_shares_its_trials_and_its_records_are_those_of_lines(qimeng, model, tmp_path):
    records = tmp_path / "records"
    done = qimeng("tune", model, "--trials", 2, "--threads", 1, "--out", records, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(f["calls"], f["trials"], f["measured"]) for f in found["functions"]] == [(1, 1, 1), (2, 1, 1), (1, 1, 1)]
    assert sum(f["share"] for f in found["functions"]) == pytest.approx(1.0)
    assert all(f["gflops"] > 0.1 and f["decisions"]["family"] for f in found["functions"])
    (other,) = found["not_served"]
    assert "max_pool1d" in other["function"] and other["why"] == "its reduction is of no kind that a rule knows"
    more = qimeng("tune", model, "--trials", 5, "--threads", 1, "--out", records)
    assert more.returncode == 0 and "5 recorded, 2 in this run" in more.stdout
    for part in ("function", "matmul 16x64x64", "max_pool1d", "of no kind", "GFLOP/s"):
        assert part in more.stdout
    line = qimeng("tune", "f32 matmul 16x64x32 with weights", "--trials", 1, "--out", records, "--json")
    assert json.loads(line.stdout)["measured"] == 0, "the model has tuned it"
    assert "right, 0 wrong" in qimeng("db", "verify", "--records", records).stdout


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("gone.onnx", None, 2, "there is no file"),
        ("model.h5", "x", 2, "is not a model that can be read; these are: *.onnx, *.pt2, *.json"),
        ("model.json", "{", 1, "is damaged"),
        ("model.pt2", "x", 1, "is not an archive of torch.export.save, or is damaged"),
    ],
)
def test_what_is_wrong_is_one_line(qimeng, tmp_path, name, content, code, says):
    if name.endswith(".pt2"):
        pytest.importorskip("torch", reason="torch.export archives need the package torch")
    if content is not None:
        (tmp_path / name).write_text(content)
    done = qimeng("tune", tmp_path / name, "--trials", 1)
    assert done.returncode == code and says in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("qimeng: ") and "Traceback" not in done.stderr


def test_a_model_without_anything_to_tune(qimeng, tmp_path):
    path = tmp_path / "model.json"
    path.write_text(tvm.ir.save_json(module((16, 32, 64), dtype="float64")))
    done = qimeng("tune", path, "--trials", 1)
    assert done.returncode == 1
    assert "no rule serves anything" in done.stderr and "float64 float64" in done.stderr
    asked = qimeng("tune", path, "--llm", "replay")
    assert asked.returncode == 2 and "--llm is for one operator" in asked.stderr
