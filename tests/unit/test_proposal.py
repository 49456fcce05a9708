"""Search-space proposals: the schema made from a space, what is refused, what a proposal makes of a space."""

import json
from dataclasses import replace

import pytest

from qimeng_tvm.errors import GenerateError, LLMError, ScheduleError
from qimeng_tvm.generate.adviser import Adviser
from qimeng_tvm.generate.ask import read_json
from qimeng_tvm.generate.history import history_of
from qimeng_tvm.generate.proposal import (
    MOST,
    Tuned,
    proposal_form,
    proposal_question,
    proposal_schema,
    propose,
    read_proposal,
    task_of,
)
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.llm import Reply, Usage
from qimeng_tvm.llm.prompts.proposal import EXAMPLE
from qimeng_tvm.llm.prompts.render import template
from qimeng_tvm.llm.transcript import read_transcript
from qimeng_tvm.request import parse
from qimeng_tvm.schedule.contract import Decision, SearchSpace
from qimeng_tvm.schedule.proposal import Constraint, Proposal, Weighted


def illegal(values):
    return "kc beyond 256 does not go with order m" if values["kc"] > 256 and values["order"] == "m" else None


SPACE = SearchSpace(
    (
        Decision("kc", (64, 128, 256, 512, 1024), 256, "depth"),
        Decision("order", ("n", "m"), "n", "outermost"),
        Decision("parallel", ("no",), "no"),
    ),
    illegal,
)


def given(**choices):
    """A proposal as answered, through the same reading as a reply's."""
    answer = {name: {"candidates": c, "prior": p} for name, (c, p) in choices.items()}
    return {"why": "so", **answer}


def read(answer, space=SPACE):
    return read_proposal(proposal_form(space).model_validate(answer), space)


@pytest.fixture(scope="module")
def tuned():
    return task_of(parse(EXAMPLE[0]), Hardware.load(EXAMPLE[1]))


class Scripted:
    name = "scripted"

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    def ask(self, request):
        self.seen.append(request)
        answer = self.answers.pop(0)
        return Reply(answer if isinstance(answer, str) else json.dumps(answer), "script-1", Usage(1, 5, 5))


def test_the_schema_is_made_from_the_space():
    schema = proposal_schema(SPACE)
    assert set(schema["properties"]) == {"kc", "order", "constraints", "why"}  # no choice, nothing to ask
    assert schema["properties"]["kc"]["properties"]["candidates"]["items"] == {"enum": [64, 128, 256, 512, 1024]}
    assert schema["properties"]["order"]["properties"]["prior"]["maxItems"] == 2
    wide = SearchSpace((Decision("kc", tuple(range(1, 40)), 1),))
    assert proposal_schema(wide)["properties"]["kc"]["properties"]["candidates"]["maxItems"] == MOST


def test_a_proposal_restricts_the_space_in_the_rules_order():
    proposal = read(given(kc=([512, 128, 256], [1, 3, 4])))
    assert proposal.choices["kc"] == Weighted((512, 128, 256), (0.125, 0.375, 0.5)) and proposal.why == "so"
    narrow = proposal.apply(SPACE)
    assert [d.candidates for d in narrow.decisions] == [(128, 256, 512), ("n", "m"), ("no",)]
    assert narrow.defaults() == SPACE.defaults() and narrow.illegal is SPACE.illegal


def test_without_the_default_the_likeliest_legal_point_takes_its_place():
    proposal = read(given(kc=([1024, 128], [9, 1]), order=(["m", "n"], [8, 2])))
    # 1024 with m is the likeliest and illegal; 1024 with n (0.18) comes before 128 with m (0.08).
    assert proposal.apply(SPACE).defaults() == {"kc": 1024, "order": "n", "parallel": "no"}
    assert proposal.likeliest(proposal.apply(SPACE), {"order": "m"})["kc"] == 128


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"kc": ([96], [1])}, "kc: 96 is not among [64, 128, 256, 512, 1024]"),
        ({"kc": (["128"], [1])}, "kc: '128' is not among"),
        ({"kc": ([64, 64], [1, 1])}, "kc: a candidate stands there twice"),
        ({"kc": ([64, 128], [1])}, "kc: 2 candidates, but 1 numbers in prior"),
        ({"kc": ([512, 1024], [1, 1]), "order": (["m"], [1])}, "goes together: no legal point among the 2 most"),
        ({}, "no decision is proposed"),
        # Refused by form.
        ({"mc": ([64], [1])}, "mc: Extra inputs"),
        ({"parallel": (["no"], [1])}, "parallel: Extra inputs"),
        ({"kc": ([64], [0])}, "kc.prior.0: Input should be greater than 0"),
        ({"kc": ([64], [-1])}, "kc.prior.0: Input should be greater than 0"),
        ({"kc": ([64], ["1"])}, "kc.prior.0"),
        ({"kc": ([], [])}, "kc.candidates: List should have at least 1 item"),
        ({"kc": ([64.5], [1])}, "kc.candidates.0"),
        ({"kc": ([True], [1])}, "kc.candidates.0"),
        ({"kc": ([64] * (MOST + 1), [1] * (MOST + 1))}, f"at most {MOST} items"),
    ],
)  # fmt: skip
def test_what_the_rule_does_not_allow_is_refused_and_told(tuned, tmp_path, choices, says):
    small = Tuned(replace(tuned.task, space=SPACE), tuned.line)
    client = Scripted(given(**choices))
    with pytest.raises(GenerateError) as caught:
        propose(small, client, rounds=1, path=tmp_path / "p.json")
    findings = read_transcript(tmp_path / "p.json").rounds[0].findings
    assert says in findings and "was right in 1 round;" in str(caught.value)


