"""What a model answered about schedules, as recorded: still read, still allowed by the rules."""

import re
from pathlib import Path

import pytest

from qimeng_tvm.generate.ask import read_json
from qimeng_tvm.generate.proposal import proposal_question, task_of
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.llm import Reply
from qimeng_tvm.llm.transcript import read_transcript
from qimeng_tvm.request import parse

FOLDER = Path(__file__).parents[2] / "transcripts" / "search"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_an_answer_is_read_and_legal(path):
    kept = read_transcript(path)
    rule, line = re.fullmatch(r"proposal (\S+) (.*)", kept.task).groups()
    tuned = task_of(parse(line), Hardware.load("zen5"))
    assert rule == f"{tuned.task.rule.name}@{tuned.task.rule.version}" and kept.model == "offline-exchange"
    question = proposal_question(tuned)
    for number, one in enumerate(kept.rounds):
        if one.verdict == "accepted":
            proposal = question.check(question.form.model_validate(read_json(Reply(one.reply, kept.model))))
            assert proposal.choices and number == kept.best
            assert all(choice.why for choice in proposal.choices.values())
    # The first question tells no times; a later one does.
    assert ("# What was measured" in kept.rounds[0].asked[0].content) == (path.stem.count(".") == 2)


def test_every_operator_of_the_benchmark_has_a_first_answer():
    from qimeng_tvm.bench.search import OPERATORS

    first = [p for p in FOLDER.glob("*.json") if p.stem.count(".") == 1]
    assert len(first) == len(OPERATORS)
