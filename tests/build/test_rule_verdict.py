"""Rules as a model might answer them: the shipped ones are accepted, spoiled ones are stopped, each at its stage."""

from pathlib import Path

import pytest

from qimeng_tvm.generate import rule_verdict
from qimeng_tvm.generate.rule_operators import checked_operators
from qimeng_tvm.generate.rule_verdict import judge_rule
from qimeng_tvm.generate.rules import RULES
from qimeng_tvm.hardware import host

pytestmark = pytest.mark.skipif(not host().has("avx2", "fma"), reason="operators are checked on AVX2 and FMA")
RULES_FOLDER = Path(__file__).parents[2] / "schedules" / "cpu"
GEMM, GEMV = ((RULES_FOLDER / f"{name}.py").read_text() for name in ("gemm", "gemv"))


@pytest.fixture(autouse=True)
def few_operators(monkeypatch):
    """Edges in every direction: the full list is for replaying."""

    def few(task):
        return (checked_operators(task)[1],)

    monkeypatch.setattr(rule_verdict, "checked_operators", few)


def judged(name, *edits):
    source = GEMM if name == "gemm" else GEMV
    for old, new in edits:
        assert old in source, f"{old!r} is not in the rule"
        source = source.replace(old, new)
    # One that never ends is waited for.
    seconds = 12 if "1 << 31" in source else 40
    return judge_rule(f"```python\n{source}\n```\n", RULES[name], host(), seconds=seconds)


@pytest.mark.parametrize("name", ["gemm", "gemv"])
def test_the_shipped_rules_pass(name):
    verdict = judged(name)
    assert verdict.ok, verdict.findings
    # The defaults and two drawn choices.
    assert verdict.checked == 3 and verdict.source


def test_what_is_not_a_rule_is_told():
    assert judge_rule("No.", RULES["gemm"], host()).stage == "form"
    assert judge_rule("```python\nx = 1\n```", RULES["gemm"], host()).stage == "read"
    cut = judge_rule(f"```python\n{GEMM}\n```", RULES["gemm"], host(), truncated=True)
    assert cut.stage == "form" and "ends within" in cut.findings


_APPLY = "        plan = blocking.gemm_plan(info, self.families(info, hardware), choose)\n"
_TENSORIZE = "        steps.tensorize(sch, nest.kernel, plan.intrin_name())\n"
_PLACE_A = '        if plan.pack_a == "block":\n            sch.compute_at'
_BEFOREHAND = (
    '        if plan.pack_a == "whole":\n            sch.annotate(copy, steps.PREPACK, True)\n            return\n'
)
_ROWS = "block.m <= MAX_ROWS and "


@pytest.mark.parametrize(
    ("name", "edits", "stages", "says"),
    [
        ("gemm", [("from typing import Any", "import os")], ["source"], "import os is not allowed"),
        ("gemm", [(_APPLY, _APPLY + "        print(sch)\n")], ["source"], "print is not allowed"),
        ("gemm", [(_APPLY, _APPLY + "        sch.mod\n")], ["source"], "mod is not allowed"),
        ("gemm", [(_APPLY, _APPLY + "        sch.__class__\n")], ["source"], "private"),
        ("gemm", [("version = 3", "version = 2")], ["read"], "version is 2; it must be 3"),
        ("gemm", [('name = "cpu.gemm"', 'name = "cpu.other"')], ["read"], "name is 'cpu.other'"),
        ("gemm", [("version = 3", "version = 3 // 0")], ["read"], "ZeroDivisionError"),
        ("gemv", [("priority = 1", "priority = 9")], ["read"], "priority is 9"),
        ("gemm", [(" and len(self.families(block, hardware)) > 0", "")], ["space"], "float8"),
        ("gemm", [('block.kind == "matmul" and', 'block.kind == "convolution" and')], ["space"], "does not match"),
        ("gemm", [("return blocking.gemm_space(block, hardware, self.families(block, hardware))", "return SearchSpace(())")], ["space"], "lacks the decisions"),
        ("gemv", [(_ROWS, "")], ["space"], "at most 8 rows"),
        ("gemm", [(_APPLY, _APPLY + "        x = [][1]\n")], ["build"], "IndexError"),
        ("gemm", [("[plan.m_blocks, plan.mc, plan.mr]", "[plan.m_blocks, plan.mc, plan.mr + 1]")], ["build", "numbers"], ""),
        ("gemm", [(_TENSORIZE, "")], ["build"], "nothing was tensorized"),
        ("gemm", [(_APPLY, _APPLY + "        for x in range(1 << 31):\n            pass\n")], ["build"], "timeout"),
        # A would be packed once, outside of what is timed.
        ("gemm", [(_PLACE_A, _BEFOREHAND + _PLACE_A)], ["numbers"], "do not fit"),
        ("gemm", [("transposed=info.transpose_b", "transposed=not info.transpose_b")], ["build", "numbers"], ""),
        ("gemm", [('steps.k_panels(parts.b.axes, "n", plan.nr, family.k_pack)', 'steps.k_panels(parts.b.axes, "n", plan.mr, family.k_pack)')], ["build", "numbers"], ""),
        ("gemm", [('        steps.pad(sch, block, {"m": plan.padded_m, "n": plan.padded_n, "k": plan.padded_k})\n', "")], ["build", "numbers"], ""),
    ],
)  # fmt: skip
def test_a_spoiled_rule_is_stopped(name, edits, stages, says):
    verdict = judged(name, *edits)
    assert verdict.stage in stages, f"{verdict.stage}: {verdict.findings}"
    assert says in verdict.findings and verdict.findings.strip()
