"""A machine out of a manual: what is taken from an answer, what is sent back, what ends the conversation."""

import copy
import json

import pytest

from qimeng_tvm.errors import BudgetError, GenerateError, HardwareError, UsageError
from qimeng_tvm.generate.describe import describe_manual, hardware_question
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.hardware.manual import MAX_CHARACTERS, Manual, read_manuals
from qimeng_tvm.llm import Budget, Reply, Usage
from qimeng_tvm.llm.prompts.render import template
from qimeng_tvm.llm.transcript import ReplayClient, read_transcript

TEXT = template("example_hardware.txt.j2")
ANSWER = json.loads(template("example_hardware.json.j2"))
MANUALS = (Manual("8280.md", TEXT),)


class Scripted:
    """Answers what it was told to, in turn."""

    name = "scripted"

    def __init__(self, *answers, truncated=False):
        self.answers = [a if isinstance(a, str) else json.dumps(a) for a in answers]
        self.truncated, self.seen = truncated, []

    def ask(self, request):
        self.seen.append(request)
        return Reply(self.answers.pop(0), "script-1", Usage(1, 100, 10), self.truncated)


def changed(**fields):
    """The right answer with other fields; None takes one away."""
    answer = copy.deepcopy(ANSWER) | fields
    return {k: v for k, v in answer.items() if v is not None}


def refused(tmp_path, answer, **more):
    """What is said to one wrong answer."""
    client = Scripted(answer, **more)
    with pytest.raises(GenerateError, match="was right in 1 round"):
        describe_manual(MANUALS, client, out=tmp_path / "x.toml", rounds=1)
    assert not (tmp_path / "x.toml").exists()
    transcript = read_transcript(tmp_path / "x.transcript.json")
    assert transcript.best == -1
    return transcript.rounds[-1]


def test_the_worked_example_is_the_shipped_profile(tmp_path):
    done = describe_manual(MANUALS, Scripted(ANSWER), name="cascade_lake", out=tmp_path / "new.toml")
    assert done.hardware == Hardware.load("cascade_lake") == Hardware.load(str(tmp_path / "new.toml"))
    text = done.path.read_text()
    assert '# "their vector unit has thirty-two 512-bit registers (ZMM0-ZMM31)"\nvector_registers = 32\n' in text
    assert '    # "AVX512_VNNI, next to AVX2 and FMA"\n    "fma",\n' in text
    assert "# Read out of 8280.md" in text and "script-1, prompt hardware@1, 1 round" in text
    transcript = read_transcript(done.transcript)
    assert transcript.best == 0 and transcript.rounds[0].verdict == "accepted" and transcript.rounds[0].asked
    # The same conversation replays, and goes on where it was instead of asking again.
    replay = ReplayClient(tmp_path)
    assert describe_manual(MANUALS, replay, name="cascade_lake", out=tmp_path / "again.toml").hardware == done.hardware
    describe_manual(MANUALS, Scripted(), name="cascade_lake", out=tmp_path / "new.toml")
    assert done.path.read_text() == text
    client = Scripted(ANSWER)
    describe_manual(MANUALS, client, name="cascade_lake", out=tmp_path / "new.toml", restart=True)
    assert len(client.seen) == 1


