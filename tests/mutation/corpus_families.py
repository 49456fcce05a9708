"""Wrong micro-kernels: the sources of the shipped families, and of what they build on, with text replaced."""

from __future__ import annotations

from harness import Bench, Edit, Mutation, Verdict

_REFERENCE = "reference.x86"
FMA, SHAPES = "reference.fma", "qimeng_tvm.intrin.microkernel"
LANES, LANE_SHAPES = "reference.lanes", "qimeng_tvm.intrin.lanewise"
DEPTHWISE = f"{_REFERENCE}.avx2_f32_depthwise"
DOT, EMULATED = "qimeng_tvm.intrin.dot", "emulated_dot"
AVX512_F32, AVX512_BF16, AVX512_U8S8 = (f"{_REFERENCE}.avx512_{name}" for name in ("f32", "bf16", "vnni_u8s8"))
AVX512_S8S8 = "qimeng_tvm.tensorize_intrins.x86.avx512_vnni_s8s8"
F32, BF16 = f"{_REFERENCE}.avx2_f32", "qimeng_tvm.tensorize_intrins.x86.avx2_bf16"
INT8 = "qimeng_tvm.tensorize_intrins.x86.avx2_int8"

#: Tile parameters that tell rows from columns, steps from unrolling, and use every loop.
TILE = {"mr": 4, "nv": 2, "kc": 16, "ku": 2, "a_panel": 0, "c_local": 0, "ahead": 0}
LOCAL = {**TILE, "c_local": 1}
PANEL = {**TILE, "a_panel": 1}
#: More vectors than rows: the loops go the other way round.
FLAT = {**TILE, "mr": 2, "nv": 3}

#: Of lane-wise kernels: pixels, vectors and stride all differ.
PIXELS = {"mr": 3, "nv": 2, "step": 2, "in_local": 0}
LOADED = {**PIXELS, "in_local": 1}

#: The unmutated originals, through the same harness: (kind, module, helpers, parameters).
CONTROLS = [
    ("gemm", F32, (FMA,), TILE),
    ("gemm", F32, (SHAPES, FMA), LOCAL),
    ("gemm", F32, (FMA,), PANEL),
    ("gemm", BF16, (), TILE),
    ("gemm", BF16, (), LOCAL),
    ("gemm_u8s8", INT8, (), TILE),
    ("gemm_s8s8", INT8, (), LOCAL),
    ("gemv_u8s8", INT8, (), TILE),
    ("gemv_s8s8", INT8, (), TILE),
    *((kind, EMULATED, (DOT,), TILE) for kind in ("gemm", "gemm_u8s8", "gemm_s8s8")),
    ("gemm_s8s8", EMULATED, (DOT,), LOCAL),
    ("gemm_s8s8", EMULATED, (DOT,), FLAT),
    ("gemm", AVX512_F32, (FMA,), TILE),
    ("gemm", AVX512_BF16, (DOT,), TILE),
    ("gemm", AVX512_U8S8, (DOT,), TILE),
    ("gemm", AVX512_S8S8, (DOT,), TILE),
    ("depthwise", DEPTHWISE, (LANES,), PIXELS),
    ("depthwise", DEPTHWISE, (LANE_SHAPES, LANES), LOADED),
]

MEMORY = ("wrong", "crash", "canary")
UNDEFINED = ("wrong", "not-deterministic")


def _family(
    name: str,
    breaks: str,
    dtype: str,
    kind: str,
    sources: dict[str, list[Edit]],
    expects: tuple[str, ...] = ("wrong",),
    tile: dict[str, int] = TILE,
    max_spills: int | None = None,
    requires: tuple[str, ...] = (),
) -> Mutation:
    def apply(bench: Bench) -> Verdict:
        return bench.family(kind, sources, tile, max_spills)

    return Mutation(name, breaks, "family", dtype, frozenset(expects), apply, requires=requires)


