"""How operators become loops: our own definitions, where a rule reads another form than the one TVM gives.

One operator a file; an entry here is all that the passes need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tvm import relax

from qimeng_tvm.relax.legalize.conv2d import conv2d
from qimeng_tvm.relax.legalize.conv2d_transpose import conv2d_transpose
from qimeng_tvm.relax.legalize.pool2d import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from qimeng_tvm.relax.legalize.rows import instance_norm, softmax

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

#: Operator to what takes its place; TVM's own definitions serve all others.
LEGALIZE: Mapping[str, Legalize] = MappingProxyType(
    {
        "relax.nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
        "relax.nn.avg_pool2d": avg_pool2d,
        "relax.nn.conv2d": conv2d,
        "relax.nn.conv2d_transpose": conv2d_transpose,
        "relax.nn.max_pool2d": max_pool2d,
        "relax.nn.instance_norm": instance_norm,
        "relax.nn.softmax": softmax,
    }
)
