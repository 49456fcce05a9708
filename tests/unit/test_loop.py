"""The loop that has something written: what is asked, what is fed back, what is kept, and how it goes on or repeats."""

import json
from dataclasses import dataclass, field, replace

import pytest

from qimeng_tvm.errors import BudgetError, GenerateError, LLMError, TranscriptError, UsageError
from qimeng_tvm.generate.evaluate import evaluate, summary
from qimeng_tvm.generate.loop import Judged, feedback, replay, write
from qimeng_tvm.generate.produce import produce
from qimeng_tvm.generate.verdict import ACCEPTED
from qimeng_tvm.llm.budget import Budget
from qimeng_tvm.llm.messages import Reply, Usage
from qimeng_tvm.llm.prompts.render import Prompt
from qimeng_tvm.llm.transcript import ReplayClient, read_transcript

STAGES = ("form", "numbers", ACCEPTED)


@dataclass(frozen=True)
class Word:
    """A subject whose answers say themselves what comes of them: ``numbers``, or ``accepted 0.5``."""

    label: str = "intrinsic x86.word"
    machine: str = "a machine"

    @property
    def prompt(self):
        return Prompt("intrinsic", 7, f"Write {self.label}.")

    def judge(self, reply, timed=True):
        stage, _, speed = reply.text.partition(" ")
        score = float(speed or 0) if timed else 0.0
        return Judged(
            stage, STAGES.index(stage), f"it is {reply.text}", f"{reply.text}\n", score, score >= 1.0, "# fast\n"
        )


@dataclass
class Says:
    """A client with prepared answers; keeps what it was asked."""

    answers: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    name: str = "someone"

    def ask(self, request):
        self.asked.append(request)
        if not self.answers:
            raise LLMError("the line is dead")
        return Reply(self.answers.pop(0), "someone", Usage(1, 10, 5))


def test_a_good_first_answer_ends_it():
    client = Says(["accepted 1.0", "never asked"])
    written = write(Word(), client)
    assert len(client.asked) == 1 and written.best.score == 1.0
    assert (
        written.text == "# author: someone, prompt intrinsic@7, 1 round, the answer of round 1\n# fast\naccepted 1.0\n"
    )


def test_what_is_wrong_is_fed_back_with_all_that_was_said():
    client = Says(["numbers", "accepted 1.0"])
    written = write(Word(), client)
    roles = [m.role for m in client.asked[1].messages]
    assert roles == ["user", "assistant", "user"]
    told = client.asked[1].messages[-1].content
    assert told == feedback(Word().judge(Reply("numbers", "")))
    assert "Refused at the stage 'numbers'" in told and "it is numbers" in told and "one Python code block" in told
    assert [r.verdict for r in written.transcript.rounds] == ["numbers", ACCEPTED]
    assert written.transcript.best == 1 and "2 rounds, the answer of round 2" in written.text


def test_the_best_is_kept_not_the_last():
    written = write(Word(), Says(["accepted 0.6", "accepted 0.9", "numbers", "accepted 0.7"]), rounds=4)
    assert written.best.score == 0.9 and written.transcript.best == 1
    assert "Make it faster" in feedback(written.best)


def test_no_good_answer_is_an_error_that_says_what_was_last(tmp_path):
    with pytest.raises(GenerateError, match=r"no answer to intrinsic x86\.word passed the checks in 2 rounds") as error:
        produce(Word(), Says(["form", "numbers"]), tmp_path, rounds=2)
    assert "stopped at numbers: it is numbers" in str(error.value)
    assert not (tmp_path / "tensorize_intrins").exists()
    kept = read_transcript(tmp_path / "transcripts/tensorize_intrins/x86/word.json")
    assert [r.verdict for r in kept.rounds] == ["form", "numbers"] and kept.best == -1


def test_a_beam_goes_on_from_the_better_half():
    client = Says(["numbers", "accepted 0.5", "form", "accepted 0.8"])
    write(Word(), client, rounds=2, beam=2)
    first, second, third, fourth = client.asked
    assert first.sample == 0 and second.sample == 1 and first.digest != second.digest
    # Both lines of the second round go on from the accepted answer.
    assert [m.content for m in third.messages[:2]] == [m.content for m in fourth.messages[:2]]
    assert third.messages[1].content == "accepted 0.5"


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    with pytest.raises(LLMError, match="dead"):
        produce(Word(), Says(["numbers", "form"]), tmp_path, rounds=4)
    client = Says(["accepted 1.0"])
    said = []
    made = produce(Word(), client, tmp_path, rounds=4, say=said.append)
    assert len(client.asked) == 1 and len(client.asked[0].messages) == 5
    assert said[0].startswith("going on from ")
    assert [r.verdict for r in made.written.transcript.rounds] == ["numbers", "form", ACCEPTED]
    assert made.path.read_text().endswith("accepted 1.0\n")
    again = Says(["accepted 2.0"])
    assert produce(Word(), again, tmp_path, restart=True).written.best.score == 2.0 and len(again.asked) == 1


def test_a_budget_ends_it_and_keeps_what_was_got(tmp_path):
    with pytest.raises(BudgetError):
        produce(Word(), Says(["numbers", "accepted 1.0"]), tmp_path, budget=Budget(calls=1))
    kept = read_transcript(tmp_path / "transcripts/tensorize_intrins/x86/word.json")
    assert len(kept.rounds) == 1


