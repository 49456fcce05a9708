"""Wrong operators: scheduled modules, rules and packing intrinsics with text replaced, and answers to another question."""

from __future__ import annotations

from dataclasses import dataclass, replace

import tvm
from harness import Bench, Edit, Mutation, Sources, Verdict, rewritten

from qimeng_tvm.request import parse

ALL = 1 << 30
PACK = "qimeng_tvm.tensorize_intrins.generic.pack"
BLOCKING, GEMM, LOWERING = "qimeng_tvm.schedule.blocking", "qimeng_tvm.schedules.cpu.gemm", "qimeng_tvm.operators"
PREPARE, TRANSPOSES = "qimeng_tvm.relax.prepare", "qimeng_tvm.relax.transposes"


@dataclass(frozen=True)
class Original:
    """An operator to mutate: a line, the family it needs, and decisions that fix its loops."""

    line: str
    dtype: str
    values: tuple[tuple[str, int | str], ...] = ()
    threads: int = 1


_TILE = (("micro_kernel", "4x2"), ("mc", ALL), ("nc", ALL), ("order", "n"), ("inner_order", "n"), ("unroll", 2))
_PACKED = (*_TILE, ("pack_a", "whole"), ("pack_b", "whole"))
_WEIGHTS = (*_TILE, ("pack_a", "whole"), ("pack_b", "constant"))
_F32, _BF16, _U8 = (("family", f"x86.avx2_{f}") for f in ("f32.gemm", "bf16.gemm", "int8.gemm_u8s8"))

#: K split in two, C in memory, every edge ragged, both operands packed at run time.
SPLIT = Original("f32 gemm 13x40x101 NT bias relu", "f32", (_F32, *_PACKED, ("kc", 64)))
#: K whole, C in registers, B packed beforehand.
WEIGHTS = Original("f32 gemm 13x40x100 weights bias relu", "f32", (_F32, *_WEIGHTS, ("kc", ALL)))
TRANSPOSED = Original("f32 gemm 16x32x64 NT", "f32", (_F32, *_PACKED, ("kc", ALL)))
ROUNDED = Original("bf16 -> bf16 gemm 13x24x101 weights bias", "bf16", (_BF16, *_WEIGHTS, ("kc", 64)))
BYTES = Original("u8s8 gemm 13x24x21 bias", "int8", (_U8, *_PACKED, ("kc", ALL)))
BYTES_NT = Original("u8s8 gemm 16x32x64 NT", "int8", (_U8, *_PACKED, ("kc", ALL)))
BYTES_NN = Original("u8s8 gemm 16x32x64", "int8", (_U8, *_PACKED, ("kc", ALL)))
BATCH = Original("f32 gemm 3 x 12x16x20", "f32", (_F32, *_TILE, ("pack_a", "none"), ("pack_b", "none"), ("kc", ALL)))
#: Long enough that on a busy machine too its cores are at work at the same time.
SHARED = Original("f32 gemm 48x64x16384", "f32", (_F32, *_PACKED, ("kc", 64), ("parallel", "yes")), threads=2)

CONTROLS = [SPLIT, WEIGHTS, TRANSPOSED, ROUNDED, BYTES, BYTES_NN, BYTES_NT, BATCH, SHARED]

#: What reaches outside a buffer, and what depends on memory that nobody wrote.
OUTSIDE = ("canary", "crash", "wrong")
UNDEFINED = ("wrong", "not-deterministic")


def _tir(
    name: str,
    breaks: str,
    original: Original,
    *edits: tuple[str, str, str],
    expects: tuple[str, ...] = ("wrong",),
) -> Mutation:
    def apply(bench: Bench) -> Verdict:
        base = bench.base(original.line, dict(original.values), original.threads)
        return bench.operator(base, tvm.script.from_source(rewritten(base.script, edits)))

    return Mutation(name, breaks, "operator", original.dtype, frozenset(expects), apply, original.threads)


def _question(name: str, breaks: str, asked: str, answered: str, dtype: str = "f32") -> Mutation:
    """Compile one request and check it as the answer to another."""

    def apply(bench: Bench) -> Verdict:
        base = bench.base(answered, {})
        return bench.operator(base, request=replace(parse(asked), threads=1))

    return Mutation(name, breaks, "operator", dtype, frozenset({"wrong"}), apply)


def _packing(
    name: str, breaks: str, original: Original, *edits: Edit, expects: tuple[str, ...] = ("wrong",)
) -> Mutation:
    def apply(bench: Bench) -> Verdict:
        return bench.repacked(bench.base(original.line, dict(original.values)), PACK, edits)

    return Mutation(f"pack-{name}", breaks, "packing", original.dtype, frozenset(expects), apply)


