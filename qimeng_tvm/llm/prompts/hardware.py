"""The prompt that has a model read a machine out of its manual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qimeng_tvm.llm.prompts.render import Prompt, render, template

if TYPE_CHECKING:
    from qimeng_tvm.hardware.manual import Manual


def hardware_prompt(manuals: Sequence[Manual], name: str | None = None) -> Prompt:
    """Return what a model is told to describe a machine.

    Parameters
    ----------
    manuals : sequence of Manual
        What it is to read.
    name : str, optional
        Of the machine, when the user gives it: the model is not asked for it then.
    """
    from qimeng_tvm.generate.profile_answer import REQUIRED, CacheAnswer, ProfileAnswer  # noqa: PLC0415
    from qimeng_tvm.hardware.tables import known_features  # noqa: PLC0415

    machine = {n: f.description for n, f in ProfileAnswer.model_fields.items()}
    required = set(REQUIRED)
    if name is not None:
        machine.pop("name")
        required.remove("name")
    return render(
        "hardware",
        {
            "manuals": manuals,
            "name": name,
            "fields": [(n, n in required, text) for n, text in machine.items()],
            "cache_fields": [(n, f.is_required(), f.description) for n, f in CacheAnswer.model_fields.items()],
            "features": {isa: " ".join(sorted(known_features(isa))) for isa in ("x86", "arm", "riscv")},
            "example_text": template("example_hardware.txt.j2").strip(),
            "example_answer": template("example_hardware.json.j2").strip(),
        },
    )
