"""Run code that may crash, hang or misbehave in a separate confined process, and get an ordinary answer back."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cloudpickle

from qimeng_tvm.check._server import HEADER
from qimeng_tvm.errors import CheckError

Kind = Literal["ok", "error", "crash", "timeout", "memory", "refused"]
Payload = tuple[Any, ...] | Mapping[str, Any]
GIB = 1 << 30

_MEANING = {
    "SIGSEGV": "invalid memory access: an index outside a buffer, a wrong stride or offset, "
    "or an aligned vector access to a pointer that is not aligned",
    "SIGBUS": "invalid memory access: misaligned, or beyond the end of a file",
    "SIGILL": "illegal instruction: compiled for a CPU feature that this machine lacks",
    "SIGABRT": "the process gave up: LLVM or TVM hit an internal error, such as an intrinsic the target has no "
    "instruction for, or the heap was found damaged",
    "SIGFPE": "arithmetic fault: an integer division by zero",
    "SIGKILL": "killed from outside, most often by the system because memory ran out",
    "SIGXCPU": "used up its processor time",
    "SIGSYS": "made a system call that is not allowed",
}


def signal_meaning(name: str) -> str:
    """Say what a process most likely died of."""
    return _MEANING.get(name, "killed by a signal")


# What a stack dump says about the interpreter helps nobody who wrote a kernel.
_NOISE = re.compile(r'File "(Objects|Python|Modules|Parser|\./|<unknown>|\./Include)|_start|libc_sigaction')
_NO_MEMORY = re.compile(r"bad_alloc|MemoryError|out of memory|cannot allocate memory", re.IGNORECASE)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What a worker may use.

    Attributes
    ----------
    memory_bytes : int
        Address space, libraries included (TVM alone maps about 1 GiB).
    file_bytes : int
        Largest file it may write.
    open_files, processes : int
        File descriptors; processes and threads (in force where there is a user namespace).
    reply_bytes : int
        Largest answer, pickled.
    """

    memory_bytes: int = 8 * GIB
    file_bytes: int = GIB // 4
    open_files: int = 512
    processes: int = 512
    reply_bytes: int = GIB // 2


@dataclass(frozen=True)
class Outcome:
    """What came of a call in a worker.

    Attributes
    ----------
    kind : str
        ``ok``; ``error`` (it raised); ``crash`` (the process died); ``timeout``; ``memory`` (over the limit);
        ``refused`` (the request or the answer could not be carried).
    value : Any
        What the function returned, when ``ok``.
    message : str
        Short, fit to be shown or fed back: the exception, or the signal with its likely meaning and the last
        lines of standard error.
    seconds : float
        Wall time of the call.
    confinement : tuple of str
        Which of the confinement measures were in force.
    """

    kind: Kind
    value: Any = None
    message: str = ""
    seconds: float = 0.0
    confinement: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the call returned."""
        return self.kind == "ok"


_PLAIN = frozenset(
    {
        *(("builtins", name) for name in ("complex", "set", "frozenset", "bytearray", "range", "slice")),
        *(("numpy", name) for name in ("ndarray", "dtype")),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    }
)


class _ReplyUnpickler(pickle.Unpickler):
    """Read plain data, arrays and this package's own dataclasses; the other side may be hostile."""

    def find_class(self, module: str, name: str) -> Any:
        # A dotted name would reach through an allowed module to whatever that one imports.
        if "." not in name:
            if (module, name) in _PLAIN or module == "numpy.dtypes":
                return super().find_class(module, name)
            if module == "ml_dtypes" or module.partition(".")[0] == "qimeng_tvm":
                found = super().find_class(module, name)
                if isinstance(found, type) and (module == "ml_dtypes" or _is_record(found)):
                    return found
        raise pickle.UnpicklingError(f"the answer holds a {module}.{name}; return plain data, arrays or dataclasses")


def _is_record(found: type) -> bool:
    return hasattr(found, "__dataclass_fields__") or issubclass(found, Enum)


