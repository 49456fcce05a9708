"""Whether the *final* library really does its work with the named instructions, in registers, by itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qimeng_tvm.check.assembly import ISAS, Function, Instruction, disassemble, parse_assembly
from qimeng_tvm.check.elf import Elf, read_elf
from qimeng_tvm.check.loops import Loop, find_loops

__all__ = ["AuditReport", "Call", "audit", "audit_text", "disassemble"]

# Static weight of a loop level, as compilers' own frequency estimates have it.
_TRIPS = 10

_ALLOWED_SYMBOL = re.compile(
    r"TVMFFI(?:Error\w+|ObjectDecRef|ObjectIncRef)"
    r"|TVMBackend(?:ParallelLaunch|ParallelBarrier|AllocWorkspace|FreeWorkspace)"
    r"|mem(?:cpy|set|move|cmp)|malloc|free|abort|__stack_chk_fail|__assert_fail|__cxa_finalize|__gmon_start__|_ITM_\w+"
    r"|(?:exp|exp2|expm1|log|log2|log10|log1p|sin|cos|tan|asin|acos|atan|atan2|sinh|cosh|tanh|asinh|acosh|atanh|erf|erfc"
    r"|sqrt|cbrt|pow|fma|fmod|floor|ceil|round|roundeven|rint|nearbyint|trunc|fabs|fmin|fmax|copysign|ldexp)f?"
    # The compiler's own helpers for types without instructions (libgcc, compiler-rt).
    r"|__(?:extend|trunc)(?:hf|bf|sf|df)(?:hf|bf|sf|df)2|__(?:fix|float)\w+|__gnu_\w+_ieee|__(?:u?div|u?mod)\w+"
)
_ALLOWED_LIBRARY = re.compile(r"lib(?:c|m|gcc_s|dl|pthread|stdc\+\+|tvm\w*)\.so[.\d]*|ld-linux[\w-]*\.so[.\d]*")
# TVM keeps a handle of this name for every packed function a kernel calls by its name.
_PACKED = ".tvm_func."
_PACKED_CALL = ("__TVMFFIFunctionCall", "__TVMFFIEnvModLookupFromImports")
# Pointers that TVM's loader fills in: scratch memory and parallel loops are called for through them.
_RUNTIME = "__TVMBackend"


@dataclass(frozen=True)
class Call:
    """A call inside a loop; ``callee`` is ``"*"`` when it goes through a pointer."""

    function: str
    callee: str
    depth: int
    hot: bool


@dataclass(frozen=True)
class AuditReport:
    """What the audit of a library found.

    Attributes
    ----------
    ok : bool
        No problems.
    counts : mapping
        Each named mnemonic (group) -> how often it is in the hot inner loop.
    total : mapping
        The same for the whole library.
    spill_stores, spill_loads : int
        Vector registers stored to, and read from, the stack in the hot inner loop.
    function, depth, inner_loop : str, int, str
        Where the hot inner loop is, how deep it is nested (0: straight-line code, fully unrolled), and its text.
    widths : mapping
        Class of vector register (``xmm``, ``ymm``, ``zmm``) -> operands of it in the hot inner loop.
    calls : tuple of Call
        Calls inside loops.
    outside : tuple of str
        Symbols, libraries and packed functions from outside that the library leans on.
    problems : tuple of str
        One line each; why it is not ``ok``.
    """

    ok: bool
    counts: Mapping[str, int]
    total: Mapping[str, int]
    spill_stores: int
    spill_loads: int
    function: str
    depth: int
    inner_loop: str
    widths: Mapping[str, int]
    calls: tuple[Call, ...]
    outside: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def spills(self) -> int:
        """Stores to and loads from the stack together."""
        return self.spill_stores + self.spill_loads


def audit(
    path: str | Path,
    mnemonics: Sequence[str],
    *,
    max_spills: int | None = None,
    may_call: bool = False,
    assembly: str | None = None,
) -> AuditReport:
    """Audit a shared library or object file.

    Parameters
    ----------
    path : path
        The final file.
    mnemonics : sequence of str
        Each must be in the hot inner loop; ``a|b`` means any of the spellings. Without any, the hot loop is the one
        with the most vector instructions, and only the other checks are made.
    max_spills : int, optional
        More spills than this in the hot inner loop are a problem; by default they are only counted.
    may_call : bool
        Calls in the hot inner loop are only listed (of functions from outside they are a problem all the same).
    assembly : str, optional
        Assembly text to go by where no disassembler is installed.

    Raises
    ------
    CheckError
        If the file cannot be read or disassembled.
    """
    elf = read_elf(path)
    if assembly is None:
        functions = disassemble(path)
    else:
        functions = parse_assembly(assembly, next(isa for isa in ISAS.values() if isa.elf_machine == elf.machine))
    runtime = any(name.startswith(_RUNTIME) for name in elf.defined)
    return _report(functions, tuple(mnemonics), outside_of(elf), max_spills, runtime, may_call)


def audit_text(assembly: str, isa: str, mnemonics: Sequence[str], *, max_spills: int | None = None) -> AuditReport:
    """Audit assembly text alone (nothing can be said about what a library imports)."""
    return _report(parse_assembly(assembly, ISAS[isa]), tuple(mnemonics), (), max_spills)


def outside_of(elf: Elf) -> tuple[str, ...]:
    """Return what a file takes from beyond TVM's runtime, libc and libm."""
    found = [f"symbol {s}" for s in elf.undefined if s not in elf.defined and not _ALLOWED_SYMBOL.fullmatch(s)]
    found += [f"library {n}" for n in elf.needed if not _ALLOWED_LIBRARY.fullmatch(n)]
    packed = [n.removeprefix(_PACKED) for n in elf.defined if n.startswith(_PACKED)]
    found += [f"packed function {n}" for n in packed]
    # The names are local symbols and may be stripped; the door that they go through cannot be.
    if not packed and any(n in elf.defined for n in _PACKED_CALL):
        found.append("packed functions, called by name")
    return tuple(found)