def _f32(
    name: str, breaks: str, *edits: Edit, expects: tuple[str, ...] = ("wrong",), tile: dict[str, int] = TILE
) -> Mutation:
    return _family(f"f32-{name}", breaks, "f32", "gemm", {FMA: list(edits), F32: []}, expects, tile)


def _bf16(
    name: str, breaks: str, *edits: Edit, expects: tuple[str, ...] = ("wrong",), tile: dict[str, int] = TILE
) -> Mutation:
    return _family(f"bf16-{name}", breaks, "bf16", "gemm", {BF16: list(edits)}, expects, tile)


def _int8(
    name: str, breaks: str, *edits: Edit, kind: str = "gemm_u8s8", expects: tuple[str, ...] = ("wrong",)
) -> Mutation:
    return _family(f"{kind[5:]}-{name}", breaks, "int8", kind, {INT8: list(edits)}, expects)


_LOAD = "C.vload([i, j * lanes], vec)"
_STORE = "C[i, T.ramp(j * lanes, 1, lanes)] = acc.vload([(i * nv + j) * lanes], vec)"
_ROWS = "for i in T.unroll(mr):\n                for j in T.unroll(nv):\n"
_A, _B = "load(a, s.a_index(i, k))", "b.vload([k, j * lanes], vec)"
_SCRATCH = "            acc = T.alloc_buffer("
_FMA_A = f"tirx.Broadcast({_A}, lanes)"


def _view(name: str) -> str:
    """A view of the same data without the row stride."""
    return f'            {name}v = T.decl_buffer({name}.shape, "float32", data={name}.data, elem_offset={name}.elem_offset)\n'


