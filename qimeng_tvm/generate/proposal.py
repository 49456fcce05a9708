"""Have a model propose what is worth trying of a rule's decisions; only what the rule allows is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.generate.ask import Asked, Question, Refused, ask
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.llm.messages import Client
from qimeng_tvm.llm.prompts.proposal import proposal_prompt
from qimeng_tvm.request import Request, describe
from qimeng_tvm.schedule.apply import Task, make_task
from qimeng_tvm.schedule.contract import Decision, SearchSpace
from qimeng_tvm.schedule.proposal import Proposal, Weighted

#: Candidates of one decision: with more of them it proposes nothing.
MOST = 8
_WHY = 600


class Choice(BaseModel):
    """Candidates of one decision as they are answered."""

    model_config = ConfigDict(extra="forbid", strict=True)

    candidates: Annotated[list[int | str], Field(min_length=1, max_length=MOST)]
    prior: Annotated[
        list[Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]], Field(min_length=1, max_length=MOST)
    ]


@dataclass(frozen=True)
class Tuned:
    """What a proposal is for.

    Attributes
    ----------
    task : Task
        Operator, rule, machine and space.
    line : str
        The operator as people write it.
    """

    task: Task
    line: str


def task_of(request: Request, hardware: Hardware) -> Tuned:
    """Return what a proposal for a request is for.

    Raises
    ------
    ScheduleError
        If no rule serves it on that machine.
    """
    from qimeng_tvm.hardware.target import target_of  # noqa: PLC0415
    from qimeng_tvm.operators import prim_func  # noqa: PLC0415

    threads = request.threads or 1
    task = make_task(prim_func(request, target_of(hardware, threads))[1], hardware, threads)
    if task is None:
        raise ScheduleError(f"no rule serves {describe(request)} on {hardware.name}")
    return Tuned(task, describe(request))


def free(space: SearchSpace) -> tuple[Decision, ...]:
    """Return the decisions that leave a choice."""
    return tuple(d for d in space.decisions if len(d.candidates) > 1)


def proposal_schema(space: SearchSpace) -> dict[str, Any]:
    """Return the JSON schema of a proposal for a space."""
    choices = {d.name: _choice_schema(d) for d in free(space)}
    why = {"type": "string", "maxLength": _WHY, "description": "The reasons, in a few sentences."}
    return {
        "type": "object",
        "properties": {**choices, "why": why},
        "required": ["why"],
        "additionalProperties": False,
    }


def _choice_schema(decision: Decision) -> dict[str, Any]:
    most = min(MOST, len(decision.candidates))
    candidates = {"type": "array", "items": {"enum": list(decision.candidates)}, "minItems": 1, "maxItems": most}
    prior = {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": most}
    return {
        "type": "object",
        "description": decision.doc,
        "properties": {"candidates": candidates, "prior": prior},
        "required": ["candidates", "prior"],
        "additionalProperties": False,
    }


def proposal_form(space: SearchSpace) -> type[BaseModel]:
    """Return the schema as a pydantic model."""
    fields: dict[str, Any] = {d.name: (Choice | None, None) for d in free(space)}
    why = (str, Field(max_length=_WHY))
    config = ConfigDict(extra="forbid", strict=True)
    made: type[BaseModel] = create_model("ProposalAnswer", __config__=config, **fields, why=why)
    return made


def read_proposal(answer: BaseModel, space: SearchSpace) -> Proposal:
    """Return the proposal of an answer.

    Raises
    ------
    Refused
        If it is not one for this space.
    """
    given = {d: c for d in free(space) if isinstance(c := getattr(answer, d.name, None), Choice)}
    problems = [p for d, c in given.items() if (p := _problem(d, c))]
    if not given:
        problems.append("no decision is proposed: name at least one, with candidates and prior")
    if problems:
        raise Refused(problems)
    choices = {d.name: _weighted(c) for d, c in given.items()}
    proposal = Proposal(MappingProxyType(choices), str(getattr(answer, "why", "")))
    _check_legal(proposal, space)
    return proposal


def _problem(decision: Decision, choice: Choice) -> str:
    """Say what is wrong with the candidates of one decision; empty when nothing is."""
    name, count = decision.name, len(choice.candidates)
    wrong = [v for v in choice.candidates if v not in decision.candidates]
    if wrong:
        return f"{name}: {wrong[0]!r} is not among {list(decision.candidates)}"
    if len(set(choice.candidates)) < count:
        return f"{name}: a candidate stands there twice"
    if len(choice.prior) != count:
        return f"{name}: {count} candidates, but {len(choice.prior)} numbers in prior: give one for each"
    return ""


def _weighted(choice: Choice) -> Weighted:
    total = sum(choice.prior)
    return Weighted(tuple(choice.candidates), tuple(p / total for p in choice.prior))


def _check_legal(proposal: Proposal, space: SearchSpace) -> None:
    """Raise unless the restricted space has a legal point, and every candidate is in one."""
    try:
        narrow = proposal.apply(space)
    except ScheduleError as error:
        raise Refused([f"nothing that it proposes goes together: {error}"]) from error
    problems = []
    for name, choice in proposal.choices.items():
        for value in choice.candidates:
            try:
                proposal.likeliest(narrow, {name: value})
            except ScheduleError as error:
                problems.append(f"{name}: {value!r} goes with nothing else that is proposed: {error}")
    if problems:
        raise Refused(problems)


def proposal_question(tuned: Tuned) -> Question[BaseModel, Proposal]:
    """Return what a model is asked."""
    space = tuned.task.space
    label = f"proposal {tuned.task.rule.name}@{tuned.task.rule.version} {tuned.line}"
    prompt = proposal_prompt(tuned.task, tuned.line, free(space), MOST)
    return Question(label, prompt, proposal_schema(space), proposal_form(space), lambda a: read_proposal(a, space))


def propose(
    tuned: Tuned,
    client: Client,
    *,
    rounds: int = 3,
    path: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Asked[Proposal]:
    """Have a model propose candidates and priors.

    Parameters
    ----------
    tuned : Tuned
        For what.
    client : Client
        Who answers.
    rounds : int
        Answers in a row, at most.
    path : Path, optional
        Of the transcript.
    say : callable
        Told of every round.

    Raises
    ------
    GenerateError
        If no answer passed the checks.
    """
    return ask(proposal_question(tuned), client, rounds=rounds, path=path, say=say)
