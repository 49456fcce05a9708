"""Find the families, and register with TVM exactly the intrinsics that a schedule names."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType

import platformdirs

from qimeng_tvm.errors import IntrinError
from qimeng_tvm.intrin.contract import IntrinFamily, IntrinName

ROOT = "qimeng_tvm.tensorize_intrins"
_OWN = "qimeng_own_intrins"
_IN_TEXT = re.compile(r"qimeng\.[a-z0-9]+\.[a-z0-9_]+\.[a-z0-9_]+\.[0-9x]+@[0-9]+")


def own_folder() -> Path:
    """Return where this user's own families lie, in folders by instruction set: those that were generated here."""
    return Path(platformdirs.user_data_dir("qimeng_tvm")) / "families"


@cache
def families() -> Mapping[str, IntrinFamily]:
    """Return every family by key (``isa.module.kind``): the shipped ones, then the user's own.

    Raises
    ------
    IntrinError
        If a file among the user's own cannot be imported.
    """
    found: dict[str, IntrinFamily] = {}
    package = importlib.import_module(ROOT)
    for info in pkgutil.walk_packages(package.__path__, ROOT + "."):
        found |= _declared(importlib.import_module(info.name))
    for path in sorted(own_folder().glob("*/*.py")):
        for key, own in _declared(_imported(path)).items():
            found.setdefault(key, own)
    return MappingProxyType(dict(sorted(found.items())))


def _declared(module: ModuleType) -> dict[str, IntrinFamily]:
    marked = (
        f
        for v in vars(module).values()
        if (f := getattr(v, "__qimeng_family__", None)) is not None and v.__module__ == module.__name__
    )
    return {f.key: f for f in marked}


def _imported(path: Path) -> ModuleType:
    name = f"{_OWN}.{path.parent.name}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # TVM's parser looks the source up by the module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a damaged file raises
        del sys.modules[name]
        raise IntrinError(f"the family in {path} cannot be imported ({error}): move it away") from error
    return module


#: Keys that `families_for` keeps to; empty: all.
_only: frozenset[str] = frozenset()


@contextmanager
def only(keys: Iterable[str]) -> Iterator[None]:
    """Keep schedules to these families for a while; with no keys, to all of them."""
    global _only  # noqa: PLW0603 (what rules ask is asked deep inside TVM's search, in its threads)
    before, _only = _only, frozenset(keys)
    try:
        yield
    finally:
        _only = before


def family(key: str) -> IntrinFamily:
    """Return the family ``isa.module.kind``.

    Raises
    ------
    IntrinError
        If there is none of that key.
    """
    known = families()
    if key not in known:
        raise IntrinError(f"no intrinsic family {key!r}; known: {', '.join(known)}")
    return known[key]


def families_for(
    isa: str, dtypes: tuple[str, str, str], features: Iterable[str], kind: str = "gemm"
) -> tuple[IntrinFamily, ...]:
    """Return the families that compute ``dtypes`` with those features, the one that does most an instruction first.

    The user's own serve where nothing shipped does, and where they are asked for (`only`). One that does less an
    instruction than another on vectors of the same length is left out: there is nothing that it would be better for.
    """
    have = frozenset(features)
    fitting = [
        f
        for f in families().values()
        if f.isa == isa
        and f.dtypes == dtypes
        and f.kind.split("_")[0] == kind
        and have.issuperset(f.requires)
        and (not _only or f.key in _only)
    ]
    fitting = [f for f in fitting if not f.build.__module__.startswith(_OWN) or _only] or fitting
    most = {f.lanes: max(_products(g) for g in fitting if g.lanes == f.lanes) for f in fitting}
    return tuple(sorted((f for f in fitting if _products(f) == most[f.lanes]), key=lambda f: (-_products(f), f.key)))


def _products(family: IntrinFamily) -> float:
    """Multiply-adds of one instruction."""
    return family.lanes * family.k_step / family.uops


def ensure_registered(name: str) -> None:
    """Register the intrinsic that ``name`` says with TVM, once.

    Raises
    ------
    IntrinError
        If the family is unknown or its version is another one than the name's.
    """
    from tvm.s_tir import TensorIntrin  # noqa: PLC0415 (names can be read without TVM)

    if TensorIntrin.get(name, allow_missing=True) is not None:
        return
    owner, values = resolve(name)
    desc, impl = owner.build(*values)
    TensorIntrin.register(name, desc, impl)


def resolve(name: str) -> tuple[IntrinFamily, tuple[int, ...]]:
    """Return the family and the parameters that a canonical name stands for.

    Raises
    ------
    IntrinError
        If the family is unknown, or its version or its parameters are others than the name's.
    """
    parsed = IntrinName.parse(name)
    owner = family(parsed.key)
    if owner.version != parsed.version:
        raise IntrinError(
            f"{name} was recorded with version {parsed.version} of {owner.key}, "
            f"installed is {owner.version}: tune again"
        )
    if len(parsed.values) != len(owner.parameters):
        raise IntrinError(
            f"{name} has {len(parsed.values)} parameters, {owner.key} takes {', '.join(owner.parameters)}"
        )
    return owner, parsed.values


def names_in(text: str) -> tuple[str, ...]:
    """Return the canonical intrinsic names that a trace, script or JSON text mentions, sorted."""
    return tuple(sorted(set(_IN_TEXT.findall(text))))


def ensure_registered_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Register every intrinsic that the texts name; return the names."""
    names = tuple(sorted({name for text in texts for name in names_in(text)}))
    for name in names:
        ensure_registered(name)
    return names
