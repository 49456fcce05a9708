"""What ``qimeng compile``, ``explain`` and ``tune`` share: the model, the sizes of its inputs, what fell back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qimeng_tvm.errors import UsageError

if TYPE_CHECKING:
    from tvm import IRModule

    from qimeng_tvm.relax.pipeline import Pipeline
    from qimeng_tvm.relax.report import FunctionReport

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model's file: *.onnx, *.pt2 or *.json.")]
Threads = Annotated[int | None, typer.Option(help="Cores that the code may use (default: all).")]
Dtype = Annotated[str, typer.Option(help="f32, or bf16: products and convolutions of bfloat16 operands.")]
Database = Annotated[Path | None, typer.Option(help="Folder of the tuning records.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="NAME=SHAPE", help="Fix the sizes of an input, e.g. x=1x3x224x224; may be given again."
    ),
]

Buckets = Annotated[
    list[str] | None,
    typer.Option(
        "--bucket",
        metavar="NAME=SIZES",
        help="Sizes of a flexible dimension that get code of their own, e.g. n=1,8,64 (default: a few of one such "
        "dimension; n= for none); may be given again.",
    ),
]


Winograd = Annotated[
    bool, typer.Option(help="Compute 3x3 convolutions of float32 by Winograd's method where that is faster.")
]


def model_and_passes(
    path: Path,
    inputs: Sequence[str] | None,
    threads: int | None,
    database: Path | None,
    trials: int,
    say: Callable[[str], None],
    dtype: str = "f32",
    buckets: Sequence[str] | None = None,
    winograd: bool = True,
) -> tuple[IRModule, Pipeline]:
    """Read a model's file, and return it with the pipeline that compiles it for this machine."""
    from qimeng_tvm.api import checked_threads
    from qimeng_tvm.hardware import Hardware, measured
    from qimeng_tvm.relax.pipeline import Pipeline
    from qimeng_tvm.relax.signature import fix_shapes
    from qimeng_tvm.relax.sources import read_model

    shapes, sizes = shapes_of(inputs), buckets_of(buckets)
    host = Hardware.host()
    count = checked_threads(host.cores if threads is None else threads, host)
    if trials < 0:
        raise UsageError(f"{trials} trials asked for; 0 or more are needed")
    say(f"read {path}")
    module = fix_shapes(read_model(path), shapes)
    return module, Pipeline(
        measured(host), database, trials, count, say=say, dtype=dtype, buckets=sizes, winograd=winograd
    )


def shapes_of(inputs: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes that ``--input`` gives, by the names of inputs.

    Raises
    ------
    UsageError
        If one is not NAME=SHAPE.
    """
    return dict(_shape(text) for text in inputs or ())


def buckets_of(buckets: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """Return the sizes that ``--bucket`` gives, by the names of dimensions; None for the default ones.

    Raises
    ------
    UsageError
        If one is not NAME=SIZES.
    """
    return dict(_sizes(text) for text in buckets) if buckets else None


def _sizes(text: str) -> tuple[str, tuple[int, ...]]:
    name, sign, sizes = text.partition("=")
    try:
        found = tuple(int(n) for n in sizes.split(",")) if sizes else ()
    except ValueError:
        found = (0,)
    if not name or not sign or any(n < 1 for n in found):
        raise UsageError(f"--bucket {text!r} is not NAME=SIZES, e.g. n=1,8,64")
    return name, found


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, extents = text.partition("=")
    try:
        shape = tuple(int(n) for n in extents.lower().split("x")) if extents else ()
    except ValueError:
        shape = (0,)
    if not name or "=" not in text or any(n < 1 for n in shape):
        raise UsageError(f"--input {text!r} is not NAME=SHAPE, e.g. x=1x3x224x224")
    return name, shape


def unserved(functions: Sequence[FunctionReport]) -> list[FunctionReport]:
    """Return what fell back, contractions first, and those most often called."""
    from qimeng_tvm.relax.report import FALLBACK

    return sorted((f for f in functions if f.source == FALLBACK), key=lambda f: (not f.contraction, -f.calls))


def why(function: FunctionReport) -> str:
    """Return one line on what fell back."""
    what = " (a contraction)" if function.contraction else ""
    return f"{function.name} (x{function.calls}){what}: {function.why}"
