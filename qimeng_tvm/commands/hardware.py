"""``qimeng hardware``: show a machine; have one described from its manual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from qimeng_tvm.commands.options import Restart, Rounds, Spending
from qimeng_tvm.commands.telling import teller


class ShowUnlessNamed(TyperGroup):
    """``qimeng hardware zen5`` is ``qimeng hardware show zen5``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in ``show`` where no sub-command is named."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=ShowUnlessNamed, help="Show a machine (the default), or have one described from its manual.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="host, a profile's name, or a .toml file.")] = "host",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    refresh: Annotated[bool, typer.Option(help="Measure the peaks again.")] = False,
    list_profiles: Annotated[bool, typer.Option("--list", help="List the profiles.")] = False,
) -> None:
    """Show a machine: cores, caches, vector unit, features, measured peaks."""
    from qimeng_tvm.hardware import configure_threads, load, measured, names, to_json

    if list_profiles:
        typer.echo("\n".join(names()))
        return
    machine = load(name)
    if name == "host":
        machine = measured(machine, refresh=refresh)
    if as_json:
        typer.echo(json.dumps(to_json(machine)))
        return
    more = {"TVM threads": f"{configure_threads(machine.cores)} in force"} if name == "host" else {}
    _print(machine, more)


@app.command()
def describe(
    manual: Annotated[
        list[Path] | None, typer.Option("--manual", help="Plain text or Markdown about the machine; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the machine (default: as the text does).")] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="Who reads it: openai[:MODEL[@URL]], exchange:FOLDER or replay:FOLDER.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The profile, a .toml file (default: among your own, found by name).")
    ] = None,
    rounds: Rounds = 4,
    budget: Spending = None,
    restart: Restart = False,
) -> None:
    """Have a language model read a machine out of its manual; every value is checked against the text."""
    from qimeng_tvm.errors import UsageError
    from qimeng_tvm.hardware.manual import read_manuals
    from qimeng_tvm.llm import choose_client
    from qimeng_tvm.llm.choice import FORMS

    if not manual:
        raise UsageError("no text about the machine: give --manual FILE (plain text or Markdown)")
    if llm is None:
        raise UsageError(f"who is to read the manual? Give --llm: {FORMS}")
    texts = read_manuals(manual)
    _, say = teller()
    from qimeng_tvm.llm.settings import budget_of

    limits = budget_of(budget)
    client = choose_client(llm, say)
    from qimeng_tvm.generate.describe import describe_manual

    done = describe_manual(texts, client, name=name, out=out, rounds=rounds, budget=limits, restart=restart, say=say)
    _print(done.hardware, {"profile": str(done.path), "transcript": str(done.transcript)})


def _print(machine: Any, more: dict[str, str]) -> None:
    from qimeng_tvm.hardware import describe as rows_of

    table = Table(box=None, pad_edge=False, show_header=False)
    for label, text in (*rows_of(machine), *more.items()):
        table.add_row(f"[bold]{label}[/]", escape(text))
    Console(highlight=False).print(table)
