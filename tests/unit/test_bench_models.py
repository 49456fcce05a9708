"""Benchmarks of models and convolutions: cases, right answers and tables; nothing heavy is imported or built."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qimeng_tvm.bench import conv_data, timing
from qimeng_tvm.bench.conv_peers import conv_peers
from qimeng_tvm.bench.conv_suite import ConvCase, conv_suite
from qimeng_tvm.bench.model_peers.catalogue import model_peers
from qimeng_tvm.bench.models import table
from qimeng_tvm.bench.models.case import (
    ABOUT,
    DTYPES,
    EXPECTED,
    INPUTS,
    PLAIN,
    ModelReference,
    NarrowReference,
    flat,
    load_files,
    load_reference,
    make_case,
)
from qimeng_tvm.bench.models.zoo import MODELS
from qimeng_tvm.bench.result import BenchResult, Row
from qimeng_tvm.bench.run import bench_cases
from qimeng_tvm.bench.systems import CallableSystem
from qimeng_tvm.commands.bench_output import counts
from qimeng_tvm.errors import UsageError

FAST = timing.TimingPlan(repeats=3, total_seconds=0.0, sample_seconds=1e-5, cap_seconds=1.0, again=0)


# --- models --------------------------------------------------------------------------------------------------------


def test_cases_are_told_apart(tmp_path):
    cases = [make_case(name, tmp_path, batch, dtype) for name in MODELS for batch in (1, 8) for dtype in DTYPES]
    assert len({c.folder for c in cases}) == len(cases)
    assert {c.name for c in cases if c.batch == 8} == {f"{name}-b8" for name in MODELS}
    fewer = make_case("bert-128", tmp_path, layers=2)
    assert fewer.name == "bert-128-2layers-b1"
    assert fewer.folder != make_case("bert-128", tmp_path).folder
    assert make_case("resnet50", tmp_path, layers=3).layers is None  # it has no choice
    assert fewer.request(2).threads == 2
    assert make_case("bert-128", tmp_path, dtype="bf16").a_dtype == "bfloat16"


def test_unknown_names_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="resnet50"):
        make_case("resnet51", tmp_path)
    with pytest.raises(UsageError, match="bf16"):
        make_case("resnet50", tmp_path, dtype="u8s8")
    with pytest.raises(UsageError, match="openvino"):
        model_peers(["caffe"])
    with pytest.raises(UsageError, match="--batch"):
        counts("1,x", "--batch")


def test_static_tuning_stands_in_only_with_trials():
    assert "tvm_static_tuning" not in {p.name for p in model_peers()}
    (tuned,) = (p for p in model_peers(trials=7) if p.name == "tvm_static_tuning")
    assert tuned.trials == 7


def reference():
    rng = np.random.default_rng(0)
    return ModelReference((rng.normal(size=(2, 50)), 1e3 * rng.normal(size=7)), 50, 1024)


def test_rounding_is_right_and_a_small_change_is_wrong():
    right = reference()
    assert right.error(flat(right.values)) < 0.01
    for index, scale in enumerate((1.0, 1e3)):  # the second result's size must not hide what is wrong in the first
        changed = [v.copy() for v in right.values]
        changed[index].flat[3] += 1e-3 * scale
        assert right.error(flat(changed)) > 1
    assert right.error(flat([np.float32(v * (1 + 2e-5)) for v in right.values])) < 1


def test_what_is_no_number_or_has_another_size_is_wrong():
    right = reference()
    broken = flat(right.values)
    assert right.error(broken[:-1]) == float("inf")
    broken[0] = np.nan
    assert right.error(broken) == float("inf")


def narrow():
    """Return results in float32, and twice what quantization makes of them, its roundings independent."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=1000), 1e3 * rng.normal(size=(2, 500))
    ours, other = (tuple(v + 0.1 * np.std(v) * rng.normal(size=v.shape) for v in plain) for _ in range(2))
    return NarrowReference(ours, plain), other


def test_a_narrow_answer_may_round_otherwise():
    right, other = narrow()
    assert right.error(flat(right.values)) < 0.9
    assert 0.7 < right.error(flat(other)) < 1.1
    assert right.error(flat(right.plain)) < 1, "more exact than asked for"


@pytest.mark.parametrize("index", [0, 1])
def test_a_narrow_answer_is_wrong_when_it_is_off_everywhere_or_far_off_somewhere(index):
    right, _ = narrow()
    spread = float(np.std(right.values[index]))
    for spoil in (
        lambda v: np.roll(v, 1),
        lambda v: v + 0.15 * spread,
        lambda v: np.where(np.arange(v.size).reshape(v.shape) == 7, v + spread, v),
        lambda v: np.where(v > 0, v, np.nan),
    ):
        values = [spoil(v) if i == index else v for i, v in enumerate(right.values)]
        assert right.error(flat(values)) > 1
    assert right.error(flat(right.values)[1:]) == float("inf")


