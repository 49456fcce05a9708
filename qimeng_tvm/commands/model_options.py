"""What ``qimeng compile`` and ``qimeng explain`` share: the model, the sizes of its inputs, what fell back."""

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


def model_and_passes(
    path: Path,
    inputs: Sequence[str] | None,
    threads: int | None,
    database: Path | None,
    trials: int,
    say: Callable[[str], None],
    dtype: str = "f32",
) -> tuple[IRModule, Pipeline]:
    """Read a model's file, and return it with the pipeline that compiles it for this machine."""
    from qimeng_tvm.api import checked_threads
    from qimeng_tvm.hardware import Hardware, measured
    from qimeng_tvm.relax.pipeline import Pipeline
    from qimeng_tvm.relax.signature import fix_shapes
    from qimeng_tvm.relax.sources import read_model

    shapes = dict(_shape(text) for text in inputs or ())
    host = Hardware.host()
    count = checked_threads(host.cores if threads is None else threads, host)
    if trials < 0:
        raise UsageError(f"{trials} trials asked for; 0 or more are needed")
    say(f"read {path}")
    module = fix_shapes(read_model(path), shapes)
    return module, Pipeline(measured(host), database, trials, count, say=say, dtype=dtype)


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