F32_MUTATIONS = [
    _f32("a-k-off-by-one", "A is read one k late", (_A, "load(a, s.a_index(i, k + 1))"), expects=MEMORY),
    _f32("a-k-one-early", "A is read one k early", (_A, "load(a, s.a_index(i, k - 1))"), expects=MEMORY),
    _f32("b-k-off-by-one", "B is read one k late, beyond its last row", (_B, "b.vload([k + 1, j * lanes], vec)"), expects=MEMORY),
    _f32("a-row-off-by-one", "A is read one row down", (_A, "load(a, s.a_index(i + 1, k))"), expects=MEMORY),
    _f32("a-row-fixed", "every row uses row 0 of A", (_A, "load(a, s.a_index(0, k))")),
    _f32("b-column-fixed", "every vector uses the first of B", (_B, "b.vload([k, 0], vec)")),
    _f32("b-unaligned-lane", "B is read one lane to the right", (_B, "b.vload([k, j * lanes + 1], vec)"), expects=MEMORY),
    _f32("a-vector-for-broadcast", "A's next lanes instead of a broadcast", (_FMA_A, "a.vload([i, k], vec)"), expects=MEMORY),
    _f32("b-broadcast-for-vector", "one element of B for all lanes", (_B, "tirx.Broadcast(load(b, (k, j * lanes)), lanes)")),
    _f32("first-k-dropped", "the first unrolled steps are left out", ("range(kc // ku)", "range(1, kc // ku)")),
    _f32("last-k-dropped", "the last unrolled steps are left out", ("range(kc // ku)", "range(kc // ku - 1)")),
    _f32("k-too-far", "one round of steps too many: beyond A and B", ("range(kc // ku)", "range(kc // ku + 1)"), expects=MEMORY),
    _f32("unroll-remainder", "unrolled steps are left out of every round", ("T.unroll(ku)", "T.unroll(ku - 1)")),
    _f32("unroll-overlap", "rounds overlap: some k twice, the last ones never", ("ko * ku + ki", "ko + ki")),
    _f32("unroll-same-k", "every unrolled step does the same k", ("ko * ku + ki", "ko * ku")),
    _f32("accumulator-cleared", "+= became =", (_LOAD, "tirx.Broadcast(T.float32(0), lanes)")),
    _f32("accumulator-uninitialised", "one accumulator is never loaded", (_ROWS, _ROWS.replace("nv", "nv - 1"), 0), expects=UNDEFINED),
    _f32("accumulator-shared", "two rows add into one accumulator", ("return tirx.Ramp((i * nv + j) * lanes", "return tirx.Ramp((i // 2 * nv + j) * lanes")),
    _f32("accumulator-other-column", "adds to the sum of the first column", ("acc.vload([(i * nv + j) * lanes], vec),", "acc.vload([i * nv * lanes], vec),")),
    _f32("added-twice", "C is added again at the end", (_STORE, f"{_STORE} + C.vload([i, j * lanes], vec)")),
    _f32("row-not-stored", "the last row is not written back", (_ROWS, _ROWS.replace("mr", "mr - 1"), 1)),
    _f32("column-not-stored", "the last vector of each row is not written back", (_ROWS, _ROWS.replace("nv", "nv - 1"), 1)),
    _f32("stored-a-row-late", "C is written one row down", (_STORE, _STORE.replace("C[i,", "C[i + 1,")), expects=MEMORY),
    _f32("stored-past-the-row", "C is written one vector to the right", (_STORE, _STORE.replace("j * lanes, 1", "(j + 1) * lanes, 1")), expects=MEMORY),
    _f32("lanes-reversed", "lanes are written back in reverse", (_STORE, _STORE.replace("T.ramp(j * lanes, 1, lanes)", "T.ramp(j * lanes + lanes - 1, -1, lanes)"))),
    _f32("rows-swapped", "rows are written back in another order", (_STORE, _STORE.replace("C[i,", "C[mr - 1 - i,"))),
    _f32("a-written", "an input is used as scratch", (_STORE, f"A[i, j] = C[i, j * lanes]\n                    {_STORE}"), expects=("input-changed",)),
    _f32("b-written", "an input is changed in place", (_STORE, f"{_STORE}\n                    B[i, j * lanes] = T.float32(0)"), expects=("input-changed", "wrong")),
    _f32("a-stride-ignored", "A is read through a contiguous view", (_SCRATCH, f"{_view('A')}{_SCRATCH}"), ("step(A, B,", "step(Av, B,")),
    _f32("b-stride-ignored", "B is read through a contiguous view", (_SCRATCH, f"{_view('B')}{_SCRATCH}"), ("step(A, B,", "step(A, Bv,")),
    _f32("c-stride-ignored", "C is written through a contiguous view", (_SCRATCH, f"{_view('C')}{_SCRATCH}"), (_STORE, _STORE.replace("C[i", "Cv[i"))),
    _f32("product-dropped", "adds A instead of A times B", (_B, "tirx.Broadcast(T.float32(1), lanes)")),
    _f32("subtracted", "the product is subtracted", (_FMA_A, f"tirx.Broadcast(-{_A}, lanes)")),
    _f32("half-precision", "products are rounded to float16", (_FMA_A, f"tirx.Broadcast(tirx.Cast('float32', tirx.Cast('float16', {_A})), lanes)")),
    _f32("panel-transposed", "a panel of A is read as if it were rows", (_A, "load(a, (i, k))"), tile=PANEL, expects=MEMORY),
    _family("f32-desc-too-shallow", "desc and impl both leave the last k out", "f32", "gemm",
            {SHAPES: [("T.grid(mr, nr, kc)", "T.grid(mr, nr, kc - 1)")], FMA: [("range(kc // ku)", "range(kc // ku - 1)")], F32: []}, ("meaning",)),
    _family("f32-desc-other-product", "desc and impl both square A", "f32", "gemm",
            {SHAPES: [("return left * right", "return left * left")], FMA: [(_B, _FMA_A)], F32: []}, ("meaning",)),
    _family("f32-spills", "a tile too large for the registers", "f32", "gemm",
            {F32: [("registers=16", "registers=64")]}, ("audit",), {**LOCAL, "mr": 10, "nv": 4, "kc": 64}, 0),
]  # fmt: skip

