"""Which shipped files a model wrote, and where they are."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePosixPath

_PACKAGES = {"tensorize_intrins": "qimeng_tvm.tensorize_intrins", "schedules": "qimeng_tvm.schedules"}


def file_of(label: str) -> str:
    """Return the place of what a label names: ``intrinsic x86.avx2_f32`` is ``tensorize_intrins/x86/avx2_f32.py``."""
    kind, _, key = label.partition(" ")
    folder = "tensorize_intrins" if kind == "intrinsic" else "schedules"
    return f"{folder}/{key.replace('.', '/')}.py"


def shipped_source(label: str) -> bytes | None:
    """Return the shipped file of that label; None when there is none."""
    folder, *parts = PurePosixPath(file_of(label)).parts
    found = resources.files(_PACKAGES[folder]).joinpath(*parts)
    return found.read_bytes() if found.is_file() else None
