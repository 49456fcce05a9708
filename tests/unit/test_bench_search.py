"""The benchmark of strategies: what curves come to, and how it goes on; nothing is tuned here."""

import json
import math

import pytest

from qimeng_tvm.bench import search
from qimeng_tvm.bench.search import Curve, run_search_bench, standings, summary
from qimeng_tvm.errors import UsageError


def curve(system, seed, *speeds, operator="f32 GEMM 8x8x8"):
    best = [max(speeds[: i + 1]) for i in range(len(speeds))]
    points = tuple((i + 1, 0.5 * (i + 1), speed) for i, speed in enumerate(best))
    return Curve(operator, system, seed, len(speeds), points)


def test_a_curve_is_read_at_any_trial():
    one = curve("mcts", 0, 0.0, 50.0, 40.0, 96.0)
    assert [one.at(n) for n in (1, 2, 3, 4, 9)] == [0.0, 50.0, 50.0, 96.0, 96.0]
    assert one.reaches(50.0) == 2 and one.reaches(96.5) == math.inf and one.seconds == 2.0


def test_standings_are_shares_of_the_best_known():
    eight = [40.0] * 7
    runs = [curve("mcts", 0, 80.0, *eight), curve("mcts", 1, 100.0, *eight), curve("mcts", 2, 96.0, *eight)]
    runs += [curve("random", 0, 50.0, *eight), curve("random", 1, *eight, 95.0), curve("random", 2, *eight, 40.0)]
    mcts, random = standings(runs)
    assert (mcts.shares, mcts.to_95) == ({1: 0.96, 8: 0.96}, 1) and mcts.spread[1] == pytest.approx(0.2)
    assert random.shares[1] == 0.4 and random.to_95 == math.inf
    assert mcts.area == pytest.approx(0.96) and mcts.seconds_per_trial == pytest.approx(0.5)
    told = summary([mcts, random])
    assert told["mcts"]["reached"] == 1.0 and told["random"]["reached"] == 0.0
    assert told["mcts"]["share@8"] == pytest.approx(0.96)


def test_operators_that_nothing_ran_on_are_left_out():
    assert standings([curve("mcts", 0, 0.0, 0.0)]) == ()


def test_a_run_goes_on_and_is_seeded(tmp_path, monkeypatch):
    asked = []

    def fake(request, hardware, seed, trials):
        asked.append((request.m, seed))
        return [(n, float(n), 10.0 * n + seed) for n in range(1, trials + 1)]

    monkeypatch.setattr(search, "known_systems", lambda: {"fake": fake})
    kept = tmp_path / "curves.jsonl"
    lines = ("f32 GEMM 8x8x8", "f32 GEMM 16x8x8")
    first = run_search_bench(["fake"], None, operators=lines, trials=3, seeds=1, partial=kept)
    assert [c.at(3) for c in first] == [30.0, 30.0] and asked == [(8, 0), (16, 0)]
    kept.write_text(kept.read_text() + '{"operator": "torn')
    again = run_search_bench(["fake"], None, operators=lines, trials=3, seeds=2, partial=kept)
    assert len(again) == 4 and asked[2:] == [(8, 1), (16, 1)]
    with pytest.raises(UsageError, match="no strategy is called 'luck'; there are fake"):
        run_search_bench(["luck"], None)
    kept.write_text(json.dumps({"machine": {}}) + "\n")
    with pytest.raises(UsageError, match="line 1 is no run of this benchmark"):
        run_search_bench(["fake"], None, operators=lines, trials=3, seeds=1, partial=kept)