_LOW, _HIGH = 'tirx.const(16, "int32")', 'tirx.const(-65536, "int32")'
_SECOND = "step(A, Bw, acc, x, y, ko * ku + ki, 1)"

BF16_MUTATIONS = [
    _bf16("low-not-shifted-out", "element k is taken with its neighbour's sign bit", (_LOW, "tirx.const(15, \"int32\")")),
    _bf16("high-not-masked", "element k + 1 keeps its neighbour below its own bits", (_HIGH, "tirx.const(-1, \"int32\")")),
    _bf16("high-overmasked", "the last bit of element k + 1 is lost", (_HIGH, "tirx.const(-131072, \"int32\")")),
    _bf16("halves-swapped", "k and k + 1 of B are exchanged", ("if half == 0:", "if half == 1:")),
    _bf16("a-pair-swapped", "k and k + 1 of A are exchanged", ("(i, k * 2 + half)", "(i, k * 2 + 1 - half)")),
    _bf16("a-not-stepped", "A's k is not doubled", ("(i, k * 2 + half)", "(i, k + half)")),
    _bf16("second-half-dropped", "only even k are summed", (_SECOND, "acc.vload([slot(x, y)], VEC)")),
    _bf16("second-half-twice", "odd k are taken for even ones", (_SECOND, "step(A, Bw, acc, x, y, ko * ku + ki, 0)")),
    _bf16("truncated-sums", "sums are cut to bfloat16 at every step", (f"= {_SECOND}", f"= tirx.reinterpret(VEC, tirx.bitwise_and(tirx.reinterpret(INT, {_SECOND}), tirx.Broadcast({_HIGH}, LANES)))")),
    _bf16("offset-dropped", "B's word view starts at the buffer's start", ("elem_offset=B.elem_offset // 2", "elem_offset=0")),
    _bf16("offset-in-elements", "the word view's offset counts elements", ("elem_offset=B.elem_offset // 2", "elem_offset=B.elem_offset"), expects=MEMORY),
    _bf16("word-stride-ignored", "B's word view is taken as contiguous", ("strides=[sb // 2, 1]", "strides=[nr, 1]")),
    _bf16("column-not-stored", "the last vector of each row is not written back", ("for j in T.unroll(nv):", "for j in T.unroll(nv - 1):", 1)),
    _bf16("accumulator-cleared", "+= became =, C in registers", ("C.vload([i, j * LANES], VEC)", "tirx.Broadcast(T.float32(0), LANES)"), tile=LOCAL),
    _bf16("last-pair-dropped", "the last pairs are left out", ("range(kp // ku)", "range(kp // ku - 1)")),
    _bf16("k-too-far", "pairs beyond kc are read", ("range(kp // ku)", "range(kp // ku + 1)"), expects=MEMORY),
]  # fmt: skip

_PAIR = 'tirx.reinterpret("int32", a.vload([i, k * 2], "int16x2"))'
_SUM = "return acc.vload([slot(x, y)], VEC) + products"
_WIDENED = "tirx.Cast(PAIRS, stored)"


def _clamped(low: int, high: int) -> str:
    cut = f"tirx.Max(tirx.Min(products, tirx.Broadcast(tirx.const({high}, 'int32'), LANES)), tirx.Broadcast(tirx.const({low}, 'int32'), LANES))"
    return f"return acc.vload([slot(x, y)], VEC) + {cut}"


