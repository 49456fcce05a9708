"""The machine: what it is (detected or from a profile), and what it can do (measured)."""

from __future__ import annotations

from qimeng_tvm.hardware.cache import measured
from qimeng_tvm.hardware.host import host
from qimeng_tvm.hardware.model import Cache, Hardware
from qimeng_tvm.hardware.profiles import load, names
from qimeng_tvm.hardware.show import describe, to_json
from qimeng_tvm.hardware.target import target_of
from qimeng_tvm.hardware.threads import beside, configure_threads, settle_threads, threads_in_force, use_threads

__all__ = [
    "Cache",
    "Hardware",
    "beside",
    "configure_threads",
    "describe",
    "host",
    "load",
    "measured",
    "names",
    "settle_threads",
    "target_of",
    "threads_in_force",
    "to_json",
    "use_threads",
]
