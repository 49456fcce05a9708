"""``qimeng propose "<line>"``: what is worth trying of a rule's decisions, and how probable it is the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qimeng_tvm.commands.options import LLM_HELP, Rounds, Spending
from qimeng_tvm.commands.run import shown_value
from qimeng_tvm.commands.telling import teller

if TYPE_CHECKING:
    from qimeng_tvm.schedule.apply import Task
    from qimeng_tvm.schedule.proposal import Proposal


def propose(
    line: Annotated[str, typer.Argument(help='The operator, e.g. "f32 GEMM 1024x1024x1024 with weights".')],
    hardware: Annotated[str, typer.Option(help="host, or a profile.")] = "host",
    llm: Annotated[str | None, typer.Option(help=f"Who proposes (default: the analytic model): {LLM_HELP}.")] = None,
    rounds: Rounds = 3,
    budget: Spending = None,
    out: Annotated[Path | None, typer.Option(help="File of the conversation's transcript.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show candidates and weights of a rule's decisions, by the analytic model or by a language model."""
    from qimeng_tvm.generate.proposal import task_of
    from qimeng_tvm.hardware import Hardware
    from qimeng_tvm.request import parse
    from qimeng_tvm.tuner import proposal_for

    _, say = teller()
    tuned = task_of(parse(line), Hardware.load(hardware))
    proposal = proposal_for(tuned, llm, rounds=rounds, budget=budget, path=out, say=say)
    if as_json:
        typer.echo(json.dumps(_to_json(tuned.task, proposal)))
        return
    _show(tuned.task, proposal, Console(highlight=False))


def _to_json(task: Task, proposal: Proposal) -> dict[str, Any]:
    return {
        "rule": f"{task.rule.name}@{task.rule.version}",
        "defaults": task.space.defaults(),
        "decisions": {
            name: {"candidates": list(choice.candidates), "prior": list(choice.prior)}
            for name, choice in proposal.choices.items()
        },
        "why": proposal.why,
    }


def _show(task: Task, proposal: Proposal, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("decision", "default", "candidates, the likeliest first"):
        table.add_column(column, overflow="fold")
    for decision in task.space.decisions:
        choice = proposal.choices.get(decision.name)
        if choice is None:
            kept = "all" if len(decision.candidates) > 1 else "no choice"
        else:
            ranked = sorted(zip(choice.candidates, choice.prior, strict=True), key=lambda c: -c[1])
            kept = ", ".join(f"{shown_value(v)} {p:.0%}" for v, p in ranked)
        table.add_row(decision.name, shown_value(decision.default), kept)
    console.print(f"[bold]rule[/] {task.rule.name}@{task.rule.version}")
    console.print(table)
    console.print(f"why: {proposal.why}", markup=False, soft_wrap=True)