INT8_MUTATIONS = [
    _int8("pair-sums-saturate", "vpmaddubsw: sums of two products are clamped to 16 bits", (_SUM, _clamped(-32768, 32767))),
    _int8("pair-sums-saturate", "sums of two products are clamped to 16 bits", (_SUM, _clamped(-32768, 32767)), kind="gemm_s8s8"),
    _int8("pair-sums-wrap", "sums of two products are cut to 16 bits", (_SUM, "return acc.vload([slot(x, y)], VEC) + tirx.Cast(VEC, tirx.Cast(f'int16x{LANES}', products))")),
    _int8("b-zero-extended", "signed B is widened as unsigned", (_WIDENED, "tirx.Cast(PAIRS, tirx.reinterpret(f'uint8x{2 * LANES}', stored))"), kind="gemv_u8s8"),
    _int8("b-zero-extended", "signed B is widened as unsigned", (_WIDENED, "tirx.Cast(PAIRS, tirx.reinterpret(f'uint8x{2 * LANES}', stored))"), kind="gemv_s8s8"),
    _int8("a-cut-to-signed", "unsigned A is taken as signed", ('a.vload([i, k * 2], "int16x2")', 'tirx.Cast("int16x2", tirx.Cast("int8x2", a.vload([i, k * 2], "int16x2")))')),
    _int8("a-pair-rotated", "k and k + 1 of A are exchanged", (_PAIR, f"tirx.call_llvm_pure_intrin('int32', 'llvm.fshl', {_PAIR}, {_PAIR}, tirx.const(16, 'int32'))")),
    _int8("a-not-stepped", "A's k is not doubled", ("a.vload([i, k * 2]", "a.vload([i, k]")),
    _int8("sums-not-accumulated", "only the last pair counts", (_SUM, "return products")),
    _int8("b-column-fixed", "every vector uses the first of B", ("b.vload([k, j * LANES, 0]", "b.vload([k, 0, 0]")),
    _int8("b-between-pairs", "B is read half a pair late", ("b.vload([k, j * LANES, 0]", "b.vload([k, j * LANES, 1]"), expects=MEMORY),
    _int8("b-stride-ignored", "B is read through a contiguous view", ("            acc = T.alloc_buffer(", "            Bv = T.decl_buffer(B.shape, b_store, data=B.data, elem_offset=B.elem_offset)\n            acc = T.alloc_buffer("), ("step(A, B,", "step(A, Bv,")),
    _int8("desc-other-sign", "desc says signed where the family says unsigned", ('return _madd_gemm("uint8", "int16"', 'return _madd_gemm("int8", "int16"'), expects=("meaning",)),
    _int8("lanes-reversed", "lanes are written back in reverse", ("C[i, T.ramp(j * LANES, 1, LANES)]", "C[i, T.ramp(j * LANES + LANES - 1, -1, LANES)]"), kind="gemm_s8s8"),
    _int8("last-pair-dropped", "the last pairs are left out", ("range(kp // ku)", "range(kp // ku - 1)"), kind="gemm_s8s8"),
    _int8("mnemonic-absent", "declares an instruction that it does not use", ('mnemonics=("vpdpwssd|vpmaddwd", "vpdpwssd|vpaddd")', 'mnemonics=("vpdpbusd",)'), expects=("audit",)),
]  # fmt: skip

# Memory that outlives a call: a counter in imported LLVM IR.
_REMEMBERS = '''
_STATE = """@qimeng_count = internal global i32 0
define float @qimeng_remember() alwaysinline {
  %old = load i32, ptr @qimeng_count
  %new = add i32 %old, 1
  store i32 %new, ptr @qimeng_count
  %value = uitofp i32 %old to float
  ret float %value
}"""


def fma_gemm'''

STATE_MUTATIONS = [
    _f32("remembers", "adds how often it was called before", ("\n\ndef fma_gemm", _REMEMBERS),
         ("            acc = T.alloc_buffer", '            T.attr(0, "pragma_import_llvm", _STATE)\n            acc = T.alloc_buffer'),
         (_LOAD, f'{_LOAD} + tirx.Broadcast(tirx.call_extern("float32", "qimeng_remember"), lanes)'), expects=("wrong", "not-deterministic")),
]  # fmt: skip

