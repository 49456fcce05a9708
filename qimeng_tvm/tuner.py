"""Tune the operator that a line asks for; ``run`` and model builds find what was recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qimeng_tvm.api import DEFAULT_TRIALS, checked_threads, default_database, machine_of, task_of
from qimeng_tvm.errors import GenerateError
from qimeng_tvm.hardware import configure_threads, measured
from qimeng_tvm.request import Request, check_memory, describe, parse

if TYPE_CHECKING:
    from qimeng_tvm.generate.proposal import Tuned
    from qimeng_tvm.schedule.proposal import Proposal
    from qimeng_tvm.search import TuneResult

Say = Callable[[str], None]


def tune_line(
    line: str | Request,
    *,
    trials: int = DEFAULT_TRIALS,
    strategy: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    database: str | os.PathLike[str] | None = None,
    time_limit: float | None = None,
    llm: str | None = None,
    budget: str | None = None,
    say: Say = lambda _: None,
    bar: Any = None,
) -> TuneResult:
    """Tune the operator that a line asks for, on this machine.

    Parameters
    ----------
    line : str or Request
        ``"bf16 GEMM 1024x1024x1024 on this CPU"``.
    trials : int
        Measured trials, those of earlier runs included.
    strategy : str, optional
        A key of :data:`qimeng_tvm.search.choose.STRATEGIES`.
    threads : int, optional
        Cores; overrides the line's, which overrides 1.
    seed : int
        Of the search.
    database : path, optional
        Folder of the tuning records.
    time_limit : float, optional
        Start no trial after so many seconds.
    llm, budget : str, optional
        Who proposes what to try, as on the command line, and what that may cost; the analytic model by default.
    say : callable
        Told of every stage.
    bar : callable, optional
        Called after every trial; see :func:`qimeng_tvm.search.tune`.

    Raises
    ------
    QimengError
        With one line that says what was wrong and what to do.
    """
    from qimeng_tvm.generate.proposal import Tuned  # noqa: PLC0415 (only where something is proposed)
    from qimeng_tvm.search import tune  # noqa: PLC0415 (xgboost and MetaSchedule are needed only here)
    from qimeng_tvm.search.choose import DEFAULT, strategy_of  # noqa: PLC0415

    chosen = strategy or DEFAULT
    strategy_of(chosen)  # a wrong name is told before anything is measured
    request = parse(line) if isinstance(line, str) else line
    hardware = machine_of(request)
    count = checked_threads(threads or request.threads or 1, hardware)
    request = replace(request, threads=count)
    check_memory(request, hardware.memory_bytes)
    task = task_of(request, measured(hardware), count)
    configure_threads(count)
    proposal = proposal_for(Tuned(task, describe(request)), llm, budget=budget, say=say) if llm is not None else None
    folder = Path(database) if database is not None else default_database()
    say(f"tuning {task.rule.name} by {chosen}, {trials} trials")
    return tune(
        task,
        trials,
        folder,
        task.hardware,
        count,
        seed,
        bar,
        time_limit,
        strategy=chosen,
        proposals=[proposal],
    )


def proposal_for(
    tuned: Tuned,
    llm: str | None = None,
    *,
    rounds: int = 3,
    budget: str | None = None,
    path: Path | None = None,
    say: Say = lambda _: None,
) -> Proposal:
    """Return what is worth trying of an operator's decisions.

    A language model whose answers are all refused is told of, and the analytic proposal takes its place.

    Parameters
    ----------
    tuned : Tuned
        Operator, rule and machine.
    llm, budget : str, optional
        Who proposes, as on the command line, and what that may cost; the analytic model by default.
    rounds : int
        Answers in a row, at most.
    path : Path, optional
        Of the conversation's transcript.
    say : callable
        Told of every round.

    Raises
    ------
    QimengError
        If the client cannot be used, or gives no answer.
    """
    from qimeng_tvm.generate.proposal import propose  # noqa: PLC0415 (only where a model is asked)
    from qimeng_tvm.llm import choose_client  # noqa: PLC0415
    from qimeng_tvm.llm.budget import Metered  # noqa: PLC0415
    from qimeng_tvm.llm.settings import budget_of  # noqa: PLC0415
    from qimeng_tvm.schedule.analytic import analytic_proposal  # noqa: PLC0415

    if llm is None:
        return analytic_proposal(tuned.task)
    client = Metered(choose_client(llm, say), budget_of(budget), path.with_suffix(".log") if path is not None else None)
    try:
        return propose(tuned, client, rounds=rounds, path=path, say=say).value
    except GenerateError as error:
        say(f"{error}: the analytic proposal takes its place")
        return analytic_proposal(tuned.task)
