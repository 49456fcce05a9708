"""Poolings of images with channels innermost: from Relax to machine code by ``cpu.pool``, against PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

tvm = pytest.importorskip("tvm")
torch = pytest.importorskip("torch")

from tvm import relax, tirx  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm.hardware import Hardware, target_of  # noqa: E402
from qimeng_tvm.lowering import build  # noqa: E402
from qimeng_tvm.relax.prepare import legalize_and_fuse  # noqa: E402
from qimeng_tvm.schedule.apply import build_schedule, make_task  # noqa: E402
from qimeng_tvm.schedule.contract import Value  # noqa: E402

F = torch.nn.functional


@dataclass(frozen=True)
class Case:
    """A pooling: N, H, W, C of the image, and the window (of an adaptive one: the output)."""

    image: tuple[int, int, int, int]
    operator: str = "max_pool2d"
    size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (1, 1)
    ceil: bool = False
    border_counts: bool = False
    dtype: str = "float32"
    relu: bool = False
    layout: str = "NHWC"

    def call(self, image: Any) -> Any:
        """The Relax operator on an image."""
        attrs: dict[str, Any] = {"layout": self.layout}
        if self.operator.startswith("adaptive"):
            return relax.op.nn.adaptive_avg_pool2d(image, output_size=self.size, **attrs)
        attrs |= {"strides": self.stride, "padding": self.padding, "ceil_mode": self.ceil}
        if self.operator == "avg_pool2d":
            attrs["count_include_pad"] = self.border_counts
        return getattr(relax.op.nn, self.operator)(image, pool_size=self.size, **attrs)

    def wanted(self, image: torch.Tensor) -> torch.Tensor:
        """What PyTorch says."""
        wide = image.double() if self.layout == "NCHW" else image.double().permute(0, 3, 1, 2)
        if self.operator.startswith("adaptive"):
            out = F.adaptive_avg_pool2d(wide, self.size)
        elif self.operator == "max_pool2d":
            out = F.max_pool2d(wide, self.size, self.stride, self.padding, ceil_mode=self.ceil)
        else:
            out = F.avg_pool2d(wide, self.size, self.stride, self.padding, self.ceil, self.border_counts)
        out = out.relu() if self.relu else out
        return out if self.layout == "NCHW" else out.permute(0, 2, 3, 1)


CASES = [
    Case((1, 16, 16, 32)),
    Case((2, 9, 11, 24), relu=True),
    Case((1, 13, 10, 10), ceil=True),
    Case((1, 12, 12, 3), size=(2, 2), padding=(0, 0)),
    Case((1, 9, 9, 16), size=(5, 5), stride=(1, 1), padding=(2, 2)),
    Case((1, 9, 9, 16), size=(2, 3), stride=(1, 2), padding=(0, 1)),
    Case((1, 10, 9, 32), dtype="bfloat16"),
    Case((1, 10, 9, 32), dtype="int8"),
    Case((1, 16, 16, 32), "avg_pool2d"),
    Case((1, 16, 15, 24), "avg_pool2d", border_counts=True, relu=True),
    Case((2, 13, 10, 16), "avg_pool2d", ceil=True),
    Case((1, 13, 10, 16), "avg_pool2d", ceil=True, border_counts=True),
    Case((1, 12, 12, 32), "avg_pool2d", size=(2, 2), padding=(0, 0), dtype="bfloat16"),
    Case((2, 7, 7, 80), "adaptive_avg_pool2d", size=(1, 1)),
    Case((1, 12, 8, 24), "adaptive_avg_pool2d", size=(3, 2)),
    Case((1, 7, 7, 96), "adaptive_avg_pool2d", size=(1, 1), dtype="bfloat16"),
]
#: Left to TVM's own definitions, and right.
STOCK = [
    Case((1, 10, 7, 16), "adaptive_avg_pool2d", size=(3, 2)),
    Case((1, 6, 12, 13), layout="NCHW"),
    Case((1, 6, 12, 13), "avg_pool2d", layout="NCHW"),
    Case((1, 6, 12, 13), "adaptive_avg_pool2d", size=(1, 1), layout="NCHW"),
]


def fused(case: Case, threads: int = 1) -> tvm.IRModule:
    """The pooling, and an activation behind it, through the passes of every module."""
    image = relax.Var("image", R.Tensor(case.image, case.dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [image]):
        with builder.dataflow():
            value = builder.emit(case.call(image))
            value = builder.emit(relax.op.nn.relu(value)) if case.relu else value
            value = builder.emit_output(value)
        builder.emit_func_output(value)
    return legalize_and_fuse(builder.finalize(), target_of(Hardware.host(threads), threads))


def image_of(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if case.dtype == "int8":
        return torch.randint(-128, 128, case.image, generator=generator, dtype=torch.int8)
    return torch.randn(case.image, generator=generator).to(getattr(torch, case.dtype))


def error(case: Case, threads: int = 1, chosen: dict[str, Value] | None = None) -> float:
    """Build, run on a poisoned output; return the largest error."""
    functions = [f for f in fused(case, threads).functions.values() if isinstance(f, tirx.PrimFunc)]
    assert len(functions) == 1, "border, windows and epilogue in one function"
    task = make_task(functions[0], Hardware.host(threads), threads)
    # The mean of all pixels is read as that of a row.
    whole = case.operator == "adaptive_avg_pool2d" and tuple(case.size) == (1, 1)
    assert task is not None and task.rule.name == ("cpu.rowwise" if whole else "cpu.pool")
    assert task.rule.estimate(task.space.defaults(), task.info, task.hardware) > 0
    function = build_schedule(task, chosen).mod["main"].with_attr("global_symbol", "main")
    library = build(tvm.IRModule({"main": function}), target_of(task.hardware, threads))
    image, wanted = image_of(case), case.wanted(image_of(case))
    out = torch.full(wanted.shape, -77).to(image.dtype)
    library["main"](tvm.runtime.from_dlpack(image), tvm.runtime.from_dlpack(out))
    return float((out.double() - wanted).abs().max())


def tolerance(case: Case) -> float:
    if case.operator == "max_pool2d":
        return 0.0
    return 2e-6 if case.dtype == "float32" else 0.02


@pytest.mark.parametrize("case", CASES, ids=str)
def test_defaults_are_right(case: Case) -> None:
    assert error(case) <= tolerance(case)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "chosen",
    [
        {"border": "copied", "order": "row", "row_block": 2},
        {"border": "copied", "order": "block", "taps": "row"},
        {"order": "pixel", "row_block": 4, "taps": "none"},
        {"tile": "2x3x1", "taps": "all"},
    ],
    ids=str,
)
def test_other_decisions_are_right(chosen: dict[str, Value], threads: int) -> None:
    for case in (Case((1, 11, 13, 32)), Case((2, 12, 10, 24), "avg_pool2d")):
        assert error(case, threads, chosen) <= tolerance(case)


@pytest.mark.parametrize("case", STOCK, ids=str)
def test_others_stay_right(case: Case) -> None:
    target = target_of(Hardware.host(1), 1)
    module = relax.transform.AttachGlobalSymbol()(fused(case))
    with target:
        machine = relax.VirtualMachine(relax.build(module, target), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(image_of(case).numpy())).numpy()
    assert float((torch.from_numpy(found).double() - case.wanted(image_of(case))).abs().max()) <= 2e-6
