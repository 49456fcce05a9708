"""The oracle against loops, and a tolerance that a right result passes and a wrong one does not."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qimeng_tvm.comparison import compare, reference
from qimeng_tvm.errors import CheckError
from qimeng_tvm.numerics import (
    KINDS,
    bytes_moved,
    flops,
    make_inputs,
    numpy_dtype,
    oracle,
    split_planes,
    tolerance,
)
from qimeng_tvm.request import parse

DTYPES = ("f32", "bf16", "bf16 -> bf16", "s8s8", "u8s8")
TINY = [
    f"{dtype} gemm {shape} {layout} {epilogue}"
    for dtype, (shape, layout, epilogue) in product(
        DTYPES,
        [
            ("3x4x5", "NN", ""),
            ("3x4x5", "NT", "bias"),
            ("1x1x1", "TN", "relu"),
            ("2 x 3x4x7", "TT", "bias relu"),
            ("2 x 3x4x7", "NN", "relu bias"),
        ],
    )
]


def brute_force(line: str, inputs: dict[str, np.ndarray]) -> Any:
    """Loops over Python numbers: unbounded integers, and floats of 53 bits."""
    request = parse(line)
    out = np.zeros((request.batch, request.m, request.n), np.int64 if request.acc_dtype == "int32" else np.float64)
    a = inputs["A"].reshape(request.batch, *inputs["A"].shape[-2:])
    b = inputs["B"].reshape(request.batch, *inputs["B"].shape[-2:])
    number = int if request.acc_dtype == "int32" else float
    for s, i, j in product(range(request.batch), range(request.m), range(request.n)):
        total = number(0)
        for k in range(request.k):
            left = a[s, k, i] if request.transpose_a else a[s, i, k]
            right = b[s, j, k] if request.transpose_b else b[s, k, j]
            total += number(left) * number(right)
        for name in request.epilogue:
            total = total + number(inputs["bias"][j]) if name == "bias" else max(total, number(0))
        out[s, i, j] = total
    return out.reshape(request.out_shape)


def float32_result(line: str, inputs: dict[str, np.ndarray], k_order: slice = slice(None)) -> np.ndarray:
    """A right result by another way: float32 (or integer) accumulation, one k after the other."""
    request = parse(line)
    planes = []
    for p in split_planes(request, inputs):
        total = np.zeros((request.m, request.n), request.acc_dtype)
        for k in np.arange(request.k)[k_order]:
            total += np.outer(p.a[:, k].astype(request.acc_dtype), p.b[k].astype(request.acc_dtype))
        for name in request.epilogue:
            total = total + p.bias if name == "bias" else np.maximum(total, 0)
        planes.append(total)
    return np.stack(planes).reshape(request.out_shape).astype(numpy_dtype(request.out_dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line", TINY)
def test_oracle_is_what_loops_give(line: str, kind: str) -> None:
    request = parse(line)
    inputs = make_inputs(request, 1, kind)
    want, got = brute_force(line, inputs), oracle(request, inputs)
    assert got.shape == request.out_shape
    if request.acc_dtype == "int32":
        assert got.dtype == np.int32
        assert np.array_equal(got, want)
    else:
        assert got.dtype == np.float64
        scale = np.abs(want) + 1 if kind != "extreme" else 2.0**74
        assert np.all(np.abs(got - want) <= 1e-14 * scale)


def test_integer_oracle_wraps_around_like_the_accumulators() -> None:
    request = parse("u8s8 gemm 1x2x70000")
    inputs = {"A": np.full((1, 70000), 255, np.uint8), "B": np.full((70000, 2), 127, np.int8)}
    assert int(oracle(request, inputs)[0, 0]) == 255 * 127 * 70000 - 2**32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_what_they_say(dtype: str, kind: str) -> None:
    request = parse(f"{dtype} gemm 33x35x37 NT with bias")
    first, again, other = (make_inputs(request, seed, kind) for seed in (7, 7, 8))
    assert first["A"].shape == (33, 37) and first["B"].shape == (35, 37) and first["bias"].shape == (35,)
    assert first["A"].dtype == numpy_dtype(request.a_dtype) and first["B"].dtype == numpy_dtype(request.b_dtype)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(value.flags["C_CONTIGUOUS"] for value in first.values())
    assert np.isfinite(first["A"].astype(np.float64)).all() and np.isfinite(oracle(request, first)).all()
    if kind != "ones":
        assert any(not np.array_equal(first[name], other[name]) for name in first)
    if kind == "normal":
        assert abs(first["A"].astype(np.float64).mean()) > 0.2


def test_extreme_integers_saturate_sixteen_bit_pair_sums() -> None:
    request = parse("u8s8 gemm 16x16x32")
    inputs = make_inputs(request, 0, "extreme")
    assert set(np.unique(inputs["A"])) == {0, 255} and set(np.unique(inputs["B"])) == {-128, 127}
    terms = inputs["A"].astype(np.int64)[:, :, None] * inputs["B"].astype(np.int64)[None]
    pairs = terms[:, 0::2] + terms[:, 1::2]
    assert (pairs > 2**15 - 1).any() and (pairs < -(2**15)).any()


def test_extreme_floats_span_magnitudes_and_hold_zeros() -> None:
    request = parse("f32 gemm 64x64x64")
    inputs = make_inputs(request, 0, "extreme")
    a, c = np.abs(inputs["A"]), np.abs(oracle(request, inputs))
    assert (a == 0).any() and a.max() > 2.0**25 and a[a > 0].min() < 2.0**-25
    assert c.max() > 2.0**40 and c[c > 0].min() < 2.0**-20


def test_unknown_kind() -> None:
    with pytest.raises(CheckError, match="normal"):
        make_inputs(parse("gemm 2x2x2"), 0, "zeros")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["17x19x1", "17x19x23", "8x16x1024", "2 x 5x6x333"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_right_results_pass(dtype: str, shape: str, kind: str) -> None:
    line = f"{dtype} gemm {shape} with bias"
    request = parse(line)
    for seed in range(2):
        inputs = make_inputs(request, seed, kind)
        expected = reference(request, inputs)
        for order in (slice(None), slice(None, None, -1)):
            found = expected.compare(float32_result(line, inputs, order))
            assert found.ok, str(found)
            assert found.checked == request.batch * request.m * request.n and found.bad == 0


@pytest.mark.parametrize("k", [1, 2, 64, 1024, 11008, 40000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropping_one_k_term_fails(dtype: str, k: int) -> None:
    line = f"{dtype} gemm 16x32x{k}"
    request = parse(line)
    inputs = make_inputs(request, 3, "normal")
    right = reference(request, inputs)
    less = {"A": inputs["A"].copy(), "B": inputs["B"]}
    less["A"][:, k // 2] = 0
    assert right.compare(_rounded(request, oracle(request, inputs))).ok
    assert not right.compare(_rounded(request, oracle(request, less))).ok


def _rounded(request: Any, value: np.ndarray) -> np.ndarray:
    return value.astype(numpy_dtype(request.out_dtype))


@pytest.mark.parametrize("dtype", ["f32", "bf16", "bf16 -> bf16"])
def test_lower_precision_inside_fails(dtype: str) -> None:
    request = parse(f"{dtype} gemm 16x16x512")
    inputs = make_inputs(request, 0, "normal")
    total = np.zeros((16, 16), ml_dtypes.bfloat16)
    for k in range(512):
        total = (total + np.outer(inputs["A"][:, k], inputs["B"][k])).astype(ml_dtypes.bfloat16)
    assert not compare(request, inputs, total.astype(numpy_dtype(request.out_dtype))).ok


def test_bfloat16_truncation_fails_but_rounding_passes() -> None:
    request = parse("bf16 -> bf16 gemm 32x32x64")
    inputs = make_inputs(request, 0, "normal")
    value = oracle(request, inputs).astype(np.float32)
    cut = (value.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(ml_dtypes.bfloat16)
    assert compare(request, inputs, value.astype(ml_dtypes.bfloat16)).ok
    assert not compare(request, inputs, cut).ok


def test_tolerance_follows_inputs_and_k() -> None:
    request = parse("f32 gemm 8x8x256")
    inputs = make_inputs(request, 0, "normal")
    base = tolerance(request, inputs)
    assert base.shape == (8, 8) and (base > 0).all()
    assert np.allclose(tolerance(request, {**inputs, "A": inputs["A"] * 4}), base * 4)
    longer = replace(request, k=1024)
    assert tolerance(longer, make_inputs(longer, 0, "normal")).mean() > 4 * base.mean()
    for kind in ("ones", "small"):
        assert not tolerance(request, make_inputs(request, 0, kind)).any()
    integers = parse("u8s8 gemm 8x8x256")
    assert not tolerance(integers, make_inputs(integers, 0, "normal")).any()


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["", "bias", "bias relu"])
def test_one_wrong_element_is_found_wherever_it_is(dtype: str, epilogue: str, rows: int | None) -> None:
    request = parse(f"{dtype} gemm 3 x 40x50x60 {epilogue}")
    inputs = make_inputs(request, 0, "normal")
    right = _rounded(request, oracle(request, inputs))
    expected = reference(request, inputs, rows)
    assert expected.compare(right).ok
    for place in [(0, 0, 0), (2, 39, 49), (1, 17, 23)]:
        wrong = right.copy()
        wrong[place] += 1 if request.acc_dtype == "int32" else 8
        found = expected.compare(wrong)
        assert not found.ok and found.first_bad == place and found.bad >= 1, str(found)
        assert found.got == float(wrong[place]) and abs(found.expected - float(right[place])) < 0.5
        assert str(list(place)) in str(found)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [None, 2])
def test_nan_and_infinity_are_wrong(poison: float, rows: int | None) -> None:
    for dtype in ("f32", "bf16 -> bf16"):
        request = parse(f"{dtype} gemm 9x9x9")
        inputs = make_inputs(request, 0, "normal")
        actual = _rounded(request, oracle(request, inputs))
        actual[4, 5] = poison
        found = compare(request, inputs, actual, rows)
        assert not found.ok and found.first_bad == (4, 5) and found.max_error == np.inf


def test_big_products_are_sampled_but_every_element_is_seen() -> None:
    request = parse("f32 gemm 2048x2048x2048 with relu")
    inputs = make_inputs(request, 0, "normal")
    expected = reference(request, inputs)
    assert len(expected.parts) == 3
    right = np.maximum(inputs["A"] @ inputs["B"], 0)
    found = expected.compare(right)
    assert found.ok and found.checked == 2048**2
    right[1234, 1235] += 2
    assert expected.compare(right).first_bad == (1234, 1235)


def test_another_shape_or_dtype_is_not_compared() -> None:
    request = parse("f32 gemm 4x5x6")
    inputs = make_inputs(request, 0)
    for wrong in (np.zeros((5, 4), np.float32), np.zeros((4, 5), np.float64), np.zeros(20, np.float32)):
        with pytest.raises(CheckError, match="the request wants float32"):
            compare(request, inputs, wrong)
    with pytest.raises(CheckError, match="input A"):
        oracle(request, {**inputs, "A": inputs["A"].T})


def test_flops_and_bytes() -> None:
    request = parse("bf16 bmm 3 x 4x5x6 with bias")
    assert flops(request) == 2 * 3 * 4 * 5 * 6
    assert bytes_moved(request) == 3 * (4 * 6 * 2 + 6 * 5 * 2 + 4 * 5 * 4) + 5 * 4
