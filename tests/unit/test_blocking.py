"""Blocking arithmetic, legality and the analytic choice."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware import load
from qimeng_tvm.intrin import families_for
from qimeng_tvm.schedule import BlockInfo, Decision, SearchSpace
from qimeng_tvm.schedule.apply import rule, rules
from qimeng_tvm.schedule.blocking import WHOLE, balanced, gemm_plan, kernels_of, split_k, unroll_of
from qimeng_tvm.schedule.estimate import gemm_cycles, least_cycles

ZEN3 = load("zen3")
ZEN5 = load("zen5")


def block(m, n, k, dtype="float32", threads=1, **more):
    acc = "int32" if dtype in ("int8", "uint8") else "float32"
    other = "int8" if dtype == "uint8" else dtype
    return BlockInfo("matmul", "matmul", 1, m, n, k, dtype, other, acc, acc, threads=threads, **more)


@given(st.integers(1, 3000), st.integers(1, 4000))
def test_balanced_blocks_cover_all_tiles_and_waste_less_than_a_block(tiles, target):
    size = balanced(tiles, target)
    assert 1 <= size <= tiles
    blocks = -(-tiles // size)
    assert blocks * size >= tiles > (blocks - 1) * size


@given(st.integers(1, 20000), st.integers(1, 5000), st.sampled_from([1, 2, 4]))
def test_k_is_covered_by_whole_packs(k, target, pack):
    kc, calls = split_k(k, target, pack)
    assert kc % pack == 0 and kc * calls >= k
    assert kc * calls - k < max(calls * pack, 2 * pack)


@given(st.integers(1, 512), st.sampled_from([1, 2, 4]))
def test_unroll_divides_the_steps(steps, wanted):
    assert steps % unroll_of(steps, wanted) == 0


@pytest.mark.parametrize("hardware", [ZEN3, ZEN5], ids=lambda h: h.cpu)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "int8"])
def test_every_micro_kernel_offered_fits_the_registers(hardware, dtype):
    info = block(64, 64, 64, dtype)
    for family in families_for(hardware.isa, (info.a_dtype, info.b_dtype, info.acc_dtype), hardware.features):
        shapes = [tuple(map(int, k.split("x"))) for k in kernels_of(family, 16)]
        assert shapes
        assert all(family.fits(mr, nv) for mr, nv in shapes)


def test_no_room_for_a_second_step_is_left_to_spill():
    """28 sums, two vectors of B and one of A are 31 of 32 registers; with more of them free, a prefetch is harmless."""
    gemm = rule("cpu.gemm")
    tight = gemm.space(block(784, 256, 512, threads=2, constant_b=True), ZEN5).defaults()
    assert (tight["micro_kernel"], tight["prefetch"], tight["unroll"]) == ("14x2", "yes", 1)
    roomy = gemm.space(block(128, 768, 3072, threads=2, constant_b=True), ZEN5).defaults()
    assert (roomy["prefetch"], roomy["unroll"]) == ("yes", 2)


shapes = st.integers(1, 700)


@settings(deadline=None, max_examples=40)
@given(shapes, shapes, shapes, st.sampled_from(["float32", "bfloat16", "uint8"]), st.booleans(), st.integers(1, 2),
       st.booleans(), st.sampled_from([ZEN3, ZEN5]))  # fmt: skip
def test_the_analytic_choice_is_legal(m, n, k, dtype, constant, threads, transposed, hardware):
    info = block(m, n, k, dtype, threads, constant_b=constant, transpose_b=transposed)
    chosen = next(r for r in rules() if r.match(info, hardware))
    space = chosen.space(info, hardware)
    space.check(space.defaults())
    families = chosen.families(info, hardware)
    plan = gemm_plan(info, families, space.defaults().__getitem__)
    assert plan.padded_m >= m and plan.padded_n >= n and plan.padded_k >= k


TARGETS = st.sampled_from([8, 16, 64, 384, WHOLE])
MODES = st.sampled_from(["none", "whole", "block"])
EITHER = st.sampled_from(["n", "m"])


@settings(deadline=None, max_examples=200)
@given(st.data(), st.tuples(shapes, shapes, shapes), st.sampled_from(["float32", "bfloat16", "uint8"]),
       st.integers(1, 3), st.sampled_from([ZEN3, ZEN5]))  # fmt: skip
def test_no_blocking_takes_less_than_the_bound_that_spares_pricing_it(data, extents, dtype, threads, hardware):
    info = block(*extents, dtype, threads)
    families = families_for(hardware.isa, (info.a_dtype, info.b_dtype, info.acc_dtype), hardware.features)
    family = data.draw(st.sampled_from([f for f in families if kernels_of(f, info.m)]))
    values = {"family": family.key, "micro_kernel": data.draw(st.sampled_from(kernels_of(family, info.m))),
              "kc": data.draw(TARGETS), "mc": data.draw(TARGETS), "nc": data.draw(TARGETS), "order": data.draw(EITHER),
              "inner_order": data.draw(EITHER), "pack_a": data.draw(MODES),
              "pack_b": data.draw(st.one_of(MODES, st.just("constant"))), "unroll": 2,
              "prefetch": data.draw(st.sampled_from(["yes", "no"])),
              "parallel": data.draw(st.sampled_from(["yes", "no"]))}  # fmt: skip
    plan = gemm_plan(info, families, values.__getitem__)
    least = least_cycles(info, family, plan.mr, plan.nv, plan.pack_a, plan.pack_b, hardware)
    assert 0 < least <= gemm_cycles(info, plan, hardware)


def test_skinny_products_go_to_the_gemv_rule():
    names = {m: next(r.name for r in rules() if r.match(block(m, 512, 512), ZEN3)) for m in (1, 8, 9, 512)}
    assert names == {1: "cpu.gemv", 8: "cpu.gemv", 9: "cpu.gemm", 512: "cpu.gemm"}


def test_no_rule_without_a_micro_kernel():
    assert not any(r.match(replace(block(64, 64, 64), a_dtype="float16", b_dtype="float16"), ZEN3) for r in rules())


def plan_of(info, **decisions):
    gemm = rule("cpu.gemm")
    values = {**gemm.space(info, ZEN3).defaults(), **decisions}
    return gemm_plan(info, gemm.families(info, ZEN3), values.__getitem__)


def test_prefetch_is_what_the_decision_says_where_it_is_worth_it():
    lone = block(4, 3072, 768, constant_b=True)
    gemv = rule("cpu.gemv")
    values = gemv.space(lone, ZEN3).defaults()
    assert values["prefetch"] == "yes"
    assert gemm_plan(lone, gemv.families(lone, ZEN3), values.__getitem__).ahead == 1
    assert gemm_plan(lone, gemv.families(lone, ZEN3), {**values, "prefetch": "no"}.__getitem__).ahead == 0
    few = block(16, 4096, 4096, constant_b=True)
    assert plan_of(few, micro_kernel="4x3", mc=1 << 30, nc=16, prefetch="yes").ahead == 4
    many = block(1024, 1024, 1024, constant_b=True)
    assert plan_of(many, micro_kernel="4x3", mc=1 << 30, prefetch="yes").ahead == 0
    assert rule("cpu.gemm").space(many, ZEN3).defaults()["prefetch"] == "no"
    assert plan_of(block(16, 4096, 4096), micro_kernel="4x3", mc=1 << 30, pack_b="block", order="n").ahead == 0


def test_the_model_charges_padding_imbalance_and_small_tiles():
    info = block(1024, 1024, 1024, constant_b=True)
    good = plan_of(info, micro_kernel="4x2", kc=1 << 30, mc=96, nc=256)
    assert gemm_cycles(info, good, ZEN3) < gemm_cycles(info, replace(good, mr=1, mc=good.mc * 4), ZEN3)
    two = block(1024, 1024, 1024, threads=2, constant_b=True)
    even = plan_of(two, micro_kernel="4x2", kc=1 << 30, mc=1 << 30, nc=512, order="n", parallel="yes")
    one_block = replace(even, n_blocks=1, nc=even.nc * even.n_blocks)
    assert gemm_cycles(two, even, ZEN3) < 0.7 * gemm_cycles(two, one_block, ZEN3)


def test_decisions_are_checked_by_name_candidate_and_together():
    space = SearchSpace((Decision("kc", (64, 128), 64), Decision("mc", (4, 8), 4)),
                        lambda v: "too large" if v["kc"] * v["mc"] > 512 else None)  # fmt: skip
    space.check({"kc": 64, "mc": 8})
    assert space.size() == 4 and len(list(space.legal_points())) == 3
    for values, message in (
        ({"kc": 64}, "'mc' has no value"),
        ({"kc": 64, "mc": 4, "nc": 1}, "unknown decision 'nc'"),
        ({"kc": 65, "mc": 4}, "kc=65 is not among"),
        ({"kc": 128, "mc": 8}, "too large"),
    ):
        with pytest.raises(ScheduleError, match=message):
            space.check(values)
    with pytest.raises(ScheduleError, match="default"):
        Decision("kc", (1, 2), 3)
