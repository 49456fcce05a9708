"""The facts files: what they say of instructions is what LLVM knows, and tasks are put together of it."""

import re

import pytest
import tvm

from qimeng_tvm.errors import UsageError
from qimeng_tvm.generate.evaluate import machine_for
from qimeng_tvm.generate.fresh import task_of_operands
from qimeng_tvm.generate.tasks import read_facts, task_for, tasks
from qimeng_tvm.hardware import load
from qimeng_tvm.request import parse

PRIMITIVES = {(t.isa, p.name): p for t in tasks().values() for p in t.primitives}
TYPE = r"(?:u?int|b?float)\d+x\d+"
SIGNATURE = re.compile(rf"^{TYPE} = (llvm\.[\w.]+)\({TYPE} \w+(?:, {TYPE} \w+)*\)$")
#: What takes types that TensorIR has no vectors of is told as LLVM's own text.
VECTOR = r"<\d+ x (?:float|bfloat|i\d+)>"
TEXT = re.compile(rf"^{VECTOR} @(llvm\.[\w.]+)\({VECTOR} \w+(?:, {VECTOR} \w+)*\)$")
GOOD = """
[[primitives]]
name = "fma"
mnemonic = "fmla"
llvm = "llvm.fma"
signature = "float32x4 = llvm.fma(float32x4 a, float32x4 b, float32x4 c)"
meaning = "a * b + c"
cycles = "1"
requires = ["neon"]
source = "a manual"

[[tasks]]
module = "neon_f32"
title = "f32"
requires = ["neon"]
dtypes = ["float32", "float32", "float32"]
storage = ["float32", "float32"]
lanes = 4
registers = 32
k_pack = 1
mnemonics = ["fmla"]
primitives = ["fma"]
"""


def test_tasks_on_all_instruction_sets():
    assert {t.isa for t in tasks().values()} == {"x86", "arm", "riscv"}
    assert len(tasks()) >= 20 and all(key == task.key for key, task in tasks().items())


@pytest.mark.parametrize("key", PRIMITIVES, ids="-".join)
def test_a_primitive_is_one_that_llvm_has(key):
    primitive = PRIMITIVES[key]
    found = SIGNATURE.match(primitive.signature) or TEXT.match(primitive.signature)
    assert found, primitive.signature
    assert found[1] == primitive.llvm
    assert tvm.get_global_func("target.llvm_lookup_intrinsic_id")(primitive.llvm) > 0
    assert primitive.meaning and primitive.cycles and primitive.requires
    assert len(primitive.source) > 8, "where it is written"


@pytest.mark.parametrize("key", tasks())
def test_a_task_hangs_together(key):
    task = tasks()[key]
    have = machine_for(task).features
    assert set(task.requires) <= have and all(set(p.requires) <= have for p in task.primitives)
    called = {m for group in task.mnemonics for m in group.split("|")}
    assert any(p.mnemonic in called for p in task.primitives) or task.isa == "riscv", (called, task.primitives)
    assert task.registers in (16, 32) and task.k_pack % task.k_step in (0, task.k_pack)


def test_the_widest_is_chosen_and_names_go_before_types():
    assert task_for(load("zen5"), "u8s8").key == "x86.avx512_vnni_u8s8"
    assert task_for(load("zen3"), "u8s8").key == "x86.avx2_u8s8"
    assert task_for(load("zen3"), "avx512_bf16").key == "x86.avx512_bf16"
    assert task_of_operands(parse("bf16 gemm 8x8x8"), load("zen5")).key == "x86.avx512_bf16"
    with pytest.raises(UsageError, match="no operand type or task 'f8'; types: f32, bf16, u8s8, s8s8; tasks: x86"):
        task_for(load("zen3"), "f8")


def test_a_facts_file_is_read_or_refused():
    (task,) = read_facts(GOOD, "arm")
    assert task.key == "arm.neon_f32" and task.primitives[0].mnemonic == "fmla" and task.k_step == 1
    for text, message in (
        (GOOD.replace('"fma"]', '"fms"]'), "task neon_f32 names primitives fms that are not there"),
        (GOOD.replace("lanes = 4", "lanes = 0"), "lanes"),
        (GOOD.replace('source = "a manual"\n', ""), "source"),
        (GOOD.replace('cycles = "1"', 'cycles = "1"\ncolour = "red"'), "colour"),
        (GOOD + "[[", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=message):
            read_facts(text, "arm")
