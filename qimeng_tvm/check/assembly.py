"""Disassembly as data: instructions and functions, and one table per instruction set."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qimeng_tvm.check.elf import read_elf
from qimeng_tvm.errors import CheckError


@dataclass(frozen=True)
class Isa:
    """What the audit must know of an instruction set, as written by objdump and LLVM (AT&T syntax on x86).

    Attributes
    ----------
    name : str
        ``x86``, ``arm``, ``riscv``.
    elf_machine : int
        ``e_machine`` of its ELF files.
    jump, goto, call, leave : str
        Patterns of whole mnemonics: any jump; the unconditional ones; calls; ends of a function.
    stack : str
        The stack pointer.
    frame : str
        Pattern of ``mnemonic operands`` that copies the stack pointer to a register (group 1).
    not_written : str
        Mnemonics that do not write the operand in the destination's place, or only restore it.
    destination : int
        Place of the destination operand: 0 first, -1 last.
    base : str
        Pattern of a memory operand; group 1 is the base register.
    vector : str
        Pattern of a vector register; group 1 is its class, the rest its number.
    store : str
        Mnemonics of vector stores; empty where the destination's place tells.
    always_spill : str
        Mnemonics that compilers use for spills alone.
    padding : str
        Pattern of ``mnemonic operands`` that fills up to an alignment.
    comment : str
        What begins a comment; empty when nothing safely does.
    disassemblers : tuple of str
        Programs to try, in order.
    llvm_options : tuple of str
        What LLVM's must be told to decode extensions.
    """

    name: str
    elf_machine: int
    jump: str
    goto: str
    call: str
    leave: str
    stack: str
    frame: str
    not_written: str
    destination: int
    base: str
    vector: str
    padding: str
    store: str = ""
    always_spill: str = ""
    comment: str = ""
    disassemblers: tuple[str, ...] = ()
    llvm_options: tuple[str, ...] = ()


# Newest first: an old one prints (bad) for new instructions.
_LLVM = ("llvm-objdump-22", "llvm-objdump-21", "llvm-objdump-20", "llvm-objdump")

ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa(
            name="x86",
            elf_machine=62,
            jump=r"j\w+|loop\w*",
            goto=r"jmpq?",
            call=r"callq?",
            leave=r"ret[ql]?|ud2|hlt|int3",
            stack="%rsp",
            frame=r"movq? %rsp,\s*(%r\w+)",
            not_written=r"cmp\w?|test\w?|push\w?|pop\w?|bt\w?",
            destination=-1,
            base=r"(?:^|[\s,*])-?(?:0x[0-9a-f]+|\d+)?\((%\w+)",
            vector=r"%([xyz]mm)(\d+)",
            padding=r"nop.*|xchg %ax,%ax|int3",
            comment="#",
            disassemblers=("x86_64-linux-gnu-objdump", "objdump", *_LLVM),
        ),
        Isa(
            name="arm",
            elf_machine=183,
            jump=r"b(\.\w+)?|b[a-z]{2}|cbn?z|tbn?z|br",
            goto=r"b|br",
            call=r"blr?",
            leave=r"ret|brk|udf",
            stack="sp",
            frame=r"(?:mov|add)\s+(x\d+), sp(?:, #.*)?",
            not_written=r"st\w+|ld\w+|cmp|cmn|tst|cbn?z|tbn?z",
            destination=0,
            base=r"\[(\w+)",
            vector=r"\b([qvz])(\d+)\b",
            padding=r"nop|udf.*",
            store=r"st\w+",
            disassemblers=("aarch64-linux-gnu-objdump", *_LLVM),
            llvm_options=("--mattr=+v8.6a,+sve,+dotprod,+i8mm,+bf16",),
        ),
        Isa(
            name="riscv",
            elf_machine=243,
            jump=r"b\w+|j|jr|c\.j|c\.b\w+",
            goto=r"j|jr|c\.j",
            call=r"jalr?|call|c\.jalr?",
            leave=r"ret|unimp|ebreak|tail",
            stack="sp",
            frame=r"(?:mv|addi?|c\.addi4spn)\s+(s\d+), ?sp(?:, ?.*)?",
            not_written=r"s[bhwd]|l[bhwd]u?|b\w+|c\.[ls]dsp",
            destination=0,
            base=r"\((\w+)\)",
            vector=r"\b(v)(\d+)\b",
            padding=r"(c\.)?nop|unimp",
            store=r"vs\w+\.v",
            # Vector accesses take a plain address, so a spill's base is any register; but whole-register moves
            # to and from memory are what spills are made of.
            always_spill=r"v[ls]\dr(e\d+)?\.v",
            disassemblers=("llvm-objdump-22", "riscv64-linux-gnu-objdump", *_LLVM[1:]),
            llvm_options=("--mattr=+m,+a,+f,+d,+c,+v",),
        ),
    )
}


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    ``target`` is where a direct jump goes (an address, comparable within one function); ``callee`` the name that the
    disassembler or a relocation gives to the target of a call.
    """

    address: int
    mnemonic: str
    operands: str
    target: int | None = None
    callee: str = ""

    @property
    def text(self) -> str:
        """Mnemonic and operands."""
        return f"{self.mnemonic} {self.operands}".rstrip()


