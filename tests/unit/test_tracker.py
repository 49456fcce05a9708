"""The words that are exchanged with a tracker, and what is said when it has nothing to give."""

import json
import socket
import struct
import threading
import time
from contextlib import contextmanager

import pytest

from qimeng_tvm.errors import SearchError, UsageError
from qimeng_tvm.search.tracker import Rpc

MAGIC = struct.pack("<i", 0x2F271)
SUMMARY = [
    0,
    {"server_info": [{"key": "server:pi", "addr": ["10.0.0.7", 9091]}, {"key": "server:x", "addr": ["h", 1]}]},
]


def packed(content):
    text = json.dumps(content).encode()
    return struct.pack("<i", len(text)) + text


@contextmanager
def tracker(answers, magic=MAGIC, delay=0.0):
    """Serve a tracker that gives each kind of question its answer; a missing one is never given."""
    ended = threading.Event()

    def serve(sock):
        with sock:
            sock.recv(4)
            sock.sendall(magic)
            size = struct.unpack("<i", (sock.recv(4) + bytes(4))[:4])[0]
            asked = json.loads(sock.recv(size)) if size else [None]
            time.sleep(delay)
            if asked[0] in answers:
                sock.sendall(packed(answers[asked[0]]))
            ended.wait(20)

    def listen(server):
        while True:
            try:
                sock = server.accept()[0]
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, args=(server,), daemon=True).start()
        try:
            yield Rpc("127.0.0.1", server.getsockname()[1], "pi", wait=1.0)
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)


def test_parse():
    assert Rpc.parse(None, None) is None
    assert Rpc.parse("192.168.0.2:9190", "pi") == Rpc("192.168.0.2", 9190, "pi")
    assert Rpc.parse("[::1]:9190", "pi") == Rpc("::1", 9190, "pi")


@pytest.mark.parametrize("address", ["host", "host:", ":9190", "host:0", "host:65536", "host:-1", "host:9x", ""])
def test_no_address(address):
    with pytest.raises(UsageError, match="HOST:PORT, such as"):
        Rpc.parse(address, "pi")


def test_one_needs_the_other():
    with pytest.raises(UsageError, match="--key"):
        Rpc.parse("host:9190", None)
    with pytest.raises(UsageError, match="--rpc HOST:PORT"):
        Rpc.parse(None, "pi")


def test_servers_under_the_key():
    with tracker({6: SUMMARY}) as rpc:
        assert rpc.servers() == ("10.0.0.7:9091",)
        assert Rpc(rpc.host, rpc.port, "x").servers() == ("h:1",)
        with pytest.raises(SearchError, match=r"'y' .it has pi, x.: start one.*--key=y"):
            Rpc(rpc.host, rpc.port, "y").servers()


def test_a_free_server():
    with tracker({4: [0, ["10.0.0.7", 9091, "pi:0.5"]]}, delay=0.5) as rpc:
        server = rpc.request()
        assert (str(server), server.match) == ("10.0.0.7:9091", "pi:0.5")


def test_waiting_ends():
    with tracker({6: SUMMARY}) as rpc:
        start = time.monotonic()
        with pytest.raises(SearchError, match="became free within 1 s"):
            rpc.request()
        assert rpc.request(lambda: True) is None
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("answers", "magic"),
    [({}, b"HTTP"), ({6: [-1, {}]}, MAGIC), ({6: "no"}, MAGIC), ({6: [0, {}]}, MAGIC), ({6: [0, [7]]}, MAGIC)],
)
def test_something_else_answers(answers, magic):
    with tracker(answers, magic) as rpc, pytest.raises(SearchError, match="tracker"):
        rpc.servers()
