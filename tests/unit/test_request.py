"""What people write, what we make of it, and what we refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qimeng_tvm.errors import QimengError, RequestError
from qimeng_tvm.request import RESULTS, Request, check_memory, describe, parse, tensor_bytes, validate

CUBE = Request("matmul", 64, 64, 64)
BF16 = {"a_dtype": "bfloat16", "b_dtype": "bfloat16"}
S8S8 = {"a_dtype": "int8", "b_dtype": "int8", "out_dtype": "int32"}
U8S8 = {"a_dtype": "uint8", "b_dtype": "int8", "out_dtype": "int32"}
KILO = {"m": 1024, "n": 1024, "k": 1024}
MIXED = {"m": 64, "n": 32, "k": 16}
ATTENTION = {"batch": 12, "m": 128, "n": 64, "k": 128}

LINES = [
    # operators
    ("gemm 64x64x64", {}),
    ("GEMM 64x64x64", {}),
    ("matmul 64x64x64", {}),
    ("mm 64x64x64", {}),
    ("sgemm 64x64x64", {}),
    ("matrix multiply 64x64x64", {}),
    ("a matrix multiplication of 64x64x64, please", {}),
    ("64x64x64 matrix product", {}),
    ("bf16 GEMM 1024x1024x1024 on this CPU", {**KILO, **BF16}),
    # shapes
    ("gemm 64x32x16", MIXED),
    ("gemm 64 x 32 x 16", MIXED),
    ("gemm 64X32X16", MIXED),
    ("gemm 64*32*16", MIXED),
    ("gemm 64×32×16", MIXED),
    ("gemm 64 by 32 by 16", MIXED),
    ("gemm (64, 32, 16)", MIXED),
    ("gemm [64,32,16]", MIXED),
    ("gemm(64, 32, 16)", MIXED),
    ("gemm m=64 n=32 k=16", MIXED),
    ("gemm K=16, M=64, N=32", MIXED),
    ("gemm m = 64 N= 32 k =16", MIXED),
    ("gemm M:64 N:32 K:16", MIXED),
    ("gemm M 64 N 32 K 16", MIXED),
    ("gemm M=64N=32K=16", MIXED),
    ("gemm m64n32k16", MIXED),
    ("gemm MxNxK = 64x32x16", MIXED),
    ("gemm shape 64x32x16", MIXED),
    ("gemm M=N=K=1k", KILO),
    ("gemm 1,024x1k x 1_024", KILO),
    ("gemm 1kx1kx1k", KILO),
    ("gemm 1024^3", KILO),
    ("gemm 1024**3", KILO),
    ("gemm 1024³", KILO),
    ("gemm 64x64x64 M=64", {}),
    # batches
    ("bmm 12x128x64x128", ATTENTION),
    ("gemm 12 x 128x64x128", ATTENTION),
    ("gemm 12 x (128x64x128)", ATTENTION),
    ("gemm batch 12 128x64x128", ATTENTION),
    ("gemm batch=12 128x64x128", ATTENTION),
    ("gemm b=12 128x64x128", ATTENTION),
    ("gemm 128x64x128 batch of 12", ATTENTION),
    ("gemm 128x64x128, batch size 12", ATTENTION),
    ("gemm 128x64x128, batch size = 12", ATTENTION),
    ("gemm 128x64x128, 12 batches", ATTENTION),
    ("batch 12x128x64x128 gemm", ATTENTION),
    ("batched matmul batch 12, M=128 N=64 K=128", ATTENTION),
    ("batch matmul 12x128x64x128", ATTENTION),
    # vectors
    ("gemv N=32 K=16", {"m": 1, "n": 32, "k": 16}),
    ("gemv 16x32", {"m": 1, "n": 32, "k": 16}),
    ("gemv 1x32x16", {"m": 1, "n": 32, "k": 16}),
    # dtypes
    *[(f"{name} gemm 64x64x64", {}) for name in ("fp32", "f32", "float32", "FP32", "single", "single precision")],
    *[(f"{name} gemm 64x64x64", BF16) for name in ("bf16", "bfloat16", "BF16", "bf16 x bf16", "bf16xbf16")],
    *[(f"{name} gemm 64x64x64", S8S8) for name in ("int8", "s8", "i8", "s8s8", "s8 x s8", "s8s8s32", "int8 -> int32")],
    *[(f"{name} gemm 64x64x64", U8S8) for name in ("u8s8", "uint8 x int8", "u8xs8", "u8 × s8", "u8s8s32", "u8i8")],
    ("bf16 -> f32 gemm 64x64x64", BF16),
    ("bf16->bf16 gemm 64x64x64", {**BF16, "out_dtype": "bfloat16"}),
    ("bf16 → bf16 gemm 64x64x64", {**BF16, "out_dtype": "bfloat16"}),
    ("bf16 to bf16 gemm 64x64x64", {**BF16, "out_dtype": "bfloat16"}),
    ("bf16 gemm 64x64x64 -> bf16", {**BF16, "out_dtype": "bfloat16"}),
    ("bf16 gemm 64x64x64 with bf16 output", {**BF16, "out_dtype": "bfloat16"}),
    ("bf16 gemm 64x64x64 out=bf16", {**BF16, "out_dtype": "bfloat16"}),
    ("u8s8 -> s32 gemm 64x64x64", U8S8),
    # layouts
    ("gemm 64x64x64 NN", {}),
    ("gemm 64x64x64 nt", {"transpose_b": True}),
    ("TN gemm 64x64x64", {"transpose_a": True}),
    ("gemm 64x64x64 TT layout", {"transpose_a": True, "transpose_b": True}),
    ("gemm 64x64x64 A transposed", {"transpose_a": True}),
    ("gemm 64x64x64 with B transposed", {"transpose_b": True}),
    ("gemm 64x64x64 transposed B", {"transpose_b": True}),
    ("gemm 64x64x64 B is transposed", {"transpose_b": True}),
    ("gemm 64x64x64 B^T", {"transpose_b": True}),
    ("gemm 64x64x64 A and B transposed", {"transpose_a": True, "transpose_b": True}),
    ("gemm 64x64x64 both transposed", {"transpose_a": True, "transpose_b": True}),
    ("gemm 64x64x64 A transposed and B transposed", {"transpose_a": True, "transpose_b": True}),
    # operand B
    *[
        (f"gemm 64x64x64 {words}", {"constant_b": True})
        for words in (
            "constant B",
            "const b",
            "weights",
            "with weights",
            "prepacked",
            "prepacked weights",
            "B constant",
        )
    ],
    ("gemm 64x64x64 B is constant", {"constant_b": True}),
    ("gemm 64x64x64 B constant", {"constant_b": True}),
    ("gemm 64x64x64 with B packed beforehand", {"constant_b": True}),
    ("gemm 64x64x64 variable B", {}),
    # epilogues
    ("gemm 64x64x64 with ReLU", {"epilogue": ("relu",)}),
    ("gemm 64x64x64 with bias", {"epilogue": ("bias",)}),
    ("gemm 64x64x64 with bias and relu", {"epilogue": ("bias", "relu")}),
    ("gemm 64x64x64 + bias + relu", {"epilogue": ("bias", "relu")}),
    ("gemm 64x64x64 with relu then bias", {"epilogue": ("relu", "bias")}),
    # effort
    ("gemm 64x64x64 2 threads", {"threads": 2}),
    ("gemm 64x64x64, 2 Threads", {"threads": 2}),
    ("gemm 64x64x64 on 2 cores", {"threads": 2}),
    ("gemm 64x64x64 threads=2", {"threads": 2}),
    ("gemm 64x64x64 1 thread", {"threads": 1}),
    ("gemm 64x64x64 one thread", {"threads": 1}),
    ("gemm 64x64x64 single thread", {"threads": 1}),
    ("gemm 64x64x64 single-threaded", {"threads": 1}),
    ("gemm 64x64x64 on a single thread", {"threads": 1}),
    ("gemm 64x64x64 zero trials", {"trials": 0}),
    ("gemm 64x64x64 64 trials", {"trials": 64}),
    ("gemm 64x64x64 trials: 64", {"trials": 64}),
    ("gemm 64x64x64 no tuning", {"trials": 0}),
    ("gemm 64x64x64 without tuning", {"trials": 0}),
    # hardware
    *[
        (f"gemm 64x64x64 {words}", {})
        for words in ("on this CPU", "on this machine", "on host", "on my laptop", "on the host", "this cpu", "on cpu")
    ],
    ("gemm 64x64x64 on zen5", {"hardware": "zen5"}),
    ("gemm 64x64x64 on Cortex-A76", {"hardware": "cortex-a76"}),
    ("gemm for x86-64-v3 64x64x64", {"hardware": "x86-64-v3"}),
    ("gemm 64x64x64 hardware=zen5", {"hardware": "zen5"}),
    # all of it
    (
        "u8s8 GEMM M=64 N=32 K=16 NT, constant B, with bias and ReLU, 2 threads, 64 trials, on zen5",
        {**MIXED, **U8S8, "transpose_b": True, "constant_b": True, "epilogue": ("bias", "relu"), "threads": 2}
        | {"trials": 64, "hardware": "zen5"},
    ),
]

#: line, and what the one-line error must contain
ERRORS = [
    ("", ["empty", "matmul"]),
    ("conv2d 64x64x64", ['"conv2d" is not an operator I can make yet', "known: matmul"]),
    ("frobnicate 64x64x64", ['"frobnicate" is not an operator I can make yet', "matmul"]),
    ("64x64x64", ["no operator", "matmul"]),
    ("matmull 64x64x64", ['"matmull"', 'did you mean "matmul"']),
    ("matmul 64x64x64 with rellu", ['"rellu"', 'did you mean "relu"']),
    ("matmul 64x64x64 with gelu", ['"gelu"', "bias, relu"]),
    ("matmul 64x64x64 quux", ['"quux" was not understood', "write"]),
    ("matmul 64x64x64 @", ['"@" was not understood']),
    ("matmul 0x64x64", ["M=0", "at least 1"]),
    ("matmul M=64 N=0 K=3", ["N=0", "at least 1"]),
    ("matmul 64x-3x64", ["N=-3", "at least 1"]),
    ("matmul M=4 N=4 K=-4", ["K=-4", "at least 1"]),
    ("matmul batch=0 4x4x4", ["batch=0", "at least 1"]),
    ("matmul 64.5x64x64", ['"64.5" is not a whole number']),
    ("matmul 1e3x64x64", ['"1e3" is not a whole number']),
    ("matmul M=abc N=1 K=1", ['"abc" cannot be M', "whole number"]),
    ("matmul N=1 K=1 M=", ["ends without a number", "M=64"]),
    ("matmul 9999999999x1x1", ["M=9999999999", "too large"]),
    ("matmul " + "9" * 5000 + "x1x1", ["too large"]),
    ("matmul M=64", ["N and K are missing"]),
    ("matmul M=64 N=64", ["K is missing", "K=64"]),
    ("matmul N=64 K=64", ["M is missing"]),
    ("matmul", ["M and N and K are missing"]),
    ("matmul 64x64", ["two sizes", "M, N and K"]),
    ("matmul 1024", ['"1024" stands alone', "MxNxK"]),
    ("matmul 64,128,256", ["64128256", "MxNxK"]),
    ("matmul 1x2x3x4x5", ["5 numbers"]),
    ("matmul 64x64xfoo", ['"xfoo"']),
    ("matmul 64x64x", ["number must follow"]),
    ("matmul (64, 64, 64", ["not closed"]),
    ("matmul 64^2", ['"64^2"', "cube"]),
    ("bmm 64x64x64", ['"bmm" needs a batch']),
    ("batched matmul 64x64x64", ['"batched" needs a batch']),
    ("gemv 4x5x6", ["M=1", "contradicts"]),
    ("matmul 64x64x64 M=32", ['"M = 32" contradicts']),
    ("f32 bf16 matmul 64x64x64", ['"bf16" contradicts "f32"']),
    ("bf16 sgemm 64x64x64", ["contradicts"]),
    ("matmul 64x64x64 constant B variable B", ['"variable B" contradicts "constant B"']),
    ("matmul 64x64x64 NN A transposed", ['"A transposed" contradicts "NN"']),
    ("matmul 64x64x64 2 threads 4 threads", ['"4 threads" contradicts "2 threads"']),
    ("matmul 64x64x64 no tuning 8 trials", ['"8 trials" contradicts "no tuning"']),
    ("matmul 64x64x64 on zen5 on this CPU", ['"on this CPU" contradicts "on zen5"']),
    ("bf16 -> f32 matmul 64x64x64 -> bf16", ['"-> bf16" contradicts "-> f32"']),
    *[
        (f"{name} matmul 64x64x64", [f'"{name}" is not supported', "bf16", "u8s8"])
        for name in ("fp16", "half", "fp8", "int4", "float64", "double", "tf32")
    ],
    ("dgemm 64x64x64", ['"dgemm" is not supported']),
    ("bf16 -> fp16 matmul 64x64x64", ['"fp16" is not supported']),
    ("uint8 matmul 64x64x64", ['"uint8"', "u8s8"]),
    ("u8u8 matmul 64x64x64", ["uint8 x uint8 is not supported"]),
    ("s8u8 matmul 64x64x64", ["int8 x uint8 is not supported"]),
    ("int32 matmul 64x64x64", ["result type"]),
    ("f32 x bf16 matmul 64x64x64", ["float32 x bfloat16 is not supported"]),
    ("f32 -> bf16 matmul 64x64x64", ["float32 x float32 -> bfloat16 is not supported", "-> f32"]),
    ("int8 -> int8 matmul 64x64x64", ["-> int8 is not supported", "-> s32"]),
    ("bf16 -> foo matmul 64x64x64", ['"foo"', "f32, bf16 or s32"]),
    ("transposed matmul 64x64x64", ['"A transposed"']),
    ("matmul 64x64x64 0 threads", ["0 threads", "at least one"]),
    ("matmul 64x64x64 -1 trials", ["-1 trials"]),
    ("matmul 64x64x64 thread", ['"thread" needs a number']),
    ("matmul 64x64x64 on", ["without a machine"]),
    ("matmul 64x64x64 on this gpu", ['"gpu"', "on this CPU"]),
    ("matmul 64x64x64 on relu", ["names no machine"]),
]


@pytest.mark.parametrize(("line", "said"), LINES, ids=[line for line, _ in LINES])
def test_line_is_understood(line: str, said: dict[str, object]) -> None:
    assert parse(line) == replace(CUBE, **said)  # type: ignore[arg-type]


@pytest.mark.parametrize(("line", "wanted"), ERRORS, ids=[line[:50] for line, _ in ERRORS])
def test_error_says_what_and_what_to_do(line: str, wanted: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        parse(line)
    message = str(caught.value)
    assert "\n" not in message
    assert [w for w in wanted if w not in message] == [], message
    assert caught.value.exit_code == 2


PROFILES = st.from_regex(r"zen[0-9]|cortex-a7[0-9]|x86-64|h100|my\.board_[a-z]{3}", fullmatch=True)
REQUESTS = st.builds(
    lambda dtypes, out, **rest: Request(
        "matmul", a_dtype=dtypes[0], b_dtype=dtypes[1], out_dtype=RESULTS[dtypes][out % len(RESULTS[dtypes])], **rest
    ),
    dtypes=st.sampled_from(sorted(RESULTS)),
    out=st.integers(0, 1),
    m=st.integers(1, 2**31 - 1),
    n=st.integers(1, 100_000),
    k=st.integers(1, 100_000),
    batch=st.integers(1, 1000),
    transpose_a=st.booleans(),
    transpose_b=st.booleans(),
    constant_b=st.booleans(),
    epilogue=st.sampled_from([(), ("bias",), ("relu",), ("bias", "relu"), ("relu", "bias")]),
    threads=st.none() | st.integers(1, 512),
    trials=st.none() | st.integers(0, 10_000),
    hardware=st.just("host") | PROFILES,
)


@given(REQUESTS)
def test_describe_reads_back(request: Request) -> None:
    line = describe(request)
    assert "\n" not in line
    assert parse(line) == request
    assert describe(parse(line)) == line


@given(REQUESTS, st.randoms(use_true_random=False))
def test_case_does_not_matter(request: Request, random: object) -> None:
    line = "".join(c.upper() if random.random() < 0.5 else c for c in describe(request))  # type: ignore[attr-defined]
    assert parse(line) == request


WORDS = st.lists(
    st.sampled_from(sorted({word for line, _ in [*LINES, *ERRORS] for word in line.split()})) | st.text(max_size=6),
    max_size=12,
).map(" ".join)


@settings(max_examples=300)
@given(WORDS)
@example("matmul 1x2x3 M")
@example("batch")
@example("matmul ((((1")
@example("b is")
@example("-> ->")
@example("²³")
def test_any_text_is_a_request_or_a_one_line_error(line: str) -> None:
    try:
        request = parse(line)
    except QimengError as error:
        assert isinstance(error, RequestError)
        assert "\n" not in str(error)
    else:
        assert parse(describe(request)) == request


def test_validate_refuses_what_parse_cannot_write() -> None:
    for wrong in (
        replace(CUBE, operator="conv2d"),
        replace(CUBE, epilogue=("gelu",)),
        replace(CUBE, epilogue=("relu", "relu")),
        replace(CUBE, a_dtype="float16", b_dtype="float16"),
        replace(CUBE, threads=0),
        replace(CUBE, k=2**31),
    ):
        with pytest.raises(RequestError):
            validate(wrong)
    assert validate(CUBE) is CUBE


def test_memory_limit_counts_every_tensor() -> None:
    request = parse("bf16 -> f32 bmm batch=2 8x16x32 with bias")
    need = 2 * (8 * 32 * 2 + 32 * 16 * 2 + 8 * 16 * 4) + 16 * 4
    assert tensor_bytes(request) == need
    check_memory(request, need)
    with pytest.raises(RequestError, match="GiB for A, B and C"):
        check_memory(request, need - 1)


def test_stored_shapes() -> None:
    assert (parse("gemm 2x3x4").a_shape, parse("gemm 2x3x4").b_shape) == ((2, 4), (4, 3))
    both = parse("gemm 5 x 2x3x4 TT")
    assert (both.a_shape, both.b_shape, both.out_shape) == ((5, 4, 2), (5, 3, 4), (5, 2, 3))
