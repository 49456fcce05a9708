"""The confined side of a worker. Run as a script, in isolated mode, before anything but the standard library.

It must be a script of its own: a user namespace can only be entered by a process with a single thread, and
importing TVM (which ``import qimeng_tvm`` may do) starts threads.

Three processes: the *supervisor* (ends everything when the caller dies, passes the server's end on), *init* of the
process namespace (when it ends the kernel kills every descendant), and the *server* that does the work. Where the
kernel refuses a process namespace there is no init, and the caller hunts the descendants itself.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pickle
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

HEADER = struct.Struct("<Q")
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_MESSAGE_LIMIT = 2000


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def enter_namespaces(wanted: bool = True) -> list[str]:
    """Leave the network, and this process tree, as far as the kernel allows; return what is in force."""
    if not wanted:
        return []
    uid, gid = os.getuid(), os.getgid()
    libc = _libc()
    # From the strongest to what an administrator without user namespaces still has.
    for flags in (_NEWUSER | _NEWNET | _NEWPID, _NEWUSER | _NEWNET, _NEWNET | _NEWPID, _NEWNET):
        if libc.unshare(flags) == 0:
            break
    else:
        return []
    if flags & _NEWUSER:
        # Identity map: the process keeps its own number, and has no rights outside.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with suppress(OSError), open(f"/proc/self/{name}", "w") as f:
                f.write(text)
    names = {_NEWUSER: "user-namespace", _NEWNET: "network-namespace", _NEWPID: "process-namespace"}
    return [name for bit, name in names.items() if flags & bit]


def set_limits(limits: Mapping[str, int], own_user: bool) -> None:
    """Set resource limits; never above a hard limit that is already lower."""
    wanted = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if own_user:
        # Counted per user namespace; without one it would count every process of this user.
        wanted[resource.RLIMIT_NPROC] = limits["processes"]
    for kind, value in wanted.items():
        _soft, hard = resource.getrlimit(kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (allowed, allowed))


def _limit_cpu(seconds: int) -> None:
    """Allow that much more processor time; the clock of the caller is the first guard, this the second."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    value = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (value, hard))


def _receive(sock: socket.socket) -> bytes | None:
    def exactly(count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            piece = sock.recv(min(count - len(parts), 1 << 20))
            if not piece:
                return None
            parts += piece
        return bytes(parts)

    head = exactly(HEADER.size)
    return None if head is None else exactly(HEADER.unpack(head)[0])


def _short(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    # TVM's messages begin with a stack; what went wrong comes last.
    text = "\n".join(lines[-8:])
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {text[-_MESSAGE_LIMIT:]}{where}" if text else f"{type(error).__name__}{where}"


def _resolve(function: Any) -> Any:
    if not isinstance(function, str):
        return function
    module, colon, name = function.partition(":")
    if not (module and colon and name):
        raise LookupError(f"{function!r} is not of the form 'module:function'")
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"no function {function!r}: {error}") from None
    return target


def _perform(body: bytes) -> tuple[str, Any, str, float]:
    """Carry out one request; return (kind, value, message, seconds)."""
    try:
        function, payload, cpu_seconds = pickle.loads(body)
        function = _resolve(function)
    except MemoryError:
        return "memory", None, "the arguments do not fit in the memory limit", 0.0
    except Exception as error:  # whatever unpickling or importing the caller's function raises is the answer
        return "refused", None, _short(error), 0.0
    _limit_cpu(cpu_seconds)
    start = time.perf_counter()
    try:
        value = function(**payload) if isinstance(payload, Mapping) else function(*payload)
    except MemoryError as error:
        return "memory", None, _short(error), time.perf_counter() - start
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # a failure of the work is an answer, not our end
        return "error", None, _short(error), time.perf_counter() - start
    return "ok", value, "", time.perf_counter() - start


def _pack(reply: tuple[str, Any, str, float], limit: int) -> bytes:
    kind, _value, _message, seconds = reply
    try:
        data = pickle.dumps(reply, protocol=5)
    except MemoryError:
        return pickle.dumps(("memory", None, "the answer does not fit in the memory limit", seconds))
    except Exception as error:  # an object's own __reduce__ may raise anything
        return pickle.dumps(("refused", None, f"the answer cannot be sent back: {_short(error)}", seconds))
    if kind == "ok" and len(data) > limit:
        text = f"the answer is {len(data)} bytes, over the limit of {limit}: return less"
        return pickle.dumps(("refused", None, text, seconds))
    return data


def _end_leftovers(own_processes: bool) -> None:
    """Kill whatever a call left running, so that it cannot disturb or fool the next one."""
    # kill(-1) reaches everything the caller may signal: only ever inside our own process namespace.
    if own_processes and os.getpid() == 2 and os.getppid() == 1:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve(sock: socket.socket, config: Mapping[str, Any], confinement: list[str]) -> None:
    """Answer requests until the caller hangs up."""
    set_limits(config["limits"], "user-namespace" in confinement)
    sys.path[:] = config["path"]
    # TVM imports PyTorch where it is installed: half of the start, for nothing that is done here.
    sys.modules["torch"] = None  # type: ignore[assignment]
    own_processes = "process-namespace" in confinement
    hello: tuple[str, Any, str, float]
    try:
        for module in config["preload"]:
            importlib.import_module(module)
        hello = ("ok", confinement, "", 0.0)
    except Exception as error:  # an import can raise anything; the caller is told and gives up
        hello = ("error", None, _short(error), 0.0)
    data = pickle.dumps(hello)
    sock.sendall(HEADER.pack(len(data)) + data)
    while (body := _receive(sock)) is not None:
        reply = _perform(body)
        data = _pack(reply, config["limits"]["reply_bytes"])
        del body, reply
        sys.stdout.flush()
        sys.stderr.flush()
        _end_leftovers(own_processes)
        sock.sendall(HEADER.pack(len(data)))
        sock.sendall(data)
        del data


def _code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _init(server: int) -> None:
    """Be process 1: reap orphans until the server ends, then end, and everything with us."""
    while True:
        pid, status = os.wait()
        if pid == server:
            os._exit(_code(status))


def _supervise(child: int, folder: str) -> None:
    """Wait for the child or for the caller's end (our standard input closes), then end as the child did."""
    watch = os.pidfd_open(child)
    ready, _, _ = select.select([watch, 0], [], [])
    if watch not in ready:
        os.kill(child, signal.SIGKILL)
    _pid, status = os.waitpid(child, 0)
    if watch not in ready:
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)
    code = _code(status)
    if code > 128:
        number = code - 128
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(code)


def main() -> None:
    """Confine this process and serve. ``argv``: file descriptor of the socket, configuration as JSON."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    config = json.loads(sys.argv[2])
    libc = _libc()
    confinement = enter_namespaces(config["namespaces"])
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        confinement.append("no-new-privileges")
    confinement += ["resource-limits", "clean-environment", "own-folder", "own-session"]
    child = os.fork()
    if child:
        sock.close()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _supervise(child, config["folder"])
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if "process-namespace" in confinement:
        server = os.fork()
        if server:
            sock.close()
            _init(server)
    try:
        serve(sock, config, confinement)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
    os._exit(0)


if __name__ == "__main__":
    main()
