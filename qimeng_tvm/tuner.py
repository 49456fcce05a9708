"""Tune the operator that a line asks for; ``run`` and model builds find what was recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qimeng_tvm.api import DEFAULT_TRIALS, checked_threads, default_database, machine_of, task_of
from qimeng_tvm.errors import HardwareError, UsageError
from qimeng_tvm.hardware import Hardware, configure_threads, measured
from qimeng_tvm.request import Request, check_memory, describe, parse

if TYPE_CHECKING:
    from qimeng_tvm.generate.adviser import Adviser
    from qimeng_tvm.generate.proposal import Tuned
    from qimeng_tvm.schedule.proposal import Proposal
    from qimeng_tvm.search import Rpc, TuneResult
    from qimeng_tvm.search.choose import Guide

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
    rpc: Rpc | None = None,
) -> TuneResult:
    """Tune the operator that a line asks for, on this machine or on those behind an RPC tracker.

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
    rpc : Rpc, optional
        Measure on machines behind this tracker; they are what the line says, ``on Neoverse N1``.

    Raises
    ------
    QimengError
        With one line that says what was wrong and what to do.
    """
    from qimeng_tvm.generate.proposal import Tuned  # noqa: PLC0415 (only where something is proposed)
    from qimeng_tvm.search import tune  # noqa: PLC0415 (xgboost and MetaSchedule are needed only here)
    from qimeng_tvm.search.choose import ADVISED, DEFAULT, strategy_of  # noqa: PLC0415

    chosen = strategy or (ADVISED if llm is not None else DEFAULT)
    strategy_of(chosen)  # a wrong name is told before anything is measured
    if llm is not None and chosen != ADVISED:
        raise UsageError(f"a language model advises {ADVISED}, not {chosen}: leave --strategy or --llm out")
    request = parse(line) if isinstance(line, str) else line
    hardware = machine_of(request) if rpc is None else _board_of(request)
    count = checked_threads(threads or request.threads or 1, hardware)
    request = replace(request, threads=count)
    check_memory(request, hardware.memory_bytes)
    here = hardware.fingerprint == Hardware.host().fingerprint
    task = task_of(request, measured(hardware) if here else hardware, count)
    configure_threads(count)
    folder = Path(database) if database is not None else default_database()
    guide = guide_for(Tuned(task, describe(request)), llm, budget=budget, say=say)
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
        guides=[guide],
        rpc=rpc,
    )


def _board_of(request: Request) -> Hardware:
    try:
        return Hardware.load(request.hardware)
    except HardwareError as error:
        raise UsageError(str(error)) from error


def guide_for(tuned: Tuned, llm: str | None, *, budget: str | None = None, say: Say = lambda _: None) -> Guide | None:
    """Return who guides a search: a model that proposes, and is asked again on the way; None without one.

    Raises
    ------
    QimengError
        If the client cannot be used, or gives no answer.
    """
    from qimeng_tvm.search.choose import Guide  # noqa: PLC0415 (it imports TVM)

    if llm is None:
        return None
    adviser = adviser_for(tuned, llm, budget=budget, say=say)
    return Guide(adviser.first(), adviser.expand)


def adviser_for(
    tuned: Tuned,
    llm: str,
    *,
    rounds: int = 3,
    budget: str | None = None,
    history: bool = True,
    path: Path | None = None,
    say: Say = lambda _: None,
) -> Adviser:
    """Return a language model that is asked about an operator.

    Parameters
    ----------
    tuned : Tuned
        Operator, rule and machine.
    llm, budget : str
        Who answers, as on the command line, and what that may cost.
    rounds : int
        Answers in a row to one question, at most.
    history : bool
        Whether it is told what was measured.
    path : Path, optional
        Of the first conversation's transcript.
    say : callable
        Told of every round.

    Raises
    ------
    QimengError
        If the client cannot be used.
    """
    from qimeng_tvm.generate.adviser import Adviser  # noqa: PLC0415 (only where a model is asked)
    from qimeng_tvm.llm import choose_client  # noqa: PLC0415
    from qimeng_tvm.llm.budget import Metered  # noqa: PLC0415
    from qimeng_tvm.llm.settings import budget_of  # noqa: PLC0415

    client = Metered(choose_client(llm, say), budget_of(budget), path.with_suffix(".log") if path is not None else None)
    return Adviser(tuned, client, rounds, history, path, say)


def proposal_for(
    tuned: Tuned,
    llm: str | None = None,
    *,
    rounds: int = 3,
    budget: str | None = None,
    path: Path | None = None,
    say: Say = lambda _: None,
) -> Proposal:
    """Return what is worth trying of an operator's decisions, as the analytic model or a language model has it.

    A language model whose answers are all refused is told of, and the analytic proposal takes its place.

    Raises
    ------
    QimengError
        If the client cannot be used, or gives no answer.
    """
    from qimeng_tvm.schedule.analytic import analytic_proposal  # noqa: PLC0415

    if llm is None:
        return analytic_proposal(tuned.task)
    return adviser_for(tuned, llm, rounds=rounds, budget=budget, path=path, say=say).first()
