"""`qimeng run --fresh`: a family written for one operator, checked, used alone, and found again later."""

import json
from pathlib import Path

import pytest

from qimeng_tvm.generate.answer import code_of
from qimeng_tvm.generate.tasks import task_for, tasks
from qimeng_tvm.hardware import host
from qimeng_tvm.llm.transcript import read_transcript

pytestmark = pytest.mark.skipif(not tasks()["x86.avx2_f32"].runs_on(host()), reason="this machine has no AVX2 and FMA")
LINE = "f32 gemm 96x96x64"


@pytest.fixture(scope="module")
def task():
    """What this machine is asked for: the widest that it has."""
    return task_for(host(), "f32")


@pytest.fixture(scope="module")
def answer(task):
    """A recorded answer that is accepted."""
    folder = Path(__file__).parents[2] / "transcripts/tensorize_intrins/x86"
    recorded = read_transcript(folder / f"{task.module}.json")
    return recorded.rounds[recorded.best].reply


@pytest.fixture
def run(qimeng, tmp_path):
    """Run with answers that lie ready in a folder, and a data folder of its own."""

    def call(*replies, line=LINE, more=()):
        asked = tmp_path / "asked"
        asked.mkdir(exist_ok=True)
        for number, reply in enumerate(replies, 1):
            (asked / f"{number:03}.reply.md").write_text(reply)
        llm = ("--llm", f"exchange:{asked}", "--fresh", "--rounds", len(replies)) if replies else ()
        data = {"XDG_DATA_HOME": str(tmp_path / "data")}
        return qimeng("run", line, "--trials", 0, "--peers", "none", *llm, *more, cwd=tmp_path, **data)

    return call


def test_a_family_is_written_and_used(run, tmp_path, task, answer):
    # What is wrong comes first: the second answer is the one that counts.
    wrong = answer.replace("ko * ku + ki)", "ko * ku)")
    assert wrong != answer
    done = run(wrong, answer, more=["--json"])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["verified"] and result["audited"]
    assert result["family"].startswith(f"{task.key}_") and result["family"].endswith(".gemm")
    (own,) = (tmp_path / "data/qimeng_tvm/families/x86").glob(f"{task.module}_*.py")
    assert own.read_text().startswith(
        "# author: offline-exchange, prompt intrinsic@2, 2 rounds, the answer of round 2\n"
    )
    assert code_of(answer, False).source.strip() in own.read_text()
    conversations = tmp_path / "data/qimeng_tvm/generated/transcripts/tensorize_intrins/x86"
    assert (conversations / f"{task.module}.json").is_file()
    second = (tmp_path / "asked/002.request.md").read_text()
    assert "Refused at the stage 'numbers'" in second
    # Without a word about it the shipped family serves.
    plain = run(more=["--json", "--out", "again"])
    assert json.loads(plain.stdout)["family"] == f"{task.key}.gemm"


def test_no_good_answer_makes_no_operator(run, tmp_path, task):
    done = run("I would rather not.")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"no answer to intrinsic {task.key} passed the checks in 1 round" in done.stderr
    assert not (tmp_path / "data/qimeng_tvm/families").exists()
    assert not list(tmp_path.glob("qimeng-out/*/operator.so"))


def test_fresh_needs_somebody_who_writes(run):
    done = run(more=["--fresh"])
    assert done.returncode == 2 and "say who with --llm" in done.stderr


def test_operands_without_a_primitive_are_told(run, answer):
    done = run(answer, line="f16 gemm 8x8x8")
    assert done.returncode == 2 and "Traceback" not in done.stderr
