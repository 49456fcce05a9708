"""Trusted Python files that do not belong to the package, to compare what a model wrote with."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from qimeng_tvm.errors import GenerateError


def modules_in(folder: Path) -> Iterator[ModuleType]:
    """Import the Python files in a folder's sub-folders, as modules of one package: they may import each other.

    Parameters
    ----------
    folder : Path
        ``x86/avx2_f32.py`` in it is what a family ``x86.avx2_f32`` is compared with.

    Raises
    ------
    GenerateError
        If there is no such folder, or a file in it cannot be imported.
    """
    if not folder.is_dir():
        raise GenerateError(f"no folder {folder} of reference families and rules")
    root = folder.resolve()
    package = f"qimeng_reference_{sha256(str(root).encode()).hexdigest()[:8]}"
    if package not in sys.modules:
        module = ModuleType(package)
        module.__path__ = [str(root)]
        sys.modules[package] = module
    for path in sorted(root.glob("*/*.py")):
        if path.stem == "__init__":
            continue
        try:
            yield importlib.import_module(f"{package}.{path.parent.name}.{path.stem}")
        except Exception as error:  # whatever a damaged file raises
            raise GenerateError(f"the reference {path} cannot be imported ({error})") from error
