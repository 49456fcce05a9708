"""What a GEMM micro-kernel means, as plain loops: the trusted half of every family.

A family brings the machine's half (``impl``); the meaning (``desc``) is built here, so that
what the checks compare against is never written by whoever wrote the fast code.

Layouts (element strides; ``P`` is ``k_pack``, the k that lie together for one lane):

======== ====================== ==========================================
operand  shape                  strides
======== ====================== ==========================================
A rows   (mr, kc)               (sa, 1): A in place, row major
A panel  (kc / P, mr[, P])      (sa[, P], 1): packed, or A in place transposed
B        (kc / P, nr[, P])      (sb[, P], 1): packed, or B in place when P == 1
C        (mr, nr)               (sc, 1)
======== ====================== ==========================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.ir import Range
from tvm.script import tirx as T

_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "int16": 2, "int8": 1, "uint8": 1}


def packed_shape(kc: int, width: int, k_pack: int) -> tuple[int, ...]:
    """Shape of a packed panel: (kc, width), or (kc / P, width, P)."""
    return (kc, width) if k_pack == 1 else (kc // k_pack, width, k_pack)


def packed_strides(row: Any, k_pack: int) -> list[Any]:
    """Strides of a packed panel whose k rows are ``row`` elements apart."""
    return [row, 1] if k_pack == 1 else [row, k_pack, 1]


def packed_index(k: Any, lane: Any, k_pack: int) -> tuple[Any, ...]:
    """Index of (k, lane) in a packed panel."""
    return (k, lane) if k_pack == 1 else (k // k_pack, lane, k % k_pack)


def whole(buffer: tirx.Buffer) -> tirx.BufferRegion:
    """The region that covers all of a buffer."""
    return tirx.BufferRegion(buffer, [Range(0, extent) for extent in buffer.shape])


@dataclass(frozen=True)
class GemmShape:
    """The shapes of one micro-kernel call, shared by its desc and its impl.

    Attributes
    ----------
    mr, nr, kc : int
        Tile rows, columns and depth; ``kc`` is a multiple of ``k_pack``.
    a_dtype, b_dtype, acc_dtype : str
        What the product means.
    a_store, b_store : str
        What memory holds (packing may have widened it).
    k_pack : int
        P.
    a_panel : bool
        A comes as a panel, else as rows.
    c_local : bool
        C is the caller's register tile (scope ``local``): nothing of it need touch memory when the
        whole reduction is one call. Else C is read and written in memory.
    """

    mr: int
    nr: int
    kc: int
    a_dtype: str
    b_dtype: str
    acc_dtype: str
    a_store: str
    b_store: str
    k_pack: int = 1
    a_panel: bool = False
    c_local: bool = False

    @property
    def c_scope(self) -> str:
        """Storage scope of the C operand."""
        return "local" if self.c_local else "global"

    @property
    def a_shape(self) -> tuple[int, ...]:
        """Shape of the A operand."""
        return packed_shape(self.kc, self.mr, self.k_pack) if self.a_panel else (self.mr, self.kc)

    @property
    def b_shape(self) -> tuple[int, ...]:
        """Shape of the B operand."""
        return packed_shape(self.kc, self.nr, self.k_pack)

    def a_strides(self, row: Any) -> list[Any]:
        """Strides of the A operand."""
        return packed_strides(row, self.k_pack) if self.a_panel else [row, 1]

    def b_strides(self, row: Any) -> list[Any]:
        """Strides of the B operand."""
        return packed_strides(row, self.k_pack)

    def a_index(self, i: Any, k: Any) -> tuple[Any, ...]:
        """Index of A[i, k]."""
        return packed_index(k, i, self.k_pack) if self.a_panel else (i, k)

    def b_index(self, k: Any, j: Any) -> tuple[Any, ...]:
        """Index of B[k, j]."""
        return packed_index(k, j, self.k_pack)


def widen(value: Any, store: str, dtype: str, acc: str) -> Any:
    """Read a stored operand as ``dtype`` and widen it to the accumulator's type."""
    if store != dtype:
        value = tirx.Cast(dtype, value)
    return value if dtype == acc else tirx.Cast(acc, value)


def load(buffer: tirx.Buffer, index: Sequence[Any]) -> Any:
    """Element of a buffer of any rank."""
    return tirx.BufferLoad(buffer, list(index))


#: Bytes that one prefetch brings in.
_LINE = 64
#: How far ahead a panel prefetches itself: a page, where the machine's own prefetcher stops.
_AHEAD = 4096