def test_by_default_the_name_is_the_texts_and_the_place_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    done = describe_manual((Manual("my chip-8280.md", TEXT),), Scripted(ANSWER))
    assert done.path == tmp_path / "qimeng_tvm" / "profiles" / "my_chip_8280.toml"
    assert done.hardware.name == "Cascade Lake"
    assert Hardware.load("My-Chip-8280") == done.hardware
    with pytest.raises(HardwareError, match="my_chip_8280"):
        Hardware.load("nothing")
    for name, says in (("zen5", "there is a shipped profile zen5"), ("host", "shipped"), ("../x", "cannot be called")):
        with pytest.raises(UsageError, match=says):
            describe_manual(MANUALS, Scripted(), name=name)
    with pytest.raises(UsageError, match=r"--out .*p\.txt\.toml"):
        describe_manual(MANUALS, Scripted(), out=tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cores": {"value": 28, "quote": "The 8280 has 28 cores in each socket"}}, "is not in the manual"),
        ({"cores": {"value": 56, "quote": "The 8280 has 28 cores on one socket"}}, "cores: 56 is not what its quote"),
        ({"cores": {"value": 28, "quote": "28 cores"}}, "too short"),
        # 32 KB are no 32 registers, 512 bits are no 512 KiB, and 31 is the last one's name.
        ({"vector_registers": {"value": 32, "quote": "| L1 data | 32 KB | 8-way, 64-byte"}}, "vector_registers"),
        ({"vector_registers": {"value": 31, "quote": "thirty-two 512-bit registers (ZMM0-ZMM31)"}}, "vector_registers"),
        ({"vector_bits": {"value": 256, "quote": "thirty-two 512-bit registers"}}, "vector_bits: 256 bits is not"),
        ({"memory_gib": {"value": 128, "quote": "was fitted with 64 GB of memory"}}, "memory_gib: 128 GiB"),
        ({"name": {"value": "Ice Lake", "quote": "Cores of the Cascade Lake generation"}}, "name: 'Ice Lake'"),
        ({"cpu": {"value": "cascade-lake", "quote": "Cores of the Cascade Lake generation"}}, "near: cascadelake"),
        ({"features": [{"value": "avx512-vnni", "quote": "VL instructions and AVX512_VNNI"}]}, "near: avx512vnni"),
        ({"caches": [ANSWER["caches"][0] | {"kib": {"value": 48, "quote": "| L1 data | 32 KB | 8-way"}}]}, "48 KiB"),
        ({"caches": [ANSWER["caches"][0] | {"level": {"value": 2, "quote": "| L1 data | 32 KB | 8-way"}}]}, "level: 2"),
        ({"caches": [ANSWER["caches"][0], ANSWER["caches"][0]]}, "one per level"),
        ({"cores": None}, "cores: left out; answer with value and quote, or name it in missing"),
        ({"cores": None, "caches": [], "missing": ["cores"]}, "caches: left out"),
    ],
)  # fmt: skip
def test_what_the_manual_does_not_say_is_refused(tmp_path, fields, says):
    told = refused(tmp_path, changed(**fields))
    assert told.verdict == "check" and says in told.findings


