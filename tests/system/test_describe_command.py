"""``qimeng hardware describe`` by files: a thread plays whoever answers."""

import json
import threading
from contextlib import contextmanager

from qimeng_tvm.llm.prompts.render import template

TEXT = template("example_hardware.txt.j2")
ANSWER = json.loads(template("example_hardware.json.j2"))


@contextmanager
def answering(folder, *answers):
    """Answer the requests that appear in a folder, in turn; yields what they asked."""
    asked, stop = [], threading.Event()

    def play():
        for number, answer in enumerate(answers, start=1):
            request = folder / f"{number:03d}.request.json"
            while not request.exists():
                if stop.wait(0.05):
                    return
            asked.append(json.loads(request.read_text()))
            (folder / f"{number:03d}.reply.md").write_text(answer, encoding="utf-8")

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield asked
    finally:
        stop.set()
        thread.join()


def test_from_manual_to_a_machine_that_commands_know(qimeng, tmp_path):
    manual = tmp_path / "chip-7.md"
    manual.write_text(TEXT)
    wrong = json.dumps({**ANSWER, "cores": {"value": 56, "quote": "The 8280 has 28 cores on one socket"}})
    home = {"XDG_DATA_HOME": str(tmp_path / "data")}
    with answering(tmp_path / "box", wrong, f"```json\n{json.dumps(ANSWER)}\n```\n") as asked:
        done = qimeng(
            "hardware", "describe", "--manual", manual, "--llm", f"exchange:{tmp_path / 'box'}", timeout=120, **home
        )
    assert done.returncode == 0, done.stderr
    assert [len(a["messages"]) for a in asked] == [1, 3] and asked[0]["schema"]["title"] == "ProfileAnswer"
    assert "cores: 56 is not what its quote says" in asked[1]["messages"][-1]["content"]
    assert "Answer with JSON of this schema alone" in (tmp_path / "box" / "001.request.md").read_text()
    profile = tmp_path / "data" / "qimeng_tvm" / "profiles" / "chip_7.toml"
    assert str(profile) in done.stdout.replace("\n", "") and "32 x 512 bits" in done.stdout
    assert sorted(p.name for p in profile.parent.iterdir()) == [
        "chip_7.toml", "chip_7.transcript.json", "chip_7.transcript.log",
    ]  # fmt: skip
    # Other commands know it by name and by path.
    named = qimeng("hardware", "chip-7", "--json", **home)
    assert json.loads(named.stdout)["cores"] == 28, named.stderr
    assert "chip_7" in qimeng("hardware", "--list", **home).stdout.split()
    shown = qimeng("prompts", "show", "intrinsic", "--dtype", "f32", "--hardware", profile)
    assert shown.returncode == 0 and "# Task: " in shown.stdout, shown.stderr
    # What was recorded replays.
    again = qimeng(
        "hardware", "describe", "--manual", manual, "--llm", f"replay:{profile.parent}", "--out", tmp_path / "r.toml"
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "r.toml").read_bytes() == profile.read_bytes()


def test_what_the_text_lacks_is_named(qimeng, tmp_path):
    manual = tmp_path / "chip.md"
    manual.write_text(TEXT.replace("fitted with 64 GB of memory", "fitted with memory"))
    answer = {k: v for k, v in ANSWER.items() if k != "memory_gib"} | {"missing": ["memory_gib"]}
    with answering(tmp_path / "box", json.dumps(answer)):
        done = qimeng(
            "hardware", "describe", "--manual", manual, "--llm", f"exchange:{tmp_path / 'box'}",
            "--out", tmp_path / "chip.toml", timeout=120,
        )  # fmt: skip
    assert done.returncode == 1 and "the manual does not say memory_gib: write what you know" in done.stderr
    assert not (tmp_path / "chip.toml").exists() and (tmp_path / "chip.transcript.json").exists()
