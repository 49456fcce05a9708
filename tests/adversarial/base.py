"""What the corpus is made of: a good family, and ways to spoil a reply."""

from dataclasses import dataclass

from qimeng_tvm.generate.tasks import tasks
from qimeng_tvm.llm.prompts.render import example

TASK = tasks()["x86.avx2_f32"]

#: The worked example of another instruction set, made one for the task: accepted as it is.
GOOD = (
    example("arm")[1]
    .replace('requires=("fma",)', 'requires=("avx2", "fma")')
    .replace("LANES = 4", "LANES = 8")
    .replace("float32x4", "float32x8")
    .replace("version=1", f"version={TASK.version}")
)


@dataclass(frozen=True)
class Entry:
    """A hostile or broken reply.

    Attributes
    ----------
    name : str
        What it tries.
    stages : tuple of str
        Where it may stop.
    says : str
        A word that the finding holds.
    reply : str
        To the letter.
    """

    name: str
    stages: tuple[str, ...]
    says: str
    reply: str


def block(source: str, language: str = "python") -> str:
    """A reply that holds one block of code."""
    return f"```{language}\n{source}\n```\n"


def spoiled(*edits: tuple[str, str]) -> str:
    """A reply with the good family, edited; an edit that changes nothing is a fault of the corpus."""
    source = GOOD
    for old, new in edits:
        assert old in source, f"{old!r} is not in the good family"
        source = source.replace(old, new)
    return block(source)


def at_top(line: str) -> str:
    """A reply with a line among the module's imports."""
    return spoiled(("from typing import Any\n", f"from typing import Any\n{line}\n"))


def in_builder(code: str) -> str:
    """A reply whose builder runs some Python first."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    return spoiled(("    nr = nv * LANES\n", f"    nr = nv * LANES\n{lines}"))


def in_root(code: str) -> str:
    """A reply whose kernel has some statements more before its loop over k."""
    lines = "".join(f"            {line}\n" for line in code.splitlines())
    return spoiled(("            for ko in range(kc // ku):\n", f"{lines}            for ko in range(kc // ku):\n"))


def at_end(code: str) -> str:
    """A reply whose kernel does something more after it has stored C."""
    store = "                    C[i, T.ramp(j * LANES, 1, LANES)] = acc.vload([(i * nv + j) * LANES], VEC)\n"
    lines = "".join(f"            {line}\n" for line in code.splitlines())
    return spoiled((store, store + lines))


def with_llvm(text: str, call: str = "") -> str:
    """A reply that imports LLVM text, and calls something."""
    return spoiled(
        ("LANES = 8\n", f'LANES = 8\nLLVM = """{text}"""\n'),
        (
            "            T.writes(C[0:mr, 0:nr])\n",
            '            T.writes(C[0:mr, 0:nr])\n            T.attr(0, "pragma_import_llvm", LLVM)\n'
            + (f"            {call}\n" if call else ""),
        ),
    )
