"""Fill a prompt's template: pure text in, text out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from qimeng_tvm.errors import UsageError
from qimeng_tvm.hardware.mca import modelled

if TYPE_CHECKING:
    from qimeng_tvm.generate.tasks import IntrinsicTask, Primitive
    from qimeng_tvm.hardware.model import Hardware

_VERSION = re.compile(r"^\{#- version: (\d+) -#\}")

#: Instruction set of the worked example, never the task's own: title, lanes, registers, mnemonics, LLVM features.
_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "arm": {
        "isa": "arm",
        "title": "AArch64 NEON",
        "lanes": 4,
        "registers": 32,
        "mnemonic": "fmla",
        "mnemonics": "fmla",
        "requires": '("neon",)',
    },
    "x86": {
        "isa": "x86",
        "title": "128-bit FMA",
        "lanes": 4,
        "registers": 16,
        "mnemonic": "vfmadd231ps",
        "mnemonics": "vfmadd132ps|vfmadd213ps|vfmadd231ps",
        "requires": '("fma",)',
    },
}
_TITLES = {"x86": "x86-64", "arm": "AArch64", "riscv": "RISC-V RV64GCV"}


@dataclass(frozen=True)
class Prompt:
    """A filled template.

    Attributes
    ----------
    name : str
        ``intrinsic``.
    version : int
        Of the template; raised whenever its text changes.
    text : str
        Markdown.
    """

    name: str
    version: int
    text: str

    @property
    def label(self) -> str:
        """``intrinsic@1``."""
        return f"{self.name}@{self.version}"


@cache
def template(file: str) -> str:
    """Return the text of a template file."""
    try:
        return (resources.files("qimeng_tvm.llm.prompts") / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no prompt {file}; there are {', '.join(names())}") from None


def names() -> tuple[str, ...]:
    """Return the names of the prompts."""
    folder = resources.files("qimeng_tvm.llm.prompts")
    return tuple(sorted(p.name.removesuffix(".md.j2") for p in folder.iterdir() if p.name.endswith(".md.j2")))


def _fill(text: str, values: Mapping[str, Any]) -> str:
    import jinja2  # noqa: PLC0415

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(text).render(**values)


def render(name: str, values: Mapping[str, Any]) -> Prompt:
    """Fill a template.

    Raises
    ------
    UsageError
        If there is no prompt of that name.
    """
    return Prompt(name, version(name), _fill(template(f"{name}.md.j2"), values).lstrip())


def version(name: str) -> int:
    """Return the version of a prompt's template.

    Raises
    ------
    UsageError
        If there is no prompt of that name, or its template does not tell.
    """
    found = _VERSION.match(template(f"{name}.md.j2"))
    if found is None:
        raise UsageError(f"the template {name}.md.j2 does not begin with its version")
    return int(found[1])


def example(isa: str, kind: str = "gemm") -> tuple[str, str]:
    """Return title and source of the worked example: a float32 family of another instruction set than ``isa``."""
    facts = _EXAMPLES["arm" if isa == "x86" else "x86"]
    file = "example_fma.py.j2" if kind == "gemm" else f"example_{kind}.py.j2"
    return f"float32 on {facts['title']}", _fill(template(file), facts)


def intrinsic_prompt(task: IntrinsicTask, hardware: Hardware | None = None) -> Prompt:
    """Return what a model is told to write a family.

    Parameters
    ----------
    task : IntrinsicTask
        What to write.
    hardware : Hardware, optional
        Adds the core's name and cache sizes.
    """
    title, source = example(task.isa, task.kind)
    a_packs = task.k_pack if task.storage[0] not in ("float32", "int16") else 1
    shown = SimpleNamespace(
        **{f: getattr(task, f) for f in task.__dataclass_fields__},
        key=task.key,
        parameters=task.parameters,
        asm_mnemonics=task.asm_mnemonics,
        requires_text=_tuple(task.requires),
        dtypes_text=_tuple(task.dtypes),
        storage_text=_tuple(task.storage) if task.storage != task.dtypes[:2] else "",
        k_step_text=task.k_step if task.k_step != task.k_pack else "",
        mnemonics_text=_tuple(task.mnemonics),
        a_factor=a_packs,
        b_factor=task.k_pack if task.storage[1] != "int16" else 1,
    )
    machine = None
    if hardware is not None:
        sizes = {c.level: c.size // 1024 for c in hardware.caches}
        machine = {"cpu": hardware.cpu, "l1": sizes.get(1, "?"), "l2": sizes.get(2, "?")}
    return render(
        "intrinsic" if task.kind == "gemm" else task.kind,
        {
            "task": shown,
            "primitives": tuple(replace(p, cycles=_cycles(p, hardware)) for p in task.primitives),
            "isa_title": _TITLES[task.isa],
            "machine": machine,
            "example": {"title": title, "source": source},
        },
    )


def _cycles(primitive: Primitive, hardware: Hardware | None) -> str:
    if primitive.cycles or hardware is None:
        return primitive.cycles or "not known"
    return modelled(primitive.asm, hardware.triple, hardware.cpu) or "not known"


def _tuple(values: tuple[str, ...]) -> str:
    inner = ", ".join(f'"{v}"' for v in values)
    return f"({inner},)" if len(values) == 1 else f"({inner})"
