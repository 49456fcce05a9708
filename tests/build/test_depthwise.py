"""Depthwise convolutions: from Relax to machine code by ``cpu.depthwise``, against PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
torch = pytest.importorskip("torch")

from tvm import relax, tirx  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm.hardware import Hardware, target_of  # noqa: E402
from qimeng_tvm.lowering import build  # noqa: E402
from qimeng_tvm.relax.prepare import legalize_and_fuse  # noqa: E402
from qimeng_tvm.schedule.apply import Task, build_schedule, make_task  # noqa: E402


@dataclass(frozen=True)
class Case:
    """A depthwise convolution: N, H, W, C of the image, and the window."""

    image: tuple[int, int, int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    dtype: str = "float32"
    epilogue: str = "bias relu6"


CASES = [
    Case((1, 14, 14, 32)),
    Case((2, 9, 11, 16), stride=(2, 2)),
    Case((1, 13, 10, 24), stride=(2, 1), padding=(0, 1, 2, 1)),
    Case((1, 7, 7, 10), epilogue=""),
    Case((1, 8, 9, 3)),
    Case((1, 12, 12, 20), kernel=(5, 5), padding=(2, 2, 2, 2)),
    Case((1, 15, 17, 16), dilation=(2, 2), padding=(2, 2, 2, 2)),
    Case((1, 10, 9, 32), padding=(0, 0, 0, 0), epilogue="residual"),
    Case((1, 7, 7, 48), kernel=(7, 7), padding=(3, 3, 3, 3), epilogue="bias"),
    Case((2, 6, 5, 16), kernel=(1, 3), padding=(0, 1, 0, 1)),
    Case((1, 1, 1, 16)),
    Case((1, 9, 8, 32), dtype="bfloat16"),
    Case((1, 9, 8, 32), dtype="int8", epilogue=""),
]
#: Decisions to try besides the defaults.
OTHERS: list[dict[str, Any]] = [
    {"border": "copied", "order": "row", "row_block": 2},
    {"border": "copied", "order": "block", "row_block": 4, "taps": "row"},
    {"order": "pixel", "row_block": 4, "taps": "none"},
    {"order": "row", "row_block": 2, "taps": "row"},
]


def module(case: Case) -> tvm.IRModule:
    """The convolution and its epilogue as one Relax function."""
    channels = case.image[3]
    image = relax.Var("image", R.Tensor(case.image, case.dtype))
    kernel = relax.Var("kernel", R.Tensor((*case.kernel, 1, channels), case.dtype))
    attrs = {"strides": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": channels}
    out_dtype = "int32" if case.dtype == "int8" else case.dtype
    call = relax.op.nn.conv2d(image, kernel, data_layout="NHWC", kernel_layout="HWIO", out_dtype=out_dtype, **attrs)
    builder = relax.BlockBuilder()
    out = builder.normalize(call)
    more = {"bias": (channels,), "residual": tuple(int(x) for x in out.ty.shape.values)}
    names = [name for name in case.epilogue.split() if name in more]
    others = {name: relax.Var(name, R.Tensor(more[name], case.dtype)) for name in names}
    with builder.function("main", [image, kernel, *others.values()], attrs={"num_input": 1}):
        with builder.dataflow():
            value = builder.emit(call)
            for name in case.epilogue.split():
                step = relax.op.clip(value, 0.0, 6.0) if name == "relu6" else relax.op.add(value, others[name])
                value = builder.emit(step)
            value = builder.emit_output(value)
        builder.emit_func_output(value)
    return builder.finalize()


def task_of(case: Case, hardware: Hardware, threads: int = 1) -> Task:
    """The task of the one function that a case becomes."""
    fused = legalize_and_fuse(module(case), target_of(hardware, threads))
    functions = [f for f in fused.functions.values() if isinstance(f, tirx.PrimFunc)]
    assert len(functions) == 1, "border, products and epilogue in one function"
    task = make_task(functions[0], hardware, threads)
    assert task is not None and task.rule.name == "cpu.depthwise"
    return task


def operands(case: Case, task: Task) -> list[torch.Tensor]:
    """Random operands, small integers where the type is one."""
    generator = torch.Generator().manual_seed(0)
    shapes = [tuple(int(x) for x in p.shape) for p in task.func.params[:-1]]
    if case.dtype == "int8":
        return [torch.randint(-128, 128, s, generator=generator, dtype=torch.int8) for s in shapes]
    return [torch.randn(s, generator=generator).to(getattr(torch, case.dtype)) for s in shapes]


def reference(case: Case, values: list[torch.Tensor]) -> np.ndarray[Any, Any]:
    """What PyTorch says, in float64."""
    image, kernel, *others = (v.double() for v in values)
    top, left, bottom, right = case.padding
    padded = torch.nn.functional.pad(image.permute(0, 3, 1, 2), (left, right, top, bottom))
    out = torch.nn.functional.conv2d(
        padded, kernel.permute(3, 2, 0, 1), stride=case.stride, dilation=case.dilation, groups=case.image[3]
    ).permute(0, 2, 3, 1)
    for name in case.epilogue.split():
        out = out.clip(0, 6) if name == "relu6" else out + others.pop(0)
    return out.numpy()


def run(case: Case, task: Task, chosen: dict[str, Any] | None = None) -> float:
    """Build, run on a poisoned output; return the largest error."""
    sch = build_schedule(task, chosen)
    function = sch.mod["main"].with_attr("global_symbol", "main")
    library = build(tvm.IRModule({"main": function}), target_of(task.hardware, task.info.threads))
    values = operands(case, task)
    shape, dtype = [int(x) for x in task.func.params[-1].shape], str(task.func.params[-1].dtype)
    out = torch.full(shape, -77).to(getattr(torch, dtype))
    library["main"](*(tvm.runtime.from_dlpack(v) for v in (*values, out)))
    return float(np.abs(out.double().numpy() - reference(case, values)).max())


def tolerance(case: Case) -> float:
    return {"float32": 2e-5, "bfloat16": 0.15, "int8": 0.0}[case.dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_defaults_are_right(case: Case) -> None:
    assert run(case, task_of(case, Hardware.host(1))) <= tolerance(case)


@pytest.mark.parametrize("chosen", OTHERS, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_other_decisions_are_right(chosen: dict[str, Any], threads: int) -> None:
    for case in (Case((1, 13, 9, 32)), Case((2, 8, 10, 24), stride=(1, 2), dtype="bfloat16")):
        task = task_of(case, Hardware.host(threads), threads)
        assert run(case, task, chosen) <= tolerance(case)


@pytest.mark.parametrize("tile", ["1x4x1", "2x3x1", "3x5x1", "1x2x2"])
def test_tiles_that_do_not_divide_the_output(tile: str) -> None:
    case = Case((1, 10, 11, 32))
    task = task_of(case, Hardware.host(1))
    for taps in ("all", "row", "none"):
        assert run(case, task, {"family": "none", "tile": tile, "taps": taps}) <= tolerance(case)


def test_block_is_described() -> None:
    case = Case((2, 9, 11, 16), stride=(2, 1), dilation=(1, 2), padding=(1, 2, 1, 2))
    info = task_of(case, Hardware.host(1)).info
    assert info.kind == "depthwise" and info.window is not None
    assert (info.batch, info.m, info.n, info.k) == (2, 5 * 11, 1, 9)
    assert (info.window.out, info.window.kernel) == ((5, 11), (3, 3))
    assert (info.window.stride, info.window.dilation, info.window.groups) == ((2, 1), (1, 2), 16)
    assert info.constant_b and len(info.producers) == 1


@pytest.mark.parametrize("profile", ["zen3", "zen5", "neoverse_n1"])
def test_spaces_fit_the_registers_of_other_machines(profile: str) -> None:
    hardware = Hardware.load(profile)
    for case in (Case((1, 56, 56, 144)), Case((1, 14, 14, 100), kernel=(5, 5)), Case((1, 7, 7, 3))):
        task = task_of(case, hardware)
        for tile in next(d for d in task.space.decisions if d.name == "tile").candidates:
            rows, columns, vectors = (int(x) for x in str(tile).split("x"))
            assert rows * columns * vectors < hardware.vector_registers
        task.space.check(task.space.defaults())
        assert task.rule.estimate(task.space.defaults(), task.info, hardware) > 0


@pytest.mark.parametrize(("profile", "module"), [("zen5", "avx512_f32_depthwise"), ("zen3", "avx2_f32_depthwise")])
def test_a_micro_kernel_is_the_default_where_one_has_the_vectors(profile: str, module: str) -> None:
    hardware = Hardware.load(profile)
    for case in (
        Case((1, 14, 14, 96)),
        Case((1, 56, 56, 144), stride=(2, 2)),
        Case((1, 9, 7, 32), padding=(0, 0, 0, 0)),
    ):
        task = task_of(case, hardware)
        assert task.space.defaults()["family"] == f"x86.{module}.depthwise"
        trace = str(build_schedule(task).trace)
        assert f"qimeng.x86.{module}.depthwise" in trace


def test_plain_vector_code_where_there_is_no_micro_kernel() -> None:
    hardware = Hardware.load("zen5")
    for case in (
        Case((1, 8, 9, 3)),
        Case((1, 9, 8, 32), dtype="bfloat16"),
        Case((1, 9, 8, 32), dtype="int8", epilogue=""),
    ):
        assert "family" not in task_of(case, hardware).space.defaults()
    task = task_of(Case((1, 37, 37, 32)), hardware)
    family = "x86.avx512_f32_depthwise.depthwise"
    for values, words in (({"tile": "1x4x1"}, "do not make up a row"), ({"tile": "4x1x1"}, "")):
        problem = task.space.illegal({**task.space.defaults(), "family": family, **values})
        assert (words in str(problem)) if words else problem is None


def test_machine_code_of_avx2_has_whole_vectors() -> None:
    hardware = Hardware.load("zen3")
    task = task_of(Case((1, 14, 14, 96)), hardware)
    function = build_schedule(task).mod["main"].with_attr("global_symbol", "main")
    library = build(tvm.IRModule({"main": function}), target_of(hardware, 1))
    text = (library.mod if hasattr(library, "mod") else library).inspect_source("asm")
    lines = [line for line in text.splitlines() if "vfmadd" in line]
    assert lines and all("ymm" in line for line in lines)


def test_several_filters_a_channel_are_left_to_others() -> None:
    image = relax.Var("image", R.Tensor((1, 8, 8, 4), "float32"))
    kernel = relax.Var("kernel", R.Tensor((3, 3, 1, 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [image, kernel]):
        with builder.dataflow():
            call = relax.op.nn.conv2d(
                image, kernel, padding=1, groups=4, data_layout="NHWC", kernel_layout="HWIO", out_dtype="float32"
            )
            out = builder.emit_output(builder.emit(call))
        builder.emit_func_output(out)
    hardware = Hardware.host(1)
    fused = legalize_and_fuse(builder.finalize(), target_of(hardware, 1))
    functions = [f for f in fused.functions.values() if isinstance(f, tirx.PrimFunc)]
    tasks = [make_task(f, hardware) for f in functions]
    assert all(task is None or task.info.kind != "depthwise" for task in tasks)
