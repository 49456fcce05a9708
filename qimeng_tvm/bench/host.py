"""Where a system runs: in this process, or in a child of its own."""

from __future__ import annotations

import os
import pickle
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qimeng_tvm.bench.data import load_inputs, load_reference
from qimeng_tvm.bench.systems import BenchError, Refusal, System, Variant, variants
from qimeng_tvm.bench.timing import pin, spread, time_calls

# A call slower than this is not repeated to warm the caches: its operands do not stay there anyway.
_WARM_BELOW_SECONDS = 0.1
_TRY_SECONDS = 0.1
_SLOW_SECONDS = 0.5
#: Calls that tell whether a library is worse off with its threads bound, and by what factor it must be.
_SETTLE, _WORSE = 15, 1.15
# Left over from the caller's settings, these would hold a library back; threads are set by each system itself.
_SCRUBBED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "TVM_NUM_THREADS",
             "OPENBLAS_CORETYPE", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A system is ready for a case.

    Attributes
    ----------
    wrong : bool
        No variant gave the right answer; the fastest wrong one is timed, for the record.
    error : float
        Its largest error in units of the tolerance.
    label, note : str
        Of the variant that is timed.
    out_dtype : str
        Type of its answer.
    extra : Mapping[str, Any]
        Further keys of the row.
    """

    wrong: bool
    error: float
    label: str
    note: str
    out_dtype: str
    extra: Mapping[str, Any] = field(default_factory=dict)


class Answer(Protocol):
    """What is right for a case."""

    def error(self, answer: np.ndarray[Any, Any], quantum: float = 0.0) -> float:
        """Return the largest error in units of what is tolerated: over 1 is wrong."""
        ...


class Host(Protocol):
    """Runs one system; one case at a time."""

    def open(self, request: Any, folder: Path, threads: int, cores: Sequence[int]) -> Opened | Refusal:
        """Prepare, check and choose a variant; operands are in ``folder``."""
        ...

    def sample(self, inner: int) -> float:
        """Make one unmeasured call and ``inner`` measured ones; return the seconds of one."""
        ...

    def close_case(self) -> None:
        """Let go of the case."""
        ...

    def shutdown(self) -> None:
        """Let go of everything."""
        ...


def fetch_answer(variant: Variant) -> np.ndarray[Any, Any]:
    """Call once and return the answer as an array."""
    result = variant.call()
    return np.asarray(variant.fetch(result) if variant.fetch else result)


def choose(offered: Sequence[Variant], ref: Answer) -> tuple[Variant, float, Opened]:
    """Check every variant and return the fastest right one, or the fastest wrong one when none is right.

    The number in the middle is about how many seconds a call of it takes.
    """
    found: list[tuple[bool, float, int, Opened]] = []
    failures: list[str] = []
    for index, variant in enumerate(offered):
        try:
            start = time.perf_counter()
            answer = fetch_answer(variant)
            seconds = time.perf_counter() - start
            if seconds < _SLOW_SECONDS:  # a second call on the used output: it must overwrite, not add
                answer = fetch_answer(variant)
            error = ref.error(answer, variant.quantum)
            if seconds < _SLOW_SECONDS:  # else the first call says enough
                seconds = variant_seconds(variant.call)
        except Exception as failure:  # a library may refuse one variant in any way, and do another
            failures.append(f"{variant.label or 'call'}: {type(failure).__name__}: {first_line(failure)}")
            continue
        opened = Opened(error > 1.0, error, variant.label, variant.note, str(answer.dtype), dict(variant.extra))
        found.append((opened.wrong, seconds, index, opened))
    if not found:
        raise BenchError("; ".join(failures))
    best = min(found, key=lambda item: item[:3])
    return offered[best[2]], best[1], best[3]


def variant_seconds(call: Callable[[], Any], budget: float = _TRY_SECONDS) -> float:
    """Return the fastest of a few calls, within about ``budget`` seconds."""
    best, spent, count = float("inf"), 0.0, 0
    while spent < budget and count < 50:
        seconds = time_calls(call, 1)
        best, spent, count = min(best, seconds), spent + seconds, count + 1
    return best


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else "no message")[:200]


class LocalHost:
    """Runs a system in this process; the child process is built around one of these too."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._call: Callable[[], Any] | None = None
        self._seconds = 0.0

    def prepare(self, request: Any, folder: Path, threads: int, cores: Sequence[int]) -> tuple[Variant, ...] | Refusal:
        """Load the operands and have the system prepare."""
        inputs = getattr(self._system, "inputs", load_inputs)(folder)
        pin(cores)  # the case before may have left fewer, and pools are made for the cores there are
        offer = variants(self._system.prepare(request, inputs, threads))
        pin(cores)  # after the pools are made, so that their threads move too
        return offer

    def accept(self, offered: Sequence[Variant], folder: Path) -> Opened:
        """Check and choose."""
        reference: Answer = getattr(self._system, "reference", load_reference)(folder)
        variant, self._seconds, opened = choose(offered, reference)
        self._call = variant.call
        return opened

    def open(self, request: Any, folder: Path, threads: int, cores: Sequence[int]) -> Opened | Refusal:
        """See :class:`Host`."""
        offered = self.prepare(request, folder, threads, cores)
        return offered if isinstance(offered, Refusal) else self.accept(offered, folder)

    def sample(self, inner: int) -> float:
        """See :class:`Host`."""
        if self._call is None:
            raise BenchError("no case is open")
        if self._seconds < _WARM_BELOW_SECONDS:
            self._call()
        return time_calls(self._call, inner)

    def settle(self, cores: Sequence[int]) -> None:
        """Keep the caller and the library's pool on cores of their own, unless that is clearly slower.

        To be called after the first calls: a thread made later would be bound like its maker. A library with more
        threads than cores (two OpenMP runtimes, say) is better off unbound.
        """
        if self._call is None or len(cores) < 2:
            return
        # Twice: what another process takes at that moment must not decide how all of a case is timed.
        for _ in range(2):
            free = self._median_seconds()
            spread(cores)
            if self._median_seconds() <= _WORSE * free:
                return
            pin(cores)

    def _median_seconds(self) -> float:
        """Return the median of a few calls."""
        call = self._call
        assert call is not None
        repeats = _SETTLE if self._seconds < _SLOW_SECONDS else 1
        return statistics.median(time_calls(call, 1) for _ in range(repeats))

    def close_case(self) -> None:
        """See :class:`Host`."""
        self._call = None

    def shutdown(self) -> None:
        """See :class:`Host`."""
        self._call = None


