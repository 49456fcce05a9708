"""What LLVM IR from a model may say: declarations of allowed intrinsics, and straight-line functions made of them.

No module assembly, no globals, no calls out, no branches, no addresses made from numbers. Inline assembly only where it
is allowed, and then one named instruction at a time, on registers alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator

MAX_LINES = 400
#: Instructions that compute values from values.
_VALUES = frozenset(
    "bitcast add sub mul fadd fsub fmul fneg and or xor shl lshr ashr trunc zext sext fptrunc fpext sitofp uitofp "
    "fptosi fptoui shufflevector insertelement extractelement select icmp fcmp freeze".split()
)
#: Instructions that touch memory through a pointer that the function was given.
_MEMORY = frozenset("load store getelementptr".split())
_DECLARE = re.compile(r"^declare\s+(?P<type>[^@]+?)\s*@(?P<name>[\w.]+)\s*\((?P<args>[^()]*)\)\s*(?P<rest>[#\w\s]*)$")
_DEFINE = re.compile(r"^define\s+(?P<before>[^@]*)@(?P<name>[\w.]+)\s*\((?P<args>[^()]*)\)\s*(?P<rest>[^{]*)\{$")
_CALL = re.compile(r"^(?:%[\w.]+\s*=\s*)?(?:tail\s+|musttail\s+|notail\s+)?call\s+[^@(]*@(?P<name>[\w.]+)\s*\(")
_VALUE = re.compile(r"^%[\w.]+\s*=\s*(?P<code>[a-z]+)\b")
_ASM = re.compile(
    r'^(?:%[\w.]+\s*=\s*)?(?:tail\s+)?call\s+[^"@]*?\basm\s+(?:sideeffect\s+)?"(?P<text>[^"]*)"\s*,\s*'
    r'"(?P<constraints>[^"]*)"\s*\([^"@]*\)[\w\s():,]*$'
)
#: An instruction on the operands of its asm alone: no memory, no registers by name, nothing behind it.
_OPERAND = r"(?:\$\d+|\$\{\d+(?::\w)?\})(?:\.\w+(?:\[\d+\])?)?"
_INSTRUCTION = re.compile(rf"(?P<name>[a-z][\w.]*)\s+{_OPERAND}(?:\s*,\s*{_OPERAND})*")
#: Registers (x86: v, x, r; AArch64: w; RISC-V: vr), an operand that is another one too, flags.
_CONSTRAINT = re.compile(r"=?&?(?:v|x|w|r|vr)|\d|~\{(?:dirflag|fpsr|flags)\}")
_WORDS = frozenset(
    "alwaysinline nounwind willreturn readnone readonly noinline memory none speculatable mustprogress nosync nofree "
    "norecurse uwtable argmem read write nocallback".split()
)


def allowed_intrinsic(name: str, allowed: Collection[str]) -> bool:
    """Tell whether an intrinsic is one of a list, in which ``llvm.x86.*`` stands for all that begin so."""
    return any(name == a or (a.endswith("*") and name.startswith(a[:-1])) for a in allowed)


def defined_functions(text: str) -> tuple[str, ...]:
    """Return the names of the functions that a text defines."""
    return tuple(m["name"] for line in _lines(text) if (m := _DEFINE.match(line)))


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        bare = line.split(";", 1)[0].strip()
        if bare:
            yield re.sub(r"\s+", " ", bare)


def llvm_findings(text: str, allowed: Collection[str], asm: Collection[str] = ()) -> Iterator[str]:
    """Yield what may not stand in a text of LLVM IR.

    Parameters
    ----------
    text : str
        LLVM assembly.
    allowed : collection of str
        Intrinsics that may be declared and called.
    asm : collection of str
        Instructions that may be written as inline assembly; none: no inline assembly.
    """
    lines = list(_lines(text))
    if len(lines) > MAX_LINES:
        yield f"there are {len(lines)} lines; {MAX_LINES} are the most"
        return
    own = set(defined_functions(text))
    inside = False
    for line in lines:
        if asm and inside and (assembly := _ASM.match(line)):
            yield from _assembly(assembly["text"], assembly["constraints"], asm)
        elif '"' in line and not re.fullmatch(r'[^"]*("target-(cpu|features)"="[\w+,.-]*"\s*)*[^"]*', line):
            yield f"{line[:60]!r} holds a quoted text: only target-cpu and target-features are"
        elif not inside:
            inside = yield from _outside(line, allowed)
        elif line == "}":
            inside = False
        else:
            yield from _body(line, allowed, own)
    if inside:
        yield "a function is not closed"


def _assembly(text: str, constraints: str, asm: Collection[str]) -> Iterator[str]:
    """Check inline assembly; an empty one only hides a value from the optimizer."""
    instruction = _INSTRUCTION.fullmatch(text.strip())
    if text.strip() and (instruction is None or instruction["name"] not in asm):
        yield (
            f"the assembly {text[:60]!r} is not allowed: one instruction ({', '.join(sorted(asm))}) on its operands, "
            'as in "vdpbf16ps $3, $2, $0"'
        )
    odd = [c for c in constraints.split(",") if not _CONSTRAINT.fullmatch(c.strip())]
    if odd:
        yield f"the constraints {', '.join(odd)} of the assembly are not allowed: registers only"


def _outside(line: str, allowed: Collection[str]) -> Generator[str, None, bool]:
    """Check a line between functions; return whether a function begins."""
    declared, defined = _DECLARE.match(line), _DEFINE.match(line)
    if declared:
        if not allowed_intrinsic(declared["name"], allowed):
            yield f"@{declared['name']} is declared, which is not among {', '.join(sorted(allowed))}"
    elif defined:
        if not defined["name"].startswith("qimeng_"):
            yield f"@{defined['name']} must be called qimeng_something, so that it hides no function of others"
        words = set(re.findall(r"[a-z_]+", re.sub(r'"[^"]*"', "", defined["rest"])))
        odd = sorted(words - _WORDS)
        if odd:
            yield f"attributes {' '.join(odd)} are not allowed"
        elif "alwaysinline" not in words:
            yield f"@{defined['name']} must be alwaysinline"
        if any(w in defined["before"].split() for w in ("external", "available_externally", "dllexport", "ifunc")):
            yield f"the linkage of @{defined['name']} is not allowed"
        return True
    elif line.endswith("{") and line.startswith("define"):
        yield f"{line[:60]!r} cannot be read as a definition"
        return True
    else:
        yield f"{line[:60]!r} is neither a declaration of an intrinsic nor a definition"
    return False


def _body(line: str, allowed: Collection[str], own: set[str]) -> Iterator[str]:
    if line.startswith("ret ") or line == "ret void":
        return
    call = _CALL.match(line)
    if call:
        if call["name"] not in own and not allowed_intrinsic(call["name"], allowed):
            yield f"@{call['name']} is called, which is not among {', '.join(sorted(allowed))}"
        return
    if re.search(r"\b(asm|inttoptr|ptrtoint|blockaddress|addrspacecast)\b", line) or "@" in line:
        yield f"{line[:60]!r} reaches outside its arguments"
        return
    value = _VALUE.match(line)
    code = value["code"] if value else line.split(" ", 1)[0]
    if code in _VALUES and value:
        return
    if code in _MEMORY and (value or code == "store"):
        return
    yield f"{line[:60]!r}: {code} is not allowed; write straight-line code"
