"""The child process of :class:`qimeng_tvm.bench.host.RemoteHost`: obeys one command at a time over a pipe."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qimeng_tvm.bench.host import LocalHost, first_line
from qimeng_tvm.bench.systems import Refusal, Variant

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """End with the parent, even while stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


class _Server:
    def __init__(self) -> None:
        self._host: LocalHost | None = None
        self._offered: tuple[Variant, ...] = ()
        self._cores: Sequence[int] = ()

    def handle(self, command: str, arguments: tuple[Any, ...]) -> Any:
        if command == "system":
            self._host = LocalHost(arguments[0])
            return None
        assert self._host is not None, "the first command names the system"
        if command == "prepare":
            request, folder, threads, self._cores = arguments
            self._host.close_case()
            self._offered = ()
            offered = self._host.prepare(request, Path(folder), threads, self._cores)
            if isinstance(offered, Refusal):
                return offered
            self._offered = offered
            return None
        if command == "accept":
            opened = self._host.accept(self._offered, Path(arguments[0]))
            self._offered = ()  # variants not chosen free their operands
            self._host.settle(self._cores)
            return opened
        if command == "sample":
            return self._host.sample(arguments[0])
        if command == "close_case":
            return self._host.close_case()
        raise ValueError(f"unknown command {command!r}")


def main() -> None:
    """Serve until the pipe closes."""
    _die_with_parent()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land among the replies
    server = _Server()
    requests = sys.stdin.buffer
    while size := requests.read(8):
        command, arguments = pickle.loads(requests.read(int.from_bytes(size, "little")))
        try:
            reply = ("ok", server.handle(command, arguments))
        except Exception as error:  # a library may fail in any way: the parent makes it a row
            reply = ("error", f"{type(error).__name__}: {first_line(error)}")
        message = pickle.dumps(reply)
        replies.write(len(message).to_bytes(8, "little") + message)
        replies.flush()
