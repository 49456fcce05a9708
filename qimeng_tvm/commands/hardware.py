"""``qimeng hardware``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def hardware(
    name: Annotated[str, typer.Argument(help="host, a profile's name, or a .toml file.")] = "host",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    refresh: Annotated[bool, typer.Option(help="Measure the peaks again.")] = False,
    list_profiles: Annotated[bool, typer.Option("--list", help="List the profiles.")] = False,
) -> None:
    """Show a machine: cores, caches, vector unit, features, measured peaks."""
    from qimeng_tvm.hardware import configure_threads, describe, load, measured, names, to_json

    if list_profiles:
        typer.echo("\n".join(("host", *names())))
        return
    machine = load(name)
    if name == "host":
        machine = measured(machine, refresh=refresh)
    if as_json:
        typer.echo(json.dumps(to_json(machine)))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for label, text in describe(machine):
        table.add_row(f"[bold]{label}[/]", text)
    if name == "host":
        table.add_row("[bold]TVM threads[/]", f"{configure_threads(machine.cores)} in force")
    Console(highlight=False).print(table)
