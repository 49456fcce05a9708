"""Models with bfloat16 operands: what is stored narrow, on which micro-kernels, and how far the numbers move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from qimeng_tvm import Hardware  # noqa: E402
from qimeng_tvm.compiled_model import CompiledModel, compile_module  # noqa: E402
from qimeng_tvm.errors import UsageError  # noqa: E402
from qimeng_tvm.relax.pipeline import Pipeline  # noqa: E402
from qimeng_tvm.relax.sources import module_of  # noqa: E402

#: Half of the distance of two numbers near 1.
ROUNDING = 2.0**-9


class Layer(nn.Module):
    """A layer of BERT."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = self.one(x + self.o(mixed))
        return self.two(x + self.down(nn.functional.gelu(self.up(x))))


class Residual(nn.Module):
    """Convolutions with a short cut, a pool, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
        self.one = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.two = nn.Conv2d(32, 32, 3, padding=1)
        self.down, self.short = nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(32, 64, 1, 2)
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.two(self.one(x)) + x)
        x = torch.relu(self.down(x) + self.short(x))
        return self.last(x.mean((2, 3)))


def check(net: nn.Module, shape: tuple[int, ...], roundings: int) -> CompiledModel:
    """Compare with float32: errors of that many roundings in a row, which add up like a random walk."""
    torch.manual_seed(0)
    data = torch.randn(shape)
    module = module_of(net.eval(), data)
    compiled = compile_module(module, Pipeline(Hardware.host(), threads=1, dtype="bf16"))
    with torch.no_grad():
        want = net(data).numpy()
    got = compiled(data.numpy())
    assert got.dtype == np.float32
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert 1e-5 < error <= ROUNDING * np.sqrt(roundings), "neither exact nor further off than roundings explain"
    return compiled


def families(compiled: CompiledModel) -> set[str]:
    return {f.family.split(".")[1] if f.tensorized else f.why for f in compiled.report.functions if f.contraction}


def operators(compiled: CompiledModel) -> list[str]:
    return [f.operator for f in compiled.report.functions]


def test_layers_of_bert_are_on_bfloat16_and_store_nothing_twice() -> None:
    torch.manual_seed(0)
    compiled = check(nn.Sequential(Layer(), Layer()), (1, 32, 64), 12)
    assert all("bf16" in name for name in families(compiled)), families(compiled)
    assert compiled.report.tensorized == 1.0
    casts = [f for f in compiled.report.functions if f.operator.startswith("elementwise")]
    assert sum(f.calls for f in casts) == 1, "the input; all other values are rounded where they are made"
    kept = [f for f in compiled.report.functions if f.operator.startswith("rowwise")]
    assert {f.operator.split()[-1] for f in kept} == {"bfloat16", "float32"}, "the result of the model is not rounded"


def test_convolutions_with_a_short_cut_are_on_bfloat16() -> None:
    torch.manual_seed(0)
    compiled = check(Residual(), (1, 3, 32, 32), 12)
    assert all("bf16" in name for name in families(compiled)), families(compiled)
    assert sum(o.startswith("conv2d") for o in operators(compiled)) == 4
    assert sum(o.startswith("matmul") for o in operators(compiled)) == 2


class Shared(nn.Module):
    """A value that a product, an exponential and the caller read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.relu(self.first(x))
        return y, self.second(y) + torch.exp(-y)


def test_a_value_that_others_read_is_kept_in_float32_too() -> None:
    torch.manual_seed(0)
    net, data = Shared().eval(), torch.randn(4, 32)
    compiled = compile_module(module_of(net, data), Pipeline(Hardware.host(), threads=1, dtype="bf16"))
    y, z = compiled(data.numpy())
    with torch.no_grad():
        wide = nn.functional.linear(data.bfloat16().float(), net.first.weight.bfloat16().float(), net.first.bias)
    np.testing.assert_allclose(y, torch.relu(wide).numpy(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        want = net(data)[1].numpy()
    np.testing.assert_allclose(z, want, atol=8 * ROUNDING)


def test_depthwise_convolutions_stay_in_float32() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 32, 1))
    found = operators(check(net, (1, 16, 8, 8), 4))
    assert [o.split()[-3:] for o in found if o.startswith("depthwise")] == [["float32", "float32", "bfloat16"]]


def test_another_type_is_refused() -> None:
    with pytest.raises(UsageError, match="f32 or bf16"):
        Pipeline(dtype="f16")
