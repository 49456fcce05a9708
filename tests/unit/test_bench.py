"""The benchmark's suite, timing loop, summary and resumption, on fabricated systems."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qimeng_tvm.bench import data, timing
from qimeng_tvm.bench.host import LocalHost, Opened, RemoteHost, choose
from qimeng_tvm.bench.result import ROW_KEYS, UNTUNED, BenchResult, Row
from qimeng_tvm.bench.run import bench_gemm
from qimeng_tvm.bench.suite import QUICK_NAMES, Case, gemm_suite, make_case
from qimeng_tvm.bench.systems import BenchError, CallableSystem, Refusal, Variant, default_peers
from qimeng_tvm.bench.table import markdown_table, rich_table, summary_lines
from qimeng_tvm.errors import UsageError

FAST = timing.TimingPlan(repeats=3, total_seconds=0.0, sample_seconds=1e-5, cap_seconds=1.0)
TINY = make_case(4, 6, 5)


# --- suite ---------------------------------------------------------------------------------------------------------


def test_the_suite_has_exactly_the_stated_cases():
    squares = {(1, s, s, s) for s in (64, 128, 256, 512, 1024, 2048, 1000)} | {(1, 255, 257, 263)}
    weights = {
        (1, m, n, k)
        for m in (1, 4, 16, 64, 128, 512)
        for k, n in ((768, 3072), (3072, 768), (4096, 4096), (4096, 11008))
    }
    rest = {(1, 20000, 64, 64), (12, 128, 64, 128), (12, 128, 128, 64)}
    wanted = (
        {(*s, c) for s in squares for c in (False, True)} | {(*s, True) for s in weights} | {(*s, False) for s in rest}
    )
    for dtype in ("f32", "bf16", "u8s8"):
        cases = gemm_suite([dtype])
        assert {(c.batch, c.m, c.n, c.k, c.constant_b) for c in cases} == wanted
        assert len(cases) == len(wanted) == 43
        assert len({c.name for c in cases}) == 43
        assert {c.dtype for c in cases} == {dtype}


def test_the_quick_suite_is_the_named_subset():
    assert sorted(c.name for c in gemm_suite(quick=True)) == sorted(QUICK_NAMES)


def test_an_unknown_dtype_is_a_usage_error():
    with pytest.raises(UsageError, match="fp8"):
        gemm_suite(["fp8"])


def test_a_case_is_a_request():
    request = make_case(16, 3072, 768, dtype="bf16", constant_b=True).request(2)
    assert (request.m, request.n, request.k, request.batch, request.threads) == (16, 3072, 768, 1, 2)
    assert (request.a_dtype, request.b_dtype, request.out_dtype) == ("bfloat16", "bfloat16", "float32")
    assert request.constant_b
    assert make_case(2, 3, 5, batch=7).flops == 2 * 2 * 3 * 5 * 7


# --- timing --------------------------------------------------------------------------------------------------------


class FakeMachine:
    """A clock that moves only when a fake system runs, and a diary of who ran."""

    def __init__(self):
        self.now = 0.0
        self.diary = []

    def sampler(self, name, seconds):
        def sample(inner):
            self.diary.append((name, inner))
            self.now += seconds  # the unmeasured call
            return timing.time_calls(lambda: self.tick(seconds), inner, lambda: self.now)

        return sample

    def tick(self, seconds):
        self.now += seconds


def test_systems_take_turns_and_get_the_repeats_asked_for():
    machine = FakeMachine()
    plan = timing.TimingPlan(repeats=20, total_seconds=0.05, sample_seconds=0.001, hopeless=100)
    samplers = {"a": machine.sampler("a", 1e-4), "b": machine.sampler("b", 3e-3)}
    result = timing.interleave(samplers, plan)
    assert result["a"].seconds_median == pytest.approx(1e-4)
    assert result["b"].seconds_min == pytest.approx(3e-3)
    assert result["a"].spread == pytest.approx(0, abs=1e-9)
    for name, seconds in (("a", 1e-4), ("b", 3e-3)):
        sample = result[name]
        assert sample.repeats == 20
        assert sample.inner * seconds >= 0.001 * (1 - 1e-9)
        assert sample.repeats * sample.inner * seconds >= 0.05 * (1 - 1e-9)
    turns = [name for name, _ in machine.diary][-40:]
    assert turns == ["a", "b"] * 20


def test_a_slow_system_gets_fewer_samples_spread_over_the_rounds():
    machine = FakeMachine()
    plan = timing.TimingPlan(repeats=20, cap_seconds=6.0, hopeless=1e6)
    result = timing.interleave({"slow": machine.sampler("slow", 1.0), "fast": machine.sampler("fast", 1e-3)}, plan)
    assert result["slow"].repeats == 6
    assert result["fast"].repeats == 20
    turns = [name for name, _ in machine.diary][-26:]
    assert turns[0] == "fast"  # not all the slow ones first
    assert turns.count("slow") == 6
    very_slow = timing.interleave({"s": machine.sampler("s", 50.0)}, plan)["s"]
    assert very_slow.repeats == 1


def test_a_hopeless_system_gets_the_fewest_samples():
    machine = FakeMachine()
    plan = timing.TimingPlan(repeats=20, min_repeats=3, hopeless=4.0)
    seconds = {"fast": 1e-3, "near": 3.9e-3, "far": 4.1e-3}
    result = timing.interleave({name: machine.sampler(name, s) for name, s in seconds.items()}, plan)
    assert {name: sample.repeats for name, sample in result.items()} == {"fast": 20, "near": 20, "far": 3}


def test_a_yardstick_makes_nobody_hopeless_and_is_timed_in_full():
    machine = FakeMachine()
    plan = timing.TimingPlan(repeats=20, min_repeats=3, hopeless=4.0)
    seconds = {"ours": 1e-2, "theirs": 2e-2, "(peak)": 1e-4}
    samplers = {name: machine.sampler(name, s) for name, s in seconds.items()}
    result = timing.interleave(samplers, plan, yardsticks=("(peak)",))
    assert {name: sample.repeats for name, sample in result.items()} == dict.fromkeys(seconds, 20)
    only = timing.interleave({"(peak)": machine.sampler("(peak)", 1e-4)}, plan, yardsticks=("(peak)",))
    assert only["(peak)"].repeats == 20


def sampler_of(attempts):
    """Take turns between two speeds with a spread that differs from one attempt to the next."""
    state = {"calls": 0}

    def sample(_inner):
        state["calls"] += 1
        attempt = (state["calls"] - 1) // 60
        wide = attempts[min(attempt, len(attempts) - 1)]
        return 0.1 * (1 + wide * (state["calls"] % 2))

    return sample


@pytest.mark.parametrize(
    ("spreads", "attempts", "kept"),
    [((0.0,), 1, 0.0), ((0.9, 0.0), 2, 0.0), ((0.9, 0.5, 0.7), 3, 0.4)],
)
def test_a_restless_machine_is_timed_again_and_the_calmest_attempt_counts(spreads, attempts, kept):
    plan = timing.TimingPlan(repeats=58, sample_seconds=0.1, total_seconds=0.0, cap_seconds=100, again=2)
    samples, count = timing.interleave_calmly({"ours": sampler_of(spreads)}, plan)
    assert count == attempts
    assert samples["ours"].spread == pytest.approx(kept, abs=0.05)


@pytest.mark.parametrize(("floor", "attempts"), [(0.001, 1), (0.00095, 1), (0.0005, 3)])
def test_a_yardstick_slower_than_it_can_be_means_restless(floor, attempts):
    machine = FakeMachine()
    samplers = {"ours": machine.sampler("ours", 0.002), "(peak)": machine.sampler("(peak)", 0.001)}
    _, count = timing.interleave_calmly(samplers, timing.TimingPlan(), ("(peak)",), {"(peak)": floor})
    assert count == attempts


def test_spread_is_the_quartiles_over_the_median():
    sample = timing.summarize([1.0, 2.0, 3.0, 4.0, 5.0], 1)
    assert (sample.seconds_min, sample.seconds_median) == (1.0, 3.0)
    assert sample.spread == pytest.approx((4.0 - 2.0) / 3.0)


def test_a_failing_system_drops_out_and_the_others_go_on():
    machine = FakeMachine()
    left = [2]

    def dies(inner):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("gone")
        return 1e-2

    result = timing.interleave({"dies": dies, "lives": machine.sampler("lives", 1e-2)}, FAST)
    assert isinstance(result["dies"], RuntimeError)
    assert result["lives"].repeats == 3


# --- right and wrong answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16", "u8s8"])
def test_a_right_answer_passes_and_slightly_wrong_ones_do_not(dtype):
    request = make_case(33, 17, 400, dtype=dtype).request()
    inputs = data.make_inputs(request)
    ref = data.reference(inputs)
    kind = np.int32 if dtype == "u8s8" else np.float32
    right = np.matmul(inputs.a.astype(kind), inputs.b.astype(kind))
    assert ref.error(right) <= 1.0
    assert ref.error(right.astype(np.float32)) <= 1.0
    if dtype != "u8s8":
        assert ref.error(right.astype(ml_dtypes.bfloat16)) <= 1.0
    dropped = right - inputs.a[:, -1:].astype(kind) * inputs.b[-1:, :].astype(kind)
    assert ref.error(dropped) > 1.0
    one_off = right.copy()
    one_off[32, 16] += 1 if dtype == "u8s8" else 0.01
    assert ref.error(one_off) > 1.0
    assert ref.error(np.full_like(right, np.nan) if dtype != "u8s8" else np.zeros_like(right)) > 1.0
    assert ref.error(right[:, :-1]) == math.inf


def test_pairwise_saturation_of_16_bits_is_caught():
    inputs = data.make_inputs(make_case(16, 16, 64, dtype="u8s8").request())
    terms = inputs.a.astype(np.int32)[:, :, None] * inputs.b.astype(np.int32)[None, :, :]
    pairs = np.clip(terms[:, 0::2] + terms[:, 1::2], -(2**15), 2**15 - 1)  # what vpmaddubsw does
    assert data.reference(inputs).error(pairs.sum(1).astype(np.int32)) > 1.0


def test_inputs_are_repeatable_and_survive_the_folder(tmp_path):
    for dtype in ("f32", "bf16", "u8s8"):
        request = make_case(5, 7, 9, batch=2, dtype=dtype).request()
        inputs = data.make_inputs(request)
        data.save(tmp_path, inputs, data.reference(inputs))
        loaded = data.load_inputs(tmp_path)
        assert loaded.a.dtype == inputs.a.dtype
        assert loaded.a.ctypes.data % 64 == 0
        np.testing.assert_array_equal(loaded.b, data.make_inputs(request).b)
        np.testing.assert_array_equal(data.load_reference(tmp_path).values, data.reference(inputs).values)


def test_the_fastest_right_variant_is_chosen():
    inputs = data.make_inputs(TINY.request())
    right = inputs.a @ inputs.b

    def slowly():
        time.sleep(0.02)
        return right

    offered = [
        Variant(slowly, label="slow"),
        Variant(lambda: right * 2, label="wrong"),
        Variant(lambda: right, label="right"),
    ]
    assert choose(offered, data.reference(inputs))[2].label == "right"
    only_wrong = choose(offered[1:2], data.reference(inputs))[2]
    assert only_wrong.wrong
    with pytest.raises(BenchError, match="ZeroDivisionError"):
        choose([Variant(lambda: 1 / 0)], data.reference(inputs))


def test_an_answer_that_adds_up_is_wrong():
    inputs = data.make_inputs(TINY.request())
    out = np.zeros((TINY.m, TINY.n), np.float32)

    def accumulates():
        out[...] += inputs.a @ inputs.b
        return out

    assert choose([Variant(accumulates)], data.reference(inputs))[2].wrong


# --- summary ---------------------------------------------------------------------------------------------------------


def row(case, system, median, threads=1, dtype="f32", **extra):
    seconds = (
        {} if median is None else {"seconds_min": median, "seconds_median": median, "gflops": 1 / median, "spread": 0.0}
    )
    return Row(case, dtype, threads, system, **seconds, extra=extra)


def result_of(*rows, **more):
    return BenchResult({"cpu": "x"}, {"numpy": "2"}, tuple(rows), **more)


ROWS = (
    row("a", "qimeng", 1.0), row("a", "p", 2.0), row("a", "q", 3.0),
    row("b", "qimeng", 1.0), row("b", "p", 4.0), row("b", "q", 0.5),
    row("c", "qimeng", 1.0, threads=2, dtype="bf16"), row("c", "p", 4.0, threads=2, dtype="bf16"),
)  # fmt: skip


def test_summary_on_fabricated_rows():
    summary = result_of(*ROWS).summary()
    assert summary["geomean_vs_best_peer"] == pytest.approx((2.0 * 0.5 * 4.0) ** (1 / 3))
    assert summary["min_vs_best_peer"] == pytest.approx(0.5)
    assert [(x["case"], x["best_peer"], x["ratio"]) for x in summary["losses"]] == [("b", "q", 0.5)]
    assert summary["by_threads"]["1"]["geomean_vs_best_peer"] == pytest.approx(1.0)
    assert summary["by_threads"]["2"]["geomean_vs_best_peer"] == pytest.approx(4.0)
    assert summary["by_dtype"]["f32"]["min_vs_best_peer"] == pytest.approx(0.5)
    assert summary["by_dtype_and_threads"]["bf16/2"]["cases"] == 1


def test_a_wrong_or_failed_peer_is_not_to_be_beaten_but_ours_pays_for_it():
    fast_but_wrong = row("a", "r", 0.01, wrong=True)
    failed = row("a", "s", None, error=True, note="died")
    assert result_of(*ROWS, fast_but_wrong, failed).summary()["min_vs_best_peer"] == pytest.approx(0.5)
    assert "(100) wrong" in markdown_table(result_of(*ROWS, fast_but_wrong))
    for ours in (row("z", "qimeng", 0.1, wrong=True), row("z", "qimeng", None, error=True, note="died")):
        summary = result_of(*ROWS, ours, row("z", "p", 1.0)).summary()
        assert summary["min_vs_best_peer"] == 0.0
        assert summary["unanswered"] == 1
        assert summary["losses"][0]["case"] == "z"
        assert summary["geomean_vs_best_peer"] == pytest.approx(4.0 ** (1 / 3))


def test_share_of_peak_and_what_is_over_it():
    peaks = {"a": 1.5, "b": 1.6}
    rows = [dataclasses.replace(r, extra={**r.extra, "peak_gflops": peaks[r.case]}) for r in ROWS if r.threads == 1]
    summary = result_of(*rows).summary()
    assert summary["pct_of_peak"] == {"f32/1": {"a": pytest.approx(100 / 1.5), "b": pytest.approx(100 / 1.6)}}
    assert [(x["case"], x["system"]) for x in summary["over_peak"]] == [("b", "q")]
    saving = [dataclasses.replace(r, extra={**r.extra, "saving": 4.0}) for r in rows]
    assert result_of(*saving).summary()["over_peak"] == []


def test_data_types_of_models_have_their_standing_too():
    rows = [row("a", system, seconds, dtype="int8") for system, seconds in (("qimeng", 1.0), ("p", 2.0))]
    summary = result_of(*ROWS, *rows).summary()
    assert list(summary["by_dtype"]) == ["f32", "bf16", "int8"]
    assert summary["by_dtype_and_threads"]["int8/1"]["geomean_vs_best_peer"] == pytest.approx(2.0)


def test_json_keys_and_file(tmp_path):
    result = result_of(*ROWS)
    result.write(tmp_path / "deep" / "b.json")
    read = json.loads((tmp_path / "deep" / "b.json").read_text())
    assert list(read) == ["machine", "versions", "rows", "summary"]
    assert {"geomean_vs_best_peer", "min_vs_best_peer", "losses", "pct_of_peak"} <= set(read["summary"])
    assert all(set(ROW_KEYS) <= set(r) for r in read["rows"])
    assert Row.from_json(read["rows"][0]) == ROWS[0]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["b.json"]


def test_tables_and_losses_are_printed():
    result = result_of(*ROWS)
    assert rich_table(result).row_count == 3
    lines = markdown_table(result).splitlines()
    assert lines[0] == "| case | dtype | threads | qimeng | p | q | vs best peer |"
    assert lines[3] == "| b | f32 | 1 | 1.0 | 0.2 | **2.0** | 0.50 |"
    assert "lost: b f32 at 1 threads: 0.500 of q" in summary_lines(result)
    assert summary_lines(result_of(row("a", "p", 1.0))) == []


# --- the run ---------------------------------------------------------------------------------------------------------


def numpy_product(request, inputs, threads):
    return lambda: np.matmul(inputs.a, inputs.b)


def wrong_product(request, inputs, threads):
    return lambda: np.matmul(inputs.a, inputs.b) + 1


def refuses(request, inputs, threads):
    return Refusal("not today")


def crashes(request, inputs, threads):
    if request.n == TINY.n:
        os.kill(os.getpid(), signal.SIGSEGV)
    return numpy_product(request, inputs, threads)


def raises(request, inputs, threads):
    raise ValueError("no such\nkernel")


def names_its_process(request, inputs, threads):
    return Variant(lambda: np.matmul(inputs.a, inputs.b), extra={"pid": os.getpid()})


def hangs(request, inputs, threads):
    time.sleep(60)
    return numpy_product(request, inputs, threads)


class NotHere(CallableSystem):
    def available(self):
        return "left at home"


def test_every_outcome_is_a_row():
    systems = [
        CallableSystem("qimeng", numpy_product),
        CallableSystem("wrong", wrong_product),
        CallableSystem("refuses", refuses),
        CallableSystem("raises", raises),
        NotHere("absent", numpy_product),
    ]
    seen = []
    result = bench_gemm(systems, [TINY], [1], progress=lambda *a: seen.append(a[:2]), plan=FAST)
    rows = {r.system: r for r in result.rows}
    assert seen == [(1, 1)]
    assert rows["qimeng"].counts
    assert rows["qimeng"].gflops == pytest.approx(TINY.flops / rows["qimeng"].seconds_median / 1e9)
    assert rows["wrong"].extra["wrong"]
    assert rows["wrong"].seconds_median is not None
    assert rows["refuses"].extra["note"] == "not today"
    assert rows["raises"].extra == {"error": True, "note": "ValueError: no such"}
    assert result.versions["unavailable"] == {"absent": "left at home"}
    json.dumps(result.to_json(), allow_nan=False)


def test_the_affinity_of_the_caller_comes_back():
    before = timing.allowed_cores()
    bench_gemm([CallableSystem("qimeng", numpy_product)], [TINY], [1], plan=FAST)
    assert timing.allowed_cores() == before


def test_bad_arguments_are_usage_errors():
    system = CallableSystem("qimeng", numpy_product)
    with pytest.raises(UsageError, match="cores"):
        bench_gemm([system], [TINY], [10**6], plan=FAST)
    with pytest.raises(UsageError, match="same name"):
        bench_gemm([system, system], [TINY], [1], plan=FAST)
    with pytest.raises(UsageError, match="choose from"):
        default_peers(["cublas"])


def test_a_killed_run_continues(tmp_path):
    partial = tmp_path / "partial.jsonl"
    other = make_case(3, 3, 3)
    calls = []

    def counted(request, inputs, threads):
        calls.append(request.m)
        return numpy_product(request, inputs, threads)

    systems = [CallableSystem("qimeng", counted)]
    bench_gemm(systems, [TINY], [1], plan=FAST, partial=partial)
    with partial.open("a") as stream:
        stream.write('{"rows": [{"case": "3x3')  # killed while writing
    result = bench_gemm(systems, [TINY, other], [1], plan=FAST, partial=partial)
    assert calls == [TINY.m, other.m]
    assert [r.case for r in result.rows] == [TINY.name, other.name]
    assert len(bench_gemm(systems, [TINY, other], [1], plan=FAST, partial=partial).rows) == 2
    assert calls == [TINY.m, other.m]
    with pytest.raises(UsageError, match="plan"):
        bench_gemm(systems, [TINY], [1], plan=dataclasses.replace(FAST, repeats=4), partial=partial)


# --- the child process -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    inputs = data.make_inputs(TINY.request())
    data.save(tmp_path, inputs, data.reference(inputs))
    return tmp_path


def test_a_child_times_itself_and_is_stopped_between_turns(folder):
    host = RemoteHost(CallableSystem("child", names_its_process))
    try:
        opened = host.open(TINY.request(), folder, 1, timing.allowed_cores()[:1])
        assert isinstance(opened, Opened)
        assert not opened.wrong
        child = opened.extra["pid"]
        assert child != os.getpid()
        assert 0 < host.sample(10) < 1
        stat = Path(f"/proc/{child}/stat")
        deadline = time.monotonic() + 5
        while stat.exists() and (state := stat.read_text().rsplit(")", 1)[1].split()[0]) != "T":
            assert time.monotonic() < deadline, f"state {state}"
    finally:
        host.shutdown()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_crashing_child_is_a_row_and_the_next_case_gets_a_new_one():
    systems = [CallableSystem("qimeng", numpy_product), CallableSystem("crashes", crashes, isolated=True)]
    result = bench_gemm(systems, [TINY, make_case(3, 3, 3)], [1], plan=FAST)
    first, second = (r for r in result.rows if r.system == "crashes")
    assert first.extra["error"]
    assert "SIGSEGV" in first.extra["note"]
    assert second.counts


def test_a_hanging_child_is_ended(folder):
    host = RemoteHost(CallableSystem("hangs", hangs, prepare_seconds=0.5))
    with pytest.raises(BenchError, match="no answer"):
        host.open(TINY.request(), folder, 1, timing.allowed_cores()[:1])
    assert host._child is None


def test_a_sample_without_a_case_is_an_error():
    with pytest.raises(BenchError, match="no case"):
        LocalHost(CallableSystem("x", numpy_product)).sample(1)


def test_a_case_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Case("x", 1, 1, 1).m = 2


def test_untuned_operators_are_no_peer_and_their_share_is_told():
    rows = (row("a", "qimeng", 1.0), row("a", UNTUNED, 1.25), row("a", "peer", 1.1),
            row("b", "qimeng", 2.0), row("b", UNTUNED, 2.0), row("b", "peer", 1.0))  # fmt: skip
    result = BenchResult({}, {}, rows)
    assert {d.best_peer for d in result.duels()} == {"peer"}
    told = result.summary()["untuned_vs_tuned"]
    assert told["cases"] == 2 and told["min"] == pytest.approx(0.8) and told["worst"]["case"] == "a"
    assert told["geomean"] == pytest.approx(0.8**0.5)
    assert any("analytic decisions reach 0.894" in line for line in summary_lines(result))
    assert "untuned_vs_tuned" not in BenchResult({}, {}, rows[:1]).summary()