def test_replay_gives_the_file_byte_for_byte_and_times_nothing(tmp_path):
    first = produce(Word(), Says(["numbers", "accepted 0.9", "accepted 0.7"]), tmp_path / "a", rounds=3)
    again = produce(Word(), ReplayClient(tmp_path / "a" / "transcripts"), tmp_path / "b")
    assert again.path.read_bytes() == first.path.read_bytes()
    assert again.transcript.read_bytes() == first.transcript.read_bytes()


def test_what_was_kept_is_timed_again_and_told(tmp_path):
    first = produce(Word(), Says(["numbers", "accepted 0.9", "accepted 0.7"]), tmp_path / "a", rounds=3)
    recorded = first.written.transcript

    @dataclass(frozen=True)
    class Elsewhere(Word):
        machine: str = "another machine"

        def judge(self, reply, timed=True):
            judged = super().judge(reply, timed)
            return replace(judged, score=0.5, header="# slow\n", findings="slower") if timed else judged

    again = produce(Elsewhere(), ReplayClient(tmp_path / "a" / "transcripts"), tmp_path / "b", timed=True)
    head, *rest = first.path.read_text().splitlines(keepends=True)
    assert again.path.read_text() == "".join([head, "# slow\n", *rest[1:]])
    told = again.written.transcript
    assert told.machine == "another machine" and told.best == 1 and told.rounds[1].speed == 0.5
    # What the third answer was asked with is what was found then.
    assert told.rounds[1].findings == recorded.rounds[1].findings
    assert (told.rounds[0], told.rounds[2]) == (recorded.rounds[0], recorded.rounds[2])
    assert read_transcript(again.transcript) == told


def test_only_what_is_recorded_is_timed_again(tmp_path):
    with pytest.raises(UsageError, match="--timed times recorded answers"):
        produce(Word(), Says(["accepted 1.0"]), tmp_path, timed=True)


def test_replay_says_when_the_checks_have_become_stricter(tmp_path):
    made = produce(Word(), Says(["accepted 1.0"]), tmp_path)

    @dataclass(frozen=True)
    class Stricter(Word):
        def judge(self, reply, timed=True):
            return Judged("numbers", 1, "no longer right")

    with pytest.raises(TranscriptError, match="stopped at 'accepted' when it was recorded, and at 'numbers' now"):
        replay(Stricter(), read_transcript(made.transcript))


def test_a_task_that_was_never_recorded_names_the_nearest(tmp_path):
    produce(Word(), Says(["accepted 1.0"]), tmp_path)
    with pytest.raises(TranscriptError, match=r"never recorded .*; the nearest is intrinsic x86\.word"):
        produce(Word("intrinsic x86.world"), ReplayClient(tmp_path / "transcripts"), tmp_path / "b")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_lost(tmp_path):
    (tmp_path / "tensorize_intrins").write_text("in the way")
    with pytest.raises(GenerateError, match="give another folder with --out"):
        produce(Word(), Says(["accepted 1.0"]), tmp_path)
    assert read_transcript(tmp_path / "transcripts/tensorize_intrins/x86/word.json").best == 0


class ByTask:
    """Answers by task and sample, whatever the order."""

    name = "someone"

    def __init__(self, answers):
        self.answers = answers

    def ask(self, request):
        task, _, number = request.purpose.partition(", round ")
        number = int(number.split(",", maxsplit=1)[0])
        return Reply(self.answers[task, request.sample][number - 1], "someone", Usage(1, 10, 5))


ONE, TWO = Word("intrinsic x86.one"), Word("intrinsic x86.two")
ANSWERS = {
    (ONE.label, 0): ["accepted 0.5"],
    (ONE.label, 1): ["numbers", "accepted 0.9"],
    (ONE.label, 2): ["accepted 0.7"],
    (TWO.label, 0): ["form", "form"],
    (TWO.label, 1): ["numbers", "form"],
    (TWO.label, 2): ["form", "form"],
}


def test_an_evaluation_counts_what_passed(tmp_path):
    one, two = evaluate([ONE, TWO], ByTask(ANSWERS), tmp_path, samples=3, rounds=2, jobs=3)
    assert one.pass_at(1) == pytest.approx(2 / 3) and one.pass_at(3) == 1.0 and one.score == 0.9
    assert [a.rounds for a in one.attempts] == [1, 2, 1] and all(a.solved for a in one.attempts)
    assert two.pass_at(1) == 0.0 and two.pass_at(3) == 0.0 and not any(a.solved for a in two.attempts)
    assert two.attempts[1].findings == "it is form" and two.attempts[1].prompt_tokens == 20
    total = summary([one, two])
    assert total["tasks"] == 2 and total["samples"] == 6 and total["pass@1"] == pytest.approx(1 / 3)
    assert total["pass@3"] == 0.5 and total["solved"] == 0.5 and total["rounds"] == pytest.approx(4 / 3)
    assert json.loads(json.dumps(one.to_json()))["pass@3"] == 1.0


def test_an_evaluation_is_not_asked_twice_and_replays(tmp_path):
    first = evaluate([ONE, TWO], ByTask(ANSWERS), tmp_path / "a", samples=3, rounds=2)
    assert evaluate([ONE, TWO], Says(), tmp_path / "a", samples=3, rounds=2) == first
    assert evaluate([ONE, TWO], ReplayClient(tmp_path / "a"), tmp_path / "b", samples=3, rounds=2) == first