def test_rounds_go_on_until_a_proposal_holds(tuned, tmp_path):
    small = Tuned(replace(tuned.task, space=SPACE), tuned.line)
    client = Scripted("I would take kc = 128.", given(kc=([96], [1])), given(kc=([128], [1])))
    done = propose(small, client, path=tmp_path / "p.json")
    assert done.value.choices["kc"].candidates == (128,)
    assert [r.verdict for r in done.transcript.rounds] == ["json", "check", "accepted"] and done.transcript.best == 2
    assert "- kc: 96 is not among" in client.seen[2].messages[-1].content
    assert client.seen[0].schema == proposal_schema(SPACE)


def test_the_worked_example_holds_on_the_machine_it_speaks_of(tuned):
    question = proposal_question(tuned)
    answer = read_json(Reply(template("example_proposal.json.j2"), "x"))
    space = tuned.task.space
    narrow = question.check(question.form.model_validate(answer)).apply(space)
    assert 100 < narrow.size() < space.size() / 100
    assert space.illegal(narrow.defaults()) is None
    space.check(narrow.defaults())


def test_the_prompt_tells_every_choice_and_the_machine(tuned):
    text = proposal_question(tuned).prompt.text
    for decision in tuned.task.space.decisions:
        row = f"| {decision.name} | {decision.doc} | {decision.default} |"
        assert (row in text) == (len(decision.candidates) > 1)
    assert "M = 1024, N = 1024, K = 1024" in text and "- L1: 48 KiB" in text
    assert "`x86.avx512_f32.gemm`: 16 lanes, 32 registers" in text
    assert "2147 million floating-point operations on 4096 KiB of A" in text
    skinny = proposal_question(task_of(parse("u8s8 GEMM 4x512x256, 2 threads"), Hardware.load("zen5"))).prompt
    assert "2 threads" in skinny.text and "cpu.gemv" in skinny.text and skinny.label == "proposal@2"


def test_a_proposal_for_another_rule_is_an_error():
    proposal = Proposal({"depth": Weighted((1,), (1.0,))})
    with pytest.raises(ScheduleError, match="unknown decision 'depth'"):
        proposal.apply(SPACE)
    with pytest.raises(ScheduleError, match=r"kc: \[96\] not among"):
        Proposal({"kc": Weighted((96,), (1.0,))}).apply(SPACE)


def test_a_hopeless_space_is_given_up():
    wide = SearchSpace(
        tuple(Decision(f"d{i}", tuple(range(10)), 0) for i in range(8)), lambda values: "nothing goes with anything"
    )
    with pytest.raises(ScheduleError, match="2000 most probable: nothing goes"):
        Proposal({"d0": Weighted((1,), (1.0,))}).apply(wide)


def test_what_the_rule_does_not_have_is_dropped_and_told():
    answer = given(kc=([96, 128, 64], [8, 1, 3]), order=(["x"], [1]))
    answer["constraints"] = [
        {"when": {"order": "m"}, "then": {"kc": [64]}, "why": "a  short\npanel"},
        {"when": {}, "then": {"kc": [96]}},
        {"when": {"mc": 4}, "then": {"kc": [64]}},
        {"when": {"kc": 64}, "then": {"kc": [64]}},
    ]
    proposal = read(answer)
    assert proposal.choices == {"kc": Weighted((128, 64), (0.25, 0.75))}
    assert proposal.constraints == (Constraint({"order": "m"}, {"kc": (64,)}, "a short panel"),)
    assert [line.split(" is ")[0] for line in proposal.dropped] == [
        "kc: 96",
        "order: 'x'",
        "constraint 2: kc=96",
        "constraint 3: mc=4",
        "constraint 4: a decision",
    ]


def test_candidates_that_go_with_nothing_else_are_dropped():
    proposal = read(given(kc=([64, 1024], [1, 1]), order=(["m"], [1])))
    assert proposal.choices["kc"].candidates == (64,)
    assert "kc: 1024 goes with nothing else that is proposed" in proposal.dropped[0]