def _rule(
    name: str, breaks: str, original: Original, sources: Sources, expects: tuple[str, ...] = ("wrong",)
) -> Mutation:
    def apply(bench: Bench) -> Verdict:
        return bench.rescheduled(bench.base(original.line, dict(original.values)), sources)

    return Mutation(f"rule-{name}", breaks, "rule", original.dtype, frozenset(expects), apply)


def _lowering(name: str, breaks: str, line: str, *edits: Edit, passes: str = "") -> Mutation:
    sources = {passes: edits, PREPARE: (), LOWERING: ()} if passes else {LOWERING: edits}

    def apply(bench: Bench) -> Verdict:
        return bench.lowered(line, sources)

    return Mutation(f"lower-{name}", breaks, "rule", "f32", frozenset({"wrong"}), apply)


_INIT, _UPDATE, _OUT = "matmul_init", "matmul_update_o", "compute"
_FROM_C = r"= C\[i, T\.Ramp\(j \* 8, 1, 8\)\]"
_ZERO, _ZEROS = r"T\.float32\(0\.0\)", "T.Broadcast(T.float32(0.0), 8)"

F32_OPERATORS = [
    _tir("init-missing", "sums start from what the scratch held", SPLIT, (_INIT, rf"(\w+\[v_i0, v_i1\]) = {_ZERO}", r"\1 = \1"), expects=UNDEFINED),
    _tir("init-missing-in-registers", "sums start from what the registers held", WEIGHTS, (_INIT, rf"(\w+\[v_i0, v_i1\]) = {_ZERO}", r"\1 = \1"), expects=UNDEFINED),
    _tir("init-to-one", "sums start from one", SPLIT, (_INIT, _ZERO, "T.float32(1.0)")),
    _tir("init-in-every-block-of-k", "only the last block of k counts", SPLIT, (_UPDATE, _FROM_C, f"= {_ZEROS}")),
    _tir("k-block-dropped", "written back before the last block of k", SPLIT, ("", r"(for k_0.* in T\.grid\()2,", r"\g<1>1,")),
    _tir("k-block-repeated", "the first block of k is added twice", SPLIT, (_UPDATE, r"T\.axis\.reduce\(2, k_0\)", "T.axis.reduce(2, 0)")),
    _tir("k-blocks-of-a-swapped", "blocks of k of A and B do not belong together", SPLIT, (_UPDATE, r"A_pad\[v_i0_o, v_k_o,", "A_pad[v_i0_o, 1 - v_k_o,")),
    _tir("k-block-of-b-fixed", "the first block of k of B every time", SPLIT, (_UPDATE, r"v_k_o \* 51:v_k_o \* 51 \+ 51", "0:51")),
    _tir("epilogue-in-every-block-of-k", "ReLU of partial sums", SPLIT, (_UPDATE, _FROM_C, f"= T.max(C[i, T.Ramp(j * 8, 1, 8)], {_ZEROS})")),
    _tir("panel-of-b-fixed", "the first panel of B for all columns", SPLIT, (_UPDATE, r"B_pad_global\[v_i1_o,", "B_pad_global[0,")),
    _tir("panel-of-a-fixed", "the first panel of A for all rows", SPLIT, (_UPDATE, r"A_pad\[v_i0_o,", "A_pad[0,")),
    _tir("bias-off-by-one", "the bias of the next column, beyond its end", SPLIT, (_OUT, r"\+ bias\[v_i1\]", "+ bias[v_i1 + 1]"), expects=OUTSIDE),
    _tir("bias-of-the-row", "bias is indexed by row", SPLIT, (_OUT, r"\+ bias\[v_i1\]", "+ bias[v_i0]")),
    _tir("bias-dropped", "no bias", SPLIT, (_OUT, r" \+ bias\[v_i1\]", "")),
    _tir("relu-before-bias", "ReLU before the bias", SPLIT, (_OUT, rf"T\.max\((.*) \+ (bias\[v_i1\]), {_ZERO}\)", r"T.max(\1, T.float32(0.0)) + \2")),
    _tir("relu-dropped", "no ReLU", SPLIT, (_OUT, rf"T\.max\((.*), {_ZERO}\)", r"\1")),
    _tir("relu-capped", "ReLU6 for ReLU", SPLIT, (_OUT, rf"T\.max\((.*), {_ZERO}\)", r"T.min(T.max(\1, T.float32(0.0)), T.float32(6.0))")),
    _tir("padding-not-zero", "k is padded with ones", SPLIT, ("A_pad", _ZERO, "T.float32(1.0)"), ("B_pad", _ZERO, "T.float32(1.0)")),
    _tir("padding-read", "A is read beyond its rows", SPLIT, ("A_pad", rf"T\.if_then_else\(.*, (A\[v0, v1\]), {_ZERO}\)", r"\1"), expects=OUTSIDE),
    _tir("packing-tail-dropped", "only whole vectors of A are packed", SPLIT, ("", r"T\.serial\(7,", "T.serial(6,"), expects=UNDEFINED),
    _tir("input-clobbered", "A is cleared while it is packed", SPLIT, ("A_pad", r"( +)(A_pad\[.*\] = .*)\n", r"\1\2\n\1A[v0 % 13, v1 % 101] = T.float32(0.0)\n"), expects=("input-changed",)),
    _tir("row-tail-dropped", "the last row is not written", SPLIT, ("", r"for ax0 in range\(13\)", "for ax0 in range(12)"), expects=("unwritten",)),
    _tir("column-tail-dropped", "the last vector of each row is not written", SPLIT, ("", r"(for ax1_0 in T\.serial\()5,", r"\g<1>4,"), expects=("unwritten",)),
    _tir("written-a-column-late", "the result is shifted by one column, past the end", SPLIT, (_OUT, r"compute_intermediate\[v_i0, v_i1\] =", "compute_intermediate[v_i0, v_i1 + 1] ="), expects=OUTSIDE),
    _tir("edge-unchecked", "whole tiles are written at the edge", WEIGHTS, (_OUT, r" +T\.where\(.*\)\n", ""), expects=OUTSIDE),
    _tir("edge-too-early", "the last row counts as padding", WEIGHTS, (_OUT, r"(T\.where\(.*) < 13", r"\1 < 12"), expects=("unwritten",)),
    _tir("transposed-result", "tiles of one row of tiles are mirrored", WEIGHTS, (_OUT, r"compute_intermediate\[v_i0, v_i1\] =", "compute_intermediate[v_i0, 39 - v_i1] =")),
    _tir("prepacked-lanes-rotated", "columns of a panel of weights are rotated", WEIGHTS, ("B_pad", r"B_pad\[v1 // 16, v0, v1 % 16\] =", "B_pad[v1 // 16, v0, (v1 + 1) % 16] =")),
    _tir("prepacked-too-narrow", "weights are packed in panels of 8", WEIGHTS, ("B_pad", r"B_pad\[v1 // 16, v0, v1 % 16\] =", "B_pad[v1 // 8 % 3, v0, v1 % 8] ="), expects=("wrong", "unwritten")),
    _tir("prepacked-as-it-was", "weights are copied without packing", WEIGHTS, ("B_pad", r"B_pad\[v1 // 16, v0, v1 % 16\] =", "B_pad[(v0 * 48 + v1) // 1600, (v0 * 48 + v1) // 16 % 100, v1 % 16] =")),
    _tir("prepacked-in-part", "the last k of the weights is not packed", WEIGHTS, ("", r"T\.grid\(100, 48\)", "T.grid(99, 48)"), expects=("unwritten",)),
    _tir("prepacked-in-place", "packing clears the weights", WEIGHTS, ("B_pad", r"( +)(B_pad\[.*\] = .*)\n", r"\1\2\n\1B[v0, v1 % 40] = T.float32(0.0)\n"), expects=("input-changed",)),
    _tir("prepacked-beyond", "weights are read beyond their rows", WEIGHTS, ("B_pad", rf"T\.if_then_else\(.*, (B\[v0, v1\]), {_ZERO}\)", r"\1"), expects=OUTSIDE),
    _tir("batch-of-a-fixed", "A of the first batch element every time", BATCH, (_UPDATE, r" A\[v_i0_o,", " A[0,"), (_UPDATE, r"\(A\[v_i0_o,", "(A[0,")),
    _tir("batch-of-b-fixed", "B of the first batch element every time", BATCH, (_UPDATE, r"B\[v_i0_o,", "B[0,")),
    _tir("batch-reversed", "results are stored in the reverse order", BATCH, ("matmul_local", r"matmul\[v0, v1, v2\] =", "matmul[2 - v0, v1, v2] =")),
    _tir("batch-dropped", "the last batch element is left out", BATCH, ("", r"(for i0, .* in T\.grid\()3,", r"\g<1>2,"), expects=("unwritten",)),
    _tir("race-over-k", "blocks of k are shared out between cores", SHARED, ("", r"( +)for k_0, (.*) in T\.grid\((\d+), (.*)\):", r"\1for k_0 in T.parallel(\3):\n\1 for \2 in T.grid(\4):"), expects=("wrong", "not-deterministic")),
    _question("b-layout-ignored", "B (N, K) is taken as (K, N)", "f32 gemm 24x24x24 NT", "f32 gemm 24x24x24"),
    _question("a-layout-ignored", "A (K, M) is taken as (M, K)", "f32 gemm 24x24x24 TN", "f32 gemm 24x24x24"),
    _question("operands-exchanged", "B A for A B", "f32 gemm 24x24x24", "f32 gemm 24x24x24 TT"),
    _question("epilogue-order", "ReLU then bias for bias then ReLU", "f32 gemm 24x24x24 bias then relu", "f32 gemm 24x24x24 relu then bias"),
]  # fmt: skip

