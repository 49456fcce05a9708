"""The contract of ``tensorize_intrins/``: families, their canonical names, discovery, registration."""

from qimeng_tvm.intrin.contract import IntrinFamily, IntrinName, intrin_family
from qimeng_tvm.intrin.lanewise import LaneShape, lane_desc
from qimeng_tvm.intrin.microkernel import GemmShape, gemm_desc, lines_ahead, load, prefetch_ahead, whole
from qimeng_tvm.intrin.registry import ensure_registered, ensure_registered_in, families, families_for, family, names_in

__all__ = [
    "GemmShape",
    "IntrinFamily",
    "IntrinName",
    "LaneShape",
    "ensure_registered",
    "ensure_registered_in",
    "families",
    "families_for",
    "family",
    "gemm_desc",
    "intrin_family",
    "lane_desc",
    "lines_ahead",
    "load",
    "names_in",
    "prefetch_ahead",
    "whole",
]
