"""``run``: one line of text to a checked operator in a folder. The command line is a thin skin over this."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from qimeng_tvm.check.numbers import NumbersReport
from qimeng_tvm.check.timing import sanity
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.compiler import LIBRARY, Compiled, compile_task, export_library
from qimeng_tvm.errors import BuildError, HardwareError, UsageError
from qimeng_tvm.hardware import Hardware, configure_threads, measured, target_of
from qimeng_tvm.intrin.registry import only
from qimeng_tvm.llm.budget import Budget
from qimeng_tvm.llm.messages import Client
from qimeng_tvm.measure import RUN_PEERS, measure_beside
from qimeng_tvm.operators import flops, prim_func
from qimeng_tvm.request import Request, check_memory, parse
from qimeng_tvm.result import RunResult, write_artifact
from qimeng_tvm.schedule.apply import Task, make_task
from qimeng_tvm.verify import OperatorSpec, check_code, check_numbers

if TYPE_CHECKING:
    from qimeng_tvm.search import TuneResult

#: Measured trials when neither the line nor the caller says.
DEFAULT_TRIALS = 32
#: Spread of an operator's times up to which it may lie above the peak: on a busy machine they differ without bounds.
RESTLESS = 0.5

Progress = Callable[[str], None]


def default_database() -> Path:
    """Folder of the tuning records when none is given."""
    return Path(platformdirs.user_data_dir("qimeng_tvm")) / "records"


def task_of(request: Request, hardware: Hardware, threads: int) -> Task:
    """Return the task of a request.

    Raises
    ------
    UsageError
        If the machine has no micro-kernel for the dtypes.
    """
    task = _task(request, hardware, threads)
    if task is None:
        raise UsageError(
            f"{hardware.name} has no micro-kernel for {request.a_dtype} x {request.b_dtype} "
            f"({hardware.isa}): choose another dtype, or add a family under tensorize_intrins/{hardware.isa}"
        )
    return task


def _task(request: Request, hardware: Hardware, threads: int) -> Task | None:
    _, func = prim_func(request, target_of(hardware, threads))
    return make_task(func, hardware, threads)


def run(
    line: str | Request,
    *,
    trials: int | None = None,
    threads: int | None = None,
    out: str | os.PathLike[str] | None = None,
    database: str | os.PathLike[str] | None = None,
    peers: Sequence[str] | None = None,
    seed: int = 0,
    llm: Client | None = None,
    fresh: bool = False,
    rounds: int = 4,
    budget: Budget | None = None,
    progress: Progress | None = None,
    bar: Any = None,
) -> RunResult:
    """Make the operator that a line asks for: schedule, tune, compile, check, measure, write.

    Parameters
    ----------
    line : str or Request
        ``"bf16 GEMM 1024x1024x1024 on this CPU"``.
    trials : int, optional
        Measured trials; overrides the line's, which overrides 32. With 0 nothing is tuned.
    threads : int, optional
        Cores; overrides the line's, which overrides 1.
    out : path, optional
        Folder of the artifact; ``qimeng-out/<name>`` by default.
    database : path, optional
        Folder of the tuning records.
    peers : sequence of str, optional
        Libraries to compare with; empty for none.
    seed : int
        Of the search.
    llm : Client, optional
        Writes a micro-kernel family when none that there is fits; see :func:`qimeng_tvm.llm.choose_client`.
    fresh : bool
        Have one written even though there is one that fits, and use it alone.
    rounds : int
        Answers in a row, at most.
    budget : Budget, optional
        What the answers may cost; no limit by default.
    progress : callable, optional
        Called with one line at the start of every stage.
    bar : callable, optional
        Called during tuning; see :func:`qimeng_tvm.search.tune`.

    Raises
    ------
    QimengError
        With one line that says what was wrong and what to do.
    """
    say = progress or (lambda text: None)
    if fresh and llm is None:
        raise UsageError("a fresh family needs somebody to write it: say who with --llm")
    request = parse(line) if isinstance(line, str) else line
    hardware = machine_of(request)
    count = checked_threads(threads or request.threads or 1, hardware)
    wanted = next(n for n in (trials, request.trials, DEFAULT_TRIALS) if n is not None)
    if wanted < 0:
        raise UsageError(f"{wanted} trials asked for; 0 or more are needed")
    request = replace(request, threads=count, trials=wanted)
    check_memory(request, hardware.memory_bytes)
    folder = _folder(Path(out) if out is not None else Path("qimeng-out") / slug(request))
    say(f"measuring the peak of {hardware.name}")
    hardware = measured(hardware)
    with only(_written(request, hardware, count, llm, fresh, rounds, budget, say)):
        return _run(request, hardware, folder, database, peers, seed, say, bar)


def _written(
    request: Request,
    hardware: Hardware,
    threads: int,
    llm: Client | None,
    fresh: bool,
    rounds: int,
    budget: Budget | None,
    say: Progress,
) -> tuple[str, ...]:
    """Have a family written if one is wanted; return the keys that the operator is to be made of, none for any."""
    if llm is None or not (fresh or _task(request, hardware, threads) is None):
        return ()
    from qimeng_tvm.generate.fresh import fresh_family  # noqa: PLC0415 (only where a model is asked)

    say(f"having a family written by {llm.name}")
    return (fresh_family(request, hardware, llm, rounds=rounds, budget=budget, say=say),)


def _run(
    request: Request,
    hardware: Hardware,
    folder: Path,
    database: str | os.PathLike[str] | None,
    peers: Sequence[str] | None,
    seed: int,
    say: Progress,
    bar: Any,
) -> RunResult:
    count, wanted = request.threads or 1, request.trials or 0
    task = task_of(request, hardware, count)
    configure_threads(count)
    records = Path(database) if database is not None else default_database()
    found = _tune(task, wanted, records, seed, say, bar) if wanted else None
    compiled, library, numbers = _checked(task, found, records, folder, request, say)
    code = check_code(compiled, library)
    say("measuring beside the libraries")
    sample, peak, others = measure_beside(
        request, hardware, count, compiled, RUN_PEERS if peers is None else tuple(peers)
    )
    best = max((p.gflops for p in others if p.gflops), default=None)
    spread = min(sample.spread, RESTLESS)
    verdict = sanity(sample.seconds_median, flops(request), peak, best, peak_spread=spread)
    result = RunResult(
        request=request,
        hardware=hardware,
        threads=count,
        rule=f"{task.rule.name}@{task.rule.version}",
        family=str(compiled.values.get("family", "")),
        intrins=compiled.intrins,
        decisions=compiled.values,
        trials=found.trials if found is not None else 0,
        seconds=sample.seconds_median,
        gflops=verdict.gflops,
        peak_gflops=peak,
        pct_of_peak=min(verdict.pct_of_peak, 100.0) if verdict.believed else verdict.pct_of_peak,
        numbers=numbers,
        code=code,
        timing=verdict,
        peers=others,
        artifact=folder.resolve(),
    )
    write_artifact(folder, result, compiled)
    return result


def slug(request: Request) -> str:
    """A folder name for a request."""
    shape = "x".join(str(x) for x in (request.m, request.n, request.k))
    layout = ("t" if request.transpose_a else "n") + ("t" if request.transpose_b else "n")
    parts = [request.operator, request.a_dtype, request.b_dtype, request.out_dtype, layout]
    parts += [f"b{request.batch}"] if request.batch > 1 else []
    parts += [shape, *(["const"] if request.constant_b else []), *request.epilogue, f"t{request.threads or 1}"]
    return "-".join(parts)


def machine_of(request: Request) -> Hardware:
    """Return this machine, which must be the one that a request names.

    Raises
    ------
    UsageError
        If it names another one, or none that is known.
    """
    try:
        hardware = Hardware.load(request.hardware)
    except HardwareError as error:
        raise UsageError(str(error)) from error
    host = Hardware.host()
    if hardware.fingerprint != host.fingerprint:
        raise UsageError(f"{request.hardware} is not this machine, and run measures what it makes: say 'on this CPU'")
    return host


def checked_threads(count: int, hardware: Hardware) -> int:
    """Return a number of cores that this process may use.

    Raises
    ------
    UsageError
        If it may not.
    """
    if not 1 <= count <= hardware.cores:
        raise UsageError(f"{count} threads asked for, but this process may use 1 to {hardware.cores} cores")
    return count


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BuildError(
            f"cannot write to {folder}: {error.strerror or error}; give another folder with --out"
        ) from error
    return folder


def _tune(task: Task, trials: int, database: Path, seed: int, say: Progress, bar: Any) -> TuneResult:
    from qimeng_tvm.search import tune  # noqa: PLC0415 (xgboost and MetaSchedule are needed only here)

    say(f"tuning {task.rule.name}, {trials} trials")
    found = tune(task, trials, database, task.hardware, task.info.threads, seed, bar)
    if found.stopped:
        say(f"{found.stopped}: {found.resume}")
    return found


def _checked(
    task: Task, found: TuneResult | None, database: Path, folder: Path, request: Request, say: Progress
) -> tuple[Compiled, Path, NumbersReport]:
    """Compile the best decisions and check their numbers; a record that fails is marked and the defaults take over."""
    from qimeng_tvm.search import RecordDatabase  # noqa: PLC0415 (as above)

    record = found.record if found is not None else None
    with Worker(preload=("tvm",)) as worker:
        while True:
            say("compiling")
            compiled = compile_task(task, record.decisions if record is not None else None)
            library = export_library(compiled.library, folder / LIBRARY)
            say("checking numbers and machine code")
            spec = OperatorSpec(str(library.resolve()), request, compiled.parameters, compiled.pack_parameters)
            numbers = check_numbers(worker, spec)
            if record is None:
                return compiled, library, numbers
            if numbers.ok:
                RecordDatabase(database).mark_verified(record)
                return compiled, library, numbers
            say(f"the fastest decisions compute wrong numbers ({numbers.message}); taking the analytic ones")
            RecordDatabase(database).mark_failed(record, numbers.message)
            record = None
