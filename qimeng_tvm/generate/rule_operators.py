"""What rules are checked on, and timed on: whole tiles, edges and everything else that a rule may forget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from qimeng_tvm.generate import image_operators as images
from qimeng_tvm.generate import row_operators as rows
from qimeng_tvm.generate.checked import Checked, Product
from qimeng_tvm.generate.graphs import Graph, Step
from qimeng_tvm.generate.rules import RuleTask
from qimeng_tvm.request import Request


def checked_operators(task: RuleTask) -> tuple[Checked, ...]:
    """Return operators that a rule is checked on."""
    return _products(task) if task.kind == "matmul" else _CHECKED[task.kind]()


def timed_operators(task: RuleTask) -> tuple[Checked, ...]:
    """Return operators that a rule is timed on."""
    return _timed_products(task) if task.kind == "matmul" else _TIMED[task.kind]()


def shown_operators(task: RuleTask) -> tuple[Checked, ...]:
    """Return small operators whose functions a model is shown; none of matrix products."""
    return _SHOWN[task.kind]() if task.kind in _SHOWN else ()


def left_alone(task: RuleTask, operator: Checked) -> tuple[Checked, ...]:
    """Return an operator like another one that a rule for few rows must not match; none for other rules."""
    if not task.rows or not isinstance(operator, Product):
        return ()
    return (Product(replace(operator.request, m=task.rows + 1)),)


def _product(m: int, n: int, k: int, dtypes: str = "f32", threads: int = 1, **more: object) -> Product:
    a, b, out = {
        "f32": ("float32", "float32", "float32"),
        "bf16": ("bfloat16", "bfloat16", "float32"),
        "u8s8": ("uint8", "int8", "int32"),
        "s8s8": ("int8", "int8", "int32"),
    }[dtypes]
    asked: Any = {"a_dtype": a, "b_dtype": b, "out_dtype": out, "threads": threads, **more}
    return Product(Request("matmul", m, n, k, **asked))


def _products(task: RuleTask) -> tuple[Product, ...]:
    """Whole tiles, edges, a split K, every layout, two threads."""
    ms = (64, 61, 130, 16, 40, 37) if not task.rows else (1, 3, 8, 1, 4, 2)
    found = []
    for dtypes in ("f32", "bf16", "u8s8", "s8s8"):
        found += [
            _product(ms[0], 64, 64, dtypes),
            _product(ms[1], 67, 71, dtypes),
            _product(ms[2], 70, 300, dtypes, threads=2),
            _product(ms[3], 100, 64, dtypes, constant_b=True),
            _product(ms[4], 56, 72, dtypes, transpose_a=True, transpose_b=True, batch=2),
            _product(ms[5], 45, 53, dtypes, epilogue=("bias", "relu"), constant_b=True, transpose_b=True),
        ]
    return (*found, _product(ms[0], 300, 1030, threads=2, constant_b=True))


def _timed_products(task: RuleTask) -> tuple[Product, ...]:
    if task.rows:
        return (
            _product(1, 4096, 4096, constant_b=True),
            _product(4, 3072, 768, constant_b=True),
            _product(1, 1024, 1024),
            _product(1, 4096, 1024, "bf16", constant_b=True),
            _product(8, 1024, 1024, "u8s8", constant_b=True),
        )
    return (
        _product(256, 256, 256),
        _product(1024, 1024, 1024, constant_b=True),
        _product(255, 257, 263),
        _product(16, 3072, 768, constant_b=True),
        _product(512, 512, 512, "bf16"),
        _product(512, 512, 512, "u8s8", constant_b=True),
    )


_Operators = Callable[[], tuple[Graph, ...]]
_CHECKED: Mapping[str, _Operators] = MappingProxyType(
    {
        "conv2d": images.convs,
        "winograd": images.winograds,
        "depthwise": images.depthwise_convs,
        "pool": images.pools,
        "rowwise": rows.rows,
        "elementwise": rows.elements,
    }
)
_TIMED: Mapping[str, _Operators] = MappingProxyType(
    {
        "conv2d": images.timed_convs,
        "winograd": images.timed_winograds,
        "depthwise": images.timed_depthwise,
        "pool": images.timed_pools,
        "rowwise": rows.timed_rows,
        "elementwise": rows.timed_elements,
    }
)
_SHOWN: Mapping[str, _Operators] = MappingProxyType(
    {
        "conv2d": lambda: (
            images.conv((1, 14, 14, 32), 64, then="bias relu", threads=2),
            images.conv((1, 9, 9, 3), 16, stride=(2, 2), groups=1, dtypes="bf16"),
        ),
        "winograd": lambda: (images.winograd((1, 13, 16, 32), 64, then="bias relu", threads=2),),
        "depthwise": lambda: (images.depthwise((1, 14, 14, 32), then="bias relu6", threads=2),),
        "pool": lambda: (
            images.pool("max_pool", (1, 16, 16, 32), then="relu", threads=2),
            images.pool("avg_pool", (1, 9, 9, 16)),
        ),
        "rowwise": lambda: (
            rows.layer_norm((6, 96), threads=2),
            rows.softmax((3, 40)),
            rows.reduction("mean", (2, 7, 7, 64), (1, 2)),
        ),
        "elementwise": lambda: (
            rows.graph("add of", {"x": (9, 128), "y": (128,)}, Step("add", ("x", "y")), Step("relu"), threads=2),
            rows.permuted((2, 3, 9, 11), (0, 2, 3, 1)),
            rows.joined((2, 5), 64, 41),
        ),
    }
)
