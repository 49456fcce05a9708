"""The prompts for schedule rules: what the helpers are is read off the helpers, what is scheduled off the passes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qimeng_tvm.llm.prompts.render import Prompt, render, template, version

if TYPE_CHECKING:
    from qimeng_tvm.generate.rules import RuleTask
    from qimeng_tvm.hardware.model import Hardware

#: Whose decisions are told where no machine is given.
_MACHINE = "zen5"
_NAME = "rule"


def rule_prompt(task: RuleTask, hardware: Hardware | None = None) -> Prompt:
    """Return what a model is told to write a rule.

    Parameters
    ----------
    task : RuleTask
        Which.
    hardware : Hardware, optional
        Adds the machine's registers and caches.
    """
    return _product_prompt(task, hardware) if task.kind == "matmul" else _kind_prompt(task, hardware)


def _product_prompt(task: RuleTask, hardware: Hardware | None) -> Prompt:
    from qimeng_tvm.generate.rule_operators import checked_operators  # noqa: PLC0415 (they import this)
    from qimeng_tvm.generate.rule_policy import api_of  # noqa: PLC0415

    shown = api_of(task).helpers if not task.rows else {"blocking": ("gemm_space", "gemv_space", "gemm_plan")}
    return render(
        _NAME,
        {
            "task": task,
            "helpers": [_helper(module, name) for module, names in shown.items() for name in names],
            "modules": _modules(task),
            "example": template("example_rule.py.j2"),
            "checked": len(checked_operators(task)),
            "machine": _machine(hardware) if hardware is not None else None,
        },
    )


def _kind_prompt(task: RuleTask, hardware: Hardware | None) -> Prompt:
    """Fill the template of a kind of its own: ``rule_pool.j2`` extends ``rule_base.j2``."""
    import jinja2  # noqa: PLC0415

    from qimeng_tvm.generate.anchors import anchors_of, decisions_of  # noqa: PLC0415 (they import this)
    from qimeng_tvm.generate.rule_operators import checked_operators, timed_operators  # noqa: PLC0415
    from qimeng_tvm.generate.rule_policy import api_of  # noqa: PLC0415
    from qimeng_tvm.hardware.model import Hardware as Machine  # noqa: PLC0415

    api = api_of(task)
    named = {**{f"{m}.{n}": (m, n) for m, names in api.helpers.items() for n in names}}
    named |= {n: (m, n) for m, names in api.functions.items() for n in names if f"{m}.{n}" not in named}
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    machine = hardware or Machine.load(_MACHINE)
    text = environment.get_template(f"rule_{task.operator}.j2").render(
        task=task,
        families=api.families,
        helpers=[_manual(call, *where) for call, where in named.items()],
        modules=_modules(task),
        anchors=anchors_of(task, machine),
        decisions=decisions_of(task, machine),
        example=template("example_rule.py.j2"),
        checked=[operator.label for operator in checked_operators(task)],
        timed=[operator.label for operator in timed_operators(task)],
        machine=_machine(hardware) if hardware is not None else None,
    )
    return Prompt(_NAME, version(_NAME), text.lstrip())


def _modules(task: RuleTask) -> str:
    from qimeng_tvm.generate.rule_policy import rule_policy  # noqa: PLC0415 (it imports this)

    return "; ".join(f"`{m}`: {', '.join(sorted(names))}" for m, names in rule_policy(task).modules.items())


def _helper(module: str, name: str) -> dict[str, str]:
    """Signature and first sentences of a helper."""
    found = getattr(importlib.import_module(f"qimeng_tvm.schedule.{module}"), name)
    text = inspect.getdoc(found) or ""
    first = " ".join(text.split("\n\n")[0].split())
    notes = [p for p in text.split("\n\n")[1:] if not p.startswith(("Parameters", "Attributes", "Raises"))]
    return {"call": f"{module}.{name}{_signature(found)}", "text": " ".join([first, *(_flat(n) for n in notes)])}


def _manual(call: str, module: str, name: str) -> dict[str, str]:
    """Signature and whole documentation of a helper; of a class, its fields and properties; of a number, itself."""
    found = getattr(importlib.import_module(f"qimeng_tvm.schedule.{module}"), name)
    if isinstance(found, int):
        return {"call": f"{call} = {found}", "text": "A constant."}
    lines = [inspect.getdoc(found) or ""]
    if dataclasses.is_dataclass(found):
        lines.append(f"Fields: {', '.join(f'{f.name}: {f.type}' for f in dataclasses.fields(found))}.")
        made = [(n, v) for n, v in vars(found).items() if not n.startswith("_")]
        also = [(n, v) for n, v in made if isinstance(v, property) or inspect.isfunction(v)]
        described = [f"{n}{_signature(v)}: {_flat(inspect.getdoc(v) or '')}" for n, v in also]
        lines += [f"Also {' '.join(described)}"] if described else []
    return {"call": f"{call}{_signature(found)}", "text": "\n\n".join(lines)}


def _signature(found: Any) -> str:
    if inspect.isclass(found) or isinstance(found, property):
        return ""
    return str(inspect.signature(found)).replace("'", "")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _machine(hardware: Hardware) -> Mapping[str, Any]:
    return {
        "name": hardware.cpu,
        "cores": hardware.cores,
        "registers": hardware.vector_registers,
        "bits": hardware.vector_bits,
        "caches": ", ".join(f"L{c.level} {c.size // 1024} KiB" for c in hardware.caches),
    }
