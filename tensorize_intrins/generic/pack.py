"""Packing of GEMM operands in vector registers: interleaving of rows, and transposes. Any CPU.

What packing has to do beside copying depends on how the operand is stored (P is ``k_pack``):

=================== ============================= ==========================================
stored              packed                        kind
=================== ============================= ==========================================
(K, N), P = 1       (K, nr)                       rows of vectors: a plain copy, no intrinsic
(K, N), P = 2, 4    (K / P, nr, P)                ``pack_rows``: P rows interleaved
(N, K), any P       (K / P, nr[, P])              ``pack_tile``: square tiles of P-element units transposed
=================== ============================= ==========================================

All of it is loads, shuffles of two vectors, and stores; LLVM picks the instructions. Every shuffle of a
transpose stays within 128 bits, or moves whole 128-bit halves: cheap on x86 and on 128-bit machines.

author: hand
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.intrin import intrin_family, whole

Pair = tuple[tirx.PrimFunc, tirx.PrimFunc]

#: 16-bit floats move as integers: vectors of bfloat16 cannot reach LLVM operations.
_AS_BITS = {"bfloat16": "int16", "float16": "int16"}
_BITS_IN_LANE = 128


def _widen(vector: Any, source: str, target: str, lanes: int) -> Any:
    return vector if source == target else tirx.Cast(f"{target}x{lanes}", vector)


def _zip(a: Any, b: Any, lanes: int, group: int) -> Any:
    """Interleave two vectors of ``lanes`` elements in groups of ``group`` elements."""
    order = [which * lanes + at * group + e for at in range(lanes // group) for which in range(2) for e in range(group)]
    return tirx.Shuffle([a, b], order)


def _interleaved(rows: list[Any], lanes: int) -> Any:
    """Interleave 2 or 4 rows element by element."""
    if len(rows) == 2:
        return _zip(rows[0], rows[1], lanes, 1)
    halves = [_zip(rows[i], rows[i + 1], lanes, 1) for i in (0, 2)]
    return _zip(halves[0], halves[1], 2 * lanes, 2)


def _transposed(rows: list[Any], unit: int, bits: int) -> list[Any]:
    """Transpose a square of units of ``unit`` elements, one vector a row, by pairwise shuffles.

    Stage s exchanges, between rows i and i + 2**s, every second group of 2**s units. As long as such groups are
    smaller than 128 bits they are unpacked within each 128-bit lane (which leaves columns in another order);
    beyond, whole lanes move. The order is followed here with labels, so no table of it is needed.
    """
    side = len(rows)
    per_lane = max(1, min(side, _BITS_IN_LANE // (unit * bits)))
    label = [[(i, j) for j in range(side)] for i in range(side)]
    step = 1
    while step < side:
        for i in (i for i in range(side) if not i & step):
            a, b = rows[i], rows[i + step]
            low, high = _halves(side, step, per_lane)
            both = label[i] + label[i + step]
            label[i], label[i + step] = [both[x] for x in low], [both[x] for x in high]
            rows[i], rows[i + step] = (
                tirx.Shuffle([a, b], [x * unit + e for x in pick for e in range(unit)]) for pick in (low, high)
            )
        step *= 2
    columns: list[Any] = [None] * side
    for i in range(side):
        assert [source for source, _ in label[i]] == list(range(side)), "rows are whole columns, in order"
        columns[label[i][0][1]] = rows[i]
    return columns


def _halves(side: int, step: int, per_lane: int) -> tuple[list[int], list[int]]:
    """Units (of the concatenation of two rows of ``side``) that the two results of one exchange take."""
    low: list[int] = []
    high: list[int] = []
    if step < per_lane:
        # Unpack groups of ``step`` units within each lane: a0 b0 a1 b1 .. of its low, and of its high half.
        for lane in range(0, side, per_lane):
            for half, out in ((0, low), (per_lane // 2, high)):
                for at in range(lane + half, lane + half + per_lane // 2, step):
                    out += [*range(at, at + step), *range(side + at, side + at + step)]
    else:
        for at in range(0, side, 2 * step):
            for shift, out in ((0, low), (step, high)):
                start = at + shift
                out += [*range(start, start + step), *range(side + start, side + start + step)]
    return low, high


def _rows(source: str, target: str, k_pack: int, lanes: int) -> Pair:
    """Build (P, L) rows, any row stride -> (L, P) contiguous."""
    p, n = k_pack, lanes
    raw, out = _AS_BITS.get(source, source), _AS_BITS.get(target, target)

    def value(x: Any) -> Any:
        return x if source == target else tirx.Cast(target, x)

    def emit(src: tirx.Buffer, dst: tirx.Buffer) -> None:
        rows = [_widen(src.vload([i, 0], f"{raw}x{n}"), raw, out, n) for i in range(p)]
        T.buffer_store(dst, _interleaved(rows, n), [T.ramp(0, 1, n * p)])

    @T.prim_func(s_tir=True)
    def desc(a: T.handle, b: T.handle):
        s = T.int32()
        A = T.match_buffer(a, (p, n), source, offset_factor=1, strides=[s, 1])
        B = T.match_buffer(b, (n, p), target, offset_factor=1, strides=[p, 1])
        with T.sblock("root"):
            T.reads(whole(A))
            T.writes(whole(B))
            for k, j in T.grid(p, n):
                with T.sblock("pack"):
                    vk, vj = T.axis.remap("SS", [k, j])
                    B[vj, vk] = value(A[vk, vj])

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle):
        s = T.int32()
        A = T.match_buffer(a, (p, n), source, offset_factor=1, strides=[s, 1])
        B = T.match_buffer(b, (n, p), target, offset_factor=1, strides=[p, 1])
        with T.sblock("root"):
            T.reads(whole(A))
            T.writes(whole(B))
            src = T.decl_buffer((p, n), raw, data=A.data, elem_offset=A.elem_offset, strides=[s, 1])
            dst = T.decl_buffer((n * p,), out, data=B.data, elem_offset=B.elem_offset)
            emit(src, dst)

    return desc, impl


def _tile(source: str, target: str, k_pack: int, side: int) -> Pair:
    """Build (S, S * P) rows along k -> (S, S[, P]): a square of P-element units transposed."""
    p, n = k_pack, side
    raw, out = _AS_BITS.get(source, source), _AS_BITS.get(target, target)
    bits = tirx.const(0, out).ty.dtype.bits
    shape = (n, n) if p == 1 else (n, n, p)

    def strides(t: Any) -> list[Any]:
        return [t, 1] if p == 1 else [t, p, 1]

    def index(k: Any, j: Any) -> tuple[Any, ...]:
        return (k, j) if p == 1 else (k // p, j, k % p)

    def copy(src: tirx.Buffer, dst: tirx.Buffer, j: Any, k: Any) -> None:
        value = tirx.BufferLoad(src, [j, k])
        T.buffer_store(dst, value if source == target else tirx.Cast(target, value), list(index(k, j)))

    def emit(src: tirx.Buffer, dst: tirx.Buffer) -> None:
        rows = [_widen(src.vload([i, 0], f"{raw}x{n * p}"), raw, out, n * p) for i in range(n)]
        for k, column in enumerate(_transposed(rows, p, bits)):
            T.buffer_store(dst, column, [k, T.ramp(0, 1, n * p)])

    @T.prim_func(s_tir=True)
    def desc(a: T.handle, b: T.handle):
        s = T.int32()
        t = T.int32()
        A = T.match_buffer(a, (n, n * p), source, offset_factor=1, strides=[s, 1])
        B = T.match_buffer(b, shape, target, offset_factor=1, strides=strides(t))
        with T.sblock("root"):
            T.reads(whole(A))
            T.writes(whole(B))
            for j, k in T.grid(n, n * p):
                with T.sblock("pack"):
                    vj, vk = T.axis.remap("SS", [j, k])
                    copy(A, B, vj, vk)

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle):
        s = T.int32()
        t = T.int32()
        A = T.match_buffer(a, (n, n * p), source, offset_factor=1, strides=[s, 1])
        B = T.match_buffer(b, shape, target, offset_factor=1, strides=strides(t))
        with T.sblock("root"):
            T.reads(whole(A))
            T.writes(whole(B))
            src = T.decl_buffer((n, n * p), raw, data=A.data, elem_offset=A.elem_offset, strides=[s, 1])
            dst = T.decl_buffer((n, n * p), out, data=B.data, elem_offset=B.elem_offset, strides=[t, 1])
            emit(src, dst)

    return desc, impl


def _packs(source: str, target: str) -> Callable[[Callable[..., Pair]], Callable[..., Pair]]:
    return intrin_family(
        isa="generic", dtypes=(source, source, target), storage=(source, target), lanes=1, registers=16
    )


@_packs("bfloat16", "bfloat16")
def pack_rows_bf16(k_pack: int, lanes: int) -> Pair:
    """(P, L) -> (L, P)."""
    return _rows("bfloat16", "bfloat16", k_pack, lanes)


@_packs("float16", "float16")
def pack_rows_f16(k_pack: int, lanes: int) -> Pair:
    """(P, L) -> (L, P)."""
    return _rows("float16", "float16", k_pack, lanes)


@_packs("int8", "int8")
def pack_rows_s8(k_pack: int, lanes: int) -> Pair:
    """(P, L) -> (L, P)."""
    return _rows("int8", "int8", k_pack, lanes)


@_packs("uint8", "uint8")
def pack_rows_u8(k_pack: int, lanes: int) -> Pair:
    """(P, L) -> (L, P)."""
    return _rows("uint8", "uint8", k_pack, lanes)


@_packs("int8", "int16")
def pack_rows_s8_s16(k_pack: int, lanes: int) -> Pair:
    """(P, L) -> (L, P), widened."""
    return _rows("int8", "int16", k_pack, lanes)


@_packs("float32", "float32")
def pack_tile_f32(k_pack: int, side: int) -> Pair:
    """(S, S) -> its transpose."""
    return _tile("float32", "float32", k_pack, side)


@_packs("bfloat16", "bfloat16")
def pack_tile_bf16(k_pack: int, side: int) -> Pair:
    """(S, S * P) -> (S, S, P)."""
    return _tile("bfloat16", "bfloat16", k_pack, side)


@_packs("float16", "float16")
def pack_tile_f16(k_pack: int, side: int) -> Pair:
    """(S, S * P) -> (S, S, P)."""
    return _tile("float16", "float16", k_pack, side)


@_packs("int8", "int8")
def pack_tile_s8(k_pack: int, side: int) -> Pair:
    """(S, S * P) -> (S, S, P)."""
    return _tile("int8", "int8", k_pack, side)


@_packs("uint8", "uint8")
def pack_tile_u8(k_pack: int, side: int) -> Pair:
    """(S, S * P) -> (S, S, P)."""
    return _tile("uint8", "uint8", k_pack, side)


@_packs("int8", "int16")
def pack_tile_s8_s16(k_pack: int, side: int) -> Pair:
    """(S, S * P) -> (S, S, P), widened."""
    return _tile("int8", "int16", k_pack, side)