_DOT_LOAD = "tirx.BufferLoad(a, [i, k])"
_DOT_B = "b.vload([k, j * lanes], words))"
_DOT_STEP = "acc[T.ramp(slot(x, y), 1, lanes)] = step(Aw, Bw, acc, x, y, ko * ku + ki)"

#: (name, what is wrong, kind, edits of the dot-product micro-kernel, tile, expects)
_DOTS: list[tuple[str, str, str, list[Edit], dict[str, int], tuple[str, ...]]] = [
    ("a-k-off-by-one", "A is read one word of k late", "gemm_u8s8", [(_DOT_LOAD, "tirx.BufferLoad(a, [i, k + 1])")], TILE, MEMORY),
    ("b-k-off-by-one", "B is read one word of k late", "gemm", [(_DOT_B, "b.vload([k + 1, j * lanes], words))", 0)], TILE, MEMORY),
    ("operands-exchanged", "unsigned B, signed A", "gemm_u8s8", [("vec), left, b.vload([k, j * lanes], words))", "vec), b.vload([k, j * lanes], words), left)")], TILE, ("wrong",)),
    ("a-offset-dropped", "A's word view starts at the buffer's start", "gemm_u8s8", [("elem_offset=A.elem_offset // p", "elem_offset=0")], TILE, MEMORY),
    ("a-stride-in-elements", "the word view's stride counts elements", "gemm", [("strides=[sa // p, 1]", "strides=[sa, 1]")], TILE, MEMORY),
    ("unroll-overlap", "rounds overlap", "gemm_u8s8", [(_DOT_STEP, _DOT_STEP.replace("ko * ku", "ko"))], TILE, ("wrong",)),
    ("last-word-dropped", "the last words of k are left out", "gemm", [("range(kp // ku)", "range(kp // ku - 1)")], LOCAL, ("wrong",)),
    ("uncorrected", "what makes A unsigned is not taken back", "gemm_s8s8", [(" - extra.vload([j * lanes], vec)", "")], TILE, ("wrong",)),
    ("corrected-twice", "what makes A unsigned is taken back twice", "gemm_s8s8", [("flip, b.vload([k, j * lanes], words))", "flip, b.vload([k, j * lanes], words)) + extra.vload([j * lanes], vec)")], TILE, ("wrong",)),
    ("corrected-by-one-column", "all columns are corrected by the first", "gemm_s8s8", [(" - extra.vload([j * lanes], vec)", " - extra.vload([0], vec)")], FLAT, ("wrong",)),
    ("correction-uninitialised", "the correction starts from what the registers held", "gemm_s8s8", [("= T.broadcast(T.int32(0), lanes)", "= extra.vload([j * lanes], vec)")], LOCAL, UNDEFINED),
    ("a-not-flipped", "A stays signed, and is corrected", "gemm_s8s8", [("left = tirx.bitwise_xor(left, flip)", "pass")], TILE, ("wrong",)),
]  # fmt: skip


def _dot(
    name: str, breaks: str, kind: str, edits: list[Edit], tile: dict[str, int], expects: tuple[str, ...], wide: bool
) -> Mutation:
    """A mutant of the dot-product micro-kernel, on stand-ins for its instructions or on the machine's own."""
    dtype = "bf16" if kind == "gemm" else "int8"
    where = {"gemm": AVX512_BF16, "gemm_u8s8": AVX512_U8S8, "gemm_s8s8": AVX512_S8S8}[kind] if wide else EMULATED
    feature = "avx512bf16" if kind == "gemm" else "avx512vnni"
    title = f"dot-{'avx512-' if wide else ''}{dtype}-{name}"
    return _family(
        title,
        breaks,
        dtype,
        "gemm" if wide else kind,
        {DOT: edits, where: []},
        expects,
        tile,
        requires=("avx512f", feature) if wide else (),
    )


DOT_MUTATIONS = [_dot(*one, wide=wide) for wide in (False, True) for one in _DOTS]

