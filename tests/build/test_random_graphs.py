"""Random inference graphs are built and computed rightly; ``scripts/fuzz_graphs.py`` runs any number of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx", reason="graphs are ONNX models")
pytest.importorskip("onnxruntime", reason="graphs are checked with ONNX Runtime")

import onnx

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError
from qimeng_tvm.graph_fuzz.building import DEFAULT, build_and_run
from qimeng_tvm.graph_fuzz.checking import CRASHED, PRELOAD, RIGHT, WRONG, Setting, check_graph, check_seed
from qimeng_tvm.graph_fuzz.evaluate import evaluate
from qimeng_tvm.graph_fuzz.generate import random_graph
from qimeng_tvm.graph_fuzz.graph import Graph, Node, to_model
from qimeng_tvm.graph_fuzz.oracle import oracle, run_onnxruntime
from qimeng_tvm.graph_fuzz.shrink import shrink
from qimeng_tvm.hardware import host

COUNT, SEED = 12, 20262


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(preload=PRELOAD) as w:
        yield w


def shapes_of(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in evaluate(graph).items()}


def chain(*ops: str, shape: tuple[int, ...] = (2, 5)) -> Graph:
    nodes = tuple(Node(op, (f"t{i}",), (f"t{i + 1}",)) for i, op in enumerate(ops))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Graph(nodes, {"t0": x}, {}, (f"t{len(ops)}",))


@pytest.mark.parametrize("number", range(COUNT))
def test_random_graph_is_right(worker: Worker, number: int) -> None:
    result = check_seed(worker, SEED, number, Setting(host(), threads=min(2, host().cores), timeout=10.0))
    assert result.ok, f"number {number} of seed {SEED}\n{result.report()}"


def test_a_seed_is_a_graph() -> None:
    for seed in range(20):
        first, second = random_graph((SEED, seed)), random_graph((SEED, seed))
        assert to_model(first, shapes_of(first)) == to_model(second, shapes_of(second))
        assert all(np.array_equal(array, second.feeds[name]) for name, array in first.feeds.items())


def test_graphs_are_varied_and_valid() -> None:
    graphs = [random_graph((SEED, seed)) for seed in range(250)]
    ops = Counter(node.op for graph in graphs for node in graph.nodes)
    wanted = (
        "Add AveragePool BatchNormalization Clip Concat Conv ConvTranspose Div Erf Flatten Gather Gelu Gemm "
        "GlobalAveragePool HardSwish LayerNormalization LeakyRelu MatMul MaxPool Mul Pad ReduceMax ReduceMean "
        "ReduceSum Relu Reshape Resize Sigmoid Slice Softmax Split Squeeze Sub Tanh Transpose Unsqueeze"
    )
    assert not set(wanted.split()) - set(ops)
    sizes = [len(graph.nodes) for graph in graphs]
    assert min(sizes) == 1 and max(sizes) >= 12
    assert any(len(graph.outputs) > 1 for graph in graphs)
    assert {graph.opset for graph in graphs} == {17, 20}
    convs = [node for graph in graphs for node in graph.nodes if node.op == "Conv"]
    assert any(node.attributes["group"] > 1 for node in convs)
    assert any(max(node.attributes["dilations"]) > 1 for node in convs)
    assert any(node.attributes["pads"][:2] != node.attributes["pads"][2:] for node in convs)
    for graph in graphs[:60]:
        values = evaluate(graph)
        onnx.checker.check_model(onnx.load_from_string(to_model(graph, shapes_of(graph))), full_check=True)
        assert all(np.isfinite(array).all() for array in values.values())


def test_our_evaluation_and_onnx_runtime_agree() -> None:
    sources = Counter(oracle(random_graph((SEED, seed))).source for seed in range(100))
    assert sources["float64"] >= 98, sources


def test_an_error_of_a_few_roundings_is_right_and_a_small_one_is_wrong() -> None:
    for seed in range(30):
        graph = random_graph((SEED, seed))
        expected = oracle(graph)
        peer = run_onnxruntime(graph, shapes_of(graph))
        assert not expected.wrong(peer)
        name = graph.outputs[0]
        spoiled = peer[name].astype(np.float64)
        at = tuple(int(i) for i in np.unravel_index(np.abs(spoiled).argmax(), spoiled.shape))
        spoiled[at] += 0.05 * max(1.0, abs(spoiled[at]))
        assert set(expected.wrong({**peer, name: spoiled})) == {name}
        assert f"first at {list(at)}" in expected.wrong({**peer, name: spoiled})[name]
        lost = spoiled.copy()
        lost[at] = np.nan
        assert set(expected.wrong({**peer, name: lost})) == {name}


def test_an_invalid_graph_is_refused() -> None:
    with pytest.raises(CheckError, match="ONNX Runtime refuses"):
        oracle(replace(chain("Relu"), opset=999))


def test_what_fails_is_shrunk_to_what_makes_it_fail() -> None:
    tried = 0

    def fails(graph: Graph) -> bool:
        nonlocal tried
        tried += 1
        return any(node.op == "Softmax" for node in graph.nodes)

    graph = next(g for g in (random_graph((SEED, i)) for i in range(200)) if len(g.nodes) > 6 and fails(g))
    tried = 0
    small = shrink(graph, fails)
    assert [node.op for node in small.nodes] == ["Softmax"] and tried <= 200
    assert len(small.outputs) == 1 and oracle(small).source == "float64"


def test_shrinking_stops_and_does_not_take_what_cannot_be_checked() -> None:
    def refuses(graph: Graph) -> bool:
        raise CheckError("not checked")

    graph = random_graph((SEED, 3))
    assert shrink(graph, refuses) is graph
    assert shrink(graph, lambda _: True, tries=0) is graph


def test_a_planted_error_is_wrong_and_shrunk(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is another graph than what is expected: Tanh for Sigmoid."""
    from qimeng_tvm.graph_fuzz import checking

    def planted(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> bytes:
        nodes = tuple(replace(node, op="Tanh" if node.op == "Sigmoid" else node.op) for node in graph.nodes)
        return to_model(replace(graph, nodes=nodes), shapes)

    monkeypatch.setattr(checking, "to_model", planted)
    setting = Setting(host())
    graph = chain("Relu", "Neg", "Sigmoid", "Abs")
    result = check_graph(worker, graph, setting, blame=False)
    assert result.kind == WRONG and "expected" in result.message and "Sigmoid" in result.report()
    small = shrink(graph, lambda g: check_graph(worker, g, setting, blame=False).kind == WRONG)
    assert [node.op for node in small.nodes] == ["Sigmoid"]


def test_a_crash_and_a_hang_are_answers(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = Setting(host(), timeout=0.001)
    result = check_graph(worker, chain("Relu"), hang, blame=False)
    assert result.kind == CRASHED and "timeout" in result.message
    assert check_graph(worker, chain("Relu"), Setting(host())).kind == RIGHT


def test_what_the_front_end_refuses_is_not_ours() -> None:
    model = to_model(chain("Relu"), {"t1": (2, 5)})
    broken = onnx.load_from_string(model)
    broken.graph.node[0].op_type = "NoSuchOperator"
    ran = build_and_run(broken.SerializeToString(), {}, DEFAULT, host(), 1)
    assert ran.kind == "import" and "NoSuchOperator" in ran.message


def test_a_saved_graph_is_a_model_and_its_inputs(tmp_path) -> None:
    graph = random_graph((SEED, 1))
    graph.save(tmp_path / "some" / "graph.onnx", shapes_of(graph))
    model = onnx.load(tmp_path / "some" / "graph.onnx")
    with np.load(tmp_path / "some" / "graph.npz") as feeds:
        assert sorted(feeds) == sorted(i.name for i in model.graph.input)
    assert [o.name for o in model.graph.output] == list(graph.outputs)
