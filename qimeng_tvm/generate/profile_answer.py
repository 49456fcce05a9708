"""The form in which a model answers with a machine: every value beside the words of the manual that say it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qimeng_tvm.generate.quotes import Kind

Quote = Annotated[str, Field(description="The words of the manual that say it, copied to the letter.", max_length=600)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Text(_Strict):
    """A word and where it is said."""

    value: Annotated[str, Field(min_length=1, max_length=100)]
    quote: Quote


class Number(_Strict):
    """A number and where it is said."""

    value: Count
    quote: Quote


class Isa(_Strict):
    """An instruction set and where it is said."""

    value: Literal["x86", "arm", "riscv"]
    quote: Quote


class CacheAnswer(_Strict):
    """One level of data or unified cache."""

    level: Annotated[Number, Field(description="1, 2, 3 or 4.")]
    kib: Annotated[Number, Field(description="Size of one instance in KiB (1 MB is 1024).")]
    line: Annotated[Number | None, Field(description="Bytes of a line.")] = None
    ways: Annotated[Number | None, Field(description="Associativity.")] = None
    shared_by: Annotated[Number | None, Field(description="Cores that share one instance; left out: one core.")] = None


class ProfileAnswer(_Strict):
    """A machine as a manual tells of it; what the text does not say is left out."""

    name: Annotated[Text | None, Field(description="What the text calls the chip or core.")] = None
    isa: Annotated[Isa | None, Field(description="Instruction set: x86 (x86-64), arm (AArch64) or riscv (RV64).")] = (
        None
    )
    cpu: Annotated[
        Text | None, Field(description="LLVM's name of the core, as -mcpu takes it; quote where the core is named.")
    ] = None
    cores: Annotated[Number | None, Field(description="Physical cores of the chip.")] = None
    smt: Annotated[Number | None, Field(description="Hardware threads of a core; left out: one.")] = None
    vector_bits: Annotated[Number | None, Field(description="Bits of the widest vector register.")] = None
    vector_registers: Annotated[
        Number | None, Field(description="How many vector registers a program sees, not the physical register file.")
    ] = None
    memory_gib: Annotated[Number | None, Field(description="Main memory of the machine in GiB.")] = None
    features: Annotated[
        list[Text], Field(description="Instruction-set extensions, by LLVM's names.", max_length=80)
    ] = []
    caches: Annotated[
        list[CacheAnswer], Field(description="Data and unified caches (not those of instructions).", max_length=4)
    ] = []
    missing: Annotated[list[str], Field(description="Required fields that the text does not say.", max_length=20)] = []


@dataclass(frozen=True)
class Fact:
    """One value of an answer, flat.

    Attributes
    ----------
    field : str
        ``caches[0].kib``.
    kind : str
        What its number means; ``""``: it is a word.
    value : object
        As answered.
    quote : str
        As answered.
    """

    field: str
    kind: Kind | Literal[""]
    value: Any
    quote: str


_NUMBERS: dict[str, Kind] = {
    "cores": "count",
    "smt": "count",
    "vector_bits": "bits",
    "vector_registers": "count",
    "memory_gib": "gib",
}
_CACHE: dict[str, Kind] = {"level": "level", "kib": "kib", "line": "bytes", "ways": "count", "shared_by": "count"}
#: Fields without which there is no profile.
REQUIRED = ("name", "isa", "cpu", "cores", "vector_bits", "vector_registers", "memory_gib", "caches")


def facts(answer: ProfileAnswer) -> Iterator[Fact]:
    """Yield every value that an answer gives."""
    for name in ("name", "isa", "cpu"):
        if (word := getattr(answer, name)) is not None:
            yield Fact(name, "", word.value, word.quote)
    for name, kind in _NUMBERS.items():
        if (number := getattr(answer, name)) is not None:
            yield Fact(name, kind, number.value, number.quote)
    for i, feature in enumerate(answer.features):
        yield Fact(f"features[{i}]", "", feature.value, feature.quote)
    for i, cache in enumerate(answer.caches):
        for name, kind in _CACHE.items():
            if (number := getattr(cache, name)) is not None:
                yield Fact(f"caches[{i}].{name}", kind, number.value, number.quote)
