"""Clients without a server: exchange by files, replay of transcripts, settings."""

import json
import os
import threading
import time

import pytest

from qimeng_tvm.errors import LLMError, TranscriptError, UsageError
from qimeng_tvm.llm import Message, Request, choose_client
from qimeng_tvm.llm.exchange import ExchangeClient
from qimeng_tvm.llm.settings import budget_of, endpoint
from qimeng_tvm.llm.transcript import ReplayClient, Round, Transcript, read_transcript, said

REQUEST = Request("intrinsic x86.avx2_f32, round 1", (Message("user", "write it"),), key="k1")


def put(path, text, age=10.0):
    path.write_text(text, encoding="utf-8")
    then = time.time() - age
    os.utime(path, (then, then))


def test_exchange_writes_what_to_paste_and_takes_the_answer(tmp_path):
    told = []
    client = ExchangeClient(tmp_path / "box", timeout=20, say=told.append, poll=0.02)

    def answer():
        while not (tmp_path / "box" / "001.request.json").exists():
            time.sleep(0.02)
        put(tmp_path / "box" / "001.reply.md", "here\n")

    thread = threading.Thread(target=answer)
    thread.start()
    reply = client.ask(REQUEST)
    thread.join()
    assert (reply.text, reply.model, reply.usage.calls) == ("here\n", "offline-exchange", 1)
    assert (tmp_path / "box" / "001.request.md").read_text() == "write it\n"
    assert len(told) == 1 and "001.reply.md" in told[0]
    # A second run finds the answer; another request gets another number.
    assert ExchangeClient(tmp_path / "box", timeout=0).ask(REQUEST).text == "here\n"
    longer = Request("round 2", (*REQUEST.messages, Message("assistant", "x"), Message("user", "wrong")))
    with pytest.raises(LLMError, match=r"002\.reply\.md after 0 s.*same command again"):
        ExchangeClient(tmp_path / "box", timeout=0, poll=0).ask(longer)
    text = (tmp_path / "box" / "002.request.md").read_text()
    assert "<!-- assistant -->" in text and text.rstrip().endswith("wrong")
    record = json.loads((tmp_path / "box" / "002.request.json").read_text())
    assert record["digest"] == longer.digest and record["messages"][0] == {"role": "user", "content": "write it"}


def test_exchange_does_not_take_half_an_answer_or_an_empty_one(tmp_path):
    client = ExchangeClient(tmp_path, timeout=0.05, poll=0.01)
    put(tmp_path / "001.reply.md", "  \n")
    with pytest.raises(LLMError):
        client.ask(REQUEST)
    put(tmp_path / "001.reply.md", "half", age=0)
    with pytest.raises(LLMError):
        client.ask(REQUEST)
    (tmp_path / "001.reply.md").write_bytes(b"\xff\xfe\x00")
    os.utime(tmp_path / "001.reply.md", (0, 0))
    with pytest.raises(LLMError, match="UTF-8"):
        client.ask(REQUEST)


def test_exchange_folder_faults(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMError, match="cannot use the exchange folder"):
        ExchangeClient(tmp_path / "file", timeout=0).ask(REQUEST)
    put(tmp_path / "001.request.json", "{")
    with pytest.raises(LLMError, match="not JSON"):
        ExchangeClient(tmp_path, timeout=0).ask(REQUEST)


def recorded(folder, request, reply):
    one = Round(
        purpose=request.purpose, key=request.key, digest=request.digest, asked=said(request.messages), reply=reply
    )
    transcript = Transcript(task="intrinsic x86.avx2_f32", prompt="intrinsic@1", model="someone", rounds=(one,), best=0)
    transcript.write(folder / "x86" / "avx2_f32.json")
    return transcript


