"""`qimeng eval generate`: tasks put to whoever answers, counted, timed, and counted again from the transcripts."""

import json

import pytest
from adversarial.base import GOOD, TASK, block, spoiled

from qimeng_tvm.hardware import host

pytestmark = pytest.mark.skipif(not TASK.runs_on(host()), reason="this machine has no AVX2 and FMA")
C = """void gemm(int M, int N, int K, const float *A, const float *B, float *C) {
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) C[i * N + j] = 0;
    for (int k = 0; k < K; k++)
      for (int j = 0; j < N; j++) C[i * N + j] += A[i * K + k] * B[k * N + j];
  }
}"""


@pytest.fixture
def answered(tmp_path):
    """A folder in which answers lie ready, in the order in which they are asked for."""

    def place(*replies):
        folder = tmp_path / "asked"
        folder.mkdir()
        for number, reply in enumerate(replies, 1):
            (folder / f"{number:03}.reply.md").write_text(reply)
        return f"exchange:{folder}"

    return place


def test_samples_are_counted_and_counted_again(qimeng, tmp_path, answered):
    llm = answered(spoiled(("ko * ku + ki)", "ko * ku)")), block(GOOD), "No.", "No.")
    common = ["eval", "generate", "--tasks", TASK.key, "--samples", 2, "--rounds", 2, "--jobs", 1]
    done = qimeng(*common, "--llm", llm, "--out", tmp_path / "one", "--json")
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert [a["stages"] for a in task["attempts"]] == [["numbers", "accepted"], ["form", "form"]]
    assert task["pass@1"] == 0.0 and task["pass@3"] is None and task["solved"] == 1
    assert 0.2 < task["attempts"][0]["score"] < 2.0, "a share of the reference's speed"
    again = qimeng(*common, "--llm", f"replay:{tmp_path / 'one'}", "--out", tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert TASK.key in again.stdout and "1/2" in again.stdout and "stopped at form, numbers" in again.stdout


def test_the_plain_c_baseline_is_checked_and_timed(qimeng, tmp_path, answered):
    wrong = C.replace("k < K", "k < K - 1")
    llm = answered(block(C, "c"), block(wrong, "c"), block("int gemm(", "c"))
    done = qimeng("eval", "generate", "--tasks", "none", "--vanilla", "f32", "--samples", 3, "--jobs", 1,
                  "--llm", llm, "--out", tmp_path / "out", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["vanilla"]
    assert [a["stages"] for a in task["attempts"]] == [["accepted"], ["numbers"], ["build"]]
    first = task["attempts"][0]
    assert first["score"] > 0.1 and "of ours" in first["findings"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tasks", "x86.mmx"], "no task x86.mmx; there are x86.avx2_f32"),
        (["--tasks", "none", "--vanilla", "f8"], "no operand type f8 for the baseline; there are f32"),
        (["--tasks", TASK.key, "--llm", "replay:nowhere"], "no transcripts in nowhere"),
        (["--tasks", TASK.key, "--llm", "nobody"], "no client is called 'nobody'"),
        (["--tasks", TASK.key, "--budget", "lots"], "'lots' is no limit"),
        (["--tasks", TASK.key, "--reference", "nowhere"], "no folder nowhere of reference families"),
    ],
)
def test_wrong_input_is_one_line(qimeng, arguments, says):
    done = qimeng("eval", "generate", *arguments)
    assert done.returncode in (1, 2) and says in done.stderr and "Traceback" not in done.stderr
