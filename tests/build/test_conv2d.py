"""Convolutions from Relax to machine code: right for every shape, type and decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax  # noqa: E402
from tvm.s_tir.schedule import Trace  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm.check.tolerance import dot_bound, wrong_elements  # noqa: E402
from qimeng_tvm.compiler import compile_task  # noqa: E402
from qimeng_tvm.hardware import host, load, target_of  # noqa: E402
from qimeng_tvm.lowering import build  # noqa: E402
from qimeng_tvm.relax.prepare import legalize_and_fuse  # noqa: E402
from qimeng_tvm.schedule.apply import Task, build_schedule, make_task  # noqa: E402
from qimeng_tvm.schedule.prepack import split_prepack  # noqa: E402

_NUMPY = {"bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Case:
    """One convolution; ``padding`` is top, left, bottom, right."""

    image: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: str = "float32"
    out: str = ""
    layout: str = "HWIO"
    epilogue: tuple[str, ...] = ("bias", "relu")
    constant: bool = True
    threads: int = 1

    @property
    def out_dtype(self) -> str:
        return self.out or self.dtype

    @property
    def weight(self) -> dict[str, int]:
        """Extents of the filters by axis."""
        return {
            "H": self.kernel[0],
            "W": self.kernel[1],
            "I": self.image[3] // self.groups,
            "O": self.filters,
        }


SAME = (1, 1, 1, 1)
CASES = [
    Case((1, 14, 14, 32), 64, padding=SAME),
    Case((1, 14, 14, 32), 64, padding=SAME, layout="OIHW"),
    Case((1, 12, 12, 16), 16),
    Case((2, 9, 13, 5), 7, (3, 5), (2, 1), (0, 1, 2, 3)),
    Case((1, 113, 29, 8), 32, padding=SAME),
    Case((1, 17, 17, 8), 24, padding=(2, 2, 2, 2), dilation=(2, 2)),
    Case((1, 17, 17, 8), 24, stride=(1, 2), padding=(2, 2, 2, 2), dilation=(2, 3)),
    Case((1, 32, 32, 3), 64, (7, 7), (2, 2), (3, 3, 3, 3)),
    Case((1, 12, 12, 16), 1, padding=SAME),
    Case((1, 7, 7, 16), 16, (7, 7)),
    Case((1, 20, 20, 1), 8, (5, 5)),
    Case((1, 1, 50, 1), 16, (1, 9)),
    Case((1, 50, 1, 1), 16, (9, 1)),
    Case((2, 14, 14, 32), 64, padding=SAME, groups=2),
    Case((1, 14, 14, 24), 48, stride=(2, 2), padding=SAME, groups=3),
    Case((1, 14, 14, 64), 64, padding=SAME, groups=16),
    Case((1, 10, 10, 6), 10, groups=2, layout="OIHW"),
    Case((1, 14, 14, 32), 64, padding=SAME, epilogue=()),
    Case((1, 14, 14, 32), 64, padding=SAME, epilogue=("bias", "residual", "relu")),
    Case((1, 14, 14, 32), 64, padding=SAME, epilogue=("clip",)),
    Case((1, 17, 14, 16), 24, padding=SAME, epilogue=("bias", "silu")),
    Case((2, 14, 17, 16), 24, padding=SAME, epilogue=("bias", "gate", "residual"), threads=2),
    Case((2, 14, 14, 32), 64, padding=SAME, constant=False, threads=2),
    Case((2, 14, 14, 32), 64, padding=SAME, threads=2),
    Case((1, 14, 14, 32), 64, padding=SAME, dtype="bfloat16", out="float32"),
    Case((1, 14, 14, 33), 64, padding=SAME, dtype="bfloat16"),
    Case((1, 30, 30, 3), 64, (7, 7), (2, 2), (3, 3, 3, 3), dtype="bfloat16"),
    Case((1, 14, 14, 32), 64, padding=SAME, dtype="int8", out="int32"),
    Case((1, 15, 15, 3), 16, stride=(2, 2), padding=SAME, dtype="int8", out="int32"),
    Case((1, 14, 14, 30), 20, padding=SAME, dtype="int8", out="int32"),
]


def module(case: Case) -> tvm.IRModule:
    """The convolution and its epilogue in Relax."""
    data = relax.Var("data", R.Tensor(case.image, case.dtype))
    weight = relax.Var("weight", R.Tensor(tuple(case.weight[x] for x in case.layout), case.dtype))
    image = relax.op.nn.conv2d(
        data,
        weight,
        strides=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        groups=case.groups,
        data_layout="NHWC",
        kernel_layout=case.layout,
        out_dtype=case.out_dtype,
    )
    more = {"bias": relax.Var("bias", R.Tensor((case.filters,), case.out_dtype))} if "bias" in case.epilogue else {}
    builder = relax.BlockBuilder()
    if "gate" in case.epilogue:
        more["gate"] = relax.Var("gate", R.Tensor((case.image[0], 1, 1, case.filters), case.out_dtype))
    if "residual" in case.epilogue:
        more["residual"] = relax.Var("residual", builder.normalize(image).ty)
    attrs = {"num_input": 1} if case.constant else None
    with builder.function("main", [data, weight, *more.values()], attrs=attrs):
        with builder.dataflow():
            value = builder.emit(image)
            for step in case.epilogue:
                made = {
                    "bias": lambda x: relax.op.add(x, more["bias"]),
                    "residual": lambda x: relax.op.add(x, more["residual"]),
                    "gate": lambda x: relax.op.multiply(x, more["gate"]),
                    "relu": relax.op.nn.relu,
                    "silu": relax.op.nn.silu,
                    "clip": lambda x: relax.op.clip(x, 0, 6),
                }[step]
                value = builder.emit(made(value))
            value = builder.emit_output(value)
        builder.emit_func_output(value)
    return builder.finalize()


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Operands by name."""
    rng = np.random.default_rng(0)

    def made(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if dtype in ("int8", "int32"):
            return rng.integers(-128, 128, shape).astype(dtype)
        return rng.standard_normal(shape).astype(_NUMPY.get(dtype, dtype))

    found = {"data": made(case.image, case.dtype)}
    found["weight"] = made(tuple(case.weight[x] for x in case.layout), case.dtype)
    out = reference(replace(case, epilogue=()), found).shape
    shapes = {"bias": (case.filters,), "gate": (case.image[0], 1, 1, case.filters), "residual": out}
    return found | {name: made(shape, case.out_dtype) for name, shape in shapes.items() if name in case.epilogue}


def reference(case: Case, given: dict[str, np.ndarray]) -> np.ndarray:
    """The result in float64, tap by tap."""
    top, left, bottom, right = case.padding
    data = np.pad(given["data"].astype("float64"), ((0, 0), (top, bottom), (left, right), (0, 0)))
    weight = given["weight"].astype("float64").transpose([case.layout.index(x) for x in "HWIO"])
    (rows, columns), (sy, sx), (dy, dx) = case.kernel, case.stride, case.dilation
    height = (data.shape[1] - (rows - 1) * dy - 1) // sy + 1
    width = (data.shape[2] - (columns - 1) * dx - 1) // sx + 1
    out = np.zeros((data.shape[0], height, width, case.filters))
    of_data, of_out = data.shape[3] // case.groups, case.filters // case.groups
    for g in range(case.groups):
        mine = slice(g * of_out, (g + 1) * of_out)
        for r in range(rows):
            for s in range(columns):
                tap = data[:, r * dy : r * dy + height * sy : sy, s * dx : s * dx + width * sx : sx]
                tap = tap[:, :height, :width, g * of_data : (g + 1) * of_data]
                out[..., mine] += tap @ weight[r, s, :, mine]
    for step in case.epilogue:
        if step in ("bias", "residual"):
            out = out + given[step].astype("float64")
        elif step == "gate":
            out = out * given["gate"].astype("float64")
        elif step == "silu":
            out = out / (1 + np.exp(-out))
        else:
            out = np.clip(out, 0, np.inf if step == "relu" else 6)
    return out


def task_of(case: Case, hardware: Any = None) -> Task:
    """The one function that the module becomes, as a task of the rule."""
    hardware = hardware or host()
    fused = legalize_and_fuse(module(case), target_of(hardware, case.threads))
    functions = [f for f in fused.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert len(functions) == 1, "one anchor with its border and its epilogue"
    task = make_task(functions[0], hardware, case.threads)
    assert task is not None and task.rule.name == "cpu.conv2d"
    return task


def check(case: Case, task: Task, values: dict[str, Any] | None = None) -> None:
    """Run a task with these decisions on poisoned output and compare."""
    compiled, given = compile_task(task, values), inputs(case)
    tensors = {name: tvm.runtime.tensor(value) for name, value in given.items()}
    order = ["data", "weight", *(x for x in case.epilogue if x in given)]
    if compiled.operator.packs:
        packed = compiled.pack_parameters[1]
        tensors["weight"] = tvm.runtime.tensor(np.zeros(packed.shape, _NUMPY.get(packed.dtype, packed.dtype)))
        compiled["pack_b"](tvm.runtime.tensor(given["weight"]), tensors["weight"])
    want = reference(case, given)
    poison = -77 if case.out_dtype == "int32" else np.nan
    out = tvm.runtime.tensor(np.full(want.shape, poison).astype(_NUMPY.get(case.out_dtype, case.out_dtype)))
    compiled["main"](*(tensors[name] for name in order), out)
    sizes = {name: np.abs(value) for name, value in given.items()}
    terms = int(np.prod(case.kernel)) * case.weight["I"] + len(case.epilogue)
    magnitude = reference(replace(case, epilogue=tuple(x for x in case.epilogue if x in given)), sizes)
    bound = dot_bound(magnitude, want, terms, out=case.out_dtype)
    if case.out_dtype == "bfloat16":
        bound = bound * (1 + len(case.epilogue))  # each step rounds
    wrong = wrong_elements(out.numpy().astype("float64"), want, bound)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} wrong with {values}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_with_the_analytic_decisions(case: Case) -> None:
    task = task_of(case)
    assert task.info.window is not None and task.info.window.kernel == case.kernel
    assert task.info.constant_b == case.constant
    check(case, task)


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 10, 10, 8), 48, padding=SAME, threads=2),
        Case((1, 12, 12, 8), 32),
        Case((1, 21, 21, 4), 40, stride=(2, 2)),
    ],
    ids=str,
)
def test_right_with_other_decisions(case: Case) -> None:
    task = task_of(case)
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 12:
        values = {d.name: d.candidates[rng.integers(len(d.candidates))] for d in task.space.decisions}
        if task.space.illegal(values) is None:
            check(case, task, values)
            tried += 1


@pytest.mark.parametrize("profile", ["zen3", "skylake_sp", "sapphire_rapids"])
@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_other_machines_get_code(case: Case, profile: str) -> None:
    hardware = load(profile)
    task = task_of(case, hardware)
    operator = split_prepack(build_schedule(task).mod["main"])
    assert operator.packs == case.constant
    build(operator.module, target_of(hardware, case.threads))


def test_a_trace_gives_the_same_function_again() -> None:
    task = task_of(CASES[0])
    sch = build_schedule(task)
    again = tvm.s_tir.Schedule(task.func)
    Trace.apply_json_to_schedule(sch.trace.as_json(), again)
    tvm.ir.assert_structural_equal(sch.mod, again.mod)


def test_tiles_stay_in_registers() -> None:
    case = Case((1, 14, 14, 64), 64, padding=SAME)
    task = task_of(case)
    family = next(f for f in task.rule.families(task.info, task.hardware))
    compiled = compile_task(task)
    assembly = compiled.library.inspect_source("asm")
    assert any(name.split("|")[-1] in assembly for name in family.mnemonics)
    allocations = [line for line in compiled.operator.main.script().splitlines() if 'scope="local"' in line]
    assert allocations, "the sums of a tile are a register tile"