def clean_environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a worker: where programs and libraries are, its folder, nothing else."""
    keep = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CONDA_PREFIX")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    env.update({name: str(folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")})
    # Memory from malloc comes filled with 0xfe: what is read before it is written is not a zero by luck.
    env["MALLOC_PERTURB_"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    for name, value in (extra or {}).items():
        if _SECRET.search(name):
            raise CheckError(f"a worker's environment must not hold {name}: pass what it needs as an argument")
        env[name] = value
    return env


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill a worker with everything it started, and remove its folder."""
    if process.poll() is None:
        # First by hand: without a process namespace, a child in a session of its own escapes the group.
        strays = _descendants(process.pid)
        for signaller, target in ((os.killpg, process.pid), *((os.kill, stray) for stray in strays)):
            with suppress(ProcessLookupError, PermissionError):
                signaller(target, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


class _Gone(Exception):
    """The other side ended or did not answer in time."""

    def __init__(self, timed_out: bool) -> None:
        super().__init__()
        self.timed_out = timed_out


class _Process:
    """One life of a worker: the process, its socket and its folder."""

    def __init__(self, limits: Limits, preload: tuple[str, ...], env: Mapping[str, str] | None, namespaces: bool):
        self.folder = Path(tempfile.mkdtemp(prefix="qimeng-worker-"))
        self.errors = self.folder / ".stderr"
        self.limits = limits
        ours, theirs = socket.socketpair()
        config = {
            "limits": asdict(limits),
            "path": [p for p in sys.path if p],
            "preload": preload,
            "folder": str(self.folder),
            "namespaces": namespaces,
        }
        script = Path(__file__).with_name("_server.py")
        try:
            with theirs, open(self.folder / ".stdout", "ab") as out, open(self.errors, "ab") as err:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", str(script), str(theirs.fileno()), json.dumps(config)],
                    stdin=subprocess.PIPE,  # held open: when this process dies, the worker's supervisor sees it close
                    stdout=out,
                    stderr=err,
                    cwd=self.folder,
                    env=clean_environment(self.folder, env),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except (OSError, CheckError) as error:
            ours.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise CheckError(f"cannot start a worker process: {error}") from error
        self.sock = ours
        self.end = weakref.finalize(self, _end, self.process, self.folder)

    def send(self, data: bytes, deadline: float) -> None:
        view = memoryview(HEADER.pack(len(data)) + data)
        while view:
            try:
                self.sock.settimeout(self._slice(deadline))
                view = view[self.sock.send(view[: 1 << 20]) :]
            except TimeoutError:
                continue
            except OSError:
                raise _Gone(timed_out=False) from None

    def receive(self, deadline: float) -> bytes:
        (size,) = HEADER.unpack(self._exactly(HEADER.size, deadline))
        # The server keeps to the limit; a larger header means that something else wrote to the socket.
        if size > self.limits.reply_bytes + (1 << 16):
            raise pickle.UnpicklingError(f"an answer of {size} bytes was announced, over the limit")
        return self._exactly(size, deadline)

    def _exactly(self, count: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                self.sock.settimeout(self._slice(deadline))
                piece = self.sock.recv(min(count - len(parts), 1 << 20))
            except TimeoutError:
                if self.process.poll() is not None:
                    raise _Gone(timed_out=False) from None
                continue
            except OSError:
                raise _Gone(timed_out=False) from None
            if not piece:
                raise _Gone(timed_out=False)
            parts += piece
        return bytes(parts)

    @staticmethod
    def _slice(deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Gone(timed_out=True)
        return min(left, 0.2)  # look now and then whether the process still lives

    def clear_output(self) -> None:
        """Forget what earlier calls printed (the files are in append mode)."""
        for name in (".stdout", ".stderr"):
            with suppress(OSError):
                os.truncate(self.folder / name, 0)

    def last_words(self, lines: int = 8) -> str:
        """Return the last lines of standard error that say something."""
        with suppress(OSError), open(self.errors, "rb") as f:
            f.seek(max(0, self.errors.stat().st_size - 16384))
            text = f.read().decode(errors="replace").splitlines()
            return "\n".join([line[:300] for line in text if line.strip() and not _NOISE.search(line)][-lines:])
        return ""

    def close(self) -> None:
        self.sock.close()
        self.end()


class Worker:
    """A confined process that answers calls one after another.

    It starts at the first call (or ``start()``), imports ``preload`` once, and is replaced by a fresh one after a
    crash, a timeout or running out of memory. One caller at a time; several workers may be used at once.

    Parameters
    ----------
    limits : Limits
        What it may use.
    preload : tuple of str
        Modules to import at the start.
    env : mapping, optional
        Variables to add to its otherwise clean environment.
    namespaces : bool
        Ask the kernel for user, network and process namespaces (fewer where it refuses: see ``confinement``).
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        preload: tuple[str, ...] = ("tvm",),
        env: Mapping[str, str] | None = None,
        namespaces: bool = True,
        start_timeout: float = 120.0,
    ) -> None:
        self._limits = limits or Limits()
        self._preload = tuple(preload)
        self._env = dict(env or {})
        self._namespaces = namespaces
        self._start_timeout = start_timeout
        self._lock = threading.Lock()
        self._process: _Process | None = None
        #: Confinement measures in force in the latest process.
        self.confinement: tuple[str, ...] = ()
        #: How many processes this worker has used.
        self.starts = 0

    def start(self) -> None:
        """Start the process now.

        Raises
        ------
        CheckError
            If it cannot be started or cannot import ``preload``.
        """
        with self._lock:
            self._ready()

    def call(self, function: str | Callable[..., Any], payload: Payload = (), timeout: float = 60.0) -> Outcome:
        """Call ``function`` with ``payload`` (positional or named arguments) in the worker.

        Parameters
        ----------
        function : str or callable
            ``"module:function"``, or something cloudpickle can carry.
        payload : tuple or mapping
            Its arguments.
        timeout : float
            Wall seconds; then the worker and all it started are killed.
        """
        with self._lock:
            cpu_seconds = int(timeout * (os.cpu_count() or 1)) + 1
            try:
                if not isinstance(payload, (tuple, Mapping)):
                    raise TypeError("the payload must be a tuple or a mapping of arguments")
                body = cloudpickle.dumps((function, payload, cpu_seconds))
            except Exception as error:  # objects decide themselves what their pickling raises
                return Outcome("refused", message=f"the call cannot be sent: {type(error).__name__}: {error}")
            process = self._ready()
            process.clear_output()
            start = time.monotonic()
            outcome = self._exchange(process, body, start + timeout, timeout)
            if outcome.kind in ("crash", "timeout", "memory"):
                outcome = replace(outcome, seconds=time.monotonic() - start)
            return replace(outcome, confinement=self.confinement)

    def close(self) -> None:
        """End the process and remove its folder. A later call starts a new one."""
        with self._lock:
            self._drop()

    def abort(self) -> None:
        """Kill the process at once, from another thread: a call under way answers that it was killed."""
        process = self._process
        if process is not None:
            process.end()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _drop(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _ready(self) -> _Process:
        if self._process is not None and self._process.process.poll() is None:
            return self._process
        self._drop()
        process = _Process(self._limits, self._preload, self._env, self._namespaces)
        try:
            kind, value, message, _ = _load(process.receive(time.monotonic() + self._start_timeout))
        except (_Gone, pickle.UnpicklingError) as error:
            words = process.last_words()
            process.close()
            late = isinstance(error, _Gone) and error.timed_out
            reason = f"no sign of life in {self._start_timeout:g} s" if late else "it ended at once"
            raise CheckError(f"a worker process did not start ({reason}): {words}") from None
        if kind != "ok":
            process.close()
            raise CheckError(f"a worker process cannot import {', '.join(self._preload)}: {message}")
        self._process, self.confinement = process, tuple(value)
        self.starts += 1
        return process

    def _exchange(self, process: _Process, body: bytes, deadline: float, timeout: float) -> Outcome:
        try:
            process.send(body, deadline)
            kind, value, message, seconds = _load(process.receive(deadline))
        except _Gone as gone:
            outcome = self._post_mortem(process, gone, timeout)
            self._drop()
            return outcome
        except BaseException as error:
            # Out of step with the other side, whatever the reason (Ctrl-C included): begin afresh.
            self._drop()
            if isinstance(error, pickle.UnpicklingError):
                return Outcome("refused", message=str(error))
            raise
        if kind == "memory":
            self._drop()
            message = f"over the memory limit of {self._limits.memory_bytes / GIB:.3g} GiB: {message}"
        return Outcome(kind, value, message, seconds)

    def _post_mortem(self, process: _Process, gone: _Gone, timeout: float) -> Outcome:
        if gone.timed_out:
            return Outcome("timeout", message=_join(f"no answer within {timeout:g} s", process.last_words()))
        try:
            code = process.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return Outcome("crash", message=_join("the worker closed its line", process.last_words()))
        words = process.last_words()
        if code >= 0:
            return Outcome(
                "crash", message=_join(f"the process left with exit status {code}, without an answer", words)
            )
        name = signal.Signals(-code).name
        kind: Kind = "timeout" if name == "SIGXCPU" else "crash"
        if name == "SIGKILL" or _NO_MEMORY.search(words):
            kind = "memory"
        return Outcome(kind, message=_join(f"{name} ({signal_meaning(name)})", words))


def run_confined(
    function: str | Callable[..., Any],
    payload: Payload = (),
    timeout: float = 60.0,
    limits: Limits | None = None,
    *,
    preload: tuple[str, ...] = (),
) -> Outcome:
    """Carry out one call in a confined process of its own."""
    with Worker(limits, preload=preload) as worker:
        return worker.call(function, payload, timeout)


def _join(head: str, words: str) -> str:
    return f"{head}\nlast lines of standard error:\n{words}" if words else head


def _load(data: bytes) -> tuple[Kind, Any, str, float]:
    try:
        kind, value, message, seconds = _ReplyUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        raise pickle.UnpicklingError(f"the answer cannot be read: {type(error).__name__}: {error}") from None
    return kind, value, message, seconds
