"""``qimeng bench models``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qimeng_tvm.commands.bench_output import counts, show_result, words
from qimeng_tvm.commands.telling import teller
from qimeng_tvm.errors import UsageError

if TYPE_CHECKING:
    from qimeng_tvm.bench.models.case import ModelCase


def models(
    models: Annotated[str | None, typer.Option(help="Models, comma separated (default: all).")] = None,
    threads: Annotated[str, typer.Option(help="Thread counts, e.g. 1,2.")] = "1",
    batch: Annotated[str, typer.Option(help="Batches, e.g. 1,8.")] = "1",
    dtype: Annotated[str, typer.Option(help="Any of f32,bf16,int8.")] = "f32",
    peers: Annotated[str | None, typer.Option(help="Systems, comma separated ('none' for ours alone).")] = None,
    trials: Annotated[int, typer.Option(min=0, help="Trials a model for us and for TVM's static_shape_tuning.")] = 0,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the models where they can be fewer (a Llama: 2).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of the exported models; gigabytes.")] = None,
    database: Annotated[Path | None, typer.Option(help="Folder of the tuning records.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to FILE ('-': standard output).")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="File that an interrupted run continues from.")] = None,
) -> None:
    """Whole models: ours beside PyTorch, ONNX Runtime, OpenVINO, IREE and TVM, interleaved."""
    from qimeng_tvm.bench.model_peers.catalogue import model_peers
    from qimeng_tvm.bench.model_peers.qimeng import QimengModel
    from qimeng_tvm.bench.models.run import PLAN, QUICK, bench_models
    from qimeng_tvm.bench.models.table import note_lines, rich_table
    from qimeng_tvm.bench.table import summary_lines
    from qimeng_tvm.hardware import host, measured

    cases = _cases(words(models) if models else None, counts(batch, "--batch"), words(dtype), layers, cache)
    others = () if peers == "none" else model_peers(words(peers) if peers else None, trials)
    _, say = teller()
    result = bench_models(
        [QimengModel(trials=trials, database=database), *others],
        cases,
        counts(threads, "--threads"),
        lambda done, total, rows: say(f"{done}/{total} {rows[0].case} {rows[0].dtype} {rows[0].threads}t"),
        hardware=measured(host()),
        partial=resume,
        plan=QUICK if quick else PLAN,
    )
    show_result(result, json_file, rich_table(result), [*note_lines(result), *summary_lines(result)])


def _cases(
    names: Sequence[str] | None, batches: Sequence[int], dtypes: Sequence[str], layers: int | None, cache: Path | None
) -> list[ModelCase]:
    import platformdirs

    from qimeng_tvm.bench.models.case import make_case
    from qimeng_tvm.bench.models.zoo import MODELS

    folder = cache or Path(platformdirs.user_cache_dir("qimeng_tvm")) / "models"
    cases = [
        make_case(name, folder.absolute(), batch, dtype, layers)
        for dtype in dtypes
        for name in names or MODELS
        for batch in batches
    ]
    if not cases:
        raise UsageError("no model is left to time")
    return cases
