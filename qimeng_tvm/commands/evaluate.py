"""``qimeng eval``: how well a model does at what the product asks of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qimeng_tvm.commands.options import LLM, Rounds, Spending
from qimeng_tvm.commands.telling import teller

if TYPE_CHECKING:
    from qimeng_tvm.generate.evaluate import TaskResult
    from qimeng_tvm.generate.loop import Subject

app = typer.Typer(no_args_is_help=True, help="How well a model does at writing families.")


@app.callback()
def _group() -> None:
    """How well a model does at writing families."""


@app.command()
def generate(
    llm: LLM = "replay",
    tasks: Annotated[
        str | None, typer.Option(help="Task keys, comma between them (x86.avx2_f32; default: all).")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Independent conversations for each task.")] = 1,
    rounds: Rounds = 3,
    budget: Spending = None,
    vanilla: Annotated[
        str | None, typer.Option(help="Operand types to ask a plain C GEMM for too (f32,bf16,u8s8,s8s8), or none.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of families to compare the speed with, before the shipped ones.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Conversations that wait for answers at once.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder of the transcripts.")] = Path("qimeng-out/eval"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Put tasks to a model: compiled, correct, audited, how fast, in how many rounds."""
    from qimeng_tvm.generate.evaluate import evaluate, summary
    from qimeng_tvm.llm import choose_client
    from qimeng_tvm.llm.budget import Metered
    from qimeng_tvm.llm.settings import budget_of

    _, say = teller()
    limits = budget_of(budget)
    subjects, plain = _families(tasks, reference), _plain(vanilla)
    client = Metered(choose_client(llm, say), limits, out / "answers.log")
    results = evaluate(subjects, client, out, samples=samples, rounds=rounds, jobs=jobs, say=say) if subjects else ()
    baseline = evaluate(plain, client, out / "vanilla", samples=samples, rounds=1, jobs=jobs, say=say) if plain else ()
    if as_json:
        done: dict[str, Any] = {
            "summary": summary(results) if results else {},
            "tasks": [r.to_json() for r in results],
            "vanilla": [r.to_json() for r in baseline],
        }
        typer.echo(json.dumps(done))
        return
    screen = Console(highlight=False)
    if results:
        screen.print(_table(results))
        screen.print(", ".join(f"{k} {v:.3g}" for k, v in summary(results).items()))
    if baseline:
        screen.print(_table(baseline))


def _families(tasks: str | None, reference: Path | None) -> list[Subject]:
    from qimeng_tvm.errors import UsageError
    from qimeng_tvm.generate import tasks as known
    from qimeng_tvm.generate.evaluate import machine_for
    from qimeng_tvm.generate.intrinsic import IntrinsicSubject
    from qimeng_tvm.generate.produce import reference_for

    wanted = list(known.tasks()) if tasks is None else [t.strip() for t in tasks.split(",") if t.strip() != "none"]
    unknown = [t for t in wanted if t not in known.tasks()]
    if unknown:
        raise UsageError(f"no task {', '.join(unknown)}; there are {', '.join(known.tasks())}")
    found: list[Subject] = []
    for key in wanted:
        task = known.tasks()[key]
        machine = machine_for(task)
        found.append(IntrinsicSubject(task, machine, reference_for(task, reference), context="eval"))
    return found


def _plain(dtypes: str | None) -> list[Subject]:
    from qimeng_tvm.errors import UsageError
    from qimeng_tvm.generate.vanilla import OPERANDS, VanillaSubject
    from qimeng_tvm.hardware import Hardware

    wanted = [d.strip() for d in (dtypes or "").split(",") if d.strip()]
    unknown = [d for d in wanted if d not in OPERANDS]
    if unknown:
        raise UsageError(f"no operand type {', '.join(unknown)} for the baseline; there are {', '.join(OPERANDS)}")
    return [VanillaSubject(d, Hardware.host()) for d in wanted]


def _table(results: tuple[TaskResult, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("task", "machine", "pass@1", "pass@3", "solved", "rounds", "speed", "tokens", "note"):
        table.add_column(column, justify="left" if column in ("task", "machine", "note") else "right")
    for r in results:
        if r.skipped:
            table.add_row(r.task, r.machine, *["-"] * 6, r.skipped)
            continue
        tokens = sum(a.prompt_tokens + a.completion_tokens for a in r.attempts)
        missed = sorted({s for a in r.attempts for s in a.stages if s != "accepted"})
        table.add_row(
            r.task,
            r.machine,
            *("-" if p is None else f"{p:.2f}" for p in (r.pass_at(1), r.pass_at(3))),
            f"{sum(a.solved for a in r.attempts)}/{len(r.attempts)}",
            f"{sum(a.rounds for a in r.attempts) / len(r.attempts):.1f}",
            f"{r.score:.2f}" if r.score else "-",
            str(tokens) if tokens else "-",
            f"stopped at {', '.join(missed)}" if missed else "",
        )
    return table
