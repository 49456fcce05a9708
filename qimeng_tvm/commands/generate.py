"""``qimeng generate``: a language model writes families and rules, the checks decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qimeng_tvm.commands.options import LLM, Restart, Rounds, Spending
from qimeng_tvm.commands.telling import teller

if TYPE_CHECKING:
    from qimeng_tvm.generate.loop import Subject
    from qimeng_tvm.generate.produce import Produced

app = typer.Typer(no_args_is_help=True, help="Have a language model write families and rules; the checks decide.")

Out = Annotated[Path, typer.Option(help="Folder of the result and its transcript.")]
Beam = Annotated[int, typer.Option(min=1, help="Conversations kept side by side.")]
AllowAsm = Annotated[
    bool,
    typer.Option("--allow-asm", help="Let the answer hold its instructions as inline assembly too."),
]
Timed = Annotated[bool, typer.Option("--timed", help="With --llm replay: time what was kept on this machine, again.")]


@app.command()
def intrinsic(
    dtype: Annotated[str, typer.Option(help="f32, bf16, u8s8, s8s8..., or a task's own name (avx2_f32).")],
    llm: LLM = "openai",
    hardware: Annotated[str, typer.Option(help="host, or a profile.")] = "host",
    rounds: Rounds = 4,
    beam: Beam = 1,
    out: Out = Path("qimeng-out/generated"),
    reference: Annotated[
        Path | None, typer.Option(help="Folder of families to compare the speed with, before the shipped ones.")
    ] = None,
    budget: Spending = None,
    restart: Restart = False,
    timed: Timed = False,
    allow_asm: AllowAsm = False,
) -> None:
    """Have a tensorize intrinsic family written, checked and timed."""
    from qimeng_tvm.generate.intrinsic import IntrinsicSubject
    from qimeng_tvm.generate.produce import reference_for
    from qimeng_tvm.generate.tasks import task_for
    from qimeng_tvm.hardware import Hardware

    machine = Hardware.load(hardware)
    task = replace(task_for(machine, dtype), inline_asm=allow_asm)
    subject = IntrinsicSubject(task, machine, reference_for(task, reference))
    _produce(subject, llm, out, rounds, beam, budget, restart, timed)


@app.command()
def rule(
    operator: Annotated[
        str, typer.Option(help="gemm, gemv, conv2d, winograd, depthwise, pool, rowwise or elementwise.")
    ],
    llm: LLM = "openai",
    rounds: Rounds = 4,
    beam: Beam = 1,
    out: Out = Path("qimeng-out/generated"),
    reference: Annotated[
        Path | None, typer.Option(help="Folder of rules to compare the speed with (default: the shipped ones).")
    ] = None,
    budget: Spending = None,
    restart: Restart = False,
    timed: Timed = False,
) -> None:
    """Have a schedule rule written, checked on whole operators, and timed on this machine."""
    from qimeng_tvm.generate.rule import RuleSubject, reference_rule
    from qimeng_tvm.generate.rules import rule_task
    from qimeng_tvm.hardware import Hardware

    task = rule_task(operator)
    subject = RuleSubject(task, Hardware.host(), reference_rule(task, reference))
    _produce(subject, llm, out, rounds, beam, budget, restart, timed)


def _produce(
    subject: Subject, llm: str, out: Path, rounds: int, beam: int, spending: str | None, restart: bool, timed: bool
) -> None:
    from qimeng_tvm.generate.produce import produce
    from qimeng_tvm.llm import choose_client
    from qimeng_tvm.llm.settings import budget_of

    _, say = teller()
    budget = budget_of(spending)
    client = choose_client(llm, say)
    produced = produce(
        subject, client, out, rounds=rounds, beam=beam, budget=budget, restart=restart, timed=timed, say=say
    )
    _show(produced, Console(highlight=False))


def _show(produced: Produced, console: Console) -> None:
    """Print what came out, for people."""
    transcript = produced.written.transcript
    best = transcript.rounds[transcript.best]
    rows = [
        ("task", transcript.task),
        ("author", f"{transcript.model}, prompt {transcript.prompt}"),
        ("rounds", f"{len(transcript.rounds)}; the best is {transcript.best + 1}"),
        ("checks", best.verdict),
        ("speed", " ".join(best.findings.split()) or "not measured"),
        ("file", f"{produced.path}{_beside_shipped(produced)}"),
        ("transcript", str(produced.transcript)),
    ]
    for label, text in rows:
        console.print(f"[bold]{label:<11}[/]", end="")
        console.print(text, markup=False, soft_wrap=True)


def _beside_shipped(produced: Produced) -> str:
    """Say whether the file is the shipped one."""
    from qimeng_tvm.generate.shipped import shipped_source

    shipped = shipped_source(produced.written.transcript.task)
    if shipped is None:
        return ""
    return (
        " (the shipped file, byte for byte)"
        if shipped == produced.path.read_bytes()
        else " (differs from the shipped file)"
    )
