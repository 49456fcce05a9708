"""The vocabulary of a request line."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("fp32", "f32", "float32", "single", "float"), "float32"),
        **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
        **dict.fromkeys(("int8", "i8", "s8"), "int8"),
        **dict.fromkeys(("uint8", "u8"), "uint8"),
        **dict.fromkeys(("int32", "i32", "s32"), "int32"),
    }
)
UNSUPPORTED_DTYPES = _set(
    "fp16 f16 half float16 fp64 f64 double float64 fp8 f8 float8 e4m3 e5m2 fp8e4m3 fp8e5m2 fp4 nf4 mxfp4 mxfp8 tf32 "
    "int4 uint4 i4 s4 u4 int16 uint16 i16 s16 u16 int64 uint64 i64 uint32 u32 int1 bool complex64 complex128 "
    "dgemm hgemm zgemm cgemm dgemv"
)
OPERATOR_WORDS = ("gemm", "matmul", "mm", "bmm", "gemv", "matvec", "sgemm", "sgemv")
OTHER_OPERATORS = _set(
    "conv conv1d conv2d conv3d convolution depthwise softmax attention sdpa layernorm batchnorm rmsnorm dense linear "
    "einsum trsm syrk spmm lu qr cholesky fft transpose2d reduce sum pooling pool maxpool avgpool embedding lstm gru"
)
EPILOGUE_WORDS: Mapping[str, str] = MappingProxyType({"bias": "bias", "relu": "relu"})
OTHER_EPILOGUES = _set("gelu silu swish sigmoid tanh relu6 elu leakyrelu leaky_relu hardswish residual dequantize")
#: Words after a number -> what they count.
COUNTS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("thread", "threads", "core", "cores"), "threads"),
        **dict.fromkeys(("trial", "trials"), "trials"),
        "batches": "batch",
    }
)
BATCH = ("batch", "batchsize", "batch_size", "batch-size", "b")
LAYOUTS: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {"nn": (False, False), "nt": (False, True), "tn": (True, False), "tt": (True, True)}
)
TRANSPOSED = ("transposed", "transpose", "trans")
CONSTANT = ("constant", "const", "fixed", "prepacked", "pre-packed", "packed")
VARIABLE = ("variable", "varying", "dynamic")
WEIGHTS = ("weights", "weight")
HOST = ("cpu", "machine", "host", "computer", "laptop", "processor", "server", "pc", "box", "localhost")
THIS = ("this", "my", "the", "our")
MULTIPLY = ("x", "by")
JOINING = ("and", "&", "+", ",")
RESULT = ("output", "out", "result")
NONE = ("no", "without")
#: Stepped over wherever they stand.
NOISE = _list(
    "with and then & + , . ; : ! ( ) = a an the of in at using please run make tune generate me layout shape size mnk "
    "mxnxk operator kernel beforehand precision"
)
ALL_WORDS = frozenset(
    {
        *_DTYPES,
        *OPERATOR_WORDS,
        *EPILOGUE_WORDS,
        *COUNTS,
        *BATCH,
        *LAYOUTS,
        *TRANSPOSED,
        *CONSTANT,
        *VARIABLE,
        *WEIGHTS,
        *HOST,
        *THIS,
        *MULTIPLY,
        *RESULT,
        *NONE,
        *(w for w in NOISE if w.isalpha()),
        *_set("batched matrix multiply multiplication product on for both is are to single-thread single-threaded"),
        *_set("untuned tuning measuring search u8s8 s8s8 m n k b w hardware profile target"),
    }
)


def dtypes_of(word: str) -> tuple[str, ...] | None:
    """Return the TVM dtypes that one word names: ``f32``, ``u8s8``, ``u8xs8``, ``bf16bf16f32``."""
    if word in _DTYPES:
        return (_DTYPES[word],)
    for end in range(len(word) - 1, 0, -1):
        if word[:end] not in _DTYPES:
            continue
        rest = word[end:]
        tail = dtypes_of(rest) or (dtypes_of(rest[1:]) if rest.startswith("x") else None)
        if tail and len(tail) < 3:
            return (_DTYPES[word[:end]], *tail)
    return None


def sizes_of(word: str) -> list[tuple[str, int]]:
    """Read ``m64n32k16`` as [("m", 64), ("n", 32), ("k", 16)]; empty when the word is not of that form."""
    sizes: list[tuple[str, int]] = []
    at = 0
    while at < len(word):
        end = at + 1
        while end < len(word) and word[end] in "0123456789":
            end += 1
        if word[at] not in "mnk" or end == at + 1 or end - at > 12:
            return []
        sizes.append((word[at], int(word[at + 1 : end])))
        at = end
    return sizes
