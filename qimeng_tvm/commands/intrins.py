"""``qimeng intrins list | show | audit``."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from qimeng_tvm.check.intrinsic import FamilyReport

app = typer.Typer(help="The tensorize intrinsic families.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_families(
    hardware: Annotated[str, typer.Option(help="Tell which of them this machine runs.")] = "host",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """List the families."""
    from qimeng_tvm.hardware import load
    from qimeng_tvm.intrin import families

    machine = load(hardware)
    rows: list[dict[str, Any]] = [
        {
            "key": f.key,
            "requires": list(f.requires),
            "dtypes": list(f.dtypes),
            "lanes": f.lanes,
            "k_pack": f.k_pack,
            "parameters": list(f.parameters),
            "version": f.version,
            "runs_here": f.isa in (machine.isa, "generic") and machine.has(*f.requires),
        }
        for f in families().values()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("family", "dtypes", "lanes", "P", "requires", "parameters", "runs here"):
        table.add_column(column, no_wrap=column == "family")
    for row in rows:
        cells = (row["key"], _dtypes(row), row["lanes"], row["k_pack"], " ".join(row["requires"]))
        table.add_row(*map(str, cells), " ".join(row["parameters"]), "yes" if row["runs_here"] else "no")
    Console(highlight=False).print(table)


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="A family (x86.avx2_f32.gemm) or a canonical intrinsic name.")],
    tir: Annotated[bool, typer.Option("--tir", help="Print the TensorIR of desc and impl too.")] = False,
) -> None:
    """Show a family's source, and the TensorIR of one of its intrinsics."""
    from qimeng_tvm.check.intrinsic import example_parameters
    from qimeng_tvm.intrin import family
    from qimeng_tvm.intrin.registry import resolve

    named = key.startswith("qimeng.")
    owner, values = resolve(key) if named else (family(key), ())
    typer.echo(inspect.getsource(inspect.getmodule(owner.build)))  # type: ignore[arg-type]
    if tir or named:
        values = values or tuple(example_parameters(owner).values())
        desc, impl = owner.build(*values)
        for title, func in (("desc", desc), ("impl", impl)):
            typer.echo(f"# {title} of {owner.intrin_name(**dict(zip(owner.parameters, values, strict=True)))}")
            typer.echo(func.script(show_meta=False))


@app.command()
def audit(
    key: Annotated[str, typer.Argument(help="A family, or 'all' that run here.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Check families on this machine: numbers under guard pages, then instructions and spills."""
    from qimeng_tvm.check.intrinsic import audit_family
    from qimeng_tvm.check.worker import Worker
    from qimeng_tvm.hardware import host
    from qimeng_tvm.intrin import families, family

    machine = host()
    wanted = [family(key)] if key != "all" else [
        f for f in families().values() if f.isa == machine.isa and machine.has(*f.requires)
    ]  # fmt: skip
    reports = []
    with Worker(preload=("tvm",)) as worker:
        for one in wanted:
            reports += audit_family(worker, one, machine)
    if as_json:
        typer.echo(json.dumps([r.to_json() for r in reports]))
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("intrinsic", "numbers", "instructions", "spills", "problem"):
            table.add_column(column, overflow="fold")
        for r in reports:
            table.add_row(r.name, r.numbers.kind, *_code_cells(r), r.problem)
        Console(highlight=False).print(table)
    if any(not r.ok for r in reports):
        raise typer.Exit(1)


_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int32": "s32", "int16": "s16", "int8": "s8"}


def _dtypes(row: dict[str, Any]) -> str:
    """Operand and accumulator types, as people write them; a packing family has a source and a target."""
    a, b, acc = (_SHORT.get(d, d.replace("uint", "u")) for d in row["dtypes"])
    return f"{a} -> {acc}" if row["key"].startswith("generic.pack") else f"{a} x {b} -> {acc}"


def _code_cells(report: FamilyReport) -> tuple[str, str]:
    """Instructions in the inner loop, and spills."""
    if report.code is None:
        return "-", "-"
    counts = " ".join(f"{n}x{m.split('|')[-1]}" for m, n in report.code.counts.items())
    return counts, str(report.code.spills)
