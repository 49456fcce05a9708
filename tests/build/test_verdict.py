"""A reply goes through every stage, and stops at the one whose business its fault is."""

from dataclasses import replace

import pytest
from adversarial.base import GOOD, TASK

from qimeng_tvm.errors import CheckError
from qimeng_tvm.generate.tasks import task_for, tasks
from qimeng_tvm.generate.verdict import judge
from qimeng_tvm.hardware import host, load
from qimeng_tvm.llm.prompts.render import example

pytestmark = pytest.mark.skipif(not TASK.runs_on(host()), reason="this machine has no AVX2 and FMA")


def reply(source):
    return f"Here it is.\n\n```python\n{source}\n```\n"


def test_a_good_family_is_accepted():
    verdict = judge(reply(GOOD), TASK, host())
    assert verdict.ok, (verdict.stage, verdict.findings)
    assert verdict.family.key == "x86.avx2_f32.gemm" and verdict.source == GOOD.strip("\n") + "\n"
    assert len(verdict.reports) >= 5 and all(r.ok for r in verdict.reports)


@pytest.mark.parametrize(
    ("old", "new", "stage", "says"),
    [
        ("", "", "form", "no code block"),
        ("from typing import Any", "import os", "source", "import os is not allowed"),
        ('LANES = 8\nVEC = "float32x8"', 'LANES = 8\nVEC = "float32x8"\nX = 1 // 0', "read", "ZeroDivisionError"),
        ("@intrin_family(", "@intrin_family(scratch=99, ", "declaration", "scratch is 99"),
        ("LANES = 8", "LANES = 4", "declaration", "lanes is 4; it must be 8"),
        ("def gemm(mr: int, nv: int,", "def gemm(nv: int, mr: int,", "declaration", "parameters is"),
        ("sc = T.int32()", "sc = T.nonsense", "source", "T.nonsense is not allowed"),
        ("    nr = nv * LANES\n", "    nr = nv * LANES\n    assert mr < 2\n", "build", "AssertionError"),
        ("return gemm_desc(s), impl", "return impl, impl", "numbers", "is not C["),
        ("ko * ku + ki)", "ko * ku)", "numbers", ""),
        ("acc.vload([slot(x, y)], VEC),\n", "C0(acc, x, y),\n", "source", "C0 is not defined"),
    ],
)  # fmt: skip
def test_each_fault_is_found_at_its_stage(old, new, stage, says):
    source = GOOD.replace(old, new) if old else None
    assert source is None or source != GOOD, "the replacement changes nothing"
    verdict = judge(reply(source) if source else "I would rather not.", TASK, host())
    assert (verdict.stage, says in verdict.findings) == (stage, True), (verdict.stage, verdict.findings)


def test_without_the_instruction_the_audit_refuses():
    task = replace(TASK, mnemonics=("vdpbf16ps",))
    source = GOOD.replace("vfmadd132ps|vfmadd213ps|vfmadd231ps", "vdpbf16ps")
    verdict = judge(reply(source), task, host())
    assert verdict.stage == "audit" and "vdpbf16ps is nowhere" in verdict.findings


def test_a_lane_wise_family_is_judged_by_its_own_contract():
    task = tasks()["x86.avx2_f32_depthwise"]
    source = example("arm", task.kind)[1].replace("LANES = 4", "LANES = 8").replace("float32x4", "float32x8")
    source = source.replace('requires=("fma",)', 'requires=("avx2", "fma")')
    verdict = judge(reply(source), task, host())
    assert verdict.ok and len(verdict.reports) >= 5, (verdict.stage, verdict.findings)
    for old, new, stage, says in (
        ("a.vload([i * step,", "a.vload([i,", "numbers", "depthwise(mr="),
        ("return lane_desc(s), impl", "return impl, impl", "numbers", "+= A[i * "),
        ("LaneShape, ", "GemmShape, LaneShape, ", "source", "GemmShape"),
    ):
        verdict = judge(reply(source.replace(old, new)), task, host())
        assert (verdict.stage, says in verdict.findings) == (stage, True), (verdict.stage, verdict.findings)


def test_a_task_that_the_machine_cannot_run_is_no_verdict():
    with pytest.raises(CheckError, match="lacks avx512bf16"):
        judge(reply(GOOD), tasks()["x86.avx512_bf16"], load("zen3"))


def test_tasks_by_type_and_by_name():
    assert task_for(load("zen3"), "bf16").module == "avx2_bf16"
    assert task_for(load("zen5"), "bf16").module == "avx512_bf16"
    assert task_for(load("zen3"), "avx512_f32").key == "x86.avx512_f32"


def test_inline_assembly_where_it_is_allowed():
    llvm = (
        "define <8 x float> @qimeng_fma(<8 x float> %c, <8 x float> %a, <8 x float> %b) alwaysinline {\n"
        '  %r = call <8 x float> asm "vfmadd231ps $3, $2, $0", "=x,0,x,x"'
        "(<8 x float> %c, <8 x float> %a, <8 x float> %b)\n"
        "  ret <8 x float> %r\n}\n"
    )
    step = GOOD[GOOD.index("        return tirx.call_llvm_pure_intrin(") : GOOD.index("    @T.prim_func")]
    source = (
        GOOD.replace("LANES = 8\n", f"LANES = 8\nLLVM = {llvm!r}\n", 1)
        .replace("registers=16", "registers=16, scratch=2")  # LLVM cannot move what it does not know
        .replace(
            step,
            "        return tirx.call_extern(\n"
            '            VEC, "qimeng_fma", acc.vload([slot(x, y)], VEC),\n'
            "            tirx.Broadcast(load(a, s.a_index(i, k)), LANES), b.vload([k, j * LANES], VEC)\n"
            "        )\n\n",
        )
        .replace(
            "            acc = T.alloc_buffer(",
            '            T.attr(0, "pragma_import_llvm", LLVM)\n            acc = T.alloc_buffer(',
        )
    )
    refused = judge(reply(source), TASK, host())
    assert refused.stage == "source" and "quoted text" in refused.findings
    verdict = judge(reply(source), replace(TASK, inline_asm=True), host())
    assert verdict.ok, (verdict.stage, verdict.findings)
