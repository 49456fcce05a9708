"""Convolutions by Winograd's method, from Relax to machine code: right for every shape and decision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax, te  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm.hardware import host, load, target_of  # noqa: E402
from qimeng_tvm.intrin import families_for  # noqa: E402
from qimeng_tvm.lowering import build  # noqa: E402
from qimeng_tvm.relax import winograd as method  # noqa: E402
from qimeng_tvm.relax.pipeline import Pipeline  # noqa: E402
from qimeng_tvm.relax.winograd import te_winograd  # noqa: E402
from qimeng_tvm.schedule.apply import Task, build_schedule, make_task  # noqa: E402
from qimeng_tvm.schedule.winograd_form import A_T, B_T, TILE, G, WinogradForm, transformed  # noqa: E402

SINGLE = ("float32", "float32", "float32")
needs_f32 = pytest.mark.skipif(
    not families_for(host().isa, SINGLE, host().features), reason="needs micro-kernels of float32"
)

#: Image, filters, padding (top, left, bottom, right): odd sizes, one row, tiles that are rounded up, no border.
SHAPES = [
    ((1, 14, 14, 32), 32, (1, 1, 1, 1)),
    ((2, 7, 9, 16), 48, (1, 1, 1, 1)),
    ((1, 12, 36, 24), 16, (0, 0, 0, 0)),
    ((1, 3, 3, 16), 16, (0, 0, 0, 0)),
    ((1, 5, 33, 17), 64, (2, 0, 1, 3)),
]


def truth(data: np.ndarray, filters: np.ndarray, padding: tuple[int, ...]) -> np.ndarray:
    """The convolution in float64; filters are HWIO."""
    top, left, bottom, right = padding
    image = np.pad(data.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))
    return np.einsum("nyxcrs,rscf->nyxf", windows, filters.astype(np.float64), optimize=True)


def arrays(image: tuple[int, ...], filters: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    data = rng.standard_normal(image, np.float32)
    return data, (rng.standard_normal((3, 3, image[3], filters)) / (9 * image[3]) ** 0.5).astype(np.float32)


def task_for(image: tuple[int, ...], filters: int, padding: tuple[int, ...], threads: int, hardware=None) -> Task:
    pixels = te.placeholder(image, "float32", "pixels")
    points = te.placeholder((len(B_T) ** 2, image[3], filters), "float32", "filters")
    func = te.create_prim_func([pixels, points, te_winograd(pixels, points, padding=padding)])
    task = make_task(func, hardware or host(), threads)
    assert task is not None and task.rule.name == "cpu.winograd"
    return task


def run(task: Task, values: dict, data: np.ndarray, filters: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    threads = task.info.threads
    library = build(build_schedule(task, values).mod, target_of(host(), threads))
    result = tvm.runtime.empty(shape, "float32")
    library["main"](tvm.runtime.tensor(data), tvm.runtime.tensor(transformed(filters)), result)
    return result.numpy()


def test_the_transforms_are_those_of_minimal_filtering():
    rng = np.random.default_rng(1)
    tile, taps = rng.standard_normal(TILE + 2), rng.standard_normal(3)
    wanted = [tile[i : i + 3] @ taps for i in range(TILE)]
    assert np.allclose(A_T @ ((B_T @ tile) * (G @ taps)), wanted)


@needs_f32
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("image", "filters", "padding"), SHAPES)
def test_it_is_right_with_default_and_with_drawn_decisions(image, filters, padding, threads):
    if threads > host().cores:
        pytest.skip("needs two cores")
    data, weights = arrays(image, filters)
    wanted = truth(data, weights, padding)
    task = task_for(image, filters, padding, threads)
    rng = np.random.default_rng(threads)
    points = [p for p in task.space.legal_points() if p["unroll"] == 2]
    drawn = [points[i] for i in rng.choice(len(points), min(2, len(points)), replace=False)]
    for values in [task.space.defaults(), *drawn]:
        error = np.abs(run(task, values, data, weights, wanted.shape) - wanted).max()
        # Sums of 16 products each of |x| <= 4 |d|, |w| <= 9/4 |g|: a few roundings more than plain sums.
        assert error < 64 * 2.0**-24 * np.abs(wanted).max() * image[3] ** 0.5, values


@pytest.mark.parametrize("machine", ["zen3", "zen5"])
def test_every_machines_defaults_are_legal_and_of_register_tiles_that_fit(machine):
    hardware = load(machine)
    for image, filters, padding in SHAPES:
        task = task_for(image, filters, padding, 2, hardware)
        defaults = task.space.defaults()
        task.space.check(defaults)
        assert task.rule.estimate(defaults, task.info, hardware) <= min(
            task.rule.estimate({**defaults, "rows": rows}, task.info, hardware)
            for rows in next(d.candidates for d in task.space.decisions if d.name == "rows")
        )


def model(image: tuple[int, ...], weights: np.ndarray, **attributes) -> tvm.IRModule:
    """Convolution, bias, residual and ReLU, channels innermost."""
    data = relax.Var("data", R.Tensor(image, "float32"))
    other = relax.Var("other", R.Tensor((image[0], image[1], image[2], weights.shape[3]), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data, other]):
        with builder.dataflow():
            y = builder.emit(
                relax.op.nn.conv2d(
                    data, relax.const(weights), data_layout="NHWC", kernel_layout="HWIO", padding=1, **attributes
                )
            )
            y = builder.emit(relax.op.add(y, relax.const(np.linspace(-1, 1, weights.shape[3], dtype=np.float32))))
            y = builder.emit(relax.op.nn.relu(relax.op.add(y, other)))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    return builder.finalize()


@needs_f32
def test_the_pipeline_takes_it_where_it_pays_and_fuses_what_follows():
    image = (1, 28, 28, 64)
    data, weights = arrays(image, 64)
    other = np.random.default_rng(2).standard_normal((1, 28, 28, 64), np.float32)
    wanted = np.maximum(truth(data, weights, (1, 1, 1, 1)) + np.linspace(-1, 1, 64) + other, 0)
    for wished, rule in ((True, "cpu.winograd@"), (False, "cpu.conv2d@")):
        passes = Pipeline(threads=1, winograd=wished, database="none")
        executable = relax.build(model(image, weights), target_of(host(), 1), relax_pipeline=passes)
        (function,) = [f for f in passes.report.functions if f.contraction]
        assert function.rule.startswith(rule) and passes.report.tensorized == 1.0
        machine = relax.VirtualMachine(executable, tvm.cpu())
        result = machine["main"](tvm.runtime.tensor(data), tvm.runtime.tensor(other)).numpy()
        assert np.abs(result - wanted).max() < 1e-5


def rewritten(module: tvm.IRModule, price: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module after the pass, on a machine that estimates so for this method, and 1 for the other."""
    monkeypatch.setattr(method._Prices, "cycles", lambda _, tensors: price if tensors[1].ndim == 3 else 1.0)
    return str(method.winograd(host(), 1)(module))