_SUM16 = r'= T\.Cast\("bfloat16", (.*)\)'


def _to_bf16(value: str, lanes: int = 0) -> str:
    """Round to bfloat16 and back by the bits (a cast there and back is folded away)."""
    one = f"T.reinterpret('uint32{f'x{lanes}' if lanes else ''}', {value})"
    lift = f"T.Broadcast(T.uint32({{}}), {lanes})" if lanes else "T.uint32({})"
    odd = f"T.bitwise_and(T.shift_right({one}, {lift.format(16)}), {lift.format(1)})"
    bits = f"T.bitwise_and({one} + {lift.format(0x7FFF)} + {odd}, {lift.format(0xFFFF0000)})"
    return f"T.reinterpret('float32{f'x{lanes}' if lanes else ''}', {bits})"


_PAIR16 = r"B_pad\[v1 // 16, v0 // 2, v1 % 16, v0 % 2\] ="

LOW_PRECISION_OPERATORS = [
    _tir("bf16-truncated", "results are cut to bfloat16, not rounded", ROUNDED, (_OUT, _SUM16, r'= T.reinterpret("bfloat16", T.Cast("uint16", T.shift_right(T.reinterpret("uint32", \1), T.uint32(16))))')),
    _tir("bf16-rounded-twice", "sums are rounded to bfloat16 before the bias", ROUNDED, (_OUT, r'= T\.Cast\("bfloat16", (.*) \+ (bias\[v_i1\])\)', rf'= T.Cast("bfloat16", {_to_bf16(chr(92) + "1")} + \2)')),
    _tir("bf16-sums-in-bf16", "sums are rounded to bfloat16 between blocks of k", ROUNDED, (_UPDATE, _FROM_C, f"= {_to_bf16('C[i, T.Ramp(j * 8, 1, 8)]', 8)}")),
    _tir("bf16-pairs-swapped", "k and k + 1 of the weights are exchanged", ROUNDED, ("B_pad", _PAIR16, "B_pad[v1 // 16, v0 // 2, v1 % 16, 1 - v0 % 2] =")),
    _tir("bf16-pairs-not-interleaved", "pairs of columns for pairs of k", ROUNDED, ("B_pad", _PAIR16, "B_pad[v1 // 16, v0 // 2, (v0 % 2 * 16 + v1 % 16) // 2, v1 % 2] =")),
    _tir("bf16-a-pairs-swapped", "k and k + 1 of A are exchanged", ROUNDED, ("A_pad", r"A_pad\[(.*), v1 % 52\] =", r"A_pad[\1, v1 % 52 // 2 * 2 + 1 - v1 % 2] =")),
    _tir("u8-a-as-signed", "unsigned A is widened as signed", BYTES, ("A_pad", r'T\.Cast\("int16", (.*)\)\n', r'T.Cast("int16", T.reinterpret("int8", \1))' + "\n")),
    _tir("s8-b-as-unsigned", "signed B is widened as unsigned", BYTES, ("B_pad_global_o", r'T\.Cast\("int16x16", (src\[\d, T\.Ramp\(0, 1, 16\)\])\)', r'T.Cast("int16x16", T.reinterpret("uint8x16", \1))')),
    _tir("s32-sums-in-s16", "sums are cut to 16 bits", BYTES, ("T_add", r"= (matmul\w+\[v_ax0, v_ax1\])", r'= T.Cast("int32", T.Cast("int16", \1))')),
    _tir("s32-bias-subtracted", "bias has the wrong sign", BYTES, ("T_add", r" \+ bias", " - bias")),
    _tir("u8-odd-k-dropped", "the k without a partner is left out", BYTES, ("A_pad", r"v1 < 21", "v1 < 20")),
]  # fmt: skip

