"""`qimeng bench search` as a user runs it: tuned, told, drawn, and told again beside the runs of another file."""

import json
import xml.etree.ElementTree as ET

import pytest

from qimeng_tvm.generate.tasks import tasks
from qimeng_tvm.hardware import host

LINE = "f32 GEMM 64x64x64"


@pytest.mark.skipif(not tasks()["x86.avx2_f32"].runs_on(host()), reason="this machine has no AVX2 and FMA")
def test_runs_are_told_drawn_and_combined(qimeng, tmp_path):
    kept, result, pictures = tmp_path / "runs.jsonl", tmp_path / "out" / "result.json", tmp_path / "svg"
    asked = ("bench", "search", "--operators", LINE, "--seeds", 1)
    done = qimeng(*asked, "--systems", "mcts", "--trials", 3, "--resume", kept, "--json", result, "--svg", pictures)
    assert done.returncode == 0, done.stderr
    assert LINE in done.stdout and "mcts" in done.stdout
    told = json.loads(result.read_text())
    (curve,) = told["curves"]
    assert curve["trials"] == 3 and curve["points"][-1][2] > 0.5 and host().fingerprint in curve["machine"]
    assert told["standings"][0]["shares"]["1"]["seeds"] == 1 and told["notes"] == []
    assert sorted(path.name for path in pictures.iterdir()) == ["f32-gemm-64x64x64.svg", "overview.svg"]
    assert all(ET.parse(path).getroot().tag.endswith("svg") for path in pictures.iterdir())
    # Nothing runs: an older file, without machines, beside that result.
    curve.pop("machine")
    (tmp_path / "old.jsonl").write_text(json.dumps({**curve, "system": "metaschedule"}) + "\n")
    files = ("--curves", result, "--curves", tmp_path / "old.jsonl")
    again = qimeng(*asked, "--systems", "none", *files, "--json", "-")
    assert again.returncode == 0, again.stderr
    both = json.loads(again.stdout)
    assert [c["system"] for c in both["curves"]] == ["mcts", "metaschedule"] and "one machine" in both["notes"][0]
    assert both["against_stock"]["operators"][0]["speed"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--systems", "none"), "no run to tell of"),
        (("--systems", "none", "--curves", "nowhere.jsonl"), "no file of runs is at nowhere.jsonl"),
        (("--systems", "luck"), "no strategy is called 'luck'"),
        (("--systems", "random-model"), "cannot do without 'model'"),
        (("--systems", "mcts+llm"), "needs a language model"),
    ],
)
def test_what_cannot_be_run_is_said(qimeng, arguments, message):
    done = qimeng("bench", "search", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
