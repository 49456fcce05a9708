"""LLVM's model of a core, asked where the facts file says nothing of an instruction's speed."""

import shutil
import sys
from dataclasses import replace

import pytest

from qimeng_tvm.generate.tasks import tasks
from qimeng_tvm.hardware import load, mca
from qimeng_tvm.hardware.mca import modelled
from qimeng_tvm.llm.prompts.render import intrinsic_prompt

LINE = "vfmadd231ps %ymm0, %ymm1, %ymm2"
X86 = "x86_64-unknown-linux-gnu"


def program(folder, text, status=0):
    path = folder / "llvm-mca"
    path.write_text(f"#!/bin/sh\ncat > /dev/null\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    path.chmod(0o755)
    return folder


def reply(latency, apart):
    return (
        '{"CodeRegions": [{"InstructionInfoView": {"InstructionList": '
        f'[{{"Latency": {latency}, "RThroughput": {apart}}}]}}}}]}}'
    )


@pytest.mark.skipif(shutil.which("llvm-mca") is None, reason="llvm-mca is not installed")
def test_llvm_knows_its_cores():
    assert modelled(LINE, X86, "haswell") == "2 started a cycle, latency 5 (LLVM's model of haswell, not measured)"
    assert modelled("not an instruction", X86, "haswell") == ""
    assert modelled(LINE, X86, "no-such-core") == ""


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        (reply(4, 0.5), 0, "2 started a cycle, latency 4 (LLVM's model of c"),
        (reply(8, 2), 0, "one started every 2 cycles, latency 8"),
        (reply(4, 0), 0, ""),
        (reply(4, 0.5), 1, ""),
        ("{}", 0, ""),
        ("{", 0, ""),
        ("", 0, ""),
        ('{"CodeRegions": []}', 0, ""),
    ],
)
def test_its_answers_are_read_or_left_out(tmp_path, monkeypatch, text, status, says):
    tool = program(tmp_path, text, status)
    monkeypatch.setattr(shutil, "which", lambda name: str(tool / "llvm-mca") if name == "llvm-mca" else None)
    mca._modelled.cache_clear()
    found = modelled(LINE, X86, "c")
    assert found.startswith(says) and bool(found) == bool(says)


def test_without_it_nothing_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert modelled(LINE, X86, "haswell") == ""


def test_the_prompt_takes_the_manuals_word_first(monkeypatch):
    task, machine = tasks()["x86.avx2_f32"], load("zen3")
    monkeypatch.setattr(
        sys.modules["qimeng_tvm.llm.prompts.render"], "modelled", lambda *_: "3 started a cycle, latency 9 (a model)"
    )
    assert "2 started a cycle, latency 4" in intrinsic_prompt(task, machine).text
    unknown = replace(task, primitives=tuple(replace(p, cycles="", asm=LINE) for p in task.primitives))
    assert "3 started a cycle, latency 9 (a model)" in intrinsic_prompt(unknown, machine).text
    assert "| not known |" in intrinsic_prompt(unknown).text
