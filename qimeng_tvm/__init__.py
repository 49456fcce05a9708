"""QiMeng-TVM: near-peak, checked tensor operators for Apache TVM, from one line of text.

``run(line)`` makes one operator, ``tune_line(line)`` only looks for its decisions, ``tune_model(path)`` for those of a
model's operators, and ``compile(model)`` makes a model machine code; ``Hardware.host()`` describes this machine.
Importing the package makes the Relax pipeline "qimeng" known to TVM: ``relax.build(mod, target,
relax_pipeline="qimeng")``; ``pipeline(...)`` is the same with options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qimeng_tvm import _pins, _register
from qimeng_tvm.errors import QimengError

_pins.check()
_register.register()

if TYPE_CHECKING:
    from qimeng_tvm.api import run
    from qimeng_tvm.compiled_model import CompiledModel, compile
    from qimeng_tvm.hardware.model import Hardware
    from qimeng_tvm.model_tuning import ModelResult, tune_model
    from qimeng_tvm.relax.pipeline import Pipeline, pipeline
    from qimeng_tvm.request import Request
    from qimeng_tvm.result import RunResult
    from qimeng_tvm.tuner import tune_line

__all__ = [
    "CompiledModel",
    "Hardware",
    "ModelResult",
    "Pipeline",
    "QimengError",
    "Request",
    "RunResult",
    "compile",
    "pipeline",
    "run",
    "tune_line",
    "tune_model",
]

_HOMES = {
    "CompiledModel": "qimeng_tvm.compiled_model",
    "Hardware": "qimeng_tvm.hardware.model",
    "ModelResult": "qimeng_tvm.model_tuning",
    "Pipeline": "qimeng_tvm.relax.pipeline",
    "Request": "qimeng_tvm.request",
    "RunResult": "qimeng_tvm.result",
    "compile": "qimeng_tvm.compiled_model",
    "pipeline": "qimeng_tvm.relax.pipeline",
    "run": "qimeng_tvm.api",
    "tune_line": "qimeng_tvm.tuner",
    "tune_model": "qimeng_tvm.model_tuning",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: TVM alone takes a second or two."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
