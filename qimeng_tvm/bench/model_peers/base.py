"""What the systems that run models share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.bench.models.case import (
    Files,
    ModelCase,
    ModelReference,
    NarrowReference,
    flat,
    load_files,
    load_reference,
)
from qimeng_tvm.bench.systems import BenchError, Offer, Peer

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ModelPeer(Peer):
    """Base of them: a process of its own for every model, since what one leaves behind is gigabytes."""

    prepare_seconds: float = 1800.0
    answer_seconds: float = 300.0
    once: bool = True
    #: Packages that must be there.
    packages: tuple[str, ...] = ()

    def available(self) -> str | None:
        """See :class:`Peer`."""
        missing = [p for p in self.packages if not _present(p)]
        return f"{' and '.join(missing)} not installed" if missing else None

    def inputs(self, folder: Path) -> Files:
        """Read what a case's folder holds."""
        return load_files(folder)

    def reference(self, folder: Path) -> ModelReference | NarrowReference:
        """Read what is right."""
        return load_reference(folder)

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        raise NotImplementedError


def _present(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it would be in is missing
        return False


def exported(files: Files, kind: str, name: str) -> Path:
    """Return the path of an exported file.

    Raises
    ------
    BenchError
        If the model could not be exported that way.
    """
    told = files.about["failures"].get(kind)
    if told:
        raise BenchError(f"the model has no {name}: {told}")
    return files.folder / name


def results_of(read: Callable[[Any], Array]) -> Callable[[Any], Array]:
    """Return what turns a system's result, one or several, into one flat array."""

    def fetch(result: Any) -> Array:
        several: Sequence[Any] = [result] if hasattr(result, "shape") else list(result)
        return flat([read(r) for r in several])

    return fetch
