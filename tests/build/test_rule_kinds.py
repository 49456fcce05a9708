"""Rules of other kinds than matrix products, as a model might answer: right ones pass, wrong ones are stopped."""

from __future__ import annotations

import pytest
from hand_rules import KINDS, hand_rule

from qimeng_tvm.generate import rule, rule_verdict
from qimeng_tvm.generate.row_operators import reduction
from qimeng_tvm.generate.rule import RuleSubject, reference_rule
from qimeng_tvm.generate.rule_operators import checked_operators
from qimeng_tvm.generate.rule_verdict import judge_rule
from qimeng_tvm.generate.rules import RULES
from qimeng_tvm.hardware import host
from qimeng_tvm.llm.messages import Reply

pytestmark = pytest.mark.skipif(not host().has("avx2", "fma"), reason="operators are checked on AVX2 and FMA")
#: Which of the operators that a rule is checked on: edges, epilogues, more than one layout; two cores.
FEW = {
    "conv2d": (2, 10),
    "winograd": (1, 8),
    "depthwise": (1, 2),
    "pool": (1, 2),
    "rowwise": (1, 8),
    "elementwise": (10, 13),
}


@pytest.fixture(autouse=True)
def few_operators(monkeypatch):
    """The full lists are for replaying."""

    def few(task):
        return tuple(checked_operators(task)[n] for n in FEW[task.operator])

    monkeypatch.setattr(rule_verdict, "checked_operators", few)
    monkeypatch.setattr(rule_verdict, "_DRAWS", 1)


def spoiled(kind, *edits):
    source = hand_rule(kind)
    for old, new in edits:
        assert old in source, f"{old!r} is not in the rule"
        source = source.replace(old, new)
    return f"```python\n{source}\n```\n"


def judged(kind, *edits):
    return judge_rule(spoiled(kind, *edits), RULES[kind], host(), seconds=40)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_by_hand_passes(kind):
    verdict = judged(kind)
    assert verdict.ok, f"{verdict.stage}: {verdict.findings}"
    # Defaults, and what was drawn where there is a choice.
    assert verdict.checked > len(FEW[kind])


@pytest.mark.parametrize(
    ("kind", "edits", "stages", "says"),
    [
        ("elementwise", [('block.kind == "elementwise"', "True")], ["space"], "of kind unknown"),
        ("elementwise", [("sch.split(loops[across], [None,", "sch.split(loops[across], [1,")], ["build"], ""),
        (
            "rowwise",
            [("return rowwise.space(", "return SearchSpace(()) or rowwise.space(")],
            ["space"],
            "lacks the decisions",
        ),
        ("rowwise", [("sch.rfactor(inner, len(", "sch.rfactor(inner, 7 + len(")], ["build"], ""),
        # A tile of the border is left out.
        ("pool", [("plan.row_tiles, plan.rows]", "plan.row_tiles, plan.rows - 1 or 1]")], ["build"], ""),
        ("pool", [("sch.vectorize(lane)", "sch.vectorize(r)")], ["build"], ""),
        # Pixels would be copied once, outside of what is timed.
        (
            "conv2d",
            [("self.place_pixels(sch, pixels, outer, plan)\n", "sch.annotate(pixels, steps.PREPACK, True)\n")],
            ["numbers"],
            "packed beforehand",
        ),
        (
            "conv2d",
            [("f // nr, *outer, *inner]", "f // nr, *outer, depth, nr - 1 - f % nr]")],
            ["build", "numbers"],
            "",
        ),
        (
            "conv2d",
            [("        steps.tensorize(sch, kernel, plan.intrin_name())\n", "")],
            ["build"],
            "nothing was tensorized",
        ),
        ("winograd", [("f // nr, k, f % nr]", "f // nr, k, nr - 1 - f % nr]")], ["build", "numbers"], ""),
        (
            "depthwise",
            [("steps.write_back(sch, block, make=True", "steps.write_back(sch, block, make=False")],
            ["build"],
            "",
        ),
    ],
)
def test_a_wrong_rule_is_stopped(kind, edits, stages, says):
    verdict = judged(kind, *edits)
    assert verdict.stage in stages, f"{verdict.stage}: {verdict.findings}"
    assert says in verdict.findings and verdict.findings.strip()


def test_a_right_but_slow_rule_is_not_enough(monkeypatch):
    """Sums that are not split into vectors are right, and several times as slow."""
    monkeypatch.setattr(rule, "timed_operators", lambda task: (reduction("sum", (64, 1024), (-1,)),))
    subject = RuleSubject(RULES["rowwise"], host(), reference_rule(RULES["rowwise"]))
    judgement = subject.judge(
        Reply(spoiled("rowwise", ("            if width > 1:\n", "            if False:\n")), "nobody")
    )
    assert judgement.ok and not judgement.enough and 0 < judgement.score < 0.7