@pytest.mark.parametrize(
    ("reply", "stage", "says"),
    [
        ("The chip has 28 cores and two threads each.", "json", "not JSON: answer with one JSON object"),
        (json.dumps(ANSWER)[:-40], "json", "not JSON: Unterminated string"),
        ("```json\n" + json.dumps(ANSWER)[:-40], "json", "ends within the code block"),
        ('{"cores": 1, "cores": 2}', "json", "'cores' is given twice"),
        ('{"cores": NaN}', "json", "NaN is not a number"),
        ('{"a":' + "[" * 150_000, "json", "not JSON: maximum recursion"),
        ('{"a": ' + "1" * 10_000 + "}", "json", "not JSON: Exceeds the limit"),
        ("{" + " " * 300_000, "json", "200000 are the most"),
        ("```python\nprint(1)\n```", "json", "block of python"),
        (json.dumps([ANSWER]), "json", "one JSON object"),
        (json.dumps(changed(cores=28)), "form", "cores: "),
        (json.dumps(changed(cores={"value": "28", "quote": "has 28 cores on"})), "form", "cores.value: "),
        (json.dumps(changed(cores={"value": 28})), "form", "cores.quote: Field required"),
        (json.dumps(changed(clock={"value": 3, "quote": "3 GHz"})), "form", "clock: Extra inputs"),
        (json.dumps(changed(isa={"value": "mips", "quote": "Intel 64 processors"})), "form", "isa.value: "),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path, reply, stage, says):
    told = refused(tmp_path, reply)
    assert told.verdict == stage and says in told.findings
    assert len(told.findings) < 2000


def test_a_truncated_answer_is_told_so(tmp_path):
    assert "cut off" in refused(tmp_path, ANSWER, truncated=True).findings


def test_what_is_wrong_is_fed_back_until_it_is_right(tmp_path):
    wrong = changed(cores={"value": 56, "quote": "The 8280 has 28 cores on one socket"})
    client = Scripted("Sure, I can help.", wrong, f"Here it is:\n\n```json\n{json.dumps(ANSWER)}\n```\n")
    told = []
    done = describe_manual(MANUALS, client, out=tmp_path / "x.toml", rounds=3, say=told.append)
    assert done.hardware.cores == 28 and "3 rounds" in done.path.read_text()
    assert [len(r.messages) for r in client.seen] == [1, 3, 5] and len({r.key for r in client.seen}) == 3
    assert "cores: 56 is not what its quote says (1, 28, 8280: " in client.seen[2].messages[-1].content
    assert [r.verdict for r in read_transcript(done.transcript).rounds] == ["json", "check", "accepted"]
    # A round's transcript holds what the request added alone, and together they are the conversation.
    asked = [s for r in read_transcript(done.transcript).rounds for s in r.asked]
    assert [s.role for s in asked] == ["user", "user", "user"] and len(told) == 3
    log = (tmp_path / "x.transcript.log").read_text()
    assert log.count("\n") == 3 and '"prompt_tokens": 100' in log


def test_fields_that_the_text_does_not_say_are_named_to_the_user(tmp_path):
    without = TEXT.replace("The machine described here was fitted with 64 GB of memory.", "")
    answer = changed(memory_gib=None, cores=None, missing=["memory_gib", "cores"])
    client = Scripted(answer)
    with pytest.raises(HardwareError, match=r"does not say cores, memory_gib: write .* --manual NOTES"):
        describe_manual((Manual("m.md", without),), client, out=tmp_path / "x.toml", rounds=4)
    assert len(client.seen) == 1 and not (tmp_path / "x.toml").exists()
    assert read_transcript(tmp_path / "x.transcript.json").rounds[0].verdict == "check"
    # What the user knows goes into a text of its own, and is quoted like the rest.
    notes = Manual("notes.txt", "This machine has 64 GB of memory.")
    answer = changed(memory_gib={"value": 64, "quote": "This machine has 64 GB of memory."})
    done = describe_manual((Manual("m.md", without), notes), Scripted(answer), out=tmp_path / "y.toml")
    assert done.hardware.memory_bytes == 64 << 30 and "m.md, notes.txt" in done.path.read_text()


def test_text_of_a_manual_cannot_become_an_entry(tmp_path):
    evil = "# a note\ncores = 4096\n\u2028vector_bits = 8 has \x85 28 cores"
    manual = Manual("a\nb.md", TEXT + evil)
    answer = changed(cores={"value": 28, "quote": "vector_bits = 8 has \x85 28 cores"})
    done = describe_manual((manual,), Scripted(answer), out=tmp_path / "x.toml")
    assert done.hardware.cores == 28 and done.hardware.vector_bits == 512
    answer = changed(name={"value": 'x"\ncores = 9 \u2028', "quote": 'is called x"\ncores = 9 \u2028 by all'})
    manual = Manual("m.md", TEXT + 'It is called x"\ncores = 9 \u2028 by all.')
    done = describe_manual((manual,), Scripted(answer), out=tmp_path / "y.toml")
    assert done.hardware.cores == 28 and done.hardware.name.startswith('x" cores = 9')


def test_the_budget_stops_it(tmp_path):
    with pytest.raises(BudgetError, match="1 of 1 calls"):
        describe_manual(MANUALS, Scripted("no", ANSWER), out=tmp_path / "x.toml", budget=Budget(calls=1))
    assert not (tmp_path / "x.toml").exists()


def test_another_manual_is_another_question():
    first, other = hardware_question(MANUALS), hardware_question((Manual("8280.md", TEXT + " More."),))
    assert first.request().key != other.request().key and first.request().digest != other.request().digest
    named = hardware_question(MANUALS, "zork").prompt.text
    assert "is called zork" in named and "- `name`" not in named
    assert "- `name` (*)" in first.prompt.text and TEXT.strip() in first.prompt.text


def test_manuals_are_text_of_bounded_size(tmp_path):
    cases = {
        "none.md": (None, "cannot read the manual"),
        "empty.md": (b" \n", "is empty"),
        "a.pdf": (b"%PDF-1.7 ...", "pdftotext"),
        "latin.txt": ("Größe".encode("latin-1"), "not UTF-8 text"),
        "zero.txt": (b"a\0b", "not UTF-8 text"),
        "long.txt": (b"x" * (MAX_CHARACTERS + 1), f"{MAX_CHARACTERS} are the most: give the chapters"),
    }
    for name, (data, says) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=says):
            read_manuals([tmp_path / name])
    (tmp_path / "half.txt").write_bytes(b"x" * (MAX_CHARACTERS // 2 + 1))
    with pytest.raises(UsageError, match="are the most"):
        read_manuals([tmp_path / "half.txt"] * 2)
    (tmp_path / "good.txt").write_text("\ufeff32 registers\n", encoding="utf-8")
    assert read_manuals([tmp_path / "good.txt"]) == (Manual("good.txt", "32 registers\n"),)
