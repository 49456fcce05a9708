"""``qimeng prompts``: what is printed is what would be sent."""

import json

from qimeng_tvm.commands.prompts import PROMPTS
from qimeng_tvm.generate.describe import hardware_question
from qimeng_tvm.generate.proposal import proposal_question, task_of
from qimeng_tvm.generate.tasks import task_for
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.hardware.manual import read_manuals
from qimeng_tvm.llm.prompts.render import intrinsic_prompt, names
from qimeng_tvm.request import parse


def schema_of(text):
    """Text and JSON schema of what was printed."""
    prompt, marker, form = text.partition("<!-- form of the answer -->")
    assert marker
    return prompt, json.loads(form.split("```json\n")[1].split("```")[0])


def test_every_template_can_be_listed_and_shown(qimeng):
    assert tuple(PROMPTS) == names()
    done = qimeng("prompts", "list")
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0].split("@") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(names()) and all(int(row[1]) >= 1 for row in rows)


def test_intrinsic_is_printed_as_sent(qimeng):
    done = qimeng("prompts", "show", "intrinsic", "--hardware", "zen5", "--dtype", "bf16")
    assert done.returncode == 0, done.stderr
    machine = Hardware.load("zen5")
    assert done.stdout == intrinsic_prompt(task_for(machine, "bf16"), machine).text


def test_proposal_is_printed_with_its_schema(qimeng):
    line = "f32 GEMM 512x512x512"
    done = qimeng("prompts", "show", "proposal", "--operator", line, "--hardware", "zen3")
    assert done.returncode == 0, done.stderr
    prompt, schema = schema_of(done.stdout)
    question = proposal_question(task_of(parse(line), Hardware.load("zen3")))
    assert question.prompt.text.strip() in prompt and schema == question.schema
    assert "micro_kernel" in schema["properties"]


def test_hardware_is_printed_with_its_schema(qimeng, tmp_path):
    (tmp_path / "a.md").write_text("A core with {{ braces }} and `marks`.\n")
    done = qimeng("prompts", "show", "hardware", "--manual", tmp_path / "a.md")
    assert done.returncode == 0, done.stderr
    prompt, schema = schema_of(done.stdout)
    question = hardware_question(read_manuals([tmp_path / "a.md"]))
    assert question.prompt.text.strip() in prompt and schema == question.schema
    assert "A core with {{ braces }} and `marks`." in prompt