def test_constraints():
    rule = Constraint({"order": "m"}, {"kc": (64, 128)}, "why")
    assert rule.broken({"order": "m", "kc": 256}) and not rule.broken({"order": "m", "kc": 64})
    assert not rule.broken({"order": "n", "kc": 256}) and not rule.broken({"order": "m"})
    assert str(rule) == "with order=m: kc in [64, 128]" and str(Constraint({}, {"kc": (1,)})) == "kc in [1]"
    proposal = Proposal({}, constraints=(Constraint({}, {"kc": (64,)}), rule))
    assert proposal.broken({"order": "m", "kc": 64}) is None and proposal.broken({"order": "n", "kc": 1}) is not None


def test_below_a_node_only_the_open_decisions_are_asked_for(tuned):
    path = {"micro_kernel": "8x3", "kc": 1 << 30}
    below = replace(tuned, path=path, history=history_of(tuned.task, [], ["kc: 7 is not among [64]"]))
    question = proposal_question(below)
    assert "Decided already, and not to be proposed: micro_kernel=8x3, kc=whole." in question.prompt.text
    assert "micro_kernel" not in question.schema["properties"] and "mc" in question.schema["properties"]
    assert "- kc: 7 is not among [64]" in question.prompt.text
    proposal = question.check(question.form.model_validate(given(mc=([96], [1]))))
    assert proposal.likeliest(proposal.apply(below.space))["micro_kernel"] == "8x3"


def test_history_tells_the_best_the_worst_the_latest_and_why(tuned):
    space = tuned.task.space
    fast = space.defaults()
    slow, middle = {**fast, "unroll": 1, "kc": 64}, {**fast, "mc": 96}
    lost = {**fast, "prefetch": "yes"}
    trials = [(slow, 0.05), (lost, None), (fast, 0.01), (middle, 0.02)]
    history = history_of(tuned.task, trials, spills=lambda values: 3 if values is slow else 0)
    assert [(p.kind, p.of_best and round(p.of_best, 9)) for p in history.points] == [
        ("best", 1.0),
        ("best", 0.5),
        ("best", 0.2),
        ("failed", None),
    ]
    text = proposal_question(replace(tuned, history=history)).prompt.text
    assert "4 trials so far" in text and "fastest, 10000 us" in text and "20.0% of the fastest's speed" in text
    assert "unroll=1" in text and "3 spills in the inner loop" in text and "no spills in the inner loop" in text
    assert "of L1" in text and "C is read and written 16 times" in text
    # Times are never the same twice: the recorded answer is known by the question, not by its text.
    again = history_of(tuned.task, [(fast, 0.011)], spills=lambda values: 0)
    ask = [proposal_question(replace(tuned, history=h, number=1)).request() for h in (history, again)]
    assert ask[0].key == ask[1].key and ask[0].digest != ask[1].digest
    assert proposal_question(replace(tuned, history=again, number=2)).request().key != ask[0].key


def test_an_adviser_proposes_expands_and_never_stops_the_search(tuned, tmp_path):
    small = Tuned(replace(tuned.task, space=SPACE), tuned.line)
    client = Scripted(given(kc=([96, 128], [1, 1])), given(order=(["n"], [1])), "no idea", "none")
    said = []
    adviser = Adviser(small, client, 2, path=tmp_path / "a.json", say=said.append, spills=lambda v: 0)
    assert adviser.first().choices["kc"].candidates == (128,)
    trials = [({"kc": 128, "order": "n", "parallel": "no"}, 1e-3)]
    assert adviser.expand({"kc": 128}, trials).choices["order"].candidates == ("n",)
    told = client.seen[1].messages[0].content
    assert "kc: 96 is not among" in told and "Decided already" in told and "1 trial so far" in told
    assert adviser.expand({}, trials) is None and any("goes on as it was" in line for line in said)
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["a.1.json", "a.2.json", "a.json"]
    blind = Adviser(small, Scripted(given(order=(["m"], [1]))), history=False)
    assert blind.expand({}, trials) is None
    assert (
        blind.expand({"kc": 128}, trials) is not None and "was measured" not in blind.client.seen[0].messages[0].content
    )


def test_a_client_that_fails_costs_an_expansion_only(tuned):
    class Gone:
        name = "gone"

        def ask(self, request):
            raise LLMError("no answer")

    adviser = Adviser(Tuned(replace(tuned.task, space=SPACE), tuned.line), Gone(), spills=lambda v: 0)
    assert adviser.expand({"kc": 128}, [({"kc": 128, "order": "n", "parallel": "no"}, 1.0)]) is None
    with pytest.raises(LLMError):
        adviser.first()