@dataclass(frozen=True)
class Function:
    """A named run of instructions."""

    name: str
    isa: Isa
    instructions: tuple[Instruction, ...] = field(repr=False)

    @cached_property
    def stack_registers(self) -> frozenset[str]:
        """The stack pointer, and registers that hold nothing but a copy of it throughout the function.

        A register counts only when nothing else writes it: elsewhere ``rbp`` is an ordinary pointer.
        """
        copies = [m[1] for i in self.instructions if (m := re.fullmatch(self.isa.frame, i.text))]
        writes = [w for i in self.instructions if (w := self._written(i))]
        return frozenset({self.isa.stack, *(r for r in copies if writes.count(r) == copies.count(r))})

    def _written(self, instruction: Instruction) -> str:
        if re.fullmatch(self.isa.not_written, instruction.mnemonic) or "," not in instruction.operands:
            # One operand: push, pop, call; inc and neg of a stack register do not happen.
            return ""
        return instruction.operands.split(",")[self.isa.destination].strip()


def split_private(function: Function) -> list[Function]:
    """Split off functions that have no symbol, such as the body of a parallel loop, which TVM keeps private.

    One begins behind the end of another where no jump crosses.
    """
    isa, body = function.isa, function.instructions
    at = {i.address: n for n, i in enumerate(body)}
    # For each gap between two instructions, how many jumps cross it.
    change = [0] * (len(body) + 1)
    for n, i in enumerate(body):
        if i.target in at and re.fullmatch(isa.jump, i.mnemonic):
            low, high = sorted((n, at[i.target]))
            change[low + 1] += 1
            change[high + 1] -= 1
    pieces: list[list[Instruction]] = [[]]
    crossing, over = 0, False
    for n, i in enumerate(body):
        crossing += change[n]
        if over and not crossing and not re.fullmatch(isa.padding, i.text):
            pieces.append([])
            over = False
        pieces[-1].append(i)
        if re.fullmatch(isa.leave, i.mnemonic) or re.fullmatch(isa.goto, i.mnemonic):
            over = True
        elif not re.fullmatch(isa.padding, i.text):
            over = False
    start = body[0].address
    names = [function.name, *(f"{function.name}+{piece[0].address - start:#x}" for piece in pieces[1:])]
    return [Function(name, isa, tuple(piece)) for name, piece in zip(names, pieces, strict=True)]


_HEADER = re.compile(r"^(?:[0-9a-f]+ )?<(.+)>:$")
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$")
_RELOCATION = re.compile(r"^\s*[0-9a-f]+:\s+R_\w+\s+([^\s+-]+)")
_TARGET = re.compile(r"(?:^|[\s,])(?:0x)?([0-9a-f]+)(?:\s*<[^>]*>)?$")
_NAME = re.compile(r"<([^>]+)>$")
_PREFIX = re.compile(r"^(?:\{\w+\}|lock|rep\w*|bnd|notrack|data16|cs|ds)\s+")
_UNKNOWN = ("<unknown>", "(bad)", ".insn", ".inst", ".4byte", ".2byte", ".word")
_PADDING = re.compile(r"(?:0x)?0+")
_ASM_LABEL = re.compile(r"^([\w.$@]+):")


def _split(text: str, isa: Isa) -> tuple[str, str, str]:
    """Split an instruction into mnemonic, operands and comment."""
    comment = ""
    if isa.comment and isa.comment in text:
        text, _, comment = text.partition(isa.comment)
    text = text.strip()
    while _PREFIX.match(text):
        text = _PREFIX.sub("", text)
    mnemonic, _, operands = text.partition("\t") if "\t" in text else text.partition(" ")
    return mnemonic.strip().lower(), " ".join(operands.split()), comment.strip()


