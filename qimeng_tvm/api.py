"""``run``: one line of text to a checked operator in a folder. The command line is a thin skin over this."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import tvm

from qimeng_tvm.bench.ceiling import NAME as CEILING
from qimeng_tvm.bench.ceiling import Ceiling
from qimeng_tvm.bench.ours import NAME, tensor_of, variant_of
from qimeng_tvm.bench.run import bench_gemm
from qimeng_tvm.bench.suite import DTYPES, make_case
from qimeng_tvm.bench.systems import CallableSystem, default_peers
from qimeng_tvm.bench.timing import Sample, interleave_calmly, time_calls
from qimeng_tvm.check.audit import AuditReport
from qimeng_tvm.check.numbers import NumbersReport
from qimeng_tvm.check.timing import TimingVerdict, sanity
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.compiler import (
    LIBRARY,
    Compiled,
    compile_task,
    export_library,
    header_text,
    loader_text,
)
from qimeng_tvm.errors import BuildError, HardwareError, UsageError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.hardware import Hardware, configure_threads, measured, target_of, to_json, use_threads
from qimeng_tvm.intrin.registry import only
from qimeng_tvm.llm.messages import Client
from qimeng_tvm.operators import flops, make_inputs, prim_func
from qimeng_tvm.request import Request, check_memory, describe, parse
from qimeng_tvm.schedule.apply import Task, make_task
from qimeng_tvm.verify import OperatorSpec, check_code, check_numbers

if TYPE_CHECKING:
    from qimeng_tvm.search import TuneResult

#: Measured trials when neither the line nor the caller says.
DEFAULT_TRIALS = 32
#: Libraries that ``run`` compares with (the rest only in ``qimeng bench``, where time is no matter).
RUN_PEERS = ("numpy_openblas", "onednn", "mkl", "onnxruntime")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Peer:
    """A library on the same operator."""

    name: str
    gflops: float | None
    seconds: float | None
    note: str = ""


@dataclass(frozen=True)
class RunResult:
    """What ``run`` made and measured.

    Attributes
    ----------
    request : Request
        As understood.
    hardware : Hardware
        The machine, with measured peaks.
    rule, family, decisions
        How the operator was scheduled.
    seconds, gflops : float
        Median time of a call, and what it amounts to.
    peak_gflops, pct_of_peak : float
        The machine's register-only loop, timed in turns with the operator, and the operator's share of it (0 to 100);
        0 when the machine has no such loop.
    numbers, code, timing
        Reports of the checks; ``verified`` and ``audited`` sum them up.
    peers : tuple of Peer
        The libraries present, interleaved with ours in the same run.
    artifact : Path
        Folder with the library, header, loader, trace, inner loop and ``run.json``.
    trials : int
        Measured trials behind the decisions; 0 for the analytic ones.
    """

    request: Request
    hardware: Hardware
    threads: int
    rule: str
    family: str
    intrins: tuple[str, ...]
    decisions: Mapping[str, int | str]
    trials: int
    seconds: float
    gflops: float
    peak_gflops: float
    pct_of_peak: float
    numbers: NumbersReport
    code: AuditReport
    timing: TimingVerdict
    peers: tuple[Peer, ...]
    artifact: Path

    @property
    def verified(self) -> bool:
        """The numbers are right and the time can be believed."""
        return self.numbers.ok and self.timing.believed

    @property
    def audited(self) -> bool:
        """The machine code is what it should be."""
        return self.code.ok

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints and ``run.json`` holds."""
        return {
            "request": {"text": describe(self.request), **asdict(self.request)},
            "hardware": to_json(self.hardware),
            "threads": self.threads,
            "rule": self.rule,
            "family": self.family,
            "intrins": list(self.intrins),
            "decisions": dict(self.decisions),
            "trials": self.trials,
            "seconds": self.seconds,
            "gflops": round(self.gflops, 3),
            "peak_gflops": round(self.peak_gflops, 3),
            "pct_of_peak": round(self.pct_of_peak, 2),
            "verified": self.verified,
            "audited": self.audited,
            "checks": {
                "numbers": {"kind": self.numbers.kind, "cases": self.numbers.cases, "message": self.numbers.message,
                            "error_ratio": self.numbers.error_ratio},
                "code": {"counts": dict(self.code.counts), "spills": self.code.spills,
                         "problems": list(self.code.problems)},
                "timing": {"kind": self.timing.kind, "message": self.timing.message},
            },
            "peers": [asdict(p) for p in self.peers],
            "artifact": str(self.artifact),
        }  # fmt: skip


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
    hardware = _machine(request)
    count = _threads(threads or request.threads or 1, hardware)
    wanted = next(n for n in (trials, request.trials, DEFAULT_TRIALS) if n is not None)
    if wanted < 0:
        raise UsageError(f"{wanted} trials asked for; 0 or more are needed")
    request = replace(request, threads=count, trials=wanted)
    check_memory(request, hardware.memory_bytes)
    folder = _folder(Path(out) if out is not None else Path("qimeng-out") / slug(request))
    say(f"measuring the peak of {hardware.name}")
    hardware = measured(hardware)
    with only(_written(request, hardware, count, llm, fresh, rounds, say)):
        return _run(request, hardware, folder, database, peers, seed, say, bar)


