"""Every file that a model wrote comes out of its transcript again, byte for byte, through every check, offline."""

import json
import sys
from pathlib import Path

import pytest

from qimeng_tvm.generate.evaluate import attempt_of
from qimeng_tvm.generate.shipped import file_of
from qimeng_tvm.generate.tasks import tasks
from qimeng_tvm.hardware import host
from qimeng_tvm.llm.transcript import read_transcript

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
#: What is shipped, by the folder it goes to; the samples of the evaluation are no artefacts.
TRANSCRIPTS = sorted(
    path for kind in ("schedules", "tensorize_intrins") for path in (ROOT / "transcripts" / kind).rglob("*.json")
)
#: The machine that a task's files are checked for where this one lacks the instructions.
OTHER = "zen5"
EVALUATED = sorted((ROOT / "transcripts" / "eval").glob("*.json"))


def shipped(path):
    return ROOT / path.relative_to(ROOT / "transcripts").with_suffix(".py")


def test_what_should_be_written_by_a_model_is():
    written = {path.relative_to(ROOT / "transcripts").with_suffix("").as_posix() for path in TRANSCRIPTS}
    names = (
        "avx2_f32",
        "avx2_f32_depthwise",
        "avx512_bf16",
        "avx512_f32",
        "avx512_f32_depthwise",
        "avx512_vnni_u8s8",
        "avx512bw_u8s8",
        "avx512f_bf16",
    )
    families = {f"tensorize_intrins/x86/{name}" for name in names}
    kinds = ("conv2d", "depthwise", "elementwise", "gemm", "gemv", "pool", "rowwise", "winograd")
    rules = {f"schedules/cpu/{name}" for name in kinds}
    assert written == {*families, *rules}


def test_such_files_are_left_as_they_came():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(config["tool"]["ruff"]["extend-exclude"]) == [
        shipped(p).relative_to(ROOT).as_posix() for p in TRANSCRIPTS
    ]


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_header_says_what_the_transcript_says(path):
    transcript = read_transcript(path)
    assert transcript.task.split(" ", 1)[1].replace(".", "/") == "/".join(shipped(path).with_suffix("").parts[-2:])
    assert file_of(transcript.task) == shipped(path).relative_to(ROOT).as_posix()
    best = transcript.rounds[transcript.best]
    assert best.verdict == "accepted"
    head = shipped(path).read_text().splitlines()[0]
    assert head.startswith(f"# author: {transcript.model}, prompt {transcript.prompt}, ")
    assert head.endswith(f"the answer of round {transcript.best + 1}")
    # What was asked first is kept, so that the answer can be judged by it.
    assert transcript.rounds[0].asked[0].role == "user" and len(transcript.rounds[0].asked[0].content) > 5000


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_it_is_replayed_byte_for_byte(qimeng, tmp_path, path):
    kind, name = read_transcript(path).task.split(" ")
    if kind == "rule":
        if not host().has("avx2", "fma"):
            pytest.skip("a rule is checked on operators that run here: needs AVX2 and FMA")
        arguments = ["rule", "--operator", name.split(".")[1]]
    else:
        hardware = "host" if tasks()[name].runs_on(host()) else OTHER
        arguments = ["intrinsic", "--dtype", name.split(".")[1], "--hardware", hardware]
    done = qimeng("generate", *arguments, "--llm", "replay", "--out", tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "(the shipped file, byte for byte)" in done.stdout
    made = tmp_path / shipped(path).relative_to(ROOT)
    assert made.read_bytes() == shipped(path).read_bytes()
    again = (tmp_path / path.relative_to(ROOT)).read_bytes()
    assert again == path.read_bytes()


def test_the_machines_own_family_comes_by_its_plain_name(qimeng, tmp_path):
    done = qimeng("generate", "intrinsic", "--hardware", "host", "--dtype", "f32", "--llm", "replay", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("tensorize_intrins/x86/*_f32.py")
    assert made.read_bytes() == (ROOT / made.relative_to(tmp_path)).read_bytes()


def test_every_task_was_put_to_a_model_three_times():
    products = [key for key, task in tasks().items() if task.kind == "gemm"]
    samples = {f"{key}.{sample}" for key in products for sample in (1, 2, 3)}
    assert {path.stem for path in EVALUATED} == samples and len(products) >= 20
    plain = {path.stem for path in (ROOT / "transcripts" / "eval" / "vanilla").glob("*.json")}
    assert plain == {f"x86.{dtype}.{sample}" for dtype in ("f32", "bf16", "u8s8", "s8s8") for sample in (1, 2, 3)}


def test_what_the_evaluation_says_is_what_its_transcripts_say():
    attempts = [attempt_of(read_transcript(path)) for path in EVALUATED]
    text = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    right = sum(a.first for a in attempts)
    assert f"{right} of {len(attempts)} first answers passed every check" in text


@pytest.mark.parametrize("key", ["x86.avx2_f32", "x86.fma_f32", "arm.neon_f32", "riscv.rvv_f32"])
def test_a_sample_of_the_evaluation_passes_again(qimeng, tmp_path, key):
    done = qimeng("eval", "generate", "--tasks", key, "--llm", "replay", "--out", tmp_path, "--json", timeout=600)
    if "none of the tasks could be checked on this machine" in done.stderr:
        pytest.skip(f"{key} cannot be run here")
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert task["pass@1"] == 1.0 and task["attempts"][0]["stages"] == ["accepted"]
    assert task["attempts"][0]["score"] > 0.05