def parse_objdump(lines: Iterable[str], isa: Isa, slots: Mapping[int, str] | None = None) -> list[Function]:
    """Parse what GNU or LLVM objdump prints; ``slots`` names the addresses that hold imported symbols."""
    functions: list[tuple[str, list[Instruction]]] = []
    for line in lines:
        if header := _HEADER.match(line.strip()):
            # RISC-V objects keep labels inside functions as symbols.
            if not (functions and header[1].startswith(".L")):
                functions.append((header[1], []))
        elif not functions:
            continue
        elif (moved := _RELOCATION.match(line)) and functions[-1][1]:
            last = functions[-1][1][-1]
            if re.fullmatch(f"{isa.call}|{isa.jump}", last.mnemonic):
                functions[-1][1][-1] = Instruction(last.address, last.mnemonic, last.operands, None, moved[1])
        elif found := _LINE.match(line):
            mnemonic, operands, comment = _split(found[2], isa)
            target, callee = None, ""
            if re.fullmatch(f"{isa.call}|{isa.jump}", mnemonic):
                if "*" in operands:
                    # Through a slot of the global offset table: "# 3fe8 <...>".
                    slot = re.match(r"(?:0x)?([0-9a-f]+)", comment)
                    callee = (slots or {}).get(int(slot[1], 16), "") if slot else ""
                elif there := _TARGET.search(operands):
                    target = int(there[1], 16)
                    name = _NAME.search(operands)
                    callee = name[1] if name else ""
            functions[-1][1].append(Instruction(int(found[1], 16), mnemonic, operands, target, callee))
    return [piece for name, body in functions if body for piece in split_private(Function(name, isa, tuple(body)))]


def parse_assembly(text: str, isa: Isa) -> list[Function]:
    """Parse assembly text, such as ``inspect_source("asm")`` gives; positions serve as addresses."""
    rows: list[tuple[str, str]] = []
    starts: dict[str, int] = {}
    names: list[tuple[str, int]] = []
    for raw in text.splitlines():
        line = raw.strip()
        if label := _ASM_LABEL.match(line):
            starts[label[1]] = len(rows)
            # .L labels are local to a function (aarch64 and RISC-V write them the same way).
            if not label[1].startswith("."):
                names.append((label[1], len(rows)))
        elif line and not line.startswith((".", "#", "//", ";", "@")):
            mnemonic, operands, _ = _split(line, isa)
            rows.append((mnemonic, operands))
    functions = []
    for number, (name, start) in enumerate(names):
        end = names[number + 1][1] if number + 1 < len(names) else len(rows)
        body = []
        for address in range(start, end):
            mnemonic, operands = rows[address]
            target, callee = None, ""
            if re.fullmatch(f"{isa.call}|{isa.jump}", mnemonic):
                callee = operands.split(",")[-1].strip()
                target = starts.get(callee)
            body.append(Instruction(address, mnemonic, operands, target, callee))
        if body:
            functions += split_private(Function(name, isa, tuple(body)))
    return functions


def disassemble(path: str | Path) -> list[Function]:
    """Disassemble a shared library or object file with the first disassembler there is.

    Raises
    ------
    CheckError
        If the file is not ELF, of an unknown machine, or no disassembler can read it.
    """
    elf = read_elf(path)
    isa = next((isa for isa in ISAS.values() if isa.elf_machine == elf.machine), None)
    if isa is None:
        raise CheckError(f"{path} is for ELF machine {elf.machine}, which the audit has no table for")
    reasons = []
    for program in dict.fromkeys(isa.disassemblers):
        if shutil.which(program) is None:
            continue
        options = isa.llvm_options if program.startswith("llvm") else ()
        command = [program, "-d", "-r", "--no-show-raw-insn", *options, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{program}: {error}")
            continue
        functions = parse_objdump(done.stdout.splitlines(), isa, elf.slots)
        # What it cannot decode may be the very instructions that are looked for.
        unknown = sum(
            i.mnemonic in _UNKNOWN and not _PADDING.fullmatch(i.operands) for f in functions for i in f.instructions
        )
        if done.returncode == 0 and functions and not unknown:
            return functions
        reason = f"{unknown} instructions it does not know" if unknown else done.stderr.strip() or "no instructions"
        reasons.append(f"{program}: {reason.splitlines()[-1]}")
    detail = "; ".join(reasons) or f"none of {', '.join(dict.fromkeys(isa.disassemblers))} is installed"
    raise CheckError(
        f"cannot disassemble {path}: {detail} (install a newer binutils or LLVM, or pass the assembly text)"
    )
