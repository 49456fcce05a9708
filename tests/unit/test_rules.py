"""Rules that a model is asked for: what they may say, what they are checked on, and what the prompt tells."""

from __future__ import annotations

import ast
import pickle

import numpy as np
import pytest
from hand_rules import KINDS, hand_rule

from qimeng_tvm.check.source import check_source
from qimeng_tvm.errors import UsageError
from qimeng_tvm.generate import image_operators
from qimeng_tvm.generate.graphs import KINDS as INPUTS
from qimeng_tvm.generate.rule_operators import checked_operators, shown_operators, timed_operators
from qimeng_tvm.generate.rule_policy import api_of, rule_policy
from qimeng_tvm.generate.rule_sandbox import info_of
from qimeng_tvm.generate.rules import RULES, rule_task
from qimeng_tvm.hardware import load
from qimeng_tvm.llm.prompts.rule import rule_prompt
from qimeng_tvm.schedule.winograd_form import transformed

MACHINE = load("zen3")
#: Names of the syntax tree that belong to the module's own class, or to Python.
OWN = {"append"}


@pytest.fixture(scope="module")
def prompts():
    return {kind: rule_prompt(RULES[kind], MACHINE).text for kind in KINDS}


def attributes_of(source):
    """What is asked of other values than the rule itself."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in found if getattr(node.value, "id", "") != "self"} - OWN


def test_every_kind_has_its_rule():
    assert set(KINDS) == {"conv2d", "winograd", "depthwise", "pool", "rowwise", "elementwise"}
    for kind in KINDS:
        task = rule_task(kind)
        assert (task.name, task.kind, task.module) == (f"cpu.{kind}", kind, kind) and task.version > 1
    with pytest.raises(UsageError, match="no rule is written for 'sort'; there are gemm, gemv, conv2d"):
        rule_task("sort")


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_by_hand_may_stand(kind):
    assert check_source(hand_rule(kind), rule_policy(RULES[kind])) == ()


@pytest.mark.parametrize(
    ("kind", "line", "says"),
    [
        ("pool", "sch.mod", "mod is not allowed"),
        ("pool", "sch.transform_layout(block, 0, None)", "transform_layout is not allowed"),
        ("pool", "sch.unsafe_set_dtype(block, 0, 'int8')", "unsafe_set_dtype is not allowed"),
        ("elementwise", "sch.tensorize(block, 'x')", "tensorize is not allowed"),
        ("elementwise", "elementwise.structural_walk(block)", "elementwise.structural_walk is not allowed"),
        ("rowwise", "rowwise.tirx.call_extern('void', 'system')", "rowwise.tirx is not allowed"),
        ("conv2d", "steps.ensure_registered('x')", "steps.ensure_registered is not allowed"),
        ("winograd", "sch.unsafe_set_dtype(block, 0, 'int8')", "unsafe_set_dtype is not allowed"),
        ("depthwise", "sch.trace", "trace is not allowed"),
    ],
)
def test_what_others_need_is_refused(kind, line, says):
    head, marker, rest = hand_rule(kind).partition("    def apply(self")
    first = rest.index('"""', rest.index('"""') + 3) + 3
    spoiled = f"{head}{marker}{rest[:first]}\n        {line}{rest[first:]}"
    assert any(says in str(finding) for finding in check_source(spoiled, rule_policy(RULES[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is_checked_on_is_of_its_kind(kind):
    task = RULES[kind]
    checked, timed = checked_operators(task), timed_operators(task)
    for operator in (*checked[:3], *timed[:2], *shown_operators(task)):
        assert info_of(operator, MACHINE)[1].kind == kind, operator.label
    for found in (checked, timed):
        assert len({operator.label for operator in found}) == len(found) and any(o.cores == 2 for o in found)
    assert pickle.loads(pickle.dumps(checked)) == checked


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_exact_and_bounds_small(kind):
    for operator in checked_operators(RULES[kind]):
        for label, seed in INPUTS:
            inputs = operator.inputs(label, seed)
            right = operator.outcome(inputs)
            again = operator.inputs(label, seed)
            assert all(np.array_equal(inputs[name], again[name]) for name in inputs)
            error = np.broadcast_to(right.error, right.exact.shape)
            assert np.isfinite(right.exact).all() and (error >= 0).all()
            # Anything that matters is further off than rounding may lead.
            assert error.mean() <= 0.05 * np.abs(right.exact).mean() + 1e-6, (operator.label, label)


def test_negative_numbers_tell_a_border_of_zeros():
    pooled = image_operators.pool("max_pool", (1, 6, 6, 4))
    image = pooled.inputs("negative", 2)["image"]
    assert image.max() < 0 and pooled.outcome({"image": image}).exact.max() < 0
    assert pooled.outcome({"image": image}).exact[0, 0, 0, 0] == image[0, :2, :2, 0].max()


def test_a_convolution_is_what_a_loop_says():
    graph = image_operators.conv((1, 5, 4, 2), 3, (3, 2), (2, 1), (1, 0, 0, 1), then="bias relu")
    inputs = graph.inputs("normal", 0)
    image, kernel, bias = (inputs[name].astype("float64") for name in ("image", "kernel", "bias"))
    padded = np.pad(image, ((0, 0), (1, 0), (0, 1), (0, 0)))
    rows, columns = (padded.shape[1] - 3) // 2 + 1, padded.shape[2] - 1
    want = [
        [np.einsum("rsc,rscf->f", padded[0, 2 * y : 2 * y + 3, x : x + 2], kernel) for x in range(columns)]
        for y in range(rows)
    ]
    assert np.allclose(graph.outcome(inputs).exact[0], np.maximum(np.array(want) + bias, 0))


def test_winograds_method_of_transformed_filters_is_the_convolution():
    shape, pad = (1, 5, 6, 3), (1, 0, 2, 1)
    plain = image_operators.conv(shape, 4, padding=pad)
    tiled = image_operators.winograd(shape, 4, pad)
    inputs = plain.inputs("normal", 0)
    known = {"image": inputs["image"], "kernel": transformed(inputs["kernel"])}
    assert np.allclose(plain.outcome(inputs).exact, tiled.outcome(known).exact, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_has_all_that_a_good_answer_needs(kind, prompts):
    text, task = prompts[kind], RULES[kind]
    for module, names in {**api_of(task).helpers, **api_of(task).functions}.items():
        assert all(name in text for name in names), module
    assert not [name for name in attributes_of(hand_rule(kind)) if name not in text]
    assert all(f"`{name}`" in text for name in task.decisions)
    for operator in (*checked_operators(task), *timed_operators(task)):
        assert f"- {operator.label}\n" in text
    assert f"rule `cpu.{kind}`, version {task.version}" in text and "16 vector registers of 256 bits" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_shows_functions_and_not_the_rule(kind, prompts):
    shown = shown_operators(RULES[kind])
    assert prompts[kind].count("def main(") == len(shown) >= 1 and "T.axis.remap" in prompts[kind]
    class_line = next(line for line in hand_rule(kind).splitlines() if line.startswith("class "))
    assert class_line not in prompts[kind] and "{{" not in prompts[kind] and "object at 0x" not in prompts[kind]


def test_the_prompt_of_products_is_what_it_was():
    text = rule_prompt(RULES["gemm"], MACHINE).text
    assert "packing.pack_panels" in text and "class DirectGemm" in text and "on 25 operators" in text
