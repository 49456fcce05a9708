"""The worker on its bad days: every way a call can end badly is an ordinary, classified answer."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qimeng_tvm.check.worker import Limits, Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")


@pytest.fixture(scope="module", params=[True, False], ids=["namespaces", "fallback"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    with Worker(
        Limits(memory_bytes=1 << 30, reply_bytes=1 << 20, file_bytes=16 << 20), preload=(), namespaces=request.param
    ) as w:
        yield w
        assert w.call(os.getpid).ok, "a worker must still serve after everything above"


def die(number: int) -> None:
    print("some last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)


def read_null() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.write(2, b"LLVM ERROR: Cannot select: intrinsic %llvm.x86.whatever\n")
    ctypes.CDLL(None).abort()


def spin() -> None:
    print("spinning", file=sys.stderr, flush=True)
    while True:
        pass


def bomb() -> int:
    return len(bytearray(4 << 30))


def native_bomb() -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def vanish() -> None:
    os._exit(0)


def noise() -> str:
    sys.stdout.write("x" * 100_000)
    os.write(1, b"\x00\xff" * 50_000)
    os.write(2, b"warning\n" * 1000)
    return "clean"


def heartbeat(path: str, own_session: bool, forever: bool) -> None:
    """Start a child that writes the time to a file again and again."""
    code = "import sys, time\nwhile True:\n open(sys.argv[1], 'w').write(str(time.time()))\n time.sleep(0.02)"
    subprocess.Popen([sys.executable, "-I", "-c", code, path], start_new_session=own_session)
    while not os.path.exists(path) or forever:
        time.sleep(0.01)


def beats(path: Path) -> bool:
    """Whether the file is still being written."""
    first = path.read_text()
    time.sleep(0.3)
    return path.read_text() != first


@pytest.mark.parametrize(
    ("function", "name", "hint"),
    [(read_null, "SIGSEGV", "index outside a buffer"), (abort, "SIGABRT", "Cannot select")],
)
def test_crashes(worker: Worker, function: object, name: str, hint: str) -> None:
    outcome = worker.call(function, timeout=30)  # type: ignore[arg-type]
    assert outcome.kind == "crash" and name in outcome.message and hint in outcome.message
    assert worker.call(os.getpid).ok


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGBUS, signal.SIGFPE])
def test_signals_are_named_with_last_words(worker: Worker, number: signal.Signals) -> None:
    outcome = worker.call(die, (int(number),), timeout=30)
    assert outcome.kind == "crash" and number.name in outcome.message and "some last words" in outcome.message


def test_last_words_are_this_calls_own(worker: Worker) -> None:
    worker.call(noise)
    assert "warning" not in worker.call(read_null).message


def test_leaving_without_an_answer_is_a_crash(worker: Worker) -> None:
    outcome = worker.call(vanish, timeout=30)
    assert outcome.kind == "crash" and "exit status 0" in outcome.message


def test_endless_loop(worker: Worker) -> None:
    start = time.monotonic()
    outcome = worker.call(spin, timeout=0.5)
    assert outcome.kind == "timeout" and "0.5 s" in outcome.message and "spinning" in outcome.message
    assert outcome.seconds >= 0.5 and time.monotonic() - start < 10
    assert worker.call(os.getpid).ok


@pytest.mark.parametrize("function", [bomb, native_bomb])
def test_memory(worker: Worker, function: object) -> None:
    assert worker.call(function, timeout=30).kind == "memory"  # type: ignore[arg-type]
    assert worker.call(os.getpid).ok


def test_huge_answer(worker: Worker) -> None:
    outcome = worker.call(bytes, (2 << 20,))
    assert outcome.kind == "refused" and "over the limit" in outcome.message
    assert len(worker.call(bytes, (1 << 19,)).value) == 1 << 19


def test_huge_argument_arrives(worker: Worker) -> None:
    assert worker.call(len, (bytes(32 << 20),)).value == 32 << 20


def test_a_hang_while_sending_is_a_timeout(worker: Worker) -> None:
    pid = worker.call(os.getpid).value
    assert pid  # stop the supervisor's tree from reading: the send fills the socket and must not block for ever
    process = worker._process
    assert process is not None
    os.killpg(process.process.pid, signal.SIGSTOP)
    assert worker.call(len, (bytes(32 << 20),), timeout=0.5).kind == "timeout"
    assert worker.call(os.getpid).ok


def test_noise_does_not_corrupt_answers(worker: Worker) -> None:
    for _ in range(3):
        assert worker.call(noise).value == "clean"


def test_endless_files_are_cut(worker: Worker) -> None:
    def fill() -> None:
        with open("big", "wb") as f:
            for _ in range(1 << 20):
                f.write(bytes(1 << 20))

    assert worker.call(fill, timeout=60).kind == "error"


@pytest.mark.parametrize("own_session", [False, True])
def test_children_die_with_a_timeout(worker: Worker, tmp_path: Path, own_session: bool) -> None:
    beat = tmp_path / "beat"
    assert worker.call(heartbeat, (str(beat), own_session, True), timeout=2).kind == "timeout"
    assert beat.exists() and not beats(beat)


def test_children_do_not_outlive_a_call(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    with Worker(preload=()) as w:
        w.start()
        if "process-namespace" not in w.confinement:
            pytest.skip("the kernel gives no process namespace")
        assert w.call(heartbeat, (str(beat), True, False), timeout=30).ok
        assert not beats(beat)


def test_children_die_with_close(worker: Worker, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    worker.call(heartbeat, (str(beat), True, False), timeout=30)
    worker.close()
    assert not beats(beat)


def test_worker_dies_with_its_caller(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    code = (
        "import sys; sys.path[:] = sys.argv[2].split(':')\n"
        "from qimeng_tvm.check.worker import Worker\n"
        "import test_worker_faults as t\n"
        "Worker(preload=()).call(t.heartbeat, (sys.argv[1], True, True), timeout=60)"
    )
    path = ":".join([str(Path(__file__).parent), *(p for p in sys.path if p)])
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    caller = subprocess.Popen([sys.executable, "-c", code, str(beat), path], env=env)
    try:
        end = time.monotonic() + 30
        while not beat.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert beat.exists() and list(tmp_path.glob("qimeng-worker-*"))
    finally:
        caller.kill()
        caller.wait()
    time.sleep(0.5)
    assert not beats(beat)
    assert not list(tmp_path.glob("qimeng-worker-*"))


def test_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HARMLESS", "sk-secret")
    with Worker(preload=()) as w:
        env = w.call(lambda: dict(os.environ)).value
        read = w.call(lambda pid: Path(f"/proc/{pid}/environ").read_bytes(), (os.getpid(),))
    assert "sk-secret" not in str(env)
    # Nor can it be had from the caller's own /proc entry: its user namespace is another.
    assert read.kind == "error" or "user-namespace" not in read.confinement
    assert not [name for name in env if any(word in name for word in ("KEY", "TOKEN", "SECRET"))]


def test_no_network() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    with server, Worker(preload=()) as w:
        w.start()
        if "network-namespace" not in w.confinement:
            pytest.skip("the kernel gives no network namespace")
        outcome = w.call(socket.create_connection, (("127.0.0.1", port), 2))
        assert outcome.kind == "error" and "OSError" in outcome.message
        # The same call out here works: the test can fail.
        socket.create_connection(("127.0.0.1", port), 2).close()


def test_no_new_privileges() -> None:
    with Worker(preload=()) as w:
        status = w.call(lambda: Path("/proc/self/status").read_text()).value
    assert "NoNewPrivs:\t1" in status