_ROWS = "T.buffer_store(dst, _interleaved(rows, n), [T.ramp(0, 1, n * p)])"
_COLUMN = "T.buffer_store(dst, column, [k, T.ramp(0, 1, n * p)])"

PACKING_MUTATIONS = [
    _packing("pairs-swapped", "k and k + 1 are interleaved the wrong way round", BYTES, ("_zip(rows[0], rows[1], lanes, 1)", "_zip(rows[1], rows[0], lanes, 1)")),
    _packing("row-repeated", "the first row is interleaved with itself", BYTES, ("_zip(rows[0], rows[1], lanes, 1)", "_zip(rows[0], rows[0], lanes, 1)")),
    _packing("groups-of-two", "two columns at a time are interleaved", BYTES, ("_zip(rows[0], rows[1], lanes, 1)", "_zip(rows[0], rows[1], lanes, 2)")),
    _packing("zero-extended", "signed bytes are widened as unsigned", BYTES, ('tirx.Cast(f"{target}x{lanes}", vector)', 'tirx.Cast(f"{target}x{lanes}", tirx.reinterpret(f"uint8x{lanes}", vector))')),
    _packing("rows-source-offset", "every row of tiles is packed from the first", BYTES_NN, ("elem_offset=A.elem_offset", "elem_offset=0", 0)),
    _packing("columns-reversed", "columns of a tile are stored in reverse", TRANSPOSED, (_COLUMN, _COLUMN.replace("[k,", "[n - 1 - k,"))),
    _packing("not-transposed", "tiles are copied, not transposed", TRANSPOSED, ("enumerate(_transposed(rows, p, bits))", "enumerate(rows)")),
    _packing("last-column-left", "the last column of a tile is not stored", TRANSPOSED, ("enumerate(_transposed(rows, p, bits))", "enumerate(_transposed(rows, p, bits)[:-1])"), expects=UNDEFINED),
    _packing("source-stride", "the source of a tile is taken as contiguous", TRANSPOSED, ("elem_offset=A.elem_offset, strides=[s, 1])", "elem_offset=A.elem_offset)", 1)),
    _packing("target-stride", "the target of a tile is taken as contiguous", TRANSPOSED, ("elem_offset=B.elem_offset, strides=[t, 1])", "elem_offset=B.elem_offset)"), expects=UNDEFINED),
    _packing("units-swapped", "k and k + 1 are exchanged within a tile", BYTES_NT, ("[x * unit + e for x in pick for e in range(unit)]", "[x * unit + unit - 1 - e for x in pick for e in range(unit)]")),
    _packing("tile-zero-extended", "signed bytes are widened as unsigned", BYTES_NT, ('tirx.Cast(f"{target}x{lanes}", vector)', 'tirx.Cast(f"{target}x{lanes}", tirx.reinterpret(f"uint8x{lanes}", vector))')),
]  # fmt: skip

