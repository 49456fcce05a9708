"""Make the Relax pipeline "qimeng" known to TVM, whichever of the two packages is imported first.

TVM takes seconds to import, and the command line answers much without it: so it is not imported here.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "qimeng"
_HOME = "tvm.relax.pipeline"


def register() -> None:
    """Register the pipeline now, or when TVM's own pipelines are imported."""
    loaded = sys.modules.get(_HOME)
    if loaded is not None:
        _add(loaded)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _add(module: ModuleType) -> None:
    def make(**options: Any) -> Any:
        from qimeng_tvm.relax.pipeline import pipeline  # noqa: PLC0415 (only when it is asked for)

        return pipeline(**options)

    module.PIPELINE_MAP.setdefault(NAME, make)


class _Watch(importlib.abc.MetaPathFinder):
    """Waits for one module to be imported, and leaves the import itself to the finders behind it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _HOME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(importlib.abc.Loader):
    """Loads as another loader does, and adds the pipeline."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _add(module)
