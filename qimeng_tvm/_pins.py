"""Refuse, at import, a tvm-ffi that is known to crash."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

#: With 0.1.15.post2, which pip would choose, ``sch.tensorize`` and ``tvm.ir.save_json`` segfault.
TVM_FFI = "0.1.14.post1"


def check(installed: str | None = None) -> None:
    """Raise unless the pinned tvm-ffi is installed.

    Raises
    ------
    ImportError
        With the pip command that mends it.
    """
    if installed is None:
        try:
            installed = version("apache-tvm-ffi")
        except PackageNotFoundError:
            installed = "none"
    if installed != TVM_FFI:
        raise ImportError(
            f"qimeng_tvm needs apache-tvm-ffi {TVM_FFI}, found {installed}, with which TVM's tensorize crashes; "
            f"mend it with: pip install apache-tvm-ffi=={TVM_FFI}"
        )
