"""Tiny models through everything that a model goes through; no timing is asserted."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from qimeng_tvm.bench import conv_data, timing
from qimeng_tvm.bench.conv_ours import QimengConv
from qimeng_tvm.bench.conv_peers import conv_peers
from qimeng_tvm.bench.conv_suite import ConvCase, conv_suite
from qimeng_tvm.bench.host import RemoteHost
from qimeng_tvm.bench.model_peers.catalogue import model_peers
from qimeng_tvm.bench.model_peers.qimeng import QimengModel
from qimeng_tvm.bench.models import case as cases
from qimeng_tvm.bench.models import export, zoo
from qimeng_tvm.bench.models.run import bench_models
from qimeng_tvm.bench.systems import Refusal
from qimeng_tvm.errors import ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def _vgg(_):
    from qimeng_tvm.bench.models.vision import Vgg

    return Vgg(channels=(8, 0, 16, 0), hidden=32, classes=10)


def _unet(_):
    from qimeng_tvm.bench.models.vision import UNet

    return UNet(width=8, depth=2)


def _resnet(_):
    from qimeng_tvm.bench.models.vision import resnet

    return resnet((1, 1), basic=False, widths=(16, 32))


def _bert(layers):
    from qimeng_tvm.bench.models.language import Encoder

    return Encoder(layers, **SIZES)


def _llama(layers):
    from qimeng_tvm.bench.models.language import Decoder

    return Decoder(layers, **SIZES, num_key_value_heads=1, head_dim=16)


REAL = zoo.MODELS
TINY = {
    "vgg": zoo.Model(_vgg, zoo._images(32), images=True),
    "unet": zoo.Model(_unet, zoo._images(32), images=True),
    "resnet": zoo.Model(_resnet, zoo._images(64), images=True),
    "bert": zoo.Model(_bert, zoo._tokens(8), layers=1),
    "prefill": zoo.Model(_llama, zoo._tokens(8), layers=2),
    "decode": zoo.Model(_llama, zoo._one_more, layers=2),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(zoo, "MODELS", TINY)


def made(name, cache, **options):
    case = cases.make_case(name, cache, **options)
    if not case.folder.exists():
        export.make(case)
    return case


def opened(peer, case, right=True):
    host = RemoteHost(peer, 120.0)
    try:
        found = host.open(case.request(1), case.folder, 1, timing.allowed_cores()[:1])
        if not isinstance(found, Refusal):
            assert found.wrong is not right, found
            assert host.sample(1) > 0
        return found
    finally:
        host.shutdown()


@pytest.mark.parametrize("name", TINY)
def test_every_kind_of_model_is_exported(name, cache):
    about = cases.about(made(name, cache).folder)
    assert about["failures"] == {}
    assert about["flops"] > 0
    assert about["results"] == (5 if name in ("prefill", "decode") else 1)


def test_a_batch_has_the_same_weights(cache):
    one, two = (torch.load(made("bert", cache, batch=b).folder / cases.MODULE, weights_only=False) for b in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("peer", ["torch_eager", "onnxruntime", "openvino", "tvm_default"])
def test_peers_are_right(peer, name, cache):
    (system,) = model_peers([peer])
    if system.available() is not None:
        pytest.skip(system.available())
    assert not isinstance(opened(system, made(name, cache)), Refusal)


@pytest.mark.parametrize("peer", ["torch_compile", "iree"])
def test_slow_compilers_are_right(peer, cache):
    (system,) = model_peers([peer])
    if system.available() is not None:
        pytest.skip(system.available())
    assert not isinstance(opened(system, made("vgg", cache)), Refusal)


def test_tvm_tunes_with_the_trials_asked_for(cache):
    case = made("vgg", cache)
    (system,) = model_peers(["tvm_static_tuning"], trials=4)
    assert opened(system, case).extra["trials"] == 4
    assert isinstance(opened(dataclasses.replace(system, trials=0), case), Refusal)


@pytest.mark.parametrize("name", TINY)
def test_ours_is_right(name, cache):
    assert 0 <= opened(QimengModel(), made(name, cache)).extra["tensorized"] <= 1


def test_another_data_type(cache):
    case = made("bert", cache, dtype="bf16")
    assert not isinstance(opened(model_peers(["torch_eager"])[0], case), Refusal)
    assert isinstance(opened(model_peers(["iree"])[0], case), Refusal)
    for peer in model_peers(["onnxruntime", "openvino"]):
        if peer.available() is None:
            assert not isinstance(opened(peer, case), Refusal)


@pytest.fixture
def quantized(cache):
    pytest.importorskip("onnxruntime")
    made("vgg", cache)  # it is made from the files in float32
    return made("vgg", cache, dtype="int8")


@pytest.mark.parametrize("peer", ["onnxruntime", "openvino", "qimeng"])
def test_a_quantized_model_is_right(peer, quantized):
    (system,) = [QimengModel()] if peer == "qimeng" else model_peers([peer])
    if system.available() is not None:
        pytest.skip(system.available())
    found = opened(system, quantized)
    if peer == "qimeng":
        assert found.extra["tensorized"] == 1.0


def test_a_quantized_model_has_all_weights_and_what_is_between_convolutions_on_bytes(quantized):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(quantized.folder / cases.ONNX).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    kinds = {t.name: t.data_type for t in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MaxPool"):
            assert {makers[name] for name in node.input} == {"DequantizeLinear"}, node.name
        if node.op_type == "QuantizeLinear":
            assert kinds[node.input[2]] == onnx.TensorProto.UINT8
    assert onnx.TensorProto.INT8 in kinds.values()


def test_a_wrong_zero_point_disqualifies(quantized, cache):
    onnx = pytest.importorskip("onnx")
    spoilt = dataclasses.replace(quantized, cache=cache / "spoilt")
    shutil.copytree(quantized.folder, spoilt.folder)
    model = onnx.load(spoilt.folder / cases.ONNX)
    node = next(
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith("QuantizeLinear_Output")
    )
    (zero,) = (t for t in model.graph.initializer if t.name == node.input[2])
    node.input[2] = "other"
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(zero) + np.uint8(16), "other")
    )
    onnx.save(model, spoilt.folder / cases.ONNX)
    assert opened(model_peers(["onnxruntime"])[0], spoilt, right=False).wrong


def test_pytorch_says_why_it_runs_no_quantized_model(quantized):
    for peer in model_peers(["torch_eager", "torch_compile"]):
        assert "ONNX" in peer.prepare(quantized.request(1), cases.load_files(quantized.folder), 1).reason


def test_wrong_results_disqualify(cache):
    case = made("vgg", cache)
    spoilt = dataclasses.replace(case, cache=cache / "spoilt")
    export.make(spoilt)
    module = torch.load(spoilt.folder / cases.MODULE, weights_only=False)
    module.classifier[0].bias[0] += 0.5
    torch.save(module, spoilt.folder / cases.MODULE)
    assert opened(model_peers(["torch_eager"])[0], spoilt, right=False).wrong


def test_a_run_has_a_row_for_everyone(cache):
    case = made("vgg", cache)
    plan = timing.TimingPlan(repeats=2, total_seconds=0.0, sample_seconds=1e-4, again=0)
    result = bench_models(model_peers(["torch_eager", "onnxruntime"]), [case], plan=plan)
    assert [row.system for row in result.rows] == ["torch_eager", "onnxruntime"]
    assert all(row.counts and row.gflops for row in result.rows)
    assert "transformers" in result.versions


def test_weights_that_overflow_are_refused(cache, monkeypatch):
    def large(_):
        module = _vgg(None)
        module.features[0].weight.data.mul_(1e6)
        return module

    monkeypatch.setitem(TINY, "large", zoo.Model(large, zoo._images(32)))
    with pytest.raises(ModelError, match="features"):
        made("large", cache)
    assert not list(cache.glob("*large*"))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_suites_of_convolutions_are_the_layers_of_the_models(name):
    found = set()

    def note(layer, arguments, _):
        (pixels,) = arguments
        shape, kernel = tuple(pixels.shape), layer.kernel_size
        found.add(ConvCase(*shape, layer.out_channels, *kernel, layer.stride[0], layer.padding[0], layer.groups))

    with torch.device("meta"), torch.inference_mode():  # shapes alone, no numbers
        module = REAL[name].build(None).eval()
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(note)
        module(*REAL[name].inputs(module, 1))
    assert set(conv_suite([name])) == found


@pytest.mark.parametrize("system", [*conv_peers(), QimengConv()], ids=lambda s: s.name)
def test_convolutions_are_right(system):
    if system.available() is not None:
        pytest.skip(system.available())
    host = RemoteHost(system)
    convolutions = [
        ConvCase(1, 8, 9, 9, 16, 3, 3, pad=1),
        ConvCase(2, 3, 12, 12, 8, 7, 7, stride=2, pad=3),
        ConvCase(1, 16, 7, 7, 32, 1, 1),
        ConvCase(1, 16, 8, 8, 16, 3, 3, stride=2, pad=1, groups=16),
    ]
    try:
        for case in convolutions:
            with conv_data.placed(case) as folder:
                found = host.open(case.request(1), folder, 1, timing.allowed_cores()[:1])
                assert not found.wrong, (case, found)
    finally:
        host.shutdown()
