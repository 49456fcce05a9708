"""What a model is asked to write: tasks and primitives, from the facts file of each instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qimeng_tvm.errors import UsageError
from qimeng_tvm.files import TomlError, parse_toml
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin.contract import LANEWISE

#: Instruction sets that have a facts file.
ISAS = ("x86", "arm", "riscv")


@dataclass(frozen=True)
class Primitive:
    """An instruction as LLVM names it.

    Attributes
    ----------
    name, mnemonic, llvm : str
        Ours, the assembler's, LLVM's.
    signature, meaning : str
        For the prompt.
    requires : tuple of str
        LLVM features.
    source : str
        Section of the manual.
    cycles : str
        Rate and latency, as manuals have them; empty: not known, `asm` is put to LLVM's model of the core.
    asm : str
        The instruction on some registers, as LLVM's assembler reads it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    mnemonic: str
    llvm: str
    signature: str
    meaning: str
    requires: tuple[str, ...]
    source: str
    cycles: str = ""
    asm: str = ""


@dataclass(frozen=True)
class IntrinsicTask:
    """A family to write: what its declaration must say, and what to write it with.

    Attributes
    ----------
    isa, module, title : str
        Where it goes (``x86``, ``avx2_f32``), and what it is.
    requires, dtypes, storage, lanes, registers, k_pack, k_step, uops, latency, mnemonics
        As in :class:`~qimeng_tvm.intrin.IntrinFamily`.
    a_panel : bool
        It takes A as a panel too.
    primitives : tuple of Primitive
        What it may call.
    notes : str
        Layout of narrow operands, and what the instruction wants.
    version : int
        Of the family: raised when a file of that name had another text before.
    kind : str
        ``gemm``, the micro-kernel of a matrix product, or ``depthwise``, the lane-wise one (`LaneShape`).
    inline_asm : bool
        Its LLVM text may hold the primitives as inline assembly too. Not of the facts files: the user's to allow.
    """

    isa: str
    module: str
    title: str
    requires: tuple[str, ...]
    dtypes: tuple[str, str, str]
    storage: tuple[str, str]
    lanes: int
    registers: int
    k_pack: int
    k_step: int
    uops: int
    latency: int
    mnemonics: tuple[str, ...]
    a_panel: bool
    primitives: tuple[Primitive, ...]
    notes: str = ""
    version: int = 1
    kind: str = "gemm"
    inline_asm: bool = False

    @property
    def asm_mnemonics(self) -> tuple[str, ...]:
        """What inline assembly may hold, where it is allowed."""
        named = [m for group in self.mnemonics for m in group.split("|")]
        return tuple(sorted({*named, *(p.mnemonic for p in self.primitives)}))

    @property
    def key(self) -> str:
        """``isa.module``."""
        return f"{self.isa}.{self.module}"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Of the builder."""
        if self.kind == LANEWISE:
            return ("mr", "nv", "step", "in_local")
        panel = ("a_panel",) if self.a_panel else ()
        return ("mr", "nv", "kc", "ku", *panel, "c_local", "ahead")

    def runs_on(self, hardware: Hardware) -> bool:
        """Whether a machine has what it needs."""
        return hardware.isa == self.isa and hardware.has(*self.requires)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Task(_Strict):
    module: str
    title: str
    requires: tuple[str, ...]
    dtypes: tuple[str, str, str]
    storage: tuple[str, str]
    lanes: int = Field(gt=0)
    registers: int = Field(gt=0)
    k_pack: int = Field(gt=0)
    k_step: int | None = None
    uops: int = 1
    latency: int = 0
    mnemonics: tuple[str, ...]
    a_panel: bool = False
    primitives: tuple[str, ...]
    notes: str = ""
    version: int = 1
    kind: Literal["gemm", "depthwise"] = "gemm"


class _Facts(_Strict):
    primitives: tuple[Primitive, ...]
    tasks: tuple[_Task, ...]


def read_facts(text: str, isa: str) -> tuple[IntrinsicTask, ...]:
    """Return the tasks of a facts file.

    Raises
    ------
    UsageError
        If it is not TOML of the right form, or a task names a primitive that is not there.
    """
    try:
        facts = _Facts.model_validate(parse_toml(text))
    except (TomlError, ValidationError) as error:
        raise UsageError(f"the facts of {isa} cannot be read: {' '.join(str(error).split())}") from error
    known = {p.name: p for p in facts.primitives}
    tasks = []
    for task in facts.tasks:
        missing = [name for name in task.primitives if name not in known]
        if missing:
            raise UsageError(
                f"the facts of {isa}: task {task.module} names primitives {', '.join(missing)} that are not there"
            )
        fields: dict[str, Any] = task.model_dump(exclude={"primitives", "k_step"})
        fields["k_step"] = task.k_step or task.k_pack
        tasks.append(IntrinsicTask(isa=isa, primitives=tuple(known[p] for p in task.primitives), **fields))
    return tuple(tasks)


@cache
def tasks() -> dict[str, IntrinsicTask]:
    """Return every task by key."""
    folder = resources.files("qimeng_tvm.generate") / "facts"
    found = [t for isa in ISAS for t in read_facts((folder / f"{isa}.toml").read_text(encoding="utf-8"), isa)]
    return {task.key: task for task in found}


#: What people write for operand types.
_OPERANDS = {
    "f32": ("float32", "float32"),
    "bf16": ("bfloat16", "bfloat16"),
    "u8s8": ("uint8", "int8"),
    "s8s8": ("int8", "int8"),
}


def products_of(operands: tuple[str, str], hardware: Hardware) -> list[IntrinsicTask]:
    """Return the tasks of matrix products of these operands that a machine can run."""
    return [t for t in tasks().values() if t.kind == "gemm" and t.runs_on(hardware) and t.dtypes[:2] == operands]


def task_for(hardware: Hardware, dtype: str) -> IntrinsicTask:
    """Return the task of an operand type that suits a machine best: the widest it has the instructions for.

    Parameters
    ----------
    hardware : Hardware
        The machine.
    dtype : str
        ``f32``, ``bf16``, ``u8s8``, ``s8s8``; or a task's own name (``avx2_f32``), whatever the machine has.

    Raises
    ------
    UsageError
        If there is none.
    """
    named = tasks().get(f"{hardware.isa}.{dtype}") or tasks().get(dtype)
    if named is not None:
        return named
    operands = _OPERANDS.get(dtype)
    if operands is None:
        raise UsageError(
            f"no operand type or task {dtype!r}; types: {', '.join(_OPERANDS)}; tasks: {', '.join(tasks())}"
        )
    fitting = products_of(operands, hardware)
    if not fitting:
        raise UsageError(f"{hardware.name} has no primitive for {dtype} that the facts files know")
    return max(fitting, key=lambda t: t.lanes * t.k_pack)