def _report(
    functions: Sequence[Function],
    mnemonics: tuple[str, ...],
    outside: tuple[str, ...],
    max_spills: int | None,
    runtime: bool = False,
    may_call: bool = False,
) -> AuditReport:
    """Report on functions; with ``runtime``, calls through pointers are those of TVM's runtime.

    (A small product is unrolled into the very loop that asks for scratch memory; and where nothing comes from outside,
    there is nothing else that a pointer could lead to.)
    """
    loops = [loop for f in functions if "@plt" not in f.name for loop in find_loops(f)]
    total = {m: sum(_count(f.instructions, m) for f in functions) for m in mnemonics}
    hot = _hottest(loops, mnemonics)
    counts = {m: _count(hot.instructions, m) if hot else 0 for m in mnemonics}
    stores, loads = _spills(hot) if hot else (0, 0)
    calls = tuple(
        Call(loop.function.name, callee, loop.depth, loop is hot)
        for loop in loops
        if loop.depth
        for callee in _callees(loop)
    )
    problems = []
    for m in mnemonics:
        if not total[m]:
            problems.append(f"{m} is nowhere in the library")
        elif not counts[m]:
            problems.append(f"{m} is in the library ({total[m]} times), but not in the hot inner loop")
    if not may_call:
        called = [c.callee for c in calls if c.hot and not (runtime and c.callee == "*")]
        problems += [f"the hot inner loop calls {callee}" for callee in called]
    problems += [f"leans on outside {name}" for name in outside]
    if max_spills is not None and stores + loads > max_spills:
        problems.append(f"{stores} spills and {loads} reloads of vector registers in the hot inner loop")
    widths = Counter(cls for i in hot.instructions for cls in _vectors(hot.function, i)) if hot else Counter[str]()
    return AuditReport(
        ok=not problems,
        counts=counts,
        total=total,
        spill_stores=stores,
        spill_loads=loads,
        function=hot.function.name if hot else "",
        depth=hot.depth if hot else 0,
        inner_loop=hot.text if hot else "",
        widths=dict(widths),
        calls=calls,
        outside=outside,
        problems=tuple(dict.fromkeys(problems)),
    )


def _count(instructions: Sequence[Instruction], mnemonic: str) -> int:
    spellings = {m.strip().lower() for m in mnemonic.split("|")}
    return sum(i.mnemonic in spellings for i in instructions)


def _hottest(loops: Sequence[Loop], mnemonics: tuple[str, ...]) -> Loop | None:
    """Return the loop that executes the named instructions (else: vector instructions) most, by static estimate.

    The first name counts before the others: it is the product, which an epilogue that adds does not have.
    """

    def trips(loop: Loop) -> int:
        return int(_TRIPS**loop.depth)

    def weight(loop: Loop) -> tuple[int, ...]:
        return tuple(
            sum(_count(loop.instructions, m) for m in some) * trips(loop) for some in (mnemonics[:1], mnemonics)
        )

    def vectors(loop: Loop) -> int:
        return sum(bool(_vectors(loop.function, i)) for i in loop.instructions) * trips(loop)

    best = max(loops, key=weight, default=None)
    if best is None or not any(weight(best)):
        best = max(loops, key=vectors, default=None)
    return best


def _vectors(function: Function, instruction: Instruction) -> list[str]:
    return [m[0] for m in re.findall(function.isa.vector, instruction.operands)]


def _spills(loop: Loop) -> tuple[int, int]:
    """Count vector registers (stored to, read from) the stack."""
    function = loop.function
    isa, stack = function.isa, function.stack_registers
    stores = loads = 0
    for i in loop.instructions:
        base = re.search(isa.base, i.operands)
        on_stack = base is not None and base[1] in stack and bool(_vectors(function, i))
        if not on_stack and not (isa.always_spill and re.fullmatch(isa.always_spill, i.mnemonic)):
            continue
        # x86: the destination is the memory operand when it comes last; elsewhere the mnemonic tells.
        stored = re.fullmatch(isa.store, i.mnemonic) if isa.store else i.operands.endswith(")")
        stores += bool(stored)
        loads += not stored
    return stores, loads


def _callees(loop: Loop) -> list[str]:
    isa = loop.function.isa
    inside = {i.address for i in loop.function.instructions}
    found = []
    for i in loop.instructions:
        leaves = re.fullmatch(isa.goto, i.mnemonic) and i.callee and i.target not in inside
        if re.fullmatch(isa.call, i.mnemonic) or leaves:
            found.append(i.callee.partition("@")[0] or "*")
    return found
