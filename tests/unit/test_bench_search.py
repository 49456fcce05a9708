"""The benchmark of strategies: names, what curves come to, and how it goes on; nothing is tuned here."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qimeng_tvm.bench import search, settle
from qimeng_tvm.bench.against import against_stock, stock_summary, verdict, verdicts
from qimeng_tvm.bench.curves import Curve, longest, read_curves
from qimeng_tvm.bench.efficiency import Figure, standings, summary
from qimeng_tvm.bench.entrant import Entrant, parse_entrant
from qimeng_tvm.bench.search import run_search_bench, system_of, timed_again
from qimeng_tvm.bench.search_report import Report
from qimeng_tvm.bench.table import search_lines, search_table, settled_lines
from qimeng_tvm.errors import UsageError

HERE = SimpleNamespace(name="board", fingerprint="f00d")
TABLES = Path(__file__).parents[2] / "scripts" / "search_tables.py"
STRATEGIES = ("mcts", "evolve", "random")


def curve(system, seed, *speeds, operator="f32 GEMM 8x8x8", machine="board"):
    best = [max(speeds[: i + 1]) for i in range(len(speeds))]
    points = tuple((i + 1, 0.5 * (i + 1), speed) for i, speed in enumerate(best))
    return Curve(operator, system, seed, len(speeds), points, machine)


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mcts", Entrant("mcts")),
        ("metaschedule", Entrant("metaschedule")),
        ("mcts-backup", Entrant("mcts", ("backup",))),
        ("mcts-proposal-model", Entrant("mcts", ("proposal", "model"))),
        ("evolve-model", Entrant("evolve", ("model",))),
        ("mcts+llm", Entrant("mcts", llm=True)),
        ("mcts+llm-history", Entrant("mcts", llm=True, history=False)),
        ("mcts+llm-backup-history", Entrant("mcts", ("backup",), llm=True, history=False)),
    ],
)
def test_a_name_stands_for_a_strategy_and_its_parts(name, wanted):
    assert parse_entrant(name, STRATEGIES) == wanted


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("luck", "no strategy is called 'luck'; there are mcts, evolve, random, metaschedule"),
        ("mcts-", "cannot do without ''; it has proposal, backup, model"),
        ("mcts-history", "cannot do without 'history'"),
        ("mcts-model-model", "cannot do without 'model'.*each once"),
        ("random-model", "random cannot do without 'model'; it has none"),
        ("evolve+llm", "can advise mcts, not evolve"),
        ("mcts+luck", "only \\+llm can be added"),
        ("mcts+llm+llm", "only \\+llm can be added"),
    ],
)
def test_a_name_that_stands_for_nothing_of_its_own_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        parse_entrant(name, STRATEGIES)


def test_a_model_that_nobody_named_is_not_made_up():
    with pytest.raises(UsageError, match="'mcts\\+llm' needs a language model"):
        system_of("mcts+llm")


# --- figures -------------------------------------------------------------------------------------------------------


def test_a_curve_is_read_at_any_trial_and_second():
    one = curve("mcts", 0, 0.0, 50.0, 40.0, 96.0)
    assert [one.at(n) for n in (1, 2, 3, 4, 9)] == [0.0, 50.0, 50.0, 96.0, 96.0]
    assert [one.after(s) for s in (0.1, 0.5, 1.0, 1.9, 2.0, 99)] == [0.0, 0.0, 50.0, 50.0, 96.0, 96.0]
    assert one.reaches(50.0) == 2 and one.reaches(96.5) == math.inf and one.seconds == 2.0


def test_the_last_trial_is_not_the_first_of_the_best():
    assert curve("metaschedule", 0, 10.0, 50.0, 50.0, 51.0).first_best == 2
    assert curve("metaschedule", 0, 0.0, 0.0, 7.0).first_best == 3


def test_the_end_of_a_run_is_what_tuning_came_to():
    points = [(1, 0.5, 50.0), (2, 1.0, 90.0)]
    assert timed_again(points, 95.0) == [(1, 0.5, 50.0), (2, 1.0, 95.0)]
    # The finalist of 90 was found wrong.
    assert timed_again(points, 40.0) == [(1, 0.5, 40.0), (2, 1.0, 40.0)]
    assert timed_again([], 0.0) == []


def test_figures_over_seeds():
    assert Figure.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Figure(3.0, 4.0, 2.0, 5)
    assert Figure.of([2.0, 1.0]) == Figure(1.5, 1.0, 0.5, 2)
    assert Figure.of([1.0, 2.0, math.inf]) == Figure(2.0, math.inf, math.inf, 3)
    assert Figure.of([math.inf, math.inf]) == Figure(math.inf, 0.0, 0.0, 2)


def test_standings_are_shares_of_the_best_known():
    eight = [40.0] * 7
    runs = [curve("mcts", 0, 80.0, *eight), curve("mcts", 1, 100.0, *eight), curve("mcts", 2, 96.0, *eight)]
    runs += [curve("random", 0, 50.0, *eight), curve("random", 1, *eight, 95.0), curve("random", 2, *eight, 40.0)]
    mcts, random = standings(runs)
    assert {n: f.median for n, f in mcts.shares.items()} == {1: 0.96, 8: 0.96}
    assert mcts.to_95 == Figure(1.0, math.inf, math.inf, 3)
    assert mcts.shares[1].spread == pytest.approx(0.2)
    assert random.shares[1].median == 0.4 and random.to_95.median == math.inf
    assert mcts.area[8].median == pytest.approx(0.96) and mcts.seconds_per_trial.median == pytest.approx(0.5)
    # The first trial takes half a second.
    assert list(random.by_seconds) == [1, 2, 4] and random.by_seconds[4].spread == pytest.approx(0.95 - 0.4)
    told = summary([mcts, random])
    assert told["mcts"]["reached"] == 1.0 and told["random"]["reached"] == 0.0
    assert told["mcts"]["share@8"] == pytest.approx(0.96)


def test_shares_count_the_runs_that_went_so_far():
    runs = [curve("mcts", seed, *[50.0] * 8) for seed in range(3)] + [curve("mcts", 3, *[50.0] * 15, 100.0)]
    (mcts,) = standings(runs)
    assert mcts.trials == 16 and [f.seeds for f in mcts.shares.values()] == [4, 4, 1]
    assert mcts.shares[8].median == 0.5 and mcts.shares[16].median == 1.0


def test_operators_that_nothing_ran_on_are_left_out():
    assert standings([curve("mcts", 0, 0.0, 0.0)]) == ()
    assert against_stock([curve("mcts", 0, 5.0), curve("metaschedule", 0, 0.0)]) == ()


# --- against one another -------------------------------------------------------------------------------------------


def test_trials_beside_stock():
    stock = [curve("metaschedule", s, *[10.0] * 31, *[60.0] * 32, 64.0) for s in range(3)]
    ours = [curve("mcts", s, 32.0, 64.0, *[80.0] * 14) for s in range(3)]
    never = [curve("random", s, *[32.0] * 16) for s in range(3)]
    mcts, random = against_stock([*stock, *ours, *never])
    assert (mcts.trials, mcts.stock_trials, mcts.speed, mcts.needed) == (16, 64, 80 / 64, 2)
    # Its own best came at trial 32: the last trial holds the second timing.
    assert (mcts.stock_first, mcts.fewer, mcts.fewer_than_first, mcts.seconds) == (32, 32.0, 16.0, 1.0)
    assert random.needed == math.inf and random.fewer == 0.0
    told = stock_summary([mcts, random])
    assert told["mcts"]["never"] == 0 and told["mcts"]["fewer"] == pytest.approx(32)
    assert told["random"]["never"] == 1 and told["random"]["fewer"] is None
    assert told["random"]["least_speed"] == pytest.approx(0.5)


def two(scale, jitter, seeds=5):
    """Two operators; the first strategy is faster by a factor, each seed by a little more or less."""
    for operator, speed in (("a", 100.0), ("b", 10.0)):
        for seed in range(seeds):
            yield curve("mcts", seed, *[speed * scale * (1 + jitter * seed)] * 16, operator=operator)
            yield curve("random", seed, *[speed * (1 + jitter * (seeds - seed))] * 16, operator=operator)


def test_a_difference_counts_beyond_the_spread():
    clear = verdict(list(two(1.2, 0.001)), "mcts", "random", 16)
    assert clear.says == "better" and clear.ratio == pytest.approx(1.2, rel=0.01) and clear.low > 1.19
    assert (clear.operators, clear.seeds) == (2, 5)
    assert verdict(list(two(1.2, 0.001)), "random", "mcts", 16).says == "worse"
    unclear = verdict(list(two(1.02, 0.05)), "mcts", "random", 16)
    assert unclear.says == "within the spread" and unclear.low < 1 < unclear.high
    assert verdict(list(two(1.2, 0.001, seeds=2)), "mcts", "random", 16).says == "too few seeds"
    assert verdict(list(two(1.2, 0.001)), "mcts", "random", 17) is None
    assert verdict(list(two(1.02, 0.05)), "mcts", "random", 16) == unclear


def test_the_lead_meets_every_other_and_all_of_stocks_trials():
    stock = [curve("metaschedule", s, *[50.0] * 32, operator=o) for o in "ab" for s in range(3)]
    found = verdicts([*two(1.0, 0.0), *stock])
    assert [(v.first, v.trials, v.second, v.second_trials) for v in found] == [
        ("mcts", 16, "random", 16),
        ("mcts", 16, "metaschedule", 16),
        ("mcts", 16, "metaschedule", 32),
    ]
    assert verdicts([]) == ()


def test_what_lacks_a_part_meets_the_whole():
    names = ("mcts", "mcts-backup", "mcts+llm", "mcts+llm-history", "evolve-model")
    found = verdicts([curve(name, s, *[50.0] * 8) for name in names for s in range(3)])
    assert [(v.first, v.second) for v in found] == [*(("mcts", n) for n in names[1:]), ("mcts+llm", "mcts+llm-history")]
    assert {v.trials for v in found} == {8} and {v.says for v in found} == {"within the spread"}


# --- the result ----------------------------------------------------------------------------------------------------


def test_the_longest_run_of_a_seed_counts():
    short, long, other = curve("mcts", 0, 5.0), curve("mcts", 0, 4.0, 4.0), curve("mcts", 1, 5.0)
    assert longest([short, long, other]) == (long, other)
    assert longest([long, short]) == (long,)


def test_the_result_is_json_and_says_what_to_bear_in_mind():
    runs = [curve("mcts", 0, *[99.0] * 16), curve("metaschedule", 0, *[10.0] * 64, machine="")]
    report = Report.of(runs)
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert told["standings"][1]["to_95"]["median"] is None
    assert told["against_stock"]["operators"][0]["needed"] == 1
    assert told["curves"][0]["machine"] == "board"
    machines, lengths = told["notes"]
    assert "one machine" in machines and "not told: metaschedule" in machines
    assert "mcts 16, metaschedule 64 trials" in lengths
    assert Report.of([curve("mcts", 0, 1.0), curve("random", 0, 2.0)]).notes == ()
    assert search_table(report.standings).row_count == 2
    assert any(line.startswith("mcts beside metaschedule, 1 operators: 9.9x") for line in search_lines(report))


# --- running -------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_and_is_seeded(tmp_path, monkeypatch):
    asked = []

    def fake(job):
        asked.append((job.request.m, job.seed))
        return [(n, float(n), 10.0 * n + job.seed) for n in range(1, job.trials + 1)], {"kc": 64}

    monkeypatch.setattr(search, "system_of", lambda name, advise: fake)
    kept = tmp_path / "curves.jsonl"
    lines = ("f32 GEMM 8x8x8", "f32 GEMM 16x8x8")
    first = run_search_bench(["fake"], HERE, operators=lines, trials=3, seeds=1, partial=kept)
    assert [c.at(3) for c in first] == [30.0, 30.0] and asked == [(8, 0), (16, 0)]
    assert {c.machine for c in first} == {"board (f00d)"} and first[0].decisions == {"kc": 64}
    kept.write_text(kept.read_text() + '{"operator": "torn')
    with pytest.warns(RuntimeWarning, match="cut off"):
        again = run_search_bench(["fake"], HERE, operators=lines, trials=3, seeds=2, partial=kept)
    assert len(again) == 4 and asked[2:] == [(8, 1), (16, 1)]
    kept.write_text(json.dumps({"machine": {}}) + "\n")
    with pytest.raises(UsageError, match="line 1 is no run of this benchmark"):
        run_search_bench(["fake"], HERE, operators=lines, trials=3, seeds=1, partial=kept)


def test_the_runs_of_other_files_are_read_and_left_as_they_are(tmp_path):
    """A journal that is still being written, one from before runs told their machine, and a result."""
    new, old = curve("mcts", 0, 5.0, 6.0), curve("metaschedule", 0, 1.0, 2.0, machine="")
    line = {k: v for k, v in asdict(old).items() if k != "machine"}
    journal = tmp_path / "old.jsonl"
    journal.write_text(json.dumps(line) + '\n{"operator": "to')
    with pytest.warns(RuntimeWarning, match="cut off"):
        assert read_curves(journal) == (old,)
    assert journal.read_text().endswith('{"operator": "to')
    result = tmp_path / "result.json"
    result.write_text(json.dumps(Report.of([new, old]).to_json()) + "\n")
    assert read_curves(result) == (new, old)
    with pytest.raises(UsageError, match="no file of runs is at"):
        read_curves(tmp_path / "none.jsonl")
    result.write_text("[1]\n")
    with pytest.raises(UsageError, match="line 1 is no run"):
        read_curves(result)


def test_the_tables_of_the_documents_are_made_from_the_result(tmp_path):
    runs = [*two(1.2, 0.001), *(curve("mcts-backup", s, *[60.0] * 16, operator="a") for s in range(3))]
    runs += [curve("metaschedule", 0, *[0.0] * 8, *[50.0] * 56, operator="a", machine="")]
    result = tmp_path / "result.json"
    result.write_text(json.dumps(Report.of(runs).to_json()))
    done = subprocess.run([sys.executable, TABLES, result], capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert ["`mcts`", "2", "0.998", "0.998", "0.998", "-", "-", "100%", "0.50"] in rows
    ablated = next(row for row in rows if row[0] == "`mcts-backup`" and len(row) == 5)
    assert ablated[1:3] == ["0.498", "0.000"] and ablated[3].startswith("2.004 (") and ablated[4] == "better"
    assert any(row[:4] == ["a", "`mcts-backup`", "16 / 64", "1.20"] for row in rows)
    tables = [block.splitlines() for block in done.stdout.split("\n\n") if block.strip().startswith("|")]
    assert len(tables) == 6
    # As many cells in every row as in the heading.
    assert all(len({line.count("|") for line in table if line}) == 1 for table in tables)


# --- timed again ---------------------------------------------------------------------------------------------------


def test_what_runs_ended_with_is_timed_once_each(monkeypatch):
    asked = []

    def timed(operator, found, hardware):
        asked.append((operator, list(found)))
        return {key: 100.0 + dict(key)["kc"] for key in found if dict(key)["kc"] < 3}

    monkeypatch.setattr(settle, "timed", timed)
    runs = [replace(curve("mcts", seed, 1.0, 2.0), decisions={"kc": kc}) for seed, kc in enumerate((1, 2, 2, 3))]
    stock = curve("metaschedule", 0, 9.0)
    found = settle.settled([*runs, stock], HERE)
    assert [len(keys) for _, keys in asked] == [3]  # each schedule once
    assert [(c.seed, c.points) for c in found] == [
        (0, ((2, 1.0, 101.0),)),
        (1, ((2, 1.0, 102.0),)),
        (2, ((2, 1.0, 102.0),)),
    ]


def test_what_runs_ended_with_is_told_at_its_end_alone(tmp_path):
    def ended(system, seed, speed):
        return replace(curve(system, seed, speed), trials=16, points=((16, 3.0, speed),))

    runs = [ended("mcts", s, 100.0 + s) for s in range(3)] + [ended("random", s, 51.0) for s in range(3)]
    report = Report.of(runs)
    assert settled_lines(report)[:2] == [
        "mcts: 0.990 of the best, 1 operators",
        "random: 0.500 of the best, 1 operators",
    ]
    assert any("mcts at 16 trials is 1.980x random" in line and "better" in line for line in settled_lines(report))
    result = tmp_path / "result.json"
    result.write_text(json.dumps({**Report.of(runs).to_json(), "settled": report.to_json()}))
    done = subprocess.run([sys.executable, TABLES, result], capture_output=True, text=True, check=True)
    assert "| `random` | 0.500 (0.000) | 0.500 |" in done.stdout


def test_ends_of_longer_runs_are_compared_as_ends():
    def ended(system, trials, speed, seed):
        return Curve("f32 GEMM 64x64x64", system, seed, trials, ((trials, 1.0, speed),), "here")

    long = [ended(name, 64, speed, seed) for name, speed in (("mcts", 100.0), ("random", 80.0)) for seed in range(5)]
    short = [ended("mcts-model", 16, 50.0, seed) for seed in range(5)]
    found = {(v.first, v.second): v for v in Report.of([*long, *short]).verdicts}
    told = found["mcts", "random"]
    assert (told.trials, told.second_trials, round(told.ratio, 3)) == (64, 64, 1.25)
    part = found["mcts", "mcts-model"]
    assert (part.trials, part.second_trials, round(part.ratio, 3)) == (64, 16, 2.0)
