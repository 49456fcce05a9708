"""What passes make of the graphs around convolutions: channels last, folded scales, products; the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from tvm import relax  # noqa: E402
from tvm.relax.frontend.torch import from_exported_program  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm.hardware import host, target_of  # noqa: E402
from qimeng_tvm.relax.fold_scale import fold_scale  # noqa: E402
from qimeng_tvm.relax.layout import channels_last  # noqa: E402
from qimeng_tvm.relax.prepare import legalize_and_fuse, rewriting, simplifying  # noqa: E402
from qimeng_tvm.schedule.apply import make_task  # noqa: E402


def imported(net: nn.Module, shape: tuple[int, ...]) -> tvm.IRModule:
    """A network in Relax, its statistics made up."""
    torch.manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 2)
            part.bias.data.uniform_(-1, 1)
    return from_exported_program(torch.export.export(net.eval(), (torch.randn(shape),)))


def operators(module: tvm.IRModule) -> Counter[str]:
    """How often each operator is called."""
    found: Counter[str] = Counter()

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            found[str(expr.op.name).removeprefix("relax.")] += 1

    relax.analysis.post_order_visit(module["main"].body, visit)
    return found


def rewritten(module: tvm.IRModule) -> tvm.IRModule:
    return tvm.transform.Sequential([*simplifying(), *rewriting()])(module)


def check(net: nn.Module, shape: tuple[int, ...]) -> tvm.IRModule:
    """Compare the fused module with the network; return the module before loops were made."""
    module = imported(net, shape)
    target = target_of(host(), 1)
    fused = legalize_and_fuse(module, target)
    machine = relax.VirtualMachine(relax.build(fused, target), tvm.cpu())
    data = torch.randn(shape)
    got = machine["main"](tvm.runtime.tensor(data.numpy()))[0].numpy()
    with torch.no_grad():
        want = net(data).numpy()
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5 * (1 + np.abs(want).max())
    return rewritten(module)


class Residual(nn.Module):
    """Two convolutions, a short cut with a stride, pools, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.one = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(4, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.short = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.two(self.one(x)) + self.short(x))
        return self.last(torch.flatten(nn.functional.adaptive_avg_pool2d(self.depthwise(x), 1), 1))


def test_a_residual_network_keeps_no_permutation_and_no_normalization() -> None:
    found = operators(check(Residual(), (1, 3, 40, 40)))
    assert found["permute_dims"] == 1, "the input's; filters and everything between stay as they are"
    assert found["nn.conv2d"] == 3, "those of single pixels are products"
    assert found["matmul"] == 2 and found["strided_slice"] == 1
    assert found["call_tir"] == 1, "the classifier reads its weights as they are stored"
    assert not {"subtract", "divide", "multiply", "sqrt", "expand_dims"} & set(found)
    assert found["add"] == 7, "one for each layer, and the short cut's"