@pytest.mark.parametrize(("price", "taken"), [(0.5, True), (0.95, False), (float("inf"), False)])
def test_it_must_be_clearly_faster_by_the_estimates(price, taken, monkeypatch):
    module = model((1, 8, 8, 16), arrays((1, 8, 8, 16), 16)[1])
    assert ("winograd" in rewritten(module, price, monkeypatch)) == taken


def test_others_stay(monkeypatch):
    plain = arrays((1, 8, 8, 16), 16)[1]
    odd = [
        model((1, 8, 8, 8), plain[:, :, :8]),
        model((1, 8, 8, 16), plain[..., :9]),
    ]
    assert not any("winograd" in rewritten(m, 0.1, monkeypatch) for m in odd)
    data = relax.Var("data", R.Tensor((1, 8, 8, 32), "float32"))
    for attributes in ({"strides": (2, 2)}, {"dilation": (2, 2)}, {"groups": 2}):
        builder = relax.BlockBuilder()
        with builder.function("main", [data]):
            weights = arrays((1, 8, 8, 32 // attributes.get("groups", 1)), 32)[1]
            y = builder.emit(
                relax.op.nn.conv2d(
                    data, relax.const(weights), data_layout="NHWC", kernel_layout="HWIO", padding=1, **attributes
                )
            )
            builder.emit_func_output(y)
        assert "winograd" not in rewritten(builder.finalize(), 0.1, monkeypatch), attributes


def test_wrong_decisions_are_refused_with_the_reason():
    task = task_for((1, 14, 14, 32), 32, (1, 1, 1, 1), 1)
    values = task.space.defaults()
    reason = task.space.illegal({**values, "copy": "block", "order": "n"})
    assert reason is not None and "rows outermost" in reason
    assert task.rule.match(replace(task.info, n=24), load("zen3"))
    assert not task.rule.match(replace(task.info, n=20), load("zen3"))
    assert not task.rule.match(replace(task.info, a_dtype="bfloat16", b_dtype="bfloat16"), load("zen5"))


def test_tiles_cover_the_image_and_little_more():
    for size in range(1, 120):
        form = WinogradForm(1, size, size, 16, 16)
        assert form.tile_rows * TILE >= size and form.x * TILE >= size
        assert form.tile_rows * TILE <= size + 1 and form.x * TILE <= size + 7
