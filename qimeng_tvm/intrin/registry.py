"""Find the families, and register with TVM exactly the intrinsics that a schedule names."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

from qimeng_tvm.errors import IntrinError
from qimeng_tvm.intrin.contract import IntrinFamily, IntrinName

ROOT = "qimeng_tvm.tensorize_intrins"
_IN_TEXT = re.compile(r"qimeng\.[a-z0-9]+\.[a-z0-9_]+\.[a-z0-9_]+\.[0-9x]+@[0-9]+")


@cache
def families() -> Mapping[str, IntrinFamily]:
    """Return every shipped family by key (``isa.module.kind``)."""
    found: dict[str, IntrinFamily] = {}
    package = importlib.import_module(ROOT)
    for info in pkgutil.walk_packages(package.__path__, ROOT + "."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            family = getattr(value, "__qimeng_family__", None)
            if family is not None and value.__module__ == info.name:
                found[family.key] = family
    return MappingProxyType(dict(sorted(found.items())))


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
    """Return the families that compute ``dtypes`` with those features, the widest first."""
    have = frozenset(features)
    fitting = [
        f
        for f in families().values()
        if f.isa == isa and f.dtypes == dtypes and f.kind.split("_")[0] == kind and have.issuperset(f.requires)
    ]
    return tuple(sorted(fitting, key=lambda f: (-f.lanes * f.k_pack, f.key)))


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
