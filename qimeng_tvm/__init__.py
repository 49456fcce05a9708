"""QiMeng-TVM: near-peak, checked tensor operators for Apache TVM, from one line of text.

``run(line)`` makes one operator, ``tune_line(line)`` only looks for its decisions; ``Hardware.host()`` describes this
machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qimeng_tvm import _pins
from qimeng_tvm.errors import QimengError

_pins.check()

if TYPE_CHECKING:
    from qimeng_tvm.api import run
    from qimeng_tvm.hardware.model import Hardware
    from qimeng_tvm.request import Request
    from qimeng_tvm.result import RunResult
    from qimeng_tvm.tuner import tune_line

__all__ = ["Hardware", "QimengError", "Request", "RunResult", "run", "tune_line"]

_HOMES = {
    "Hardware": "qimeng_tvm.hardware.model",
    "Request": "qimeng_tvm.request",
    "RunResult": "qimeng_tvm.result",
    "run": "qimeng_tvm.api",
    "tune_line": "qimeng_tvm.tuner",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: TVM alone takes a second or two."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
