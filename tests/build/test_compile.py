"""Models compiled by `qimeng_tvm.compile`: every kind of model, inputs of every kind, libraries, times."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

import qimeng_tvm
from qimeng_tvm.errors import BuildError, ModelError, UsageError
from qimeng_tvm.hardware import Hardware, host
from qimeng_tvm.relax.signature import bind_weights, fix_shapes, parameters_of

torch = pytest.importorskip("torch", reason="models in PyTorch need the package torch")


class Net(torch.nn.Module):
    """Two outputs, and a part that does otherwise in training."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Dropout())

    def forward(self, x):
        y = self.layers(x)
        return y, y.mean(1)


def product(rows=8):
    """A Relax model with a weight as parameter, and perhaps a flexible number of rows."""
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64") if rows is None else rows
    x, w = relax.Var("x", R.Tensor((n, 16), "float32")), relax.Var("w", R.Tensor((16, 32), "float32"))
    with builder.function("main", [x, w], attrs={"num_input": 1}):
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.relu(relax.op.matmul(x, w)))
        builder.emit_func_output(out)
    return builder.finalize()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def compiled(net, tmp_path_factory):
    return qimeng_tvm.compile(net, torch.zeros(16, 48), threads=1, database=tmp_path_factory.mktemp("records"))


def test_it_returns_what_it_is_given(net, compiled):
    assert net.training and net.layers[2].training, "left as it was"
    x = torch.randn(16, 48)
    with torch.no_grad():
        wanted = [y.numpy() for y in net.eval()(x)]
    net.train()
    apart = torch.zeros(17, 50)[1:, 1:49]  # neither in one piece nor aligned
    apart.copy_(x)
    for given in (x, apart, x.requires_grad_(), x.detach().numpy(), np.asfortranarray(x.detach().numpy())):
        found = compiled(given)
        assert isinstance(found, tuple) and all(type(y) is type(given) for y in found)
        for y, right in zip(found, wanted, strict=True):
            np.testing.assert_allclose(np.asarray(y), right, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(compiled(x=x.detach())[0], found[0])
    assert compiled.report.threads == 1 and compiled.report.tensorized == 1.0


@pytest.mark.parametrize(
    ("inputs", "named", "says"),
    [
        ((), {}, r"0 inputs given, and the model takes x \(float32 16x48\)"),
        ((np.zeros((16, 48), "f"),) * 2, {}, "2 inputs given"),
        ((), {"z": np.zeros((16, 48), "f")}, "1 inputs given"),
        ((np.zeros((16, 48)),), {}, r"float64 16x48 given for the model's x \(float32 16x48\)"),
        ((np.zeros((16, 47), "f"),), {}, "float32 16x47 given"),
        ((torch.zeros(48),), {}, "float32 48 given"),
        ((1.0,), {}, "float64 scalar given"),
    ],
)
def test_inputs_that_do_not_fit(compiled, inputs, named, says):
    with pytest.raises(UsageError, match=says):
        compiled(*inputs, **named)


def test_another_thread_calls_it(compiled):
    from concurrent.futures import ThreadPoolExecutor

    x = np.ones((16, 48), np.float32)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(compiled, x).result(60)
    np.testing.assert_array_equal(elsewhere[0], compiled(x)[0])


def test_a_library_runs_without_the_package(compiled, tmp_path):
    x = np.linspace(-1, 1, 16 * 48, dtype=np.float32).reshape(16, 48)
    np.save(tmp_path / "x.npy", x)
    path = compiled.export(tmp_path / "new" / "net.so")
    (tmp_path / "run.py").write_text(
        "import sys, numpy as np, tvm\n"
        "from tvm import relax\n"
        "vm = relax.VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())\n"
        "out = vm['main'](tvm.runtime.tensor(np.load('x.npy')))\n"
        "assert 'qimeng_tvm' not in sys.modules\n"
        "np.save('y.npy', out[0].numpy())\n"
    )
    subprocess.run([sys.executable, "run.py", str(path)], cwd=tmp_path, check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), compiled(x)[0])
    assert [p.name for p in path.parent.iterdir()] == ["net.so"]
    with pytest.raises(UsageError, match=r"net\.dll is not the name of a shared library: \*\.so"):
        compiled.export(tmp_path / "net.dll")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        compiled.export(tmp_path / "file" / "net.so")


def test_the_time_of_every_function(compiled):
    timed = compiled.profile(runs=3)
    assert {f.function.name for f in timed.functions} == {f.name for f in compiled.report.functions}
    assert sum(f.share for f in timed.functions) == pytest.approx(1.0) and timed.seconds > 0 and not timed.unknown
    for f in timed.functions:
        assert f.seconds > 0 and (f.gflops is None) == (not f.function.contraction)
        assert f.of_peak is None or 0 < f.of_peak < 1.5


