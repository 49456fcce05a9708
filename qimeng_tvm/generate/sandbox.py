"""Run a model's Python where it can do no harm, and bring back what it built as plain data.

What happens in the worker is not believed: it comes back as TVM's JSON, and is checked in another worker, whose Python
the model's code never touched.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

#: Longest intrinsic that comes back, characters of JSON.
MAX_JSON = 8_000_000
_PACKAGE = "qimeng_generated"


@dataclass(frozen=True)
class Pair:
    """One intrinsic, as TVM's JSON."""

    desc: str
    impl: str


@dataclass(frozen=True)
class SourceError:
    """What the model's code raised.

    Attributes
    ----------
    text : str
        Type and message.
    line : int
        In the source; 0 where it is not known.
    values : mapping
        What it was called with; empty while the module was read.
    """

    text: str
    line: int
    values: Mapping[str, Any]


def declare(source: str, module: str) -> dict[str, Any] | SourceError:
    """Read a family module and return what it declares: the fields of its family, but for the builder."""
    try:
        family = _family(source, module)
    except Exception as error:  # whatever the model's code raises is an answer
        return source_error(error, {})
    return {name: getattr(family, name) for name in family.__dataclass_fields__ if name != "build"}


def build(source: str, module: str, variants: Sequence[Mapping[str, int]]) -> tuple[Pair, ...] | SourceError:
    """Read a family module and build some of its intrinsics."""
    import tvm  # noqa: PLC0415 (only in the worker)

    built = []
    values: Mapping[str, int] = {}
    try:
        family = _family(source, module)
        for values in variants:
            desc, impl = family.build(*(values[p] for p in family.parameters))
            pair = Pair(*("".join(tvm.ir.save_json(f)) for f in (desc, impl)))  # TVM has a text type of its own
            if len(pair.desc) + len(pair.impl) > MAX_JSON:
                raise ValueError(f"the intrinsic is too long ({len(pair.desc) + len(pair.impl)} characters of JSON)")
            built.append(pair)
    except Exception as error:  # whatever the model's code raises is an answer
        return source_error(error, values)
    return tuple(built)


def imported(source: str, module: str) -> ModuleType:
    """Import a source under a module's name; TVM's parser reads functions back from their file."""
    folder = Path(tempfile.mkdtemp())
    path = folder / f"{module}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{_PACKAGE}.{module}", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _family(source: str, module: str) -> Any:
    loaded = imported(source, module)
    found = [f for v in vars(loaded).values() if (f := getattr(v, "__qimeng_family__", None)) is not None]
    own = [f for f in found if f.module == module]
    if len(own) != 1:
        raise ValueError(f"the module must have one function decorated with @intrin_family; it has {len(own)}")
    return own[0]


def source_error(error: BaseException, values: Mapping[str, Any]) -> SourceError:
    """Return what a model's code raised, with the line of its source."""
    line, walk = 0, error.__traceback__
    while walk is not None:
        if _PACKAGE in str(walk.tb_frame.f_globals.get("__name__", "")):
            line = walk.tb_lineno
        walk = walk.tb_next
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    text = " ".join(lines[:2] + lines[2:][-4:])[:800]
    return SourceError(f"{type(error).__name__}: {text}", line, dict(values))
