"""The ``qimeng`` command."""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

from qimeng_tvm.commands import (
    bench,
    compile,
    database,
    evaluate,
    explain,
    generate,
    hardware,
    intrins,
    prompts,
    propose,
    run,
    tune,
)
from qimeng_tvm.errors import QimengError

app = typer.Typer(
    name="qimeng",
    help="Near-peak, checked tensor operators for this machine, from one line of text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("tune")(tune.tune)
app.command("compile")(compile.compile_file)
app.command("explain")(explain.explain)
app.command("propose")(propose.propose)
app.add_typer(database.app, name="db")
app.add_typer(hardware.app, name="hardware")
app.add_typer(intrins.app, name="intrins")
app.add_typer(bench.app, name="bench")
app.add_typer(generate.app, name="generate")
app.add_typer(evaluate.app, name="eval")
app.add_typer(prompts.app, name="prompts")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"qimeng-tvm {version('qimeng-tvm')} (apache-tvm {version('apache-tvm')})")
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Near-peak, checked tensor operators for this machine, from one line of text."""


def _say(message: str) -> None:
    typer.echo("qimeng: " + " ".join(message.split()), err=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; errors are one line on standard error, exit 2 for usage and 1 for failure."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    # Wherever it stands: it is about this process, not about one sub-command.
    given = [a for a in given if a != "--debug"]
    warnings.showwarning = _show_warning
    try:
        code = app(args=given, prog_name="qimeng", standalone_mode=False)
        sys.exit(int(code or 0))
    except QimengError as error:
        _report(str(error), debug)
        sys.exit(error.exit_code)
    except typer.Abort:
        _say("stopped; the same command continues where it was")
        sys.exit(130)
    except KeyboardInterrupt:
        _say("stopped; the same command continues where it was")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        # Typer carries its own copy of click in some releases: its usage errors are known by what they can do.
        usage = getattr(error, "format_message", None)
        if usage is None:
            # The last resort: a bug of ours must not bury the user in a traceback.
            _report(f"internal error: {type(error).__name__}: {error} (--debug shows where; please report it)", debug)
            sys.exit(1)
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(usage())
        else:
            _report(f"{usage()} (see qimeng --help)", debug)
        sys.exit(2)


def _report(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    _say(message)


if __name__ == "__main__":
    main()