def _round_bytes(s: GemmShape, ku: int) -> int:
    return s.nr * s.k_pack * ku * _WIDTH[s.b_store]


def lines_of_bytes(size: int) -> int:
    """Return the prefetches that bring in a round's ``size`` bytes of B."""
    return max(1, size // _LINE)


def lines_ahead(shape: GemmShape, ku: int, tiles: int) -> int:
    """Prefetches in each round of ``ku`` steps; see `prefetch_ahead`."""
    return lines_of_bytes(_round_bytes(shape, ku)) if tiles == 1 else min(tiles, 1)


def prefetch_ahead(
    shape: GemmShape, a: tirx.Buffer, b: tirx.Buffer, sa: Any, ko: Any, ku: int, tiles: int, line: Any
) -> Any:
    """Prefetch a line of B that is not in use yet into the second-level cache.

    A lone row tile streams B once: it prefetches what comes a page later. Several row tiles that share a panel
    prefetch the next one, a line a round: each takes a part of it, so that it comes in all the time and not only while
    the first of them runs. What is told to be fetched need not exist: a prefetch has no effect that can be seen.

    Parameters
    ----------
    shape : GemmShape
        The call; B is packed, panel behind panel.
    a, b : tirx.Buffer
        Its operands.
    sa : expression
        Row stride of A, which tells the tile's place from its offset.
    ko, ku : expression, int
        Round, and k steps in a round.
    tiles : int
        Row tiles that share a panel.
    line : expression
        Which of the round's `lines_ahead`.
    """
    s = shape
    panel, width = s.kc * s.nr, _WIDTH[s.b_store]
    if tiles < 2:
        at = (_AHEAD + ko * _round_bytes(s, ku) + line * _LINE) // width
    else:
        parts = min(tiles, lines_of_bytes(_round_bytes(s, ku)))
        place = tirx.floordiv(a.elem_offset, sa * (s.kc // s.k_pack if s.a_panel else s.mr))
        at = panel + tirx.floormod(place, parts) * (panel // parts) + ko * (_LINE // width)
    address = tirx.call_intrin("handle", "tirx.handle_add_byte_offset", b.data, (b.elem_offset + at) * width)
    hint = (tirx.const(x, "int32") for x in (0, 2, 1))  # to read, soon, data
    return tirx.call_llvm_intrin("void", "llvm.prefetch", address, *hint)


@cache
def gemm_desc(shape: GemmShape) -> tirx.PrimFunc:
    """Return C[mr, nr] += A[mr, kc] @ B[kc, nr] as plain loops over the operands' layouts."""
    s = shape
    mr, nr, kc, acc = s.mr, s.nr, s.kc, s.acc_dtype

    def term(a: tirx.Buffer, b: tirx.Buffer, i: Any, j: Any, k: Any) -> Any:
        left = widen(load(a, s.a_index(i, k)), s.a_store, s.a_dtype, acc)
        right = widen(load(b, s.b_index(k, j)), s.b_store, s.b_dtype, acc)
        return left * right

    @T.prim_func(s_tir=True)
    def desc(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sb = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, s.a_store, offset_factor=1, strides=s.a_strides(sa))
        B = T.match_buffer(b, s.b_shape, s.b_store, offset_factor=1, strides=s.b_strides(sb))
        C = T.match_buffer(c, (mr, nr), acc, offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            for i, j, k in T.grid(mr, nr, kc):
                with T.sblock("update"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    C[vi, vj] = C[vi, vj] + term(A, B, vi, vj, vk)

    @T.prim_func(s_tir=True)
    def desc_row(a: T.handle, b: T.handle, c: T.handle):
        sa = T.int32()
        sb = T.int32()
        sc = T.int32()
        A = T.match_buffer(a, s.a_shape, s.a_store, offset_factor=1, strides=s.a_strides(sa))
        B = T.match_buffer(b, s.b_shape, s.b_store, offset_factor=1, strides=s.b_strides(sb))
        C = T.match_buffer(c, (mr, nr), acc, offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            for j, k in T.grid(nr, kc):
                with T.sblock("update"):
                    vj, vk = T.axis.remap("SR", [j, k])
                    C[0, vj] = C[0, vj] + term(A, B, 0, vj, vk)

    # A schedule drops the loop over a single row, and tensorize wants the same loops on both sides.
    return desc if mr > 1 else desc_row
