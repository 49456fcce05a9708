"""`qimeng explain MODEL` as a user runs it."""

import json

import pytest
import tvm
from tvm import relax
from tvm.script import relax as R


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A product that a rule serves and one that none does, its weights as parameters; and one of flexible size."""
    folder = tmp_path_factory.mktemp("models")
    for name, rows in (("fixed", 16), ("flexible", tvm.tirx.Var("n", "int64"))):
        builder = relax.BlockBuilder()
        x, w = relax.Var("x", R.Tensor((rows, 32), "float32")), relax.Var("w", R.Tensor((32, 48), "float32"))
        v = relax.Var("v", R.Tensor((48, 8), "float64"))
        with builder.function("main", [x, w, v], attrs={"num_input": 1}):
            with builder.dataflow():
                product = builder.emit(relax.op.matmul(x, w))
                out = builder.emit_output(relax.op.matmul(relax.op.astype(product, "float64"), v))
            builder.emit_func_output(out)
        (folder / f"{name}.json").write_text(tvm.ir.save_json(builder.finalize()))
    return folder


def test_every_function_its_rule_or_the_reason_and_its_time(qimeng, models):
    done = qimeng("explain", models / "fixed.json", "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    served = next(f for f in told["functions"] if f["operator"].startswith("matmul 16x48x32"))
    other = next(f for f in told["functions"] if f["source"] == "fallback")
    assert served["rule"].startswith("cpu.gemm@") and served["time"]["gflops"] > 0.01
    assert "float64" in other["why"] and other["contraction"] and not other["rule"]
    assert sum(f["time"]["share"] for f in told["functions"]) == pytest.approx(1.0)
    assert told["tensorized"] == pytest.approx(48 * 32 / (48 * 32 + 8 * 48)) and told["run_seconds"] > 0
    shown = qimeng("explain", models / "fixed.json", "--threads", 1, "--no-time")
    assert shown.returncode == 0, shown.stderr
    for part in ("cpu.gemm@", "default", "without a rule", "(a contraction)", "float64", "80.0% of the contractions'"):
        assert part in shown.stdout


def test_a_flexible_size_is_told_and_can_be_fixed(qimeng, models):
    path = models / "flexible.json"
    untimed = qimeng("explain", path, "--no-time")
    assert untimed.returncode == 0 and "symbolic shapes" in untimed.stdout
    timed = qimeng("explain", path)
    assert timed.returncode == 2 and "sizes that are not fixed: say which, by --input NAME=SHAPE" in timed.stderr
    fixed = qimeng("explain", path, "--input", "x=16x32")
    assert fixed.returncode == 0, fixed.stderr
    assert "matmul 16x48x32" in fixed.stdout and "ms a run" in fixed.stdout
