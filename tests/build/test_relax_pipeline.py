"""The Relax pipeline "qimeng": by name, with options, on constants and parameters, on what no rule serves."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from qimeng_tvm import Pipeline, tune_model
from qimeng_tvm.errors import UsageError
from qimeng_tvm.hardware import host, target_of
from qimeng_tvm.intrin import families_for
from qimeng_tvm.relax.pipeline import BF16, DTYPES
from qimeng_tvm.relax.report import DEFAULT, FALLBACK, RECORD

RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 32), dtype=np.float32)
W = RNG.standard_normal((32, 48), dtype=np.float32)
WANTED = np.maximum(X @ W, 0)


def module(weight, body=relax.op.matmul, **attrs):
    """``relu(body(x, w))``; the weight is a constant, or a parameter where its type is given."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((16, 32), "float32"))
    w = relax.const(weight) if isinstance(weight, np.ndarray) else relax.Var("w", weight)
    with builder.function("main", [x, w] if isinstance(w, relax.Var) else [x], attrs=attrs):
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.relu(body(x, w)))
        builder.emit_func_output(out)
    return builder.finalize()


PARAMETER = R.Tensor((32, 48), "float32")


def run(executable, *inputs, name="main"):
    return relax.VirtualMachine(executable, tvm.cpu())[name](*map(tvm.runtime.tensor, inputs))


@pytest.mark.parametrize("first", ["tvm", "tvm.relax", "qimeng_tvm"])
def test_its_name_is_known_whichever_package_is_first(first):
    second = "qimeng_tvm" if first != "qimeng_tvm" else "tvm"
    code = f"import {first}, {second}; from tvm import relax; print(type(relax.get_pipeline('qimeng', threads=1)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "<class 'qimeng_tvm.relax.pipeline.Pipeline'>", done.stderr


