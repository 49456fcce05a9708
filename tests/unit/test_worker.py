"""The worker on its good days: calls, payloads, state, messages."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qimeng_tvm.check import worker as module
from qimeng_tvm.check.worker import Limits, Outcome, Worker, clean_environment, run_confined
from qimeng_tvm.errors import CheckError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(preload=()) as w:
        yield w


def add(a: int, b: int = 0) -> int:
    return a + b


def fail() -> None:
    raise ValueError("first line\nlast line")


def leave() -> None:
    raise SystemExit(3)


def foreign() -> Any:
    return Foreign()


class Foreign:
    pass


def test_named_function(worker: Worker) -> None:
    outcome = worker.call("math:gcd", (12, 18))
    assert outcome.ok and outcome.value == 6 and outcome.seconds >= 0


def test_callables_and_named_arguments(worker: Worker) -> None:
    assert worker.call(add, {"a": 2, "b": 3}).value == 5
    offset = 10
    assert worker.call(lambda x: x + offset, (1,)).value == 11


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "int32", "bool", "float16"])
def test_arrays_travel(worker: Worker, dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    value = worker.call(lambda a: {"x": [a, a.T.copy()]}, (array,)).value
    assert value["x"][0].dtype == array.dtype
    np.testing.assert_array_equal(value["x"][1], array.T)


def test_bfloat16_and_scalars_travel(worker: Worker) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(4).astype(ml_dtypes.bfloat16)
    value = worker.call(lambda a: (a, np.float32(2.5), a[1]), (array,)).value
    assert value[0].dtype == ml_dtypes.bfloat16 and value[1] == 2.5 and float(value[2]) == 1.0


def test_own_dataclasses_travel(worker: Worker) -> None:
    assert worker.call(lambda: module.Outcome("error", message="x")).value == Outcome("error", message="x")


def test_one_process_serves_many_calls(worker: Worker) -> None:
    before = worker.starts
    pids = {worker.call(os.getpid).value for _ in range(5)}
    assert len(pids) == 1 and os.getpid() not in pids and worker.starts <= max(before, 1)


def test_an_exception_is_an_answer_and_does_not_restart(worker: Worker) -> None:
    worker.start()
    starts = worker.starts
    outcome = worker.call(fail)
    assert (outcome.kind, outcome.ok, outcome.value) == ("error", False, None)
    assert "ValueError" in outcome.message and "last line" in outcome.message
    assert worker.call(leave).kind == "error"
    assert worker.call(add, (1, 1)).value == 2 and worker.starts == starts


@pytest.mark.parametrize("name", ["math", "math:", ":gcd", "math:no_such", "no_such_module:f"])
def test_unknown_functions_are_refused(worker: Worker, name: str) -> None:
    outcome = worker.call(name)
    assert outcome.kind == "refused" and name.split(":", maxsplit=1)[0] in outcome.message


def test_what_cannot_be_pickled_is_refused(worker: Worker) -> None:
    assert worker.call(add, (threading.Lock(),)).kind == "refused"
    assert worker.call(add, [1, 2]).kind == "refused"  # type: ignore[arg-type]
    assert worker.call(lambda: (x for x in "ab")).kind == "refused"
    assert worker.call(add, (1,)).ok


def test_an_answer_of_a_foreign_class_is_refused(worker: Worker) -> None:
    outcome = worker.call(foreign)
    assert outcome.kind == "refused" and "Foreign" in outcome.message
    assert worker.call(add, (1,)).ok


@pytest.mark.parametrize(
    ("where", "name"),
    [("os", "system"), ("builtins", "eval"), ("ml_dtypes", "np.os.system"), ("qimeng_tvm.check.worker", "os.system")],
)
def test_a_hostile_answer_runs_nothing(where: str, name: str) -> None:
    text = b"\x80\x04\x8c" + bytes([len(where)]) + where.encode() + b"\x8c" + bytes([len(name)]) + name.encode()
    with pytest.raises(module.pickle.UnpicklingError, match="holds a"):
        module._load(text + b"\x93.")


def test_working_folder_is_its_own_and_goes_away() -> None:
    with Worker(preload=()) as w:
        folder = w.call(os.getcwd).value
        assert folder != os.getcwd() and os.path.isdir(folder)
        assert w.call(os.path.expanduser, ("~",)).value == folder
    assert not os.path.exists(folder)


def test_several_workers_are_apart() -> None:
    with Worker(preload=()) as one, Worker(preload=()) as two:
        one.start()
        two.start()
        assert one.call(os.getcwd).value != two.call(os.getcwd).value


def test_close_then_call_starts_again() -> None:
    w = Worker(preload=())
    assert w.call(add, (1,)).ok
    w.close()
    assert w.call(add, (2,)).value == 2 and w.starts == 2
    w.close()


def test_run_confined_and_confinement_is_named() -> None:
    outcome = run_confined(add, (4, 5))
    assert outcome.value == 9
    assert {"resource-limits", "clean-environment"} <= set(outcome.confinement)


def test_without_namespaces_the_outcome_says_so() -> None:
    with Worker(preload=(), namespaces=False) as w:
        outcome = w.call(add, (1,))
    assert outcome.ok and not [c for c in outcome.confinement if c.endswith("namespace")]


def test_a_preload_that_fails_is_an_error() -> None:
    with pytest.raises(CheckError, match="no_such_module"), Worker(preload=("no_such_module",)) as w:
        w.start()


def test_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("SOMETHING", "else")
    env = clean_environment(tmp_path, {"TVM_NUM_THREADS": "1"})
    assert env["TVM_NUM_THREADS"] == "1" and env["HOME"] == str(tmp_path)
    assert not {"OPENAI_API_KEY", "SOMETHING"} & set(env)
    with pytest.raises(CheckError, match="MY_TOKEN"):
        clean_environment(tmp_path, {"MY_TOKEN": "x"})


def test_limits_reach_the_process() -> None:
    import resource

    limits = Limits(memory_bytes=3 << 30, open_files=99)
    with Worker(limits, preload=()) as w:
        assert w.call(resource.getrlimit, (resource.RLIMIT_NOFILE,)).value[0] == 99
        assert w.call(resource.getrlimit, (resource.RLIMIT_AS,)).value[0] == 3 << 30
        assert w.call(resource.getrlimit, (resource.RLIMIT_CORE,)).value == (0, 0)