def test_files_come_back(tmp_path):
    np.savez(tmp_path / INPUTS, np.arange(12), np.array([0x3F80, 0x4000], np.uint16), *np.ones((10, 1), np.float32))
    np.savez(tmp_path / EXPECTED, *reference().values)
    (tmp_path / ABOUT).write_text(json.dumps({"depth": 50, "terms": 1024, "dtype": "f32", "flops": 9}))
    files = load_files(tmp_path)
    assert [a.dtype.name for a in files.inputs[:3]] == ["int64", "bfloat16", "float32"]
    assert files.inputs[1].astype(float).tolist() == [1.0, 2.0]
    assert files.about["flops"] == 9
    assert load_reference(tmp_path).error(flat(reference().values)) < 0.01


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_exact_results_come_back_with_narrow_ones(tmp_path, dtype):
    right, _ = narrow()
    np.savez(tmp_path / EXPECTED, *right.values)
    np.savez(tmp_path / PLAIN, *right.plain)
    (tmp_path / ABOUT).write_text(json.dumps({"dtype": dtype}))
    found = load_reference(tmp_path)
    assert isinstance(found, NarrowReference)
    assert [v.shape for v in found.plain] == [(1000,), (2, 500)]


# --- tables --------------------------------------------------------------------------------------------------------


def result():
    rows = (
        Row("m-b1", "f32", 1, "fast", 0.009, 0.010, 100.0, 0.1),
        Row("m-b1", "f32", 1, "wrong", 0.001, 0.001, 1000.0, 0.1, {"wrong": True}),
        Row("m-b1", "f32", 1, "absent", extra={"error": True, "note": "no such operator"}),
        Row("m-b1", "f32", 1, "qimeng", 0.008, 0.008, 125.0, 0.1),
    )
    return BenchResult({}, {}, rows)


def test_tables_have_milliseconds_ours_first_and_the_ratio():
    lines = table.markdown_table(result()).splitlines()
    assert lines[0] == "| case | dtype | threads | GFLOP | qimeng | fast | wrong | absent | vs best peer | best peer |"
    assert lines[2] == "| m-b1 | f32 | 1 | 1 | **8** | 10 | (1) wrong | failed | 1.25 | fast |"
    assert table.rich_table(result()).row_count == 1
    assert table.note_lines(result()) == ["not timed: absent on m-b1 f32 at 1 threads: no such operator"]


# --- convolutions --------------------------------------------------------------------------------------------------


def test_suites_have_the_layers_of_the_networks():
    assert len(conv_suite(["chosen"])) == 6
    assert len(conv_suite(["resnet50"])) == 23
    assert len(conv_suite(["mobilenet_v2"])) == 30
    names = [c.name for c in conv_suite()]
    assert len(set(names)) == len(names)
    assert "1x256x28x28-256x3x3-s2p1" in names
    assert "1x144x56x56-144x3x3-s2p1-dw" in names
    assert conv_suite(["chosen"])[0].flops == 2 * 64 * 64 * 112 * 112 * 3 * 7 * 7
    with pytest.raises(UsageError, match="resnet50"):
        conv_suite(["alexnet"])
    with pytest.raises(UsageError, match="onednn_plain"):
        conv_peers(["cudnn"])


@pytest.mark.parametrize(
    "case",
    [ConvCase(2, 3, 7, 6, 4, 3, 2, stride=2, pad=1), ConvCase(1, 6, 5, 5, 6, 3, 3, pad=1, groups=6)],
    ids=lambda c: c.name,
)
def test_the_reference_is_a_convolution(case):
    inputs = conv_data.make_inputs(case)
    right = conv_data.reference(case, inputs)
    padded = np.pad(inputs.x.astype(float), ((0, 0), (0, 0), (case.pad,) * 2, (case.pad,) * 2))
    own, filters = case.c // case.groups, case.k // case.groups
    wanted = np.zeros((case.n, case.k, *case.out))
    for n, k, y, x in np.ndindex(wanted.shape):
        group = k // filters
        window = padded[n, group * own : (group + 1) * own, y * case.stride :, x * case.stride :]
        wanted[n, k, y, x] = (window[:, : case.r, : case.s] * inputs.w[k]).sum()
    np.testing.assert_allclose(right.values, wanted, atol=1e-12)
    assert (right.magnitude >= np.abs(wanted)).all()


def test_cases_are_timed_by_systems_that_read_them_themselves():
    case = ConvCase(1, 3, 5, 5, 4, 3, 3, pad=1)
    reads = {"inputs": staticmethod(conv_data.load_inputs), "reference": staticmethod(conv_data.load_reference)}
    system = type("Reader", (CallableSystem,), reads)

    def right(request, inputs, threads):
        values = conv_data.reference(request, inputs).values.astype(np.float32)
        return lambda: values

    def wrong(request, inputs, threads):
        return lambda: np.zeros((1, 4, 5, 5), np.float32)

    told = bench_cases([system("qimeng", right), system("peer", wrong)], [case], conv_data.placed, [1], FAST)
    ours, peer = told.rows
    assert ours.counts
    assert ours.case == "1x3x5x5-4x3x3-s1p1"
    assert peer.extra["wrong"]
