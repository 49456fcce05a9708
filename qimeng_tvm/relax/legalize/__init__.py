"""How operators become loops: our own definitions, where a rule reads another form than the one TVM gives.

One operator a file; an entry here is all that the passes need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tvm import relax

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

#: Operator to what takes its place; TVM's own definitions serve all others.
LEGALIZE: Mapping[str, Legalize] = MappingProxyType({})
