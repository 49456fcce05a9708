"""QiMeng-TVM: near-peak, checked tensor operators for Apache TVM, from one line of text.

``run(line)`` makes one operator, ``tune_line(line)`` only looks for its decisions, ``tune_model(path)`` for those of a
model's operators; ``Hardware.host()`` describes this machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qimeng_tvm import _pins
from qimeng_tvm.errors import QimengError

_pins.check()

if TYPE_CHECKING:
    from qimeng_tvm.api import run
    from qimeng_tvm.hardware.model import Hardware
    from qimeng_tvm.model_tuning import ModelResult, tune_model
    from qimeng_tvm.request import Request
    from qimeng_tvm.result import RunResult
    from qimeng_tvm.tuner import tune_line

__all__ = ["Hardware", "ModelResult", "QimengError", "Request", "RunResult", "run", "tune_line", "tune_model"]

_HOMES = {
    "Hardware": "qimeng_tvm.hardware.model",
    "ModelResult": "qimeng_tvm.model_tuning",
    "Request": "qimeng_tvm.request",
    "RunResult": "qimeng_tvm.result",
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
