"""Rules by hand as a model might answer with them: of the version, and with the imports, that it is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from qimeng_tvm.generate.rules import RULES

_ROOT = Path(__file__).parents[1]
#: Kinds of rules beside matrix products.
KINDS = tuple(name for name, task in RULES.items() if task.kind != "matmul")


def hand_rule(kind: str) -> str:
    """Source of the rule of a kind: the one in ``tests/reference`` where a model wrote the shipped one."""
    reference = _ROOT / "tests" / "reference" / "cpu" / f"{kind}.py"
    source = (reference if reference.exists() else _ROOT / "schedules" / "cpu" / f"{kind}.py").read_text()
    source = re.sub(r"^    version = \d+\n", "", source, flags=re.MULTILINE)
    source = source.replace(f'name = "cpu.{kind}"\n', f'name = "cpu.{kind}"\n    version = {RULES[kind].version}\n')
    # A rule from a model says nothing with underscores, and takes modules by their own names.
    source = source.replace("values.__getitem__", "lambda name: values[name]")
    alias = "from qimeng_tvm.schedule import window_blocking as blocking\n"
    if alias in source:
        source = source.replace(alias, "").replace("packing, steps\n", "packing, steps, window_blocking\n")
        source = re.sub(r"\bblocking\.", "window_blocking.", source)
    return source
