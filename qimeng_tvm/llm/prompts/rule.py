"""The prompt for a schedule rule: what the helpers are is read off the helpers."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from qimeng_tvm.llm.prompts.render import Prompt, render, template

if TYPE_CHECKING:
    from qimeng_tvm.generate.rules import RuleTask
    from qimeng_tvm.hardware.model import Hardware


def rule_prompt(task: RuleTask, hardware: Hardware | None = None) -> Prompt:
    """Return what a model is told to write a rule.

    Parameters
    ----------
    task : RuleTask
        Which.
    hardware : Hardware, optional
        Adds the machine's registers and caches.
    """
    from qimeng_tvm.generate.rules import HELPERS, checked_requests, rule_policy  # noqa: PLC0415 (they import this)

    shown = HELPERS if not task.rows else {"blocking": ("gemm_space", "gemv_space", "gemm_plan")}
    return render(
        "rule",
        {
            "task": task,
            "helpers": [_helper(module, name) for module, names in shown.items() for name in names],
            "modules": "; ".join(
                f"`{m}`: {', '.join(sorted(names))}" for m, names in rule_policy(task).modules.items()
            ),
            "example": template("example_rule.py.j2"),
            "checked": len(checked_requests(task)),
            "machine": _machine(hardware) if hardware is not None else None,
        },
    )


def _helper(module: str, name: str) -> dict[str, str]:
    """Signature and first sentences of a helper."""
    found = getattr(importlib.import_module(f"qimeng_tvm.schedule.{module}"), name)
    text = inspect.getdoc(found) or ""
    first = " ".join(text.split("\n\n")[0].split())
    notes = [p for p in text.split("\n\n")[1:] if not p.startswith(("Parameters", "Attributes", "Raises"))]
    signature = "" if inspect.isclass(found) else str(inspect.signature(found)).replace("'", "")
    return {"call": f"{module}.{name}{signature}", "text": " ".join([first, *(" ".join(n.split()) for n in notes)])}


def _machine(hardware: Hardware) -> dict[str, Any]:
    return {
        "name": hardware.cpu,
        "cores": hardware.cores,
        "registers": hardware.vector_registers,
        "bits": hardware.vector_bits,
        "caches": ", ".join(f"L{c.level} {c.size // 1024} KiB" for c in hardware.caches),
    }
