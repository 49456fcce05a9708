"""The allow-list for source and LLVM text from a model: what it refuses, and that it lets good families through."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qimeng_tvm.check.llvm_text import llvm_findings
from qimeng_tvm.check.source import MAX_BYTES, check_source
from qimeng_tvm.generate.answer import code_of
from qimeng_tvm.generate.policy import family_policy
from qimeng_tvm.generate.tasks import tasks
from qimeng_tvm.llm.prompts.render import example

POLICY = family_policy(tasks()["x86.avx2_f32"])
BF16 = family_policy(tasks()["x86.avx512_bf16"])
TESTS = Path(__file__).parents[1]
T = "from tvm.script import tirx as T\nfrom tvm import tirx\n"


@pytest.mark.parametrize("isa", ["x86", "arm"])
def test_the_worked_examples_pass(isa):
    assert check_source(example(isa)[1], POLICY) == ()
    assert check_source(example(isa, "depthwise")[1], family_policy(tasks()["x86.avx2_f32_depthwise"])) == ()


@pytest.mark.parametrize(
    ("file", "task"),
    [("../tensorize_intrins/x86/avx2_bf16", "x86.avx2_bf16"), ("../tensorize_intrins/x86/avx2_int8", "x86.avx2_u8s8")],
)
def test_whole_families_pass(file, task):
    assert check_source((TESTS / f"{file}.py").read_text(), family_policy(tasks()[task])) == ()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import os", "import os is not allowed"),
        ("from os import system", "from os is not allowed"),
        ("from . import secrets", "is not allowed"),
        ("from tvm import relax", "relax is not for import"),
        ("from qimeng_tvm.intrin import *", "is not for import"),
        ("from qimeng_tvm.intrin import registry", "registry is not for import"),
        ("from typing import Any as eval", "eval is Python's own"),
        ("x = ''.__class__", "private"),
        ("x = [].append.__self__", "private"),
        ("x = __builtins__", "not allowed"),
        ("x = eval('1')", "eval is not allowed"),
        ("x = exec", "exec is not allowed"),
        ("x = open('/etc/passwd')", "open is not allowed"),
        ("x = getattr(1, 'real')", "getattr is not allowed"),
        ("x = vars()", "vars is not allowed"),
        ("x = type(1)", "type is not allowed"),
        ("x = undefined_thing", "not defined"),
        ("open = 3", "Python's own"),
        ("def f(open):\n    return open\nx = open('/etc/passwd')", "open is Python's own"),
        ("def exec(x):\n    return x", "Python's own"),
        ("range = 3", "Python's own"),
        (T + "T = 3", "another meaning"),
        (T + "def f(tirx):\n    return tirx", "another meaning"),
        ("gi_frame = 1\nx = (y for y in range(3)).gi_frame", "gi_frame is not allowed"),
        ("class A:\n    def f_globals(self):\n        return 1", "a class is not allowed"),
        ("while True:\n    pass", "while is not allowed"),
        ("try:\n    x = 1\nexcept Exception:\n    x = 2", "try is not allowed"),
        ("def f():\n    global x\n    x = 1", "global is not allowed"),
        ("def f():\n    raise ValueError", "raise is not allowed"),
        ("async def f():\n    pass", "not allowed"),
        ("def f():\n    yield 1", "yield is not allowed"),
        ("x = (y := 3)", "namedexpr is not allowed"),
        ("del x", "delete is not allowed"),
        ("print('x')", "print is not allowed"),
        ("x = '{0.__class__}'.format(1)", "format is not allowed"),
        ("x = 'a__b'", "double underscores"),
        ("x = b'abc'", "bytes"),
        ("x = 1 << 100", "small constant"),
        ("x = 10 ** 10 ** 10", "small constant"),
        ("x = 99999999999999999999", "too large"),
        (T + "x = T.call_packed('os.system', 'ls')", "T.call_packed is not allowed"),
        (T + "x = tirx.call_cpacked('f')", "tirx.call_cpacked is not allowed"),
        (T + "U = T\nx = U.call_packed('a')", "call_packed is not allowed"),
        (T + "x = T.import_module('os')", "not allowed"),
        (T + "x = tirx.call_extern('int32', 'system', 'ls')", "calls system"),
        (T + "n = 'sys' + 'tem'\nx = tirx.call_extern('int32', n, 'ls')", "calls system"),
        (T + "x = tirx.call_llvm_pure_intrin('int32', 'llvm.memcpy', 1)", "llvm.memcpy is not among"),
        (T + "def f(n):\n    return tirx.call_llvm_pure_intrin('int32', n, 1)", "must be a literal"),
        (T + "f = tirx.call_llvm_pure_intrin\nx = f('int32', 'llvm.memcpy', 1)", "may only be called"),
        (T + "x = tirx.call_llvm_pure_intrin(*['int32', 'llvm.memcpy'], 'llvm.fma')", "written out"),
        (T + "x = tirx.call_llvm_pure_intrin('int32', func_name='llvm.memcpy')", "literal text, the second"),
        (T + "x = 'llvm.fma'\nx = 'llvm.memcpy'\ny = tirx.call_llvm_pure_intrin('int32', x)", "must be a literal"),
        (T + "T.attr(0, 'pragma_import_c', 'int main;')", "pragma_import_c is not allowed"),
        (T + "def f(x):\n    T.attr(0, 'pragma_import_llvm', x)", "must be a constant"),
        (T + "L = 'module asm \"nop\"'\ndef f():\n    T.attr(0, 'pragma_import_llvm', L)", "in the LLVM text"),
        ("def f(:\n", "not Python"),
        ("x = 1\0", "zero byte"),
        ("x = " + "(" * 80 + "1" + ")" * 80, ""),
        ("#" * (MAX_BYTES + 1), "are the most"),
        ("x = [" + "1," * 13_000 + "]", "too long"),
        ("x = " + "-" * 70 + "1", "too deep"),
    ],
)  # fmt: skip
def test_what_may_not_stand_in_a_family(source, says):
    findings = check_source(source, POLICY)
    if not says:  # brackets alone are no depth
        assert findings == ()
        return
    assert any(says in str(f) for f in findings), [str(f) for f in findings]


def test_findings_name_the_line():
    assert str(check_source("x = 1\nimport os\n", POLICY)[0]).startswith("line 2: import os")


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_without_an_exception(text):
    check_source(text, POLICY)
    code_of(text)
    list(llvm_findings(text, POLICY.llvm))


GOOD = """
; two k an instruction
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @qimeng_dot(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
"""


def test_a_plain_helper_in_llvm_passes_and_may_be_called():
    assert list(llvm_findings(GOOD, BF16.llvm)) == []
    source = (
        T + f'L = """{GOOD}"""\ndef f(c, a, b):\n    T.attr(0, "pragma_import_llvm", L)\n'
        '    return tirx.call_extern("float32x16", "qimeng_dot", c, a, b)\n'
    )
    assert check_source(source, BF16) == ()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512", "declare i32 @system", "system is declared"),
        ("call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512", "call <16 x float> @system", "system is called"),
        ("%x = bitcast <16 x i32> %a to <32 x bfloat>", 'call void asm sideeffect "nop", ""()', "quoted text"),
        ("%x = bitcast <16 x i32> %a to <32 x bfloat>", "%p = inttoptr i64 4096 to ptr", "reaches outside"),
        ("%x = bitcast <16 x i32> %a to <32 x bfloat>", "%x = load i32, ptr @global", "reaches outside"),
        ("%x = bitcast <16 x i32> %a to <32 x bfloat>", "br label %loop", "br is not allowed"),
        ("%x = bitcast <16 x i32> %a to <32 x bfloat>", "%x = alloca [100000000 x i8]", "alloca is not allowed"),
        ("%x = bitcast <16 x i32> %a to <32 x bfloat>", "loop:", "is not allowed"),
        ("%x = bitcast <16 x i32> %a to <32 x bfloat>", "unreachable", "unreachable is not allowed"),
        ("%x = bitcast <16 x i32> %a to <32 x bfloat>", "%x = call i32 %f()", "call is not allowed"),
        (" alwaysinline", "", "must be alwaysinline"),
        (" alwaysinline", ' alwaysinline "frame-pointer"="all"', "quoted text"),
        (" alwaysinline", " alwaysinline naked", "naked are not allowed"),
        ("@qimeng_dot", "@memcpy", "must be called qimeng_something"),
        ("; two k", "@g = global i32 0\n; two k", "neither a declaration"),
        ("; two k", "@llvm.global_ctors = appending global [0 x i8] undef\n; two k", "neither a declaration"),
        ("; two k", 'module asm "nop"\n; two k', "quoted text"),
        ("; two k", "attributes #0 = { nounwind }\n; two k", "neither a declaration"),
        ("; two k", "!llvm.module.flags = !{}\n; two k", "neither a declaration"),
        ("  ret <16 x float> %r\n}", "  ret <16 x float> %r", "not closed"),
        ("define <16 x float>", "define available_externally <16 x float>", "linkage"),
    ],
)  # fmt: skip
def test_what_may_not_stand_in_llvm_text(old, new, says):
    assert old in GOOD
    found = list(llvm_findings(GOOD.replace(old, new, 1), BF16.llvm))
    assert any(says in f for f in found), found


ASM = """
define <16 x float> @qimeng_dot(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %r = call <16 x float> asm "vdpbf16ps $3, $2, $0", "=v,0,v,v"(<16 x float> %c, <16 x i32> %a, <16 x i32> %b)
  ret <16 x float> %r
}
"""


def test_inline_assembly_is_for_those_who_allow_it():
    task = tasks()["x86.avx512_bf16"]
    assert any("quoted text" in f for f in llvm_findings(ASM, BF16.llvm, BF16.asm))
    allowed = family_policy(replace(task, inline_asm=True)).asm
    assert allowed == {"vdpbf16ps"} and list(llvm_findings(ASM, BF16.llvm, allowed)) == []
    hidden = ASM.replace('"vdpbf16ps $3, $2, $0", "=v,0,v,v"', 'sideeffect "", "=v,0,v,v"')
    assert list(llvm_findings(hidden, BF16.llvm, allowed)) == []
    arm = ASM.replace("vdpbf16ps $3, $2, $0", "fmla ${0:v}.4s, $2.4s, $3.s[0]").replace("=v,0,v,v", "=w,0,w,w")
    assert list(llvm_findings(arm, (), {"fmla"})) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("vdpbf16ps $3", "vmovups $3", "one instruction (vdpbf16ps)"),
        ("vdpbf16ps $3, $2, $0", "syscall", "one instruction"),
        ("vdpbf16ps $3, $2, $0", "vdpbf16ps $3, $2, $0\\0Asyscall", "one instruction"),
        ("vdpbf16ps $3, $2, $0", "vdpbf16ps $3, $2, $0; syscall", "quoted text"),
        ("vdpbf16ps $3, $2, $0", "vdpbf16ps (%rsp), $2, $0", "one instruction"),
        ("vdpbf16ps $3, $2, $0", "vdpbf16ps %zmm1, $2, $0", "one instruction"),
        ("=v,0,v,v", "=v,0,v,*m", "registers only"),
        ("=v,0,v,v", "=v,0,v,v,~{memory}", "registers only"),
        ("=v,0,v,v", "={rax},0,v,v", "registers only"),
        ("asm ", "asm inteldialect ", "quoted text"),
        ("<16 x i32> %b)\n", "ptr @system)\n", "quoted text"),
        ("define", 'module asm "vdpbf16ps $3, $2, $0"\ndefine', "quoted text"),
    ],
)  # fmt: skip
def test_what_inline_assembly_may_not_be(old, new, says):
    assert old in ASM
    found = list(llvm_findings(ASM.replace(old, new, 1), BF16.llvm, {"vdpbf16ps"}))
    assert any(says in f for f in found), found


def test_long_llvm_text_is_refused():
    assert any("are the most" in f for f in llvm_findings(GOOD * 100, BF16.llvm))


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("no code at all, sorry", "no code block"),
        ("```python\nx = 1\n```\nand\n```python\ny = 2\n```", "2 code blocks"),
        ("```c\nint x;\n```", "a block of c"),
        ("```python\nx = 1\n", "ends within"),
        ("```python\n\n```", "empty"),
        ("```bash\nls\n```\n```python\nx = 1\n```", "a block of bash"),
        ("x" * 200_001, "are the most"),
    ],
)
def test_replies_that_hold_no_code(reply, problem):
    answer = code_of(reply)
    assert not answer.source and problem in answer.problem


def test_replies_that_hold_code():
    assert code_of("Sure:\n```python\nx = 1\n```\nDone.").source == "x = 1\n"
    assert code_of("~~~\nx = 1\n~~~").source == "x = 1\n"
    assert code_of('````py\ny = """```"""\n````').source == 'y = """```"""\n'
    assert "ends within" in code_of("```python\nx = 1\n```", truncated=True).problem
