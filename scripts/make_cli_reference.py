"""Write docs/cli.md: every command of ``qimeng``, its arguments and options, from the code."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer.main
from typer.models import ParameterInfo

from qimeng_tvm import cli

FILE = Path(__file__).parents[1] / "docs" / "cli.md"
_WIDTH = 120
_HEAD = """# Commands

Written by `scripts/make_cli_reference.py` from the code: change the help texts there, and run it again. `--help` behind
any command prints the same. Results go to standard output, progress and errors to standard error. The exit status is 0;
1 where something failed or a check did not pass; 2 where the command cannot be served as it is written; 130 where it
was stopped.
"""
_TYPES = {str: "text", Path: "path", int: "whole number", float: "number"}
#: What Markdown would take for its own.
_MARKUP = re.compile(r"([|<>*])")


def reference() -> str:
    """Return the text of docs/cli.md."""
    root: Any = typer.main.get_command(cli.app)
    sections = [_section(path, command) for path, command in _walk("qimeng", root)]
    return "\n".join([_HEAD, *sections])


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield a command and all below it, in the order in which they were declared."""
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        if not one.hidden:
            yield from _walk(f"{path} {name}", one)


def _section(path: str, command: Any) -> str:
    """One command: what it does, how it is called, its arguments and options."""
    level = "#" * (path.count(" ") + 2)
    about = [textwrap.fill(_plain(part), _WIDTH) for part in inspect.cleandoc(command.help or "").split("\n\n")]
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    declared = _declared(command)
    arguments = [_argument(p, declared) for p in shown if p.param_type_name == "argument"]
    options = [_option(p, declared) for p in shown if p.param_type_name == "option"]
    parts = [f"{level} {path}", *about, f"```text\n{_usage(path, command, shown)}\n```"]
    below = {name: one for name, one in getattr(command, "commands", {}).items() if not one.hidden}
    if below:
        parts.append(_table(("command", "what it does"), [_link(path, name, one) for name, one in below.items()]))
    if arguments:
        parts.append(_table(("argument", "type", "default", "what it is"), arguments))
    if options:
        parts.append(_table(("option", "type", "default", "what it does"), options))
    return "\n\n".join(parts) + "\n"


def _usage(path: str, command: Any, shown: list[Any]) -> str:
    words = [path, *(["[OPTIONS]"] if any(p.param_type_name == "option" for p in shown) else [])]
    words += [_place(p) for p in shown if p.param_type_name == "argument"]
    words += ["COMMAND ..."] if getattr(command, "commands", None) else []
    return " ".join(words)


def _place(argument: Any) -> str:
    """An argument as usage lines have it."""
    name = str(argument.metavar or argument.name.upper()) + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _link(path: str, name: str, command: Any) -> tuple[str, str]:
    first = inspect.cleandoc(command.help or "").split("\n\n")[0]
    anchor = f"{path} {name}".replace(" ", "-")
    return f"[`{name}`](#{anchor})", _plain(first)


def _argument(argument: Any, declared: dict[str, tuple[Any, ParameterInfo]]) -> tuple[str, ...]:
    return f"`{_cell(_place(argument).strip('[]'))}`", *_facts(argument, declared)


def _option(option: Any, declared: dict[str, tuple[Any, ParameterInfo]]) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag or not option.metavar else f" `{_cell(option.metavar)}`"
    return names + value, *_facts(option, declared)


def _facts(parameter: Any, declared: dict[str, tuple[Any, ParameterInfo]]) -> tuple[str, str, str]:
    """Type, default and help text of a parameter."""
    kind, info = declared[parameter.name]
    return _type_name(kind, info), _default(parameter), _plain(info.help or "")


def _declared(command: Any) -> dict[str, tuple[Any, ParameterInfo]]:
    """Return annotation and declaration of each parameter of a command's function, by name.

    The function says them itself: how typer keeps types differs between its releases.
    """
    if command.callback is None:
        return {}
    hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    found = {}
    for name, hint in hints.items():
        kind, *marks = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        info = next((m for m in marks if isinstance(m, ParameterInfo)), None)
        if info is not None:
            found[name] = (kind, info)
    return found


def _type_name(kind: Any, info: ParameterInfo) -> str:
    """Return a type for people: ``int, at least 1``."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    many = get_origin(kind) is list
    kind = get_args(kind)[0] if many else kind
    if kind is bool:
        return "switch"
    if isinstance(kind, type) and issubclass(kind, Enum):
        name = " or ".join(f"`{one.value}`" for one in kind)
    else:
        name = _TYPES.get(kind) or str(getattr(kind, "__name__", kind))
    bounds = [f"at least {info.min:g}"] if info.min is not None else []
    bounds += [f"at most {info.max:g}"] if info.max is not None else []
    return ", ".join([name, *bounds, *(["may be repeated"] if many else [])])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if getattr(parameter, "is_flag", False):
        given = parameter.opts if value else parameter.secondary_opts
        return f"`{given[0]}`" if given else ""
    return "" if value is None or value in ("", ()) else f"`{_cell(str(value))}`"


def _plain(text: str) -> str:
    """Return a help text as Markdown shows it to the letter, but for code in back-quotes."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if at % 2 else _MARKUP.sub(r"\\\1", part) for at, part in enumerate(parts))


def _cell(code: str) -> str:
    """Return code for a table's cell."""
    return code.replace("|", "\\|")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    used = [at for at, _ in enumerate(head) if any(row[at] for row in rows)]
    lines = [[head[at] for at in used], ["---"] * len(used), *([row[at] for at in used] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    print(FILE)
