"""How operators become loops: our own definitions, where a rule reads another form than the one TVM gives.

One operator a file; an entry here is all that the passes need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tvm import relax

from qimeng_tvm.relax.legalize.conv2d import conv2d
from qimeng_tvm.relax.legalize.conv2d_transpose import conv2d_transpose
from qimeng_tvm.relax.legalize.filled import full
from qimeng_tvm.relax.legalize.norms import group_norm, instance_norm
from qimeng_tvm.relax.legalize.places import argmax, argmin
from qimeng_tvm.relax.legalize.pool2d import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from qimeng_tvm.relax.legalize.rows import softmax

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

#: Operator to what takes its place; TVM's own definitions serve all others.
LEGALIZE: Mapping[str, Legalize] = MappingProxyType(
    {
        "relax.argmax": argmax,
        "relax.argmin": argmin,
        "relax.full": full,
        "relax.nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
        "relax.nn.avg_pool2d": avg_pool2d,
        "relax.nn.conv2d": conv2d,
        "relax.nn.conv2d_transpose": conv2d_transpose,
        "relax.nn.group_norm": group_norm,
        "relax.nn.instance_norm": instance_norm,
        "relax.nn.max_pool2d": max_pool2d,
        "relax.nn.softmax": softmax,
    }
)
