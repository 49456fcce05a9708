"""Have a model propose what is worth trying of a rule's decisions; only what the rule allows is taken.

Values that are not the rule's are dropped, and told at the next question about the same operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.generate.ask import Asked, Question, Refused, ask
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.llm.messages import Client
from qimeng_tvm.llm.prompts.proposal import History, proposal_prompt
from qimeng_tvm.request import Request, describe
from qimeng_tvm.schedule.apply import Task, make_task
from qimeng_tvm.schedule.contract import Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.proposal import Constraint, Proposal, Weighted

#: Candidates of one decision: with more of them it proposes nothing.
MOST = 8
#: Constraints of a proposal; characters of a reason, and of the reasons for the whole.
MOST_CONSTRAINTS = 6
_LINE, _WHY = 200, 600


class Choice(BaseModel):
    """Candidates of one decision as they are answered."""

    model_config = ConfigDict(extra="forbid", strict=True)

    candidates: Annotated[list[int | str], Field(min_length=1, max_length=MOST)]
    prior: Annotated[
        list[Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]], Field(min_length=1, max_length=MOST)
    ]
    why: Annotated[str, Field(max_length=_LINE)] = ""


class Together(BaseModel):
    """A constraint as it is answered."""

    model_config = ConfigDict(extra="forbid", strict=True)

    when: dict[str, int | str]
    then: Annotated[dict[str, Annotated[list[int | str], Field(min_length=1, max_length=MOST)]], Field(min_length=1)]
    why: Annotated[str, Field(max_length=_LINE)] = ""


@dataclass(frozen=True)
class Tuned:
    """What a proposal is for.

    Attributes
    ----------
    task : Task
        Operator, rule, machine and space.
    line : str
        The operator as people write it.
    path : Mapping[str, value]
        Decisions that are made already; the others are asked for.
    history : History, optional
        What was measured, and what came of earlier proposals.
    number : int
        Which question of a search it is, from 0.
    """

    task: Task
    line: str
    path: Values = field(default_factory=dict)
    history: History | None = None
    number: int = 0

    @property
    def space(self) -> SearchSpace:
        """The rule's space with the path's values alone."""
        whole = self.task.space
        fixed = tuple(
            replace(d, candidates=(self.path[d.name],), default=self.path[d.name]) if d.name in self.path else d
            for d in whole.decisions
        )
        return replace(whole, decisions=fixed)


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
    why = {"type": "string", "maxLength": _WHY, "description": "The reasons for the whole, in a sentence or two."}
    together = {"type": "array", "maxItems": MOST_CONSTRAINTS, "items": _constraint_schema(space)}
    return {
        "type": "object",
        "properties": {**choices, "constraints": together, "why": why},
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
        "properties": {"candidates": candidates, "prior": prior, "why": {"type": "string", "maxLength": _LINE}},
        "required": ["candidates", "prior"],
        "additionalProperties": False,
    }


def _constraint_schema(space: SearchSpace) -> dict[str, Any]:
    values = {d.name: {"enum": list(d.candidates)} for d in free(space)}
    lists = {name: {"type": "array", "items": v, "minItems": 1, "maxItems": MOST} for name, v in values.items()}
    return {
        "type": "object",
        "properties": {
            "when": {"type": "object", "properties": values, "additionalProperties": False},
            "then": {"type": "object", "properties": lists, "additionalProperties": False, "minProperties": 1},
            "why": {"type": "string", "maxLength": _LINE},
        },
        "required": ["when", "then"],
        "additionalProperties": False,
    }


def proposal_form(space: SearchSpace) -> type[BaseModel]:
    """Return the schema as a pydantic model."""
    fields: dict[str, Any] = {d.name: (Choice | None, None) for d in free(space)}
    why = (str, Field(max_length=_WHY))
    together: tuple[Any, Any] = (
        Annotated[list[Together], Field(max_length=MOST_CONSTRAINTS)],
        Field(default_factory=list),
    )
    config = ConfigDict(extra="forbid", strict=True)
    made: type[BaseModel] = create_model("ProposalAnswer", __config__=config, **fields, constraints=together, why=why)
    return made


def read_proposal(answer: BaseModel, space: SearchSpace) -> Proposal:
    """Return the proposal of an answer, without the values and constraints that are not this space's.

    Raises
    ------
    Refused
        If nothing is left of it, or nothing that is left goes together.
    """
    given = {d: c for d in free(space) if isinstance(c := getattr(answer, d.name, None), Choice)}
    problems = [p for d, c in given.items() if (p := _malformed(d, c))]
    if problems:
        raise Refused(problems)
    dropped: list[str] = []
    choices: dict[str, Weighted] = {}
    for decision, choice in given.items():
        wrong = [v for v in choice.candidates if v not in decision.candidates]
        dropped += [f"{decision.name}: {v!r} is not among {list(decision.candidates)}" for v in wrong]
        if len(wrong) < len(choice.candidates):
            choices[decision.name] = _weighted(decision, choice)
    constraints = _constraints(getattr(answer, "constraints", []), space, dropped)
    if not choices:
        raise Refused([*dropped, "no decision is proposed: name at least one, with candidates and prior"])
    proposal = Proposal(MappingProxyType(choices), str(getattr(answer, "why", "")), constraints, tuple(dropped))
    return _legal(proposal, space)


def _malformed(decision: Decision, choice: Choice) -> str:
    """Say why the numbers of one decision cannot be read; empty when they can."""
    name, count = decision.name, len(choice.candidates)
    if len(set(choice.candidates)) < count:
        return f"{name}: a candidate stands there twice"
    if len(choice.prior) != count:
        return f"{name}: {count} candidates, but {len(choice.prior)} numbers in prior: give one for each"
    return ""


def _weighted(decision: Decision, choice: Choice) -> Weighted:
    kept = [(v, p) for v, p in zip(choice.candidates, choice.prior, strict=True) if v in decision.candidates]
    total = sum(p for _, p in kept)
    return Weighted(tuple(v for v, _ in kept), tuple(p / total for _, p in kept), _one_line(choice.why))


def _constraints(given: Sequence[Together], space: SearchSpace, dropped: list[str]) -> tuple[Constraint, ...]:
    """Return the constraints that speak of the space; what the others have wrong is added to what was dropped."""
    known = {d.name: d.candidates for d in free(space)}
    kept = []
    for number, one in enumerate(given, 1):
        named = [(n, v) for n, v in one.when.items()] + [(n, v) for n, values in one.then.items() for v in values]
        wrong = next((f"{n}={v!r}" for n, v in named if n not in known or v not in known[n]), None)
        if wrong is None and not (set(one.when) & set(one.then)):
            then = {n: tuple(v) for n, v in one.then.items()}
            kept.append(Constraint(dict(one.when), then, _one_line(one.why)))
        else:
            dropped.append(f"constraint {number}: {wrong or 'a decision is both in when and then'}")
    return tuple(kept)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _legal(proposal: Proposal, space: SearchSpace) -> Proposal:
    """Return the proposal without candidates that go with nothing else of it.

    Raises
    ------
    Refused
        If it has no legal point.
    """
    try:
        narrow = proposal.apply(space)
    except ScheduleError as error:
        raise Refused([*proposal.dropped, f"nothing that it proposes goes together: {error}"]) from error
    dropped = list(proposal.dropped)
    choices: dict[str, Weighted] = {}
    for name, choice in proposal.choices.items():
        kept = []
        for value, weight in zip(choice.candidates, choice.prior, strict=True):
            try:
                proposal.likeliest(narrow, {name: value})
                kept.append((value, weight))
            except ScheduleError as error:
                dropped.append(f"{name}: {value!r} goes with nothing else that is proposed: {error}")
        choices[name] = _reweighted(kept, choice.why)
    return replace(proposal, choices=MappingProxyType(choices), dropped=tuple(dropped))


def _reweighted(kept: Sequence[tuple[Value, float]], why: str) -> Weighted:
    total = sum(weight for _, weight in kept)
    return Weighted(tuple(v for v, _ in kept), tuple(w / total for _, w in kept), why)


def proposal_question(tuned: Tuned) -> Question[BaseModel, Proposal]:
    """Return what a model is asked."""
    space = tuned.space
    label = f"proposal {tuned.task.rule.name}@{tuned.task.rule.version} {tuned.line}{_place(tuned.path)}"
    prompt = proposal_prompt(tuned.task, tuned.line, free(space), MOST, tuned.path, tuned.history)
    told = f"{prompt.label}, question {tuned.number} on {tuned.task.hardware.fingerprint}" if tuned.history else ""
    form = proposal_form(space)
    return Question(label, prompt, proposal_schema(space), form, lambda a: read_proposal(a, space), told)


def _place(path: Mapping[str, Value]) -> str:
    return f" with {', '.join(f'{n}={v}' for n, v in path.items())}" if path else ""


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
