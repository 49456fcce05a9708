"""``qimeng prompts list | show``: what a model would be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qimeng_tvm.generate.loop import Subject
    from qimeng_tvm.llm.messages import Request

app = typer.Typer(no_args_is_help=True, help="What a language model would be told.")


@dataclass(frozen=True)
class Wanted:
    """The options of ``show``."""

    hardware: str | None
    dtype: str
    operator: str
    manual: tuple[Path, ...]
    allow_asm: bool = False


@dataclass(frozen=True)
class Shown:
    """A prompt that can be shown.

    Attributes
    ----------
    about : str
        One line.
    needs, takes : tuple of str
        Options of :class:`Wanted`: that it must have, and that it may.
    request : callable
        What would be sent first.
    """

    about: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    request: Callable[[Wanted], Request]


def _intrinsic(wanted: Wanted) -> Request:
    from qimeng_tvm.generate.intrinsic import IntrinsicSubject
    from qimeng_tvm.generate.tasks import task_for
    from qimeng_tvm.hardware import load

    machine = load(wanted.hardware or "host")
    task = replace(task_for(machine, wanted.dtype), inline_asm=wanted.allow_asm)
    return _first(IntrinsicSubject(task, machine))


def _rule(wanted: Wanted) -> Request:
    from qimeng_tvm.generate.rule import RuleSubject
    from qimeng_tvm.generate.rules import rule_task
    from qimeng_tvm.hardware import load

    return _first(RuleSubject(rule_task(wanted.operator), load(wanted.hardware or "host")))


def _vanilla(wanted: Wanted) -> Request:
    from qimeng_tvm.errors import UsageError
    from qimeng_tvm.generate.vanilla import OPERANDS, VanillaSubject
    from qimeng_tvm.hardware import load

    if wanted.dtype not in OPERANDS:
        raise UsageError(f"no vanilla prompt for {wanted.dtype!r}; there are {', '.join(OPERANDS)}")
    return _first(VanillaSubject(wanted.dtype, load(wanted.hardware or "host")))


def _first(subject: Subject) -> Request:
    """Return the request that opens the conversation about a subject."""
    from qimeng_tvm.generate.loop import Conversation, request_of
    from qimeng_tvm.llm.messages import Message

    return request_of(subject, Conversation((Message("user", subject.prompt.text),)), sample=0)


def _proposal(wanted: Wanted) -> Request:
    from qimeng_tvm.generate.proposal import proposal_question, task_of
    from qimeng_tvm.hardware import load
    from qimeng_tvm.request import parse

    request = parse(wanted.operator)
    return proposal_question(task_of(request, load(wanted.hardware or request.hardware))).request()


def _hardware(wanted: Wanted) -> Request:
    from qimeng_tvm.generate.describe import hardware_question
    from qimeng_tvm.hardware.manual import read_manuals

    return hardware_question(read_manuals(wanted.manual)).request()


#: Every prompt, by its template's name.
PROMPTS: Mapping[str, Shown] = {
    "depthwise": Shown(
        "a lane-wise intrinsic family (--dtype avx2_f32_depthwise)", ("dtype",), ("hardware",), _intrinsic
    ),
    "hardware": Shown("a machine's profile, read out of its manual", ("manual",), (), _hardware),
    "intrinsic": Shown("a tensorize intrinsic family", ("dtype",), ("hardware", "allow-asm"), _intrinsic),
    "proposal": Shown("what to try of a rule's decisions for an operator", ("operator",), ("hardware",), _proposal),
    "rule": Shown("a schedule rule (--operator gemm, gemv, conv2d...)", ("operator",), ("hardware",), _rule),
    "vanilla": Shown("a C GEMM asked for in one sentence, the baseline", ("dtype",), ("hardware",), _vanilla),
}


@app.command("list")
def list_prompts() -> None:
    """List the prompts: name, version, what it asks for, what `show` needs to fill it in."""
    from qimeng_tvm.llm.prompts.render import names, version

    for name in names():
        shown = PROMPTS[name]
        options = " ".join((*(f"--{o}" for o in shown.needs), *(f"[--{o}]" for o in shown.takes)))
        typer.echo(f"{f'{name}@{version(name)}':<13} {shown.about:<52} {options}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A name of `qimeng prompts list`.")],
    hardware: Annotated[str | None, typer.Option(help="host, or a profile (default: host).")] = None,
    dtype: Annotated[str, typer.Option(help="f32, bf16, u8s8, s8s8..., or a task's own name.")] = "",
    operator: Annotated[
        str,
        typer.Option(help='A line such as "f32 GEMM 512x512x512"; gemm, conv2d... for a rule.'),
    ] = "",
    manual: Annotated[
        list[Path] | None, typer.Option("--manual", help="Text about a machine; may be repeated.")
    ] = None,
    allow_asm: Annotated[bool, typer.Option("--allow-asm", help="As of `qimeng generate intrinsic`.")] = False,
) -> None:
    """Print exactly what would be sent, with the JSON schema of the answer where there is one."""
    from qimeng_tvm.errors import UsageError
    from qimeng_tvm.llm.messages import readable

    if name not in PROMPTS:
        raise UsageError(f"there is no prompt {name!r}; there are {', '.join(PROMPTS)}")
    shown, wanted = PROMPTS[name], Wanted(hardware, dtype, operator, tuple(manual or ()), allow_asm)
    missing = [o for o in shown.needs if not getattr(wanted, o)]
    if missing:
        raise UsageError(f"to fill in the prompt {name}, give --{' and --'.join(missing)}")
    given = [option.replace("_", "-") for option, value in vars(wanted).items() if value]
    strange = [o for o in given if o not in (*shown.needs, *shown.takes)]
    if strange:
        raise UsageError(f"the prompt {name} does not depend on --{strange[0]}: leave it out")
    typer.echo(readable(shown.request(wanted)), nl=False)
