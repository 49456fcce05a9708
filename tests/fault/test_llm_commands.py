"""A command against a server that fails: one line, the exit code, in time, and nothing half-written."""

import json
import time

import pytest
from llm_server import answer, broken_json, good, html, send, serving, slow, status, torn

from qimeng_tvm import cli
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.llm.prompts.render import template
from qimeng_tvm.llm.transcript import read_transcript

KEY = "sk-very-secret-0123456789"
ANSWER = template("example_hardware.json.j2")


@pytest.fixture
def describe(tmp_path, monkeypatch, capsys):
    """``qimeng hardware describe`` with a server of these acts: code, standard error, seconds, what it was asked."""
    manual = tmp_path / "manual.md"
    manual.write_text(template("example_hardware.txt.j2"))
    config = tmp_path / "config" / "qimeng" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[llm]\ntimeout = 1.0\nretries = 1\nmax_wait = 2.0\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    out = str(tmp_path / "out" / "new.toml")
    command = ["hardware", "describe", "--manual", str(manual), "--llm", "openai:stub", "--out", out]

    def call(*acts, rounds=1):
        with serving(*acts) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            start = time.monotonic()
            with pytest.raises(SystemExit) as ended:
                cli.main([*command, "--rounds", str(rounds)])
            seconds = time.monotonic() - start
        shown = capsys.readouterr()
        assert KEY not in shown.out + shown.err
        return ended.value.code, shown.err, seconds, server.seen

    call.out = tmp_path / "out"
    return call


@pytest.mark.parametrize(
    ("acts", "attempts", "says"),
    [
        ([status(401)], 1, "401, the key is not accepted: set OPENAI_API_KEY"),
        ([status(403)], 1, "403, the key may not use this model"),
        ([status(404)], 1, "404, no such model or address: check the model's name and OPENAI_BASE_URL"),
        ([status(413)], 1, "413, the request is too long for this model"),
        ([status(429)], 2, "429, too many requests, or the account is used up"),
        ([status(429, [("Retry-After", "3600")])], 1, "it asks to wait 3600 s, longer than the 2 s allowed (max_wait)"),
        ([status(429, [("Retry-After", "soon")])], 2, "429, too many requests"),
        ([status(500)], 2, "500, the server failed"),
        ([status(503)], 2, "(2 attempts)"),
        ([slow], 2, "no answer within 1 s (2 attempts)"),
        ([torn], 2, "the connection failed"),
        ([html], 1, "is OPENAI_BASE_URL the address of the API"),
        ([broken_json], 2, "the answer cannot be read"),
        ([good({"id": "x"})], 1, "not a chat completion"),
        ([good(answer(""))], 2, "the answer is empty"),
    ],
)  # fmt: skip
def test_a_fault_ends_the_command_and_leaves_nothing(describe, acts, attempts, says):
    code, err, seconds, seen = describe(*acts)
    message = err.strip().splitlines()[-1]
    assert code == 1 and message.startswith("qimeng: openai (stub at 127.0.0.1") and says in message
    assert len(seen) == attempts and seconds < 8
    assert not describe.out.exists()


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        (ANSWER[:900], "length", "cut off at the longest length allowed"),
        (ANSWER[:900], "stop", "the answer is not JSON"),
        ("I am sorry, I cannot do that.", "stop", "answer with one JSON object"),
    ],
)
def test_an_answer_that_is_no_profile_ends_it_with_its_transcript_alone(describe, text, reason, says):
    code, err, seconds, seen = describe(good(answer(text, reason)), rounds=2)
    message = err.strip().splitlines()[-1]
    assert code == 1 and "no answer to hardware describe manual.md was right in 2 rounds" in message
    assert says in message and len(seen) == 2 and seconds < 8
    assert sorted(p.name for p in describe.out.iterdir()) == ["new.transcript.json", "new.transcript.log"]
    transcript = read_transcript(describe.out / "new.transcript.json")
    assert [r.truncated for r in transcript.rounds] == [reason == "length"] * 2
    assert KEY not in (describe.out / "new.transcript.log").read_text() + transcript.model_dump_json()


def test_faults_that_pass_are_ridden_out_and_an_interrupted_run_goes_on(describe):
    waits = status(429, [("Retry-After", "1")])
    wrong = answer(json.dumps({**json.loads(ANSWER), "cores": {"value": 56, "quote": "The 8280 has 28 cores on"}}))
    code, err, _, seen = describe(waits, good(wrong), status(500), status(500), rounds=3)
    assert code == 1 and "500, the server failed" in err and len(seen) == 4
    assert not (describe.out / "new.toml").exists()
    # The answered round is not asked again.
    code, err, _, seen = describe(good(answer(ANSWER)), rounds=3)
    assert code == 0 and len(seen) == 1
    assert "cores: 56 is not what its quote says" in seen[0]["body"]["messages"][-1]["content"]
    assert Hardware.load(str(describe.out / "new.toml")).cores == 28
    assert seen[0]["body"]["response_format"]["json_schema"]["schema"]["title"] == "ProfileAnswer"


def test_a_server_without_schemas_is_told_in_words(describe):
    def strict(handler):
        if "response_format" in handler.server.seen[-1]["body"]:
            return status(400)(handler)
        return send(handler, 200, answer(ANSWER))

    code, _, _, seen = describe(strict)
    assert code == 0 and len(seen) == 2
    assert "Answer with JSON of this schema alone" in seen[1]["body"]["messages"][-1]["content"]