# TVM's own schedule steps keep the meaning or are refused, so a rule goes wrong where it hands a number to a family
# that TVM does not see through, and before the schedule begins.
RULE_MUTATIONS = [
    _rule("unroll-remainder", "k steps that the unrolling does not divide are dropped", BYTES, {BLOCKING: [("while steps % wanted:", "while steps < wanted:")], GEMM: []}),
    _lowering("b-layout-ignored", "B is indexed as if it were not transposed", "f32 gemm 24x24x24 NT", ("read(b, b_axes, at, (k, j))", "read(b, range(len(b_axes)), at, (k, j))"), passes=TRANSPOSES),
    _lowering("a-layout-ignored", "A is indexed as if it were not transposed", "f32 gemm 24x24x24 TN", ("read(a, a_axes, at, (i, k))", "read(a, range(len(a_axes)), at, (i, k))"), passes=TRANSPOSES),
    _lowering("epilogue-reversed", "the epilogue is applied in reverse", "f32 gemm 24x24x24 bias then relu", ("for name in request.epilogue:", "for name in reversed(request.epilogue):")),
    _lowering("abs-for-relu", "the absolute value for ReLU", "f32 gemm 24x24x24 relu", ("relax.op.nn.relu(value)", "relax.op.abs(value)")),
    _lowering("bias-twice", "bias is added twice", "f32 gemm 24x24x24 bias", ("relax.op.add(value, bias)", "relax.op.add(relax.op.add(value, bias), bias)")),
]  # fmt: skip

OPERATOR_MUTATIONS = [*F32_OPERATORS, *LOW_PRECISION_OPERATORS, *PACKING_MUTATIONS, *RULE_MUTATIONS]
