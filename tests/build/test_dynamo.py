"""`torch.compile(model, backend="qimeng")`: right for what it compiles, eager with a reason for the rest."""

import warnings
from importlib.metadata import entry_points

import pytest

torch = pytest.importorskip("torch", reason="the backend is PyTorch's")

from qimeng_tvm import dynamo  # noqa: E402 (it imports torch)

ONE = {"threads": 1}


class Net(torch.nn.Module):
    """Convolution, batch norm, attention, product."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16)
        self.project, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 10)

    def forward(self, x):
        tokens = self.norm(self.convolution(x)).relu().flatten(2).transpose(1, 2)
        q, k, v = self.project(tokens).chunk(3, -1)
        return self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v)).mean(1)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture
def built(monkeypatch):
    """What was compiled."""
    found = []

    def compile_module(*arguments):
        found.append(dynamo_compile(*arguments))
        return found[-1]

    dynamo_compile = dynamo.compile_module
    monkeypatch.setattr(dynamo, "compile_module", compile_module)
    return found


def told(call):
    """Return what a call returns, and what it warns of eager graphs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = call()
    return value, [str(w.message) for w in caught if "eagerly" in str(w.message)]


def test_the_entry_point():
    found = entry_points(group="torch_dynamo_backends", name="qimeng")
    assert [e.load() for e in found] == [dynamo.backend]
    assert "qimeng" in torch._dynamo.list_backends()


@torch.no_grad()
def test_a_net_for_the_shapes_and_weights_it_runs_with(built):
    net = Net().eval()
    fast = torch.compile(net, backend=dynamo.backend, options=ONE)
    for batch in (1, 1, 2):
        x = torch.randn(batch, 3, 8, 8)
        found, warned = told(lambda x=x: fast(x))
        torch.testing.assert_close(found, net(x), rtol=1e-4, atol=1e-5)
        assert not warned
    assert len(built) == 2, "one for every batch"
    assert all(model.report.threads == 1 for model in built)
    net.out.weight.mul_(2)
    torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)
    assert len(built) == 3, "weights are constants: changed ones are compiled again"


def test_gradients_are_not_lost(built):
    net = torch.nn.Linear(8, 4)
    fast = torch.compile(net, backend=dynamo.backend, options=ONE)
    found, warned = told(lambda: fast(torch.ones(2, 8)))
    assert found.requires_grad and not built
    assert len(warned) == 1 and "inference only" in warned[0]
    assert not told(lambda: fast(torch.ones(2, 8)))[1], "once"
    with torch.inference_mode():
        torch.testing.assert_close(fast(torch.ones(2, 8)), net(torch.ones(2, 8)))
    assert len(built) == 1


class Writes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x):
        self.total.add_(x.sum(0))
        return x + self.total


class Unsupported(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[1]


@torch.no_grad()
@pytest.mark.parametrize(("net", "reason"), [(Writes, "writes into"), (Unsupported, "svd")])
def test_what_cannot_be_compiled_runs_eagerly_and_says_why(built, net, reason):
    mine, other, x = net(), net(), torch.arange(8.0).reshape(2, 4)
    fast = torch.compile(mine, backend=dynamo.backend, options=ONE)
    found, warned = told(lambda: fast(x))
    torch.testing.assert_close(found, other(x))
    assert len(warned) == 1 and reason in warned[0] and not built
    found, warned = told(lambda: fast(x))
    torch.testing.assert_close(found, other(x))
    assert not warned, "once"


@torch.no_grad()
def test_too_many_shapes_run_eagerly(built, monkeypatch):
    monkeypatch.setattr(dynamo, "MOST", 1)
    net = torch.nn.Linear(8, 4)
    fast = torch.compile(net, backend=dynamo.backend, options=ONE, dynamic=True)
    warned = []
    for rows in (3, 4, 5):
        x = torch.randn(rows, 8)
        found, more = told(lambda x=x: fast(x))
        torch.testing.assert_close(found, net(x))
        warned += more
    assert len(built) == 1 and len(warned) == 1 and "different shapes" in warned[0]