#: The same micro-kernel with vectors of 16 lanes.
WIDE_MUTATIONS = [
    _family(f"avx512-f32-{name}", breaks, "f32", "gemm", {FMA: [edit], AVX512_F32: []}, expects, requires=("avx512f",))
    for name, breaks, edit, expects in (
        ("a-k-off-by-one", "A is read one k late", (_A, "load(a, s.a_index(i, k + 1))"), MEMORY),
        ("b-broadcast-for-vector", "one element of B for all lanes", (_B, "tirx.Broadcast(load(b, (k, j * lanes)), lanes)"), ("wrong",)),
        ("unroll-overlap", "rounds overlap", ("ko * ku + ki", "ko + ki"), ("wrong",)),
        ("added-twice", "C is added again at the end", (_STORE, f"{_STORE} + C.vload([i, j * lanes], vec)"), ("wrong",)),
    )
]  # fmt: skip

_LANE_A, _LANE_B, _LANE_C = (
    "a.vload([i * step, j * lanes], vec)",
    "b.vload([j * lanes], vec)",
    "c.vload([i, j * lanes], vec)",
)
_LANE_STORE = "C[i, T.ramp(j * lanes, 1, lanes)]"


def _lane(
    name: str, breaks: str, *edits: Edit, expects: tuple[str, ...] = ("wrong",), tile: dict[str, int] = PIXELS
) -> Mutation:
    return _family(f"lanes-{name}", breaks, "f32", "depthwise", {LANES: list(edits), DEPTHWISE: []}, expects, tile, 0)


LANE_MUTATIONS = [
    _lane("step-ignored", "pixels next to each other instead of every second", (_LANE_A, "a.vload([i, j * lanes], vec)")),
    _lane("pixel-late", "A is read one pixel late", (_LANE_A, "a.vload([i * step + 1, j * lanes], vec)"), expects=MEMORY),
    _lane("channel-late", "A is read one channel to the right", (_LANE_A, "a.vload([i * step, j * lanes + 1], vec)"), expects=MEMORY),
    _lane("filter-fixed", "every vector uses the first of B", (_LANE_B, "b.vload([0], vec)")),
    _lane("filter-broadcast", "one channel's value for all", (_LANE_B, "tirx.Broadcast(tirx.BufferLoad(b, [j * lanes]), lanes)"), tile=LOADED),
    _lane("sums-cleared", "+= became =", (_LANE_C, "tirx.Broadcast(T.float32(0), lanes)")),
    _lane("sums-of-another", "adds to the sums of the first pixel", (_LANE_C, "c.vload([0, j * lanes], vec)"), tile=LOADED),
    _lane("pixel-not-stored", "the last pixel is left out", ("T.unroll(mr)", "T.unroll(mr - 1)")),
    _lane("stored-elsewhere", "lanes are written back in reverse", (_LANE_STORE, "C[i, T.ramp(j * lanes + lanes - 1, -1, lanes)]")),
    _lane("a-stride-ignored", "A is read through a contiguous view", ("            for i in T.unroll(mr)", f'{_view("A")}            for i in T.unroll(mr)'), ("added(A,", "added(Av,")),
    _lane("pixel-broadcast", "one channel of A for all", (_LANE_A, "tirx.Broadcast(tirx.BufferLoad(a, [i * step, j * lanes]), lanes)")),
    _family("lanes-desc-other-step", "desc and impl both ignore the stride", "f32", "depthwise",
            {LANE_SHAPES: [("(i * s.step, j)", "(i, j)")], LANES: [(_LANE_A, "a.vload([i, j * lanes], vec)")], DEPTHWISE: []}, ("meaning",), PIXELS),
]  # fmt: skip

FAMILY_MUTATIONS = [
    *F32_MUTATIONS,
    *BF16_MUTATIONS,
    *INT8_MUTATIONS,
    *STATE_MUTATIONS,
    *DOT_MUTATIONS,
    *WIDE_MUTATIONS,
    *LANE_MUTATIONS,
]