class RemoteHost:
    """Runs a system in a child process that times itself, a turn at a time, when told to.

    Between its turns the child is stopped (SIGSTOP): threads of its pool that spin while idle would otherwise take
    cores from whoever is being timed.
    """

    def __init__(self, system: System, answer_seconds: float = 60.0) -> None:
        self._system = system
        self._answer_seconds = answer_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._log: Any = None

    def open(self, request: Any, folder: Path, threads: int, cores: Sequence[int]) -> Opened | Refusal:
        """See :class:`Host`."""
        limit = float(getattr(self._system, "prepare_seconds", 300.0))
        refused = self._ask("prepare", (request, str(folder), threads, list(cores)), limit)
        if isinstance(refused, Refusal):
            return refused
        opened = self._ask("accept", (str(folder),), self._answer_seconds)
        assert isinstance(opened, Opened)
        return opened

    def sample(self, inner: int) -> float:
        """See :class:`Host`."""
        return float(self._ask("sample", (inner,), self._answer_seconds))

    def close_case(self) -> None:
        """See :class:`Host`."""
        if self._child is None:
            return
        if getattr(self._system, "once", False):
            self.shutdown()
        else:
            self._ask("close_case", (), self._answer_seconds)

    def shutdown(self) -> None:
        """See :class:`Host`."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()  # SIGKILL reaches a stopped process too; it holds nothing worth keeping
        child.wait()
        for stream in (child.stdin, child.stdout, self._log):
            if stream is not None:
                stream.close()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k not in _SCRUBBED}
        extra = getattr(self._system, "environment", None)
        environment.update(extra() if extra is not None else {})
        environment["PYTHONPATH"] = os.pathsep.join([p for p in sys.path if p])  # the package need not be installed
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        child = subprocess.Popen(
            [sys.executable, "-c", "from qimeng_tvm.bench.child import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            bufsize=0,
        )
        self._child = child
        self._ask("system", (self._system,), self._answer_seconds)
        return child

    def _ask(self, command: str, arguments: tuple[Any, ...], limit: float) -> Any:
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.send_signal(signal.SIGCONT)
            message = pickle.dumps((command, arguments))
            _write(child.stdin.fileno(), len(message).to_bytes(8, "little") + message)
            reply = _read_message(child.stdout.fileno(), time.monotonic() + limit)
        except TimeoutError:
            self.shutdown()
            raise BenchError(f"gave no answer to {command!r} in {limit:.0f} s and was ended") from None
        except (EOFError, BrokenPipeError) as error:
            raise BenchError(f"its process died during {command!r}: {self._last_words(child)}") from error
        child.send_signal(signal.SIGSTOP)
        status, value = reply
        if status != "ok":
            raise BenchError(str(value))
        return value

    def _last_words(self, child: subprocess.Popen[bytes]) -> str:
        code = child.wait(timeout=10)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        self.shutdown()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{cause}: {lines[-1][:200]}" if lines else cause


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_exactly(descriptor: int, size: int, deadline: float) -> bytes:
    chunks = bytearray()
    while len(chunks) < size:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        chunk = os.read(descriptor, size - len(chunks))
        if not chunk:
            raise EOFError
        chunks += chunk
    return bytes(chunks)


def _read_message(descriptor: int, deadline: float) -> tuple[str, Any]:
    size = int.from_bytes(_read_exactly(descriptor, 8, deadline), "little")
    # The bytes come from our own child through a private pipe.
    status, value = pickle.loads(_read_exactly(descriptor, size, deadline))
    return status, value


def host_for(system: System) -> Host:
    """Return the host that a system asks for."""
    if not getattr(system, "isolated", False):
        return LocalHost(system)
    return RemoteHost(system, float(getattr(system, "answer_seconds", 60.0)))
