"""Blocking of convolutions: extents, legality and the analytic choice, on machines of 16 and of 32 registers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware import load
from qimeng_tvm.schedule import BlockInfo
from qimeng_tvm.schedule.apply import rule
from qimeng_tvm.schedule.blocking import split_kernel
from qimeng_tvm.schedule.contract import Window
from qimeng_tvm.schedule.conv_blocking import conv_plan
from qimeng_tvm.schedule.conv_form import PAD, ConvForm, form_of
from qimeng_tvm.schedule.pressure import plan_of

ZEN3, ZEN5 = load("zen3"), load("zen5")
RULE = rule("cpu.conv2d")


def convolution(
    out: int = 56,
    channels: int = 64,
    filters: int = 64,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    dtype: str = "float32",
    threads: int = 1,
    border: bool = True,
) -> BlockInfo:
    window = Window((out, out), (kernel, kernel), (stride, stride), groups=groups)
    acc = "int32" if dtype == "int8" else "float32"
    return BlockInfo(
        "conv2d", "conv2d", 1, out * out, filters, channels * kernel * kernel, dtype, dtype, acc, acc,
        constant_b=True, producers=(PAD, "conv2d_gather") if border else ("conv2d_gather",), threads=threads,
        window=window,
    )  # fmt: skip


def form(width: int = 56, channels: int = 64, filters: int = 64, groups: int = 1, dtype: str = "float32") -> ConvForm:
    return ConvForm(1, Window((width, width), (3, 3), groups=groups), channels, filters, dtype)


@given(st.integers(1, 2000))
def test_rows_are_rounded_up_little_to_whole_tiles(width):
    x = form(width).x
    assert width <= x <= width + 3
    assert x < 4 or any(x % rows == 0 for rows in range(4, 15))


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 3, 4, 32]), st.sampled_from(["float32", "int8"]))
def test_channels_and_filters_are_whole_packs_and_vectors(channels, filters, groups, dtype):
    f = form(56, channels, filters, groups, dtype)
    assert f.merged * f.groups == groups
    assert f.merged * channels <= f.c and f.c % f.pack == 0 and f.c * 3 > f.pack
    assert f.merged * filters <= f.f and f.f % 8 == 0
    assert f.f - f.merged * filters < 16


def test_narrow_groups_are_computed_together_until_they_fill_a_vector():
    assert form(filters=4, channels=4, groups=32).merged == 4
    assert form(filters=16, groups=4).merged == 1
    assert form(filters=3, channels=3, groups=2).merged == 2


@pytest.mark.parametrize("hardware", [ZEN3, ZEN5], ids=lambda h: h.cpu)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("out", "channels", "filters", "kernel", "stride"),
    [
        (56, 64, 64, 3, 1),
        (7, 512, 512, 3, 1),
        (112, 3, 64, 7, 2),
        (113, 16, 24, 3, 1),
        (1, 8, 5, 3, 1),
        (28, 1, 8, 5, 1),
    ],
)
def test_defaults_are_legal_and_fit_the_registers(hardware, dtype, out, channels, filters, kernel, stride):
    info = convolution(out, channels, filters, kernel, stride, dtype=dtype, threads=2)
    assert RULE.match(info, hardware)
    space = RULE.space(info, hardware)
    values = space.defaults()
    space.check(values)
    plan = conv_plan(info, RULE.families(info, hardware), values.__getitem__)
    assert plan.family.fits(plan.mr, plan.nv)
    assert plan.row_tiles * plan.mr == plan.form.x
    assert plan.panels * plan.filter_blocks * plan.nr == plan.form.f
    assert plan.rows * plan.row_blocks == out
    assert plan.calls * plan.kc == plan.form.c * kernel * kernel
    assert RULE.estimate(values, info, hardware) > 0


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_every_legal_point_has_whole_tiles_and_a_price(data):
    info = convolution(data.draw(st.sampled_from([7, 14, 35])), data.draw(st.sampled_from([3, 32])), 48, threads=2)
    hardware = data.draw(st.sampled_from([ZEN3, ZEN5]))
    space = RULE.space(info, hardware)
    values = {d.name: data.draw(st.sampled_from(d.candidates)) for d in space.decisions}
    if space.illegal(values) is None:
        plan = conv_plan(info, RULE.families(info, hardware), values.__getitem__)
        assert plan.kc // plan.family.k_pack % plan.unroll == 0
        assert 0 < RULE.estimate(values, info, hardware) < float("inf")


def test_what_does_not_go_together_is_said():
    space = RULE.space(convolution(), ZEN5)
    values = space.defaults()
    with pytest.raises(ScheduleError, match="rows outermost"):
        space.check({**values, "copy": "block", "order": "n"})
    family = next(d for d in space.decisions if d.name == "family").candidates[-1]
    assert "avx2" in str(family)
    with pytest.raises(ScheduleError, match="registers"):
        space.check({**values, "family": family, "micro_kernel": "14x2"})
    assert "none" not in next(d for d in space.decisions if d.name == "copy").candidates


def test_pixels_without_a_border_may_be_read_in_place():
    info = convolution(border=False)
    space = RULE.space(info, ZEN5)
    values = {**space.defaults(), "gather": "rows", "copy": "none"}
    space.check(values)
    with pytest.raises(ScheduleError, match="in place"):
        space.check({**values, "gather": "runs"})


def test_few_channels_are_gathered_and_many_are_not():
    first = RULE.space(convolution(112, 3, 64, 7, 2), ZEN5).defaults()
    later = RULE.space(convolution(14, 256, 256), ZEN5).defaults()
    small = RULE.space(convolution(112, 3, 32, 3, 2, threads=2), ZEN5).defaults()
    assert first["gather"] == "runs" and later["gather"] == small["gather"] == "rows"
    assert split_kernel(str(later["micro_kernel"])) == (14, 2)


def test_threads_have_work_each():
    info = convolution(7, 512, 512, threads=2)
    plan = conv_plan(info, RULE.families(info, ZEN5), RULE.space(info, ZEN5).defaults().__getitem__)
    assert plan.threads == 2 and plan.row_blocks * plan.filter_blocks % 2 == 0


def test_a_convolution_is_no_matrix_product_to_the_cost_model():
    info = convolution()
    assert plan_of(RULE.space(info, ZEN5).defaults(), info) is None
    assert form_of(info).channels == 64