def test_replay_answers_what_was_recorded_and_names_the_nearest_else(tmp_path):
    written = recorded(tmp_path, REQUEST, "the answer")
    assert read_transcript(tmp_path / "x86" / "avx2_f32.json") == written
    client = ReplayClient(tmp_path)
    reply = client.ask(REQUEST)
    assert (reply.text, reply.model) == ("the answer", "someone")
    # Another machine's figures in the text, the same place in the conversation.
    assert client.ask(Request("p", (Message("user", "write it, 97 %"),), key="k1")).text == "the answer"
    changed = Request(REQUEST.purpose, (Message("user", "write it well"),), key="k2")
    with pytest.raises(
        TranscriptError, match=r"never recorded: intrinsic x86.avx2_f32, round 1 in .* with another prompt"
    ):
        client.ask(changed)
    with pytest.raises(TranscriptError, match="is nearest"):
        client.ask(Request("intrinsic x86.avx2_bf16, round 1", (Message("user", "w"),)))
    with pytest.raises(TranscriptError, match="never recorded in"):
        client.ask(Request("zzz", (Message("user", "w"),)))


def test_a_damaged_transcript_is_named(tmp_path):
    recorded(tmp_path, REQUEST, "the answer")
    path = tmp_path / "x86" / "avx2_f32.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(TranscriptError, match=r"avx2_f32\.json is not a transcript"):
        ReplayClient(tmp_path)
    with pytest.raises(TranscriptError, match="no transcripts"):
        ReplayClient(tmp_path / "none")


def test_clients_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    assert choose_client(f"exchange:{tmp_path}").name == f"exchange ({tmp_path})"
    assert choose_client("openai:big-1").name == "openai (big-1 at api.openai.com)"
    assert choose_client("openai:big@2@http://127.0.0.1:1/v1").name == "openai (big@2 at 127.0.0.1:1/v1)"
    recorded(tmp_path, REQUEST, "a")
    assert choose_client(f"replay:{tmp_path}").name.startswith("replay")
    for text, message in (("exchange", "needs a folder"), ("claude", "no client"), ("exchange:", "needs a folder")):
        with pytest.raises(UsageError, match=message):
            choose_client(text)


def test_a_budget_is_read_or_refused(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("[llm]\ntokens = 7\nprompt_price = 2.0\n")
    found = budget_of("calls=20, money=1.5", config=config)
    assert (found.calls, found.tokens, found.money, found.prompt_price) == (20, 7, 1.5, 2.0)
    for text in ("20", "calls", "calls=", "calls=-1", "calls=nan", "money=inf", "pence=3", "calls=1;money=2"):
        with pytest.raises(UsageError, match=r"is no limit; say for instance calls=20,tokens=200000,money=1\.5"):
            budget_of(text, config=config)


def test_settings_options_before_environment_before_file(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[llm]\nmodel = "file-model"\nbase_url = "http://user:pw@file:1/v1"\nretries = 1\ncalls = 9\n')
    none = endpoint(config=config, environment={})
    assert (none.model, none.host, none.retries, none.api_key) == ("file-model", "file:1/v1", 1, "")
    env = {"OPENAI_MODEL": "env-model", "OPENAI_API_KEY": "sk-env", "OPENAI_BASE_URL": "http://env/v1"}
    assert endpoint(config=config, environment=env).model == "env-model"
    given = endpoint("mine", "http://opt/v1", config=config, environment=env)
    assert (given.model, given.host, given.api_key) == ("mine", "opt/v1", "sk-env")
    assert "sk-env" not in repr(given)
    assert budget_of(config=config).calls == 9 and budget_of("calls=2", config=config).calls == 2
    missing = tmp_path / "none.toml"
    with pytest.raises(LLMError, match="no model is named"):
        endpoint(config=missing, environment={"OPENAI_API_KEY": "k"})
    with pytest.raises(LLMError, match="no key"):
        endpoint("m", config=missing, environment={})
    for text, message in (
        ("[llm]\nmodle = 1\n", "llm.modle"),
        ("[llm", "cannot read"),
        ("[llm]\ntimeout = 0\n", "llm.timeout"),
    ):
        config.write_text(text)
        with pytest.raises(UsageError, match=message):
            endpoint("m", config=config, environment={})
