"""Talk to a TVM RPC tracker: which servers it has, and one of them to oneself. No TVM here.

TVM's own client retries a refused connection for a minute, and waits for a free server without end.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qimeng_tvm.errors import SearchError, UsageError

#: The protocol's numbers (``tvm/rpc/base.py``): a length and JSON after a magic number.
_MAGIC = 0x2F271
_REQUEST, _SUMMARY = 4, 6
_LARGEST = 1 << 20
#: Seconds for a tracker to answer what it knows.
_ANSWER = 5.0
_LOOK = 0.2


@dataclass(frozen=True)
class Server:
    """A server that serves one session; ``match`` is its ticket."""

    host: str
    port: int
    match: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Rpc:
    """Machines behind a TVM RPC tracker.

    Attributes
    ----------
    host, port : str, int
        Of the tracker.
    key : str
        Under which the machines' servers are registered.
    wait : float
        Seconds to wait for a server that is free.
    """

    host: str
    port: int
    key: str
    wait: float = 120.0

    @staticmethod
    def parse(address: str | None, key: str | None) -> Rpc | None:
        """Return what ``HOST:PORT`` and a key name; None when neither is given.

        Raises
        ------
        UsageError
            If one of them is missing, or the address is not of that form.
        """
        if address is None and key is None:
            return None
        if address is None:
            raise UsageError(f"the key {key!r} is one of a tracker's: say which with --rpc HOST:PORT")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"{address!r} is no address of a tracker: it is HOST:PORT, such as 192.168.0.2:9190")
        if not key:
            raise UsageError(f"which machines of the tracker {address}? Say the key of their servers with --key")
        return Rpc(host.strip("[]"), int(port), key)

    def servers(self) -> tuple[str, ...]:
        """Return the addresses of the servers under the key, busy ones included.

        Raises
        ------
        SearchError
            If there is no tracker, or it has no such server.
        """
        try:
            with self._dialogue() as sock:
                _send(sock, [_SUMMARY])
                infos = _success(_receive(sock))["server_info"]
            found = [(str(i["key"]), f"{i['addr'][0]}:{i['addr'][1]}") for i in infos]
        except (KeyError, TypeError, IndexError) as error:
            raise SearchError(f"{self._tracker} gives no list of its servers: is it TVM's?") from error
        mine = tuple(sorted(address for key, address in found if key == f"server:{self.key}"))
        if not mine:
            others = sorted({key.partition(":")[2] for key, _ in found})
            has = f"it has {', '.join(others)}" if others else "it has none"
            raise SearchError(
                f"{self._tracker} has no server under the key {self.key!r} ({has}): start one on the machine with "
                f"`python -m tvm.exec.rpc_server --tracker={self.host}:{self.port} --key={self.key}`"
            )
        return mine

    def request(self, stopping: Callable[[], bool] = lambda: False) -> Server | None:
        """Wait for a free server and return it; None when the run is being stopped.

        It is to be connected to within seconds, or it is given to others.

        Raises
        ------
        SearchError
            If there is no tracker, no such server any more, or none became free in time.
        """
        end = time.monotonic() + self.wait
        with self._dialogue() as sock:
            _send(sock, [_REQUEST, self.key, "", 1])
            asked = time.monotonic()
            while not select.select([sock], [], [], _LOOK)[0]:
                if stopping():
                    return None
                if time.monotonic() > end:
                    raise SearchError(
                        f"no server of the key {self.key!r} became free within {self.wait:g} s: ask those who use "
                        f"{self._tracker}, or try again later; what was measured is kept"
                    )
                if time.monotonic() - asked > _ANSWER:
                    self.servers()  # says so when the last one is gone
                    asked = time.monotonic()
            host, port, match = _success(_receive(sock))
        return Server(str(host), int(port), str(match))

    @property
    def _tracker(self) -> str:
        return f"the tracker at {self.host}:{self.port}"

    @contextmanager
    def _dialogue(self) -> Iterator[socket.socket]:
        try:
            with socket.create_connection((self.host, self.port), timeout=_ANSWER) as sock:
                sock.sendall(struct.pack("<i", _MAGIC))
                if struct.unpack("<i", _exactly(sock, 4))[0] != _MAGIC:
                    raise ValueError("it speaks something else")
                yield sock
        except (OSError, ValueError) as error:
            raise SearchError(
                f"no RPC tracker answers at {self.host}:{self.port} ({error}): correct the address, or start one there "
                f"with `python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port {self.port}`"
            ) from error


def _send(sock: socket.socket, content: Any) -> None:
    text = json.dumps(content).encode()
    sock.sendall(struct.pack("<i", len(text)) + text)


def _receive(sock: socket.socket) -> Any:
    size = struct.unpack("<i", _exactly(sock, 4))[0]
    if not 0 < size <= _LARGEST:
        raise ValueError(f"it announces {size} bytes")
    return json.loads(_exactly(sock, size))


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        piece = sock.recv(count - len(parts))
        if not piece:
            raise ConnectionError("it closed the connection")
        parts += piece
    return parts


def _success(answer: Any) -> Any:
    if not isinstance(answer, list) or len(answer) != 2 or answer[0] != 0:
        raise ValueError(f"it answers {str(answer)[:100]}")
    return answer[1]
