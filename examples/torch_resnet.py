"""A residual network in PyTorch: compiled, compared, exported, and by torch.compile(backend="qimeng").

Run: python examples/torch_resnet.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import qimeng_tvm


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what goes past."""
        return torch.relu(x + self.body(x))


torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 32, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    Block(32), Block(32),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
).eval()  # fmt: skip
image = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    wanted = net(image)

compiled = qimeng_tvm.compile(net, image)  # trials=200 would tune it first
torch.testing.assert_close(compiled(image), wanted, rtol=1e-3, atol=1e-4)
print(f"right; {compiled.report.tensorized:.0%} of the contractions' operations are tensorized")

timed = compiled.profile()
for found in timed.functions[:5]:
    print(f"{found.share:6.1%}  {found.function.operator or found.function.name}")
print(f"{timed.seconds * 1e3:.3f} ms a run")

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
print("library:", compiled.export(folder / "resnet.so"))

with torch.no_grad():
    fast = torch.compile(net, backend="qimeng")
    torch.testing.assert_close(fast(image), wanted, rtol=1e-3, atol=1e-4)
print("torch.compile: right")
