"""What runs in a worker for a board: link a candidate, and check and time it there over TVM's RPC."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tvm
from tvm import rpc

from qimeng_tvm.errors import BuildError, last_line
from qimeng_tvm.search.candidate import Built, Probe, Timing, case_of, check_and_time, compile_module

_GUARD = Path(__file__).with_name("guard.c")
_NAME = "candidate.so"
#: ``runtime.config_threadpool``: one thread a core, the fast cores first.
_FAST_CORES = 1


@dataclass(frozen=True)
class Exported:
    """A candidate as a shared library; ``packs`` and ``params`` as of :class:`~.candidate.Built`."""

    library: bytes
    packs: bool
    params: tuple[tuple[tuple[int, ...], str], ...]


def export(module: str, target: Mapping[str, Any], linker: str) -> Exported:
    """Compile a scheduled module (``save_json``) and link it for the machine that the linker is for.

    Raises
    ------
    BuildError
        If the linker refuses it.
    """
    built = compile_module(module, target)

    def link(output: str, objects: Any, **options: Any) -> None:
        both = [objects] if isinstance(objects, str) else list(objects)
        tvm.support.cc.create_shared(output, [*both, str(_GUARD)], cc=linker, **options)

    # TVM asks the function which object format it takes.
    link.output_format = "so"  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _NAME
        try:
            built.library.export_library(str(path), fcompile=link)
        except RuntimeError as error:
            raise BuildError(f"{linker} could not link a candidate: {str(error).strip().splitlines()[-1]}") from error
        return Exported(path.read_bytes(), built.packs, built.params)


def prepare(probe: Probe, target: Mapping[str, Any]) -> None:
    """Make inputs and expected output, with code for this machine, before a board is asked for."""
    case_of(probe, target)


def measure(
    address: tuple[str, int, str],
    exported: Exported,
    probe: Probe,
    target: Mapping[str, Any],
    threads: int,
    best: float,
    seconds: float,
) -> Timing:
    """Check and time a candidate in a session of a server.

    Parameters
    ----------
    address : (host, port, ticket)
        From the tracker.
    exported : Exported
        The candidate.
    probe, target
        What must come out; this machine's target, for :func:`prepare`.
    threads : int
        Cores of the board to use.
    best : float
        Seconds of the best so far; 0 when there is none.
    seconds : float
        After which the server ends the session.
    """
    case = case_of(probe, target)
    try:
        session = rpc.connect(*address, session_timeout=seconds)
    except Exception as error:  # TVM raises nearly anything for a server that is gone
        return Timing("lost", message=f"it cannot be connected to ({last_line(error)})")
    ready = False
    try:
        _use_threads(session, threads)
        session.upload(bytearray(exported.library), _NAME)
        built = Built(session.load_module(_NAME), exported.packs, exported.params)
        ready = True
        return check_and_time(built, probe, case, best, session.cpu())
    except Exception as error:  # what went wrong over there comes as any kind of error
        failure = _failure(error, seconds)
    if failure.kind != "error":
        return failure
    if not _answers(session):
        return Timing("lost", message="its session ended while the candidate ran: a crash, or it is gone")
    return failure if ready else replace(failure, kind="unfit")


def _use_threads(session: Any, threads: int) -> None:
    session.get_function("runtime.config_threadpool")(_FAST_CORES, threads)
    given = int(session.get_function("runtime.NumThreads")())
    if given < threads:
        raise RuntimeError(f"{given} threads where {threads} are asked for: start it with TVM_NUM_THREADS={threads}")


def _failure(error: Exception, seconds: float) -> Timing:
    if type(error).__name__ == "RPCSessionTimeoutError":
        return Timing("timeout", message=f"no answer within {seconds:g} s")
    return Timing("error", message=last_line(error))


def _answers(session: Any) -> bool:
    try:
        session.get_function("runtime.NumThreads")()
    except Exception:  # as above
        return False
    return True