def test_every_kind_of_model(net, tmp_path):
    example = torch.ones(16, 48)
    with torch.no_grad():
        wanted = net.eval()(example)[0].numpy()
        program = torch.export.export(net, (example,))
    net.train()
    torch.export.save(program, tmp_path / "net.pt2")
    options = {"threads": 1, "database": tmp_path / "records"}
    for model in (program, tmp_path / "net.pt2", str(tmp_path / "net.pt2")):
        np.testing.assert_allclose(qimeng_tvm.compile(model, **options)(example.numpy())[0], wanted, rtol=1e-5)
    with pytest.raises(UsageError, match=r"needs example inputs: compile\(model, inputs\)"):
        qimeng_tvm.compile(net, **options)
    with pytest.raises(ModelError, match=r"the model cannot be exported by torch\.export"):
        qimeng_tvm.compile(net, torch.zeros(3, 3), **options)
    for wrong in (3, lambda x: x, {"main": 1}):
        with pytest.raises(UsageError, match="is not a model: "):
            qimeng_tvm.compile(wrong, **options)
    with pytest.raises(UsageError, match="99 threads asked for"):
        qimeng_tvm.compile(program, threads=99)
    with pytest.raises(UsageError, match="-1 trials asked for"):
        qimeng_tvm.compile(program, trials=-1)


def test_onnx_in_memory_with_a_flexible_size(tmp_path):
    onnx = pytest.importorskip("onnx", reason="ONNX models need the package onnx")
    from onnx import TensorProto, helper, numpy_helper

    w = np.eye(16, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    x = np.arange(5 * 16, dtype=np.float32).reshape(5, 16)
    fixed = qimeng_tvm.compile(model, {"x": x}, threads=1, database=tmp_path)
    flexible = qimeng_tvm.compile(model, threads=1, database=tmp_path)
    np.testing.assert_array_equal(fixed(x), x)
    np.testing.assert_array_equal(flexible(x[:3]), x[:3])
    assert fixed.report.tensorized == 1.0
    assert any(f.why == "symbolic shapes" for f in flexible.report.functions)
    with pytest.raises(UsageError, match="float32 3x16 given"):
        fixed(x[:3])
    with pytest.raises(UsageError, match="has sizes that are not fixed"):
        flexible.profile()


def test_weights_that_are_parameters(tmp_path):
    x, w = np.ones((8, 16), np.float32), np.full((16, 32), 0.5, np.float32)
    options = {"threads": 1, "database": tmp_path}
    for weights in ({"w": w}, {"w": torch.from_numpy(w)}, {"main": [tvm.runtime.tensor(w)]}):
        assert np.all(qimeng_tvm.compile(product(), params=weights, **options)(x) == 8)
    open_ones = qimeng_tvm.compile(product(), **options)
    with pytest.raises(UsageError, match=r"weights are parameters \(w\): give them to compile"):
        open_ones(x)
    with pytest.raises(UsageError, match="has no parameter 'v'"):
        bind_weights(product(), {"v": w})
    with pytest.raises(UsageError, match="2 weights given, and the model takes 1"):
        bind_weights(product(), {"main": [w, w]})


def test_shapes_are_fixed_where_they_fit():
    (x, _) = parameters_of(fix_shapes(product(None), [(7, 16)]))
    assert x.shape == (7, 16) and parameters_of(product(None))[0].shape == (None, 16)
    for shapes, says in (
        ([(7, 15)], r"the shape 7x15 does not fit the model's x \(float32 \?x16\)"),
        ([(7,)], "the shape 7 does not fit"),
        ({"z": (7, 16)}, "the model has no input 'z'; it takes x"),
        ([(7, 16)] * 3, "3 inputs given, and the model takes 2"),
    ):
        with pytest.raises(UsageError, match=says):
            fix_shapes(product(None), shapes)


def test_what_a_model_writes_is_told(tmp_path):
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(4))

        def forward(self, x):
            self.n.add_(x)
            return x + self.n

    with pytest.warns(RuntimeWarning, match="the model writes into n: what it writes is dropped"):
        compiled = qimeng_tvm.compile(Counter(), torch.ones(4), threads=1, database=tmp_path)
    assert torch.equal(compiled(torch.ones(4)), torch.full((4,), 2.0))


def test_for_another_machine(compiled, net, tmp_path):
    from dataclasses import replace

    other = replace(host(), name="other", features=host().features | {"amx-fp16", "avx10.2"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        made = qimeng_tvm.compile(net, torch.zeros(16, 48), hardware=other, threads=1, database=tmp_path)
    assert made.report.machine == "other" and made.export(tmp_path / "other.so").is_file()
    with pytest.raises(UsageError, match="cannot run code for other"):
        made(torch.zeros(16, 48))


def test_for_another_architecture(net, tmp_path, monkeypatch):
    other = Hardware.load("neoverse_n1" if host().isa == "x86" else "cascade_lake")
    made = qimeng_tvm.compile(net, torch.zeros(16, 48), hardware=other, threads=1, database=tmp_path)
    assert made.report.machine == other.name
    with pytest.raises(UsageError, match="cannot run code for"):
        made(torch.zeros(16, 48))
    path = tmp_path / "other.so"
    try:
        made.export(path)
    except BuildError as error:
        assert "apt-get install gcc-" in str(error)
    else:
        told = path.read_bytes()[:20]
        # ELF's e_machine: AArch64 or x86-64.
        assert told[:4] == b"\x7fELF" and told[18] == (183 if other.isa == "arm" else 62)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="apt-get install gcc-"):
        made.export(tmp_path / "none.so")