class Expanding(nn.Module):
    """Down and up again: concatenation, resizing, group normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.norm, self.last = nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x)
        up = self.up(self.two(nn.functional.max_pool2d(one, 2)))
        x = nn.functional.silu(self.norm(torch.cat([up, one], 1)))
        return self.last(nn.functional.interpolate(x, scale_factor=2, mode="bilinear"))


def test_channels_stay_last_through_concatenation_and_resizing() -> None:
    found = operators(check(Expanding(), (1, 3, 16, 16)))
    assert found["permute_dims"] == 3, "the input's, the output's, and the one that puts pixels apart"
    assert "nn.conv2d_transpose" not in found


@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.ConvTranspose2d(6, 5, 2, 2),
        lambda: nn.ConvTranspose2d(6, 5, (3, 2), (3, 2), bias=False),
        lambda: nn.ConvTranspose2d(6, 5, 4, 2, 1),
        lambda: nn.ConvTranspose2d(6, 5, 3, 2, 1, output_padding=1),
        lambda: nn.ConvTranspose2d(6, 5, 3, 1, 1),
        lambda: nn.ConvTranspose2d(6, 5, 5, 3, (2, 0), output_padding=(0, 2)),
        lambda: nn.ConvTranspose2d(6, 5, 2, 3),
        lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, groups=2),
        lambda: nn.ConvTranspose2d(6, 5, 3, 2, 1, dilation=2),
        lambda: nn.Sequential(nn.ConvTranspose2d(6, 5, 4, 2, 1), nn.BatchNorm2d(5)),
    ],
)
def test_transposed_convolutions(made: Callable[[], nn.Module]) -> None:
    net = made()
    first = net[0] if isinstance(net, nn.Sequential) else net
    found = operators(check(net, (2, 6, 7, 9)))
    assert ("nn.conv2d_transpose" in found) == (first.groups > 1 or first.dilation != (1, 1))
    assert found["add"] == (first.bias is not None)


def test_what_is_left_of_transposed_convolutions_is_served_by_the_rule() -> None:
    module = imported(nn.ConvTranspose2d(16, 32, 3, 2, 1, groups=2), (1, 16, 8, 8))
    fused = legalize_and_fuse(module, target_of(host(), 1))
    tasks = [make_task(f, host()) for f in fused.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert "cpu.conv2d" in [task.rule.name for task in tasks if task is not None]


@pytest.mark.parametrize("made", [lambda: nn.Conv1d(4, 8, 5, 2, 2), lambda: nn.Conv1d(4, 8, 3, dilation=2, groups=2)])
def test_convolutions_along_a_line(made: Callable[[], nn.Module]) -> None:
    found = operators(check(made(), (2, 4, 33)))
    assert found["nn.conv2d"] == 1 and "nn.conv1d" not in found


@pytest.mark.parametrize("stride", [1, 2])
def test_single_pixels_are_a_product(stride: int) -> None:
    found = operators(check(nn.Conv2d(8, 12, 1, stride), (2, 8, 9, 7)))
    assert found["matmul"] == 1 and "nn.conv2d" not in found and found["strided_slice"] == stride - 1


def graph(scaled: Callable[[Any, Any], Any], used_twice: bool = False) -> tvm.IRModule:
    """A convolution of constant filters, and what ``scaled`` makes of it and of a constant for each channel."""
    rng = np.random.default_rng(0)
    data = relax.Var("data", R.Tensor((1, 6, 6, 4), "float32"))
    filters = relax.const(rng.standard_normal((3, 3, 4, 8)).astype("float32"))
    scale = relax.const(rng.uniform(1, 2, (1, 1, 1, 8)).astype("float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data]):
        with builder.dataflow():
            image = builder.emit(relax.op.nn.conv2d(data, filters, data_layout="NHWC", kernel_layout="HWIO"))
            value = builder.emit(scaled(image, scale))
            if used_twice:
                value = builder.emit(relax.op.multiply(value, image))
            out = builder.emit_output(value)
        builder.emit_func_output(out)
    return builder.finalize()


def folded(module: tvm.IRModule) -> Counter[str]:
    """Operators after folding; the numbers are compared on the way."""
    after = tvm.transform.Sequential([fold_scale(), relax.transform.DeadCodeElimination()])(module)
    data = np.random.default_rng(1).standard_normal((1, 6, 6, 4)).astype("float32")
    target = target_of(host(), 1)
    results = [
        relax.VirtualMachine(relax.build(m, target), tvm.cpu())["main"](tvm.runtime.tensor(data)).numpy()
        for m in (module, after)
    ]
    assert np.abs(results[0] - results[1]).max() <= 1e-5 * (1 + np.abs(results[0]).max())
    return operators(after)


def test_scales_and_shifts_become_filters_and_one_bias() -> None:
    add, multiply = relax.op.add, relax.op.multiply
    assert folded(graph(lambda x, s: multiply(s, x))) == {"nn.conv2d": 1}
    assert folded(graph(relax.op.divide)) == {"nn.conv2d": 1}
    assert folded(graph(lambda x, s: multiply(relax.op.subtract(x, s), s))) == {"nn.conv2d": 1, "add": 1}
    assert folded(graph(lambda x, s: add(multiply(add(x, s), relax.const(2.0)), s))) == {"nn.conv2d": 1, "add": 1}


def test_what_is_no_scale_of_channels_stays() -> None:
    rows = relax.const(np.arange(4, dtype="float32").reshape(1, 4, 1, 1))
    assert folded(graph(lambda x, _: relax.op.multiply(x, rows))) == {"nn.conv2d": 1, "multiply": 1}
    assert folded(graph(lambda x, s: relax.op.subtract(s, x))) == {"nn.conv2d": 1, "subtract": 1}
    assert folded(graph(relax.op.multiply, used_twice=True)) == {"nn.conv2d": 1, "multiply": 2}


def test_filters_that_are_parameters_are_not_copied() -> None:
    """A copy would hide from packing that they are constant."""
    data, weight = (
        relax.Var("data", R.Tensor((1, 4, 6, 6), "float32")),
        relax.Var("w", R.Tensor((8, 4, 3, 3), "float32")),
    )
    builder = relax.BlockBuilder()
    with builder.function("main", [data, weight], attrs={"num_input": 1}):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(relax.op.nn.conv2d(data, weight, padding=1)))
        builder.emit_func_output(out)
    found = operators(tvm.transform.Sequential(channels_last())(builder.finalize()))
    assert found == {"permute_dims": 2, "nn.conv2d": 1}