def _written(
    request: Request, hardware: Hardware, threads: int, llm: Client | None, fresh: bool, rounds: int, say: Progress
) -> tuple[str, ...]:
    """Have a family written if one is wanted; return the keys that the operator is to be made of, none for any."""
    if llm is None or not (fresh or _task(request, hardware, threads) is None):
        return ()
    from qimeng_tvm.generate.fresh import fresh_family  # noqa: PLC0415 (only where a model is asked)
    from qimeng_tvm.llm.settings import budget  # noqa: PLC0415

    say(f"having a family written by {llm.name}")
    return (fresh_family(request, hardware, llm, rounds=rounds, budget=budget(), say=say),)


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
    sample, peak, others = _measure(request, hardware, count, compiled, RUN_PEERS if peers is None else tuple(peers))
    best = max((p.gflops for p in others if p.gflops), default=None)
    verdict = sanity(sample.seconds_median, flops(request), peak, best, peak_spread=sample.spread)
    result = RunResult(
        request=request,
        hardware=hardware,
        threads=count,
        rule=f"{task.rule.name}@{task.rule.version}",
        family=str(compiled.values["family"]),
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


def _machine(request: Request) -> Hardware:
    try:
        hardware = Hardware.load(request.hardware)
    except HardwareError as error:
        raise UsageError(str(error)) from error
    host = Hardware.host()
    if hardware.fingerprint != host.fingerprint:
        raise UsageError(f"{request.hardware} is not this machine, and run measures what it makes: say 'on this CPU'")
    return host


def _threads(count: int, hardware: Hardware) -> int:
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


def _measure(
    request: Request, hardware: Hardware, threads: int, compiled: Compiled, peers: Sequence[str]
) -> tuple[Sample, float, tuple[Peer, ...]]:
    """Time the operator in turns with the machine's peak (GFLOP/s) and the libraries that compute the same thing."""
    dtypes = (request.a_dtype, request.b_dtype, request.out_dtype)
    key = next((name for name, known in DTYPES.items() if known == dtypes), None)
    if key is None or request.transpose_a or request.transpose_b or request.epilogue or not peers:
        return *_time_alone(request, hardware, compiled, threads), ()
    case = make_case(request.m, request.n, request.k, batch=request.batch, dtype=key, constant_b=request.constant_b)
    ours = CallableSystem(NAME, lambda _request, inputs, count: variant_of(compiled, inputs, count))
    result = bench_gemm([ours, *default_peers(peers)], [case], (threads,), hardware=hardware)
    row = next(r for r in result.rows if r.system == NAME)
    if row.seconds_median is None or row.seconds_min is None:
        raise BuildError(f"the operator could not be timed: {row.extra.get('note', 'no reason given')}")
    others = tuple(
        Peer(r.system, r.gflops if r.counts else None, r.seconds_median, str(r.extra.get("note", "")))
        for r in result.rows
        if r is not row
    )
    absent = result.versions.get("unavailable", {})
    others += tuple(Peer(name, None, None, str(reason)) for name, reason in dict(absent).items())
    sample = Sample(row.seconds_min, row.seconds_median, row.spread or 0.0, 0, 0)
    return sample, float(row.extra.get("peak_gflops", 0.0)), others


def _time_alone(request: Request, hardware: Hardware, compiled: Compiled, threads: int) -> tuple[Sample, float]:
    """Time the operator when no library computes the same thing in one call."""
    inputs = make_inputs(request, 0)
    arrays = [tensor_of(inputs[name]) for name in ("A", "B", "bias") if name in inputs]
    if compiled.operator.packs:
        room = compiled.pack_parameters[-1]
        packed = tvm.runtime.empty(room.shape, room.dtype)
        compiled["pack_b"](arrays[1], packed)
        arrays[1] = packed
    out = compiled.parameters[-1]
    c = tvm.runtime.empty(out.shape, out.dtype)
    main = compiled["main"]
    ceiling = Ceiling(hardware)
    with use_threads(threads, pin=True):
        ours = {NAME: lambda inner: time_calls(lambda: main(*arrays, c), inner)}
        loops = ceiling.samplers(request.a_dtype, threads)
        floors = ceiling.floors(request.a_dtype, threads)
        samples, _ = interleave_calmly(ours | loops, yardsticks=loops, floors=floors)
    found = samples[NAME]
    if isinstance(found, Exception):
        raise BuildError(f"the operator could not be timed: {found}") from found
    return found, ceiling.gflops(samples.get(CEILING), request.a_dtype, threads)


def write_artifact(folder: Path, result: RunResult, compiled: Compiled) -> None:
    """Write header, loader, trace, inner loop and ``run.json`` beside the library, each atomically."""
    texts = {
        "operator.h": header_text(compiled, result.request),
        "load.py": loader_text(compiled, result.request),
        "trace.json": compiled.trace + "\n",
        "inner_loop.s": result.code.inner_loop + "\n",
        "run.json": json.dumps(result.to_json(), indent=2) + "\n",
    }
    for name, text in texts.items():
        write_atomic(folder / name, text)
