"""`qimeng tune`, `propose` and `db` as a user runs them."""

import json

import pytest

from qimeng_tvm.generate.tasks import tasks
from qimeng_tvm.hardware import host

pytestmark = pytest.mark.skipif(not tasks()["x86.avx2_f32"].runs_on(host()), reason="this machine has no AVX2 and FMA")
LINE = "f32 gemm 64x64x64"
ANSWER = {"micro_kernel": {"candidates": ["4x2", "2x4"], "prior": [3, 1]}, "why": "Small tiles."}


@pytest.fixture(scope="module")
def tuned(qimeng, tmp_path_factory):
    """Records of one operator, tuned by tree search."""
    records = tmp_path_factory.mktemp("tune") / "records"
    done = qimeng("tune", LINE, "--strategy", "mcts", "--trials", 5, "--out", records, "--json")
    assert done.returncode == 0, done.stderr
    return records, json.loads(done.stdout)


def test_tuning_measures_records_and_goes_on(qimeng, tuned):
    records, found = tuned
    assert (found["trials"], found["measured"], found["failed"]) == (5, 5, 0) and found["gflops"] > 0.5
    again = qimeng("tune", LINE, "--strategy", "mcts", "--trials", 5, "--out", records, "--json")
    assert json.loads(again.stdout)["measured"] == 0 and json.loads(again.stdout)["decisions"] == found["decisions"]
    more = qimeng("tune", LINE, "--strategy", "random", "--trials", 7, "--out", records)
    assert more.returncode == 0 and "7 recorded, 2 in this run" in more.stdout


def test_the_default_strategy_measures_the_analytic_decisions_alone(qimeng, tmp_path):
    done = qimeng("tune", LINE, "--strategy", "default", "--trials", 8, "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measured"] == 1


def test_records_are_listed_shown_exported_and_checked_again(qimeng, tuned, tmp_path):
    records, _ = tuned
    (entry,) = json.loads(qimeng("db", "ls", "--records", records, "--json").stdout)
    assert entry["operator"].startswith("matmul 64x64x64") and entry["trials"] >= 5 and entry["verified"] is False
    shown = qimeng("db", "show", "64x64x64", "--records", records)
    assert shown.stdout.count("GFLOP/s") >= 5 and "mcts/default" in shown.stdout
    best = tmp_path / "best.jsonl"
    assert "1 records in" in qimeng("db", "export", best, "--best", "--records", records).stdout
    assert json.loads(best.read_text())["gflops"] == pytest.approx(entry["gflops"])
    checked = qimeng("db", "verify", "--records", records)
    assert checked.returncode == 0 and "1 right, 0 wrong, 0 not checked" in checked.stdout
    assert json.loads(qimeng("db", "ls", "--records", records, "--json").stdout)[0]["verified"] is True
    into = tmp_path / "merged"
    assert "records from" in qimeng("db", "merge", records, "--records", into).stdout
    assert "1 right" in qimeng("db", "verify", "--records", into).stdout, "TVM's own records travel too"
    assert "records dropped" in qimeng("db", "prune", "--keep", 2, "--records", into).stdout
    assert len(json.loads(qimeng("db", "show", "64x64x64", "--records", into, "--json").stdout)) == 2


def test_a_proposal_is_shown_by_the_model_of_caches_and_by_a_language_model(qimeng, tmp_path):
    done = qimeng("propose", LINE, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, choice in found["decisions"].items():
        assert found["defaults"][name] in choice["candidates"] and sum(choice["prior"]) == pytest.approx(1.0)
    asked = tmp_path / "asked"
    asked.mkdir()
    kernels = found["decisions"]["micro_kernel"]["candidates"]
    answer = {**ANSWER, "micro_kernel": {"candidates": kernels[:2], "prior": [3, 1][: len(kernels[:2])]}}
    (asked / "001.reply.md").write_text(json.dumps(answer))
    done = qimeng("propose", LINE, "--llm", f"exchange:{asked}")
    assert done.returncode == 0 and "why: Small tiles." in done.stdout and "75%" in done.stdout


def test_a_model_that_has_nothing_to_say_leaves_it_to_the_caches(qimeng, tmp_path):
    asked = tmp_path / "asked"
    asked.mkdir()
    for number in range(1, 4):
        (asked / f"{number:03}.reply.md").write_text("I like large tiles.")
    done = qimeng("tune", LINE, "--strategy", "mcts", "--trials", 2, "--out", tmp_path / "records",
                  "--llm", f"exchange:{asked}")  # fmt: skip
    assert done.returncode == 0 and "the analytic proposal takes its place" in done.stderr
    assert "2 recorded" in done.stdout


def test_a_model_is_asked_again_on_the_way_and_told_what_was_measured(qimeng, tmp_path):
    asked = tmp_path / "asked"
    asked.mkdir()
    first = {"unroll": {"candidates": [1, 3, 2], "prior": [2, 9, 1]}, "why": "short loops"}
    (asked / "001.reply.md").write_text(json.dumps(first))
    (asked / "002.reply.md").write_text("```json\n" + json.dumps({**first, "why": "once more"}) + "\n```")
    done = qimeng("tune", LINE, "--trials", 12, "--out", tmp_path / "records", "--llm", f"exchange:{asked}")
    assert done.returncode == 0, done.stderr
    assert "by mcts" in done.stderr and "dropped: unroll: 3 is not among [1, 2, 4]" in done.stderr
    question = (asked / "002.request.md").read_text()
    assert "8 trials so far" in question and "spills in the inner loop" in question and "fastest, " in question
    assert "unroll: 3 is not among" in question
    assert "12 recorded" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tune", LINE, "--strategy", "luck"], "no strategy is called 'luck'; there are mcts, evolve, "),
        (["tune", "dance"], "qimeng: "),
        (["tune", LINE, "--strategy", "evolve", "--llm", "replay"], "a language model advises mcts, not evolve"),
        (["tune", "f32 gemm 8x8x8 on zen9"], "zen9"),
        (["tune", LINE, "--trials", "-1"], "--trials"),
        (["propose", LINE, "--llm", "nobody"], "no client is called 'nobody'"),
        (["propose", LINE, "--hardware", "pdp11"], "pdp11"),
        (["db", "ls", "--records", "nowhere"], "no tuning records in nowhere: make some with qimeng tune"),
        (["db", "merge", "nowhere", "--records", "here"], "no tuning records in nowhere"),
    ],
)
def test_mistakes_are_one_line(qimeng, arguments, says):
    done = qimeng(*arguments)
    assert done.returncode in (1, 2) and says in done.stderr and "Traceback" not in done.stderr
