"""The openai client against a server that fails: the message, the number of attempts, the time."""

import json
import time
from email.utils import formatdate

import pytest
from llm_server import answer, broken_json, good, html, send, serving, slow, status, torn

from qimeng_tvm.errors import BudgetError, LLMError, QimengError
from qimeng_tvm.llm import Budget, Message, Metered, Request
from qimeng_tvm.llm.openai_client import OpenAIClient
from qimeng_tvm.llm.settings import Endpoint

KEY = "sk-very-secret-0123456789"
REQUEST = Request("test", (Message("user", "say hello"),))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def client(server, *, retries=2, timeout=5.0, max_wait=5.0):
    waits = []
    made = OpenAIClient(
        Endpoint("stub", server.url, KEY, timeout, retries, max_wait), sleep=waits.append, jitter=lambda: 1.0
    )
    return made, waits


def test_a_good_answer_and_what_was_sent():
    with serving(good()) as server:
        made, waits = client(server)
        reply = made.ask(REQUEST)
    assert (reply.text, reply.model, reply.truncated) == ("hello", "stub-1", False)
    assert (reply.usage.calls, reply.usage.prompt_tokens, reply.usage.completion_tokens) == (1, 7, 3)
    seen = server.seen[0]
    assert seen["path"] == "/v1/chat/completions" and seen["authorization"] == f"Bearer {KEY}"
    assert (
        seen["body"]["messages"] == [{"role": "user", "content": "say hello"}] and "response_format" not in seen["body"]
    )
    assert not waits and KEY not in repr(made)


@pytest.mark.parametrize(
    ("acts", "attempts", "says"),
    [
        ([status(401)], 1, "OPENAI_API_KEY"),
        ([status(403)], 1, "may not use"),
        ([status(404)], 1, "OPENAI_BASE_URL"),
        ([status(400)], 1, "stub says 400"),
        ([status(429)], 3, "too many requests"),
        ([status(500)], 3, "the server failed"),
        ([status(503)], 3, "(3 attempts)"),
        ([html], 1, "please log in"),
        ([broken_json], 3, "cannot be read"),
        ([torn], 3, "connection failed"),
        ([good(answer(""))], 3, "empty"),
        ([good(answer("", "length"))], 1, "finish reason length"),
        ([good({"id": "x"})], 1, "not a chat completion"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_after_the_attempts_it_deserves(acts, attempts, says):
    with serving(*acts) as server:
        made, _ = client(server)
        with pytest.raises(LLMError) as caught:
            made.ask(REQUEST)
    message = str(caught.value)
    assert says in message and "\n" not in message and KEY not in message
    assert len(server.seen) == attempts
    assert isinstance(caught.value, QimengError) and caught.value.exit_code == 1


@pytest.mark.parametrize("fault", [status(500), status(429), torn, broken_json])
def test_a_fault_that_passes_is_ridden_out(fault):
    with serving(fault, fault, good()) as server:
        made, waits = client(server)
        assert made.ask(REQUEST).text == "hello"
    assert waits == [1.0, 2.0]


def test_the_server_says_how_long_to_wait():
    with serving(status(429, [("Retry-After", "3")]), good()) as server:
        made, waits = client(server)
        assert made.ask(REQUEST).text == "hello"
    assert waits == [3.0]
    with serving(status(429, [("Retry-After", "3600")])) as server:
        made, waits = client(server)
        with pytest.raises(LLMError, match="3600 s, longer than the 5 s allowed"):
            made.ask(REQUEST)
    assert not waits and len(server.seen) == 1


@pytest.mark.parametrize(
    ("header", "waited"),
    [("0", 0.0), ("-5", 0.0), ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0), ("nan", 1.0), ("inf", 1.0), ("soon", 1.0)],
)
def test_an_odd_wish_for_a_wait_is_no_trouble(header, waited):
    with serving(status(429, [("Retry-After", header)]), good()) as server:
        made, waits = client(server)
        assert made.ask(REQUEST).text == "hello"
    assert waits == [waited]


def test_the_server_may_name_a_date():
    late = formatdate(time.time() + 3600, usegmt=True)
    with serving(status(503, [("Retry-After", late)])) as server:
        made, waits = client(server)
        with pytest.raises(LLMError, match=r"it asks to wait (3600|35\d\d) s, longer"):
            made.ask(REQUEST)
    assert not waits


def test_a_server_that_trickles_is_given_up_in_time():
    with serving(slow) as server:
        made, _ = client(server, retries=1, timeout=0.5)
        start = time.monotonic()
        with pytest.raises(LLMError, match=r"no answer within 0\.5 s \(2 attempts\)"):
            made.ask(REQUEST)
    assert time.monotonic() - start < 5


def test_nobody_listens():
    with serving(good()) as server:
        made, _ = client(server, retries=1)
    with pytest.raises(LLMError, match="connection failed"):
        made.ask(REQUEST)


def test_a_truncated_answer_says_so():
    with serving(good(answer("half of", "length"))) as server:
        reply = client(server)[0].ask(REQUEST)
    assert reply.text == "half of" and reply.truncated


def test_a_schema_is_asked_for_and_in_words_where_the_server_knows_none():
    request = Request("test", REQUEST.messages, schema=SCHEMA)

    def strict(h):
        if "response_format" in h.server.seen[-1]["body"]:
            return status(400)(h)
        return send(h, 200, answer('{"a": 1}'))

    with serving(good(answer('{"a": 1}'))) as server:
        client(server)[0].ask(request)
    assert server.seen[0]["body"]["response_format"]["json_schema"]["schema"] == SCHEMA
    with serving(strict) as server:
        made, _ = client(server)
        assert made.ask(request).text == '{"a": 1}'
        made.ask(request)
    assert [("response_format" in s["body"]) for s in server.seen] == [True, False, False]
    assert json.dumps(SCHEMA, indent=1) in server.seen[1]["body"]["messages"][-1]["content"]


def test_the_budget_stops_between_answers_and_the_log_has_no_texts(tmp_path):
    log = tmp_path / "log" / "llm.jsonl"
    with serving(good()) as server:
        made = Metered(client(server)[0], Budget(tokens=15, prompt_price=1e6, completion_price=2e6), log)
        made.ask(REQUEST)
        made.ask(REQUEST)
        with pytest.raises(BudgetError, match="20 of 15 tokens"):
            made.ask(REQUEST)
        assert Budget(money=12.0, prompt_price=1e6, completion_price=2e6).spent(made.usage) == "26 of 12 money"
        assert "calls" in Budget(calls=2).spent(made.usage)
    lines = log.read_text().splitlines()
    assert len(lines) == 2 and '"cost": 13.0' in lines[0]
    assert KEY not in log.read_text() and "say hello" not in log.read_text()