@pytest.mark.parametrize("target", [{"kind": "llvm"}, {"kind": "llvm", "num-cores": 1}, None])
def test_by_name_with_the_target_of_the_user(target, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    chosen = target_of(host(), 1) if target is None else tvm.target.Target(target)
    for build in (relax.build, tvm.compile):
        executable = build(module(W), chosen, relax_pipeline="qimeng")
        np.testing.assert_allclose(run(executable, X).numpy(), WANTED, rtol=1e-4, atol=1e-4)


def test_constants_are_packed_and_the_report_tells(tmp_path):
    said = []
    passes = Pipeline(database=tmp_path, threads=1, say=said.append)
    executable = relax.build(module(W), target_of(host(), 1), relax_pipeline=passes)
    np.testing.assert_allclose(run(executable, X).numpy(), WANTED, rtol=1e-4, atol=1e-4)
    report = passes.report
    (function,) = report.functions
    assert (function.calls, function.source, function.why, function.contraction) == (1, DEFAULT, "", True)
    assert function.operator.startswith("matmul 16x48x32") and function.rule.startswith("cpu.gemm@")
    assert function.family and function.tensorized and function.flops == 2 * 16 * 48 * 32 + function.flops % (16 * 48)
    assert function.decisions["pack_b"] == "constant"
    assert report.threads == 1 and report.tensorized == 1.0 and report.machine == host().name
    assert list(report.seconds) == said and all(s >= 0 for s in report.seconds.values())
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["functions"][0]["name"] == function.name and plain["tensorized"] == 1.0


def test_weights_as_parameters_are_packed_by_a_function(tmp_path):
    passes = Pipeline(database=tmp_path, threads=1)
    executable = relax.build(module(PARAMETER, num_input=1), target_of(host(), 1), relax_pipeline=passes)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    packed = machine["main_transform_params"]([tvm.runtime.tensor(W)])
    found = machine["main"](tvm.runtime.tensor(X), *packed).numpy()
    np.testing.assert_allclose(found, WANTED, rtol=1e-4, atol=1e-4)
    assert passes.report.functions[0].decisions["pack_b"] == "constant"
    # Without ``num_input`` both vary, and nothing is packed beforehand.
    varying = relax.build(module(PARAMETER), target_of(host(), 1), relax_pipeline=passes)
    np.testing.assert_allclose(run(varying, X, W).numpy(), WANTED, rtol=1e-4, atol=1e-4)
    assert passes.report.functions[0].decisions["pack_b"] != "constant"


def test_what_no_rule_serves_compiles_all_the_same(tmp_path):
    double = relax.Var("x", R.Tensor((16, 32), "float64")), relax.Var("w", R.Tensor((32, 8), "float64"))
    builder = relax.BlockBuilder()
    with builder.function("main", list(double)):
        with builder.dataflow():
            out = builder.emit_output(relax.op.matmul(*double))
        builder.emit_func_output(out)
    passes = Pipeline(database=tmp_path, threads=1)
    executable = relax.build(builder.finalize(), target_of(host(), 1), relax_pipeline=passes)
    a, b = X.astype(np.float64), W[:, :8].astype(np.float64).copy()
    np.testing.assert_allclose(run(executable, a, b).numpy(), a @ b, rtol=1e-12)
    (function,) = passes.report.functions
    assert function.source == FALLBACK and "no rule or intrinsic for matmul 16x8x32 float64" in function.why
    assert function.contraction and not function.tensorized and passes.report.tensorized == 0.0


def test_records_are_found(tmp_path):
    tune_model(module(W), trials=1, threads=1, database=tmp_path)
    passes = Pipeline(database=tmp_path, threads=1)
    executable = relax.build(module(W), target_of(host(), 1), relax_pipeline=passes)
    assert [f.source for f in passes.report.functions] == [RECORD]
    np.testing.assert_allclose(run(executable, X).numpy(), WANTED, rtol=1e-4, atol=1e-4)
    assert [f.source for f in built(module(W), tmp_path / "none").functions] == [DEFAULT]


def built(model, database):
    passes = Pipeline(database=database, threads=1)
    relax.build(model, target_of(host(), 1), relax_pipeline=passes)
    return passes.report


def test_trials_are_measured_on_the_way(tmp_path):
    passes = Pipeline(database=tmp_path, threads=1, trials=1)
    relax.build(module(W), target_of(host(), 1), relax_pipeline=passes)
    assert [f.source for f in passes.report.functions] == [RECORD] and passes.report.seconds["tune"] > 0
    with pytest.raises(UsageError, match="-1 trials asked for"):
        Pipeline(trials=-1)


@pytest.mark.skipif(host().cores < 2, reason="this machine has one core")
def test_the_cores_are_those_of_the_target_or_as_asked_for(tmp_path):
    for target, threads, wanted in ((1, None, 1), (2, None, 2), (2, 1, 1)):
        passes = Pipeline(database=tmp_path, threads=threads)
        executable = relax.build(module(W), target_of(host(), target), relax_pipeline=passes)
        assert passes.report.threads == wanted
        np.testing.assert_allclose(run(executable, X).numpy(), WANTED, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not families_for(host().isa, BF16, host().features), reason="no micro-kernel for bfloat16")
def test_what_is_tuned_for_bf16_is_found_for_bf16(tmp_path):
    tune_model(module(W), trials=1, threads=1, database=tmp_path, dtype="bf16")
    found = {}
    for dtype in DTYPES:
        passes = Pipeline(database=tmp_path, threads=1, dtype=dtype)
        passes(module(W))
        found[dtype] = {f.source for f in passes.report.functions}
    assert found == {"f32": {DEFAULT}, "bf16": {RECORD}}


def test_what_is_tuned_of_buckets_is_found_in_them(tmp_path):
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((tvm.tirx.Var("n", "int64"), 32), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.matmul(x, relax.const(W)))
        builder.emit_func_output(out)
    sizes = {"n": (4, 24)}
    tuned = tune_model(builder.get(), trials=2, threads=1, database=tmp_path, buckets=sizes)
    assert len(tuned.functions) == 2 and [f.why for f in tuned.others] == ["symbolic shapes"]
    passes = Pipeline(database=tmp_path, threads=1, buckets=sizes)
    passes(builder.get())
    source = {f.callers[0]: f.source for f in passes.report.functions}
    assert source["main_n4"] == source["main_n24"] == RECORD and source["main_general"] != RECORD
    fixed = tune_model(builder.get(), trials=1, threads=1, database=tmp_path, shapes={"x": (24, 32)})
    assert [f.result.measured for f in fixed.functions] == [0] and not fixed.others, "it is the bucket's"
