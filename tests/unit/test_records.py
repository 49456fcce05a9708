"""The tuning database: what is kept, what is refused, what is never applied."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import tvm
from tvm import te

from qimeng_tvm.errors import RecordError
from qimeng_tvm.hardware.model import Cache, Hardware
from qimeng_tvm.intrin import families
from qimeng_tvm.schedule.apply import MEMORY, Task
from qimeng_tvm.schedule.contract import Decision, ScheduleRule, SearchSpace
from qimeng_tvm.schedule.readers import analyze
from qimeng_tvm.search import Record, RecordDatabase, workload_key
from qimeng_tvm.search.records import SIDECAR, TRACES, WORKLOADS, operator_key, task_key

MACHINE = Hardware("test", "x86", "x86-64", "x86_64-linux-gnu", 2, 1, 256, 16, (Cache(1, 32768),), frozenset(), 1 << 30)


class Rule(ScheduleRule):
    name = "test.rule"

    def match(self, block, hardware):
        return True

    def space(self, block, hardware):
        return SearchSpace((Decision("tile", (1, 2, 4), 2), Decision("order", ("m", "n"), "m")))

    def apply(self, sch, block, choose, info, hardware):
        pass


def product(n=16):
    a, b = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B")
    k = te.reduce_axis((0, n), name="k")
    return te.create_prim_func([a, b, te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")])


def make_task(n=16, machine=MACHINE, version=1):
    func = product(n)
    rule = Rule()
    rule.version = version
    info = analyze(func, 1)
    return Task(func, info, machine, rule, rule.space(info, machine))


@pytest.fixture(scope="module")
def task():
    return make_task()


def record_of(task, tile=2, seconds=1e-3, **more):
    fields = {
        "workload": workload_key(task.func, task.info.threads),
        "fingerprint": task.hardware.fingerprint,
        "rule": f"{task.rule.name}@{task.rule.version}",
        "decisions": {"tile": tile, "order": "m"},
        "seconds_min": seconds,
        "seconds_median": seconds,
        "gflops": 1.0,
        "verified": True,
    }
    return Record(**(fields | more))


def test_round_trip_and_best(tmp_path, task):
    database = RecordDatabase(tmp_path / "new" / "folder")
    assert database.load() == () and database.best(task) is None
    slow, fast = record_of(task, 1, 2e-3), record_of(task, 4, 1e-3, intrins=("a.b",), seed=3)
    database.append(slow, record_of(task, 2, 5e-4, verified=False))
    assert database.best(task).decisions["tile"] == 1
    assert database.best(task, verified_only=False).decisions["tile"] == 2
    assert RecordDatabase(database.folder).load()[0] == replace(slow, decisions=database.load()[0].decisions)
    # An intrinsic name that cannot be read is no current record.
    database.append(fast)
    assert database.best(task).decisions["tile"] == 1


def test_marks_supersede(tmp_path, task):
    database = RecordDatabase(tmp_path)
    database.append(record_of(task, 1, 1e-3, verified=False), record_of(task, 2, 2e-3, verified=False))
    assert database.best(task) is None
    database.mark_verified(database.best(task, verified_only=False))
    assert database.best(task).decisions["tile"] == 1
    database.mark_failed(database.best(task), "wrong at C[0]")
    assert database.best(task) is None
    assert database.best(task, verified_only=False).decisions["tile"] == 2
    assert len(database.load()) == 2


def test_foreign_records_are_never_applied(tmp_path, task):
    database = RecordDatabase(tmp_path)
    family = next(iter(families().values()))
    values = dict.fromkeys(family.parameters, 1)
    name = family.intrin_name(**values)
    other = name.rsplit("@", 1)[0] + f"@{family.version + 1}"
    database.append(
        record_of(task, fingerprint="0" * 16),
        record_of(task, rule="test.rule@2"),
        record_of(task, workload="0" * 16 + "-t1"),
        record_of(task, intrins=(other,)),
        record_of(task, intrins=("qimeng.x86.gone.gemm.1x2@1",)),
        record_of(task, tile=3),
        record_of(task, 4, status="numbers", seconds_min=None, seconds_median=None, gflops=None, error="wrong"),
    )
    assert len(database.load()) == 7
    assert database.best(task, verified_only=False) is None
    assert database.best(make_task(n=32), verified_only=False) is None
    database.append(record_of(task, intrins=(name,)))
    assert database.best(task).intrins == (name,)
    more = replace(MACHINE, features=frozenset({"avx2"}))
    assert database.best(make_task(machine=more)) is None
    assert database.best(make_task(version=2)).rule == "test.rule@2"


def test_times_with_weights_elsewhere_have_a_name_of_their_own(tmp_path, task):
    far = replace(task, weights=MEMORY)
    assert task_key(task) == workload_key(task.func, 1)
    assert task_key(far) != task_key(task) and operator_key(task_key(far)) == task_key(task)
    database = RecordDatabase(tmp_path)
    near = record_of(task, 2, seconds=1e-3)
    database.append(near)
    assert database.of_task(far) == [] and database.best(far).decisions == near.decisions  # rather than none
    database.append(record_of(task, 4, seconds=9e-3, workload=task_key(far)))
    assert database.best(far).decisions["tile"] == 4 and database.best(task).decisions["tile"] == 2
    assert [r.decisions["tile"] for r in database.of_task(far)] == [4]


def test_workload_key_sees_the_operator_not_its_name(task):
    renamed = task.func.with_attr("global_symbol", "fused_matmul1").with_attr("op_pattern", 4)
    assert workload_key(renamed, 1) == workload_key(product(), 1)
    assert workload_key(renamed, 1) != workload_key(renamed, 2)
    free = task.func.with_attr("layout_free_buffers", [1])
    assert workload_key(free, 1) != workload_key(task.func, 1)
    assert workload_key(task.func.with_attr("layout_free_buffers", []), 1) == workload_key(task.func, 1)


@pytest.mark.parametrize("cut", [1, 7, -1])
def test_truncated_last_line_is_dropped_and_mended(tmp_path, task, cut):
    database = RecordDatabase(tmp_path)
    database.append(record_of(task, 1), record_of(task, 2))
    whole = database.path.read_bytes()
    line = record_of(task, 4).to_line()
    database.path.write_bytes(whole + line[:cut])
    with pytest.warns(RuntimeWarning, match="cut off"):
        assert len(RecordDatabase(tmp_path).load()) == 2
    with pytest.warns(RuntimeWarning, match="cut off"):
        database.append(record_of(task, 4))
    assert database.path.read_bytes().startswith(whole)
    assert len(RecordDatabase(tmp_path).load()) == 3


def test_tvm_files_are_mended_before_tvm_reads_them(tmp_path, task):
    mod = tvm.IRModule({"main": task.func})
    from qimeng_tvm.search.traces import TraceWriter, open_database

    writer = TraceWriter()
    sch = tvm.s_tir.Schedule(task.func)
    sch.split(sch.get_loops(sch.get_sblock("C"))[0], [None, 2])
    target = tvm.target.Target({"kind": "llvm"})
    database = RecordDatabase(tmp_path)
    for tile in (1, 2):
        lines = writer.lines(mod, sch.trace, [1e-3, 2e-3], target)
        database.append(record_of(task, tile), tvm_record=lines)
    other = make_task(n=32)
    lines = writer.lines(tvm.IRModule({"main": other.func}), tvm.s_tir.Schedule(other.func).trace, [1e-3], target)
    database.append(record_of(other), tvm_record=lines)
    writer.close()
    for name in (TRACES, WORKLOADS):
        with open(tmp_path / name, "ab") as stream:
            stream.write(b'[0,[[["Get')
    with pytest.warns(RuntimeWarning, match="cut off"):
        opened = open_database(tmp_path)
    assert len(opened) == 3
    assert opened.has_workload(mod)
    assert len(opened.get_top_k(opened.commit_workload(mod), 9)) == 2


def test_damage_elsewhere_is_an_error_that_names_the_line(tmp_path, task):
    database = RecordDatabase(tmp_path)
    database.append(record_of(task, 1), record_of(task, 2))
    lines = database.path.read_bytes().splitlines(keepends=True)
    for damage in (b'{"schema": 1, "workload"\n', b"\x00\x00\n", b"[1]\n", b'{"schema": 1}\n'):
        database.path.write_bytes(lines[0] + damage + lines[1])
        with pytest.raises(RecordError, match=r"line 2 .*remove that line"):
            RecordDatabase(tmp_path).load()
    wrong = json.loads(lines[1]) | {"seconds_min": "fast"}
    database.path.write_bytes(lines[0] + json.dumps(wrong).encode() + b"\n")
    with pytest.raises(RecordError, match="line 2 is damaged"):
        RecordDatabase(tmp_path).load()


def test_other_schema_version_is_an_error(tmp_path, task):
    database = RecordDatabase(tmp_path)
    database.append(record_of(task))
    other = json.loads(database.path.read_bytes()) | {"schema": 2, "new_field": 1}
    database.path.write_bytes(json.dumps(other).encode() + b"\n")
    with pytest.raises(RecordError, match=r"schema 2, this version reads 1"):
        RecordDatabase(tmp_path).best(task)


def test_folder_that_cannot_be_written(tmp_path, task):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="another folder"):
        RecordDatabase(tmp_path / "file" / "db").append(record_of(task))


def test_locked_by_another_process(tmp_path, monkeypatch, task):
    from filelock import FileLock

    monkeypatch.setattr("qimeng_tvm.search.journal.locked.__wrapped__.__defaults__", (0.2,))
    with FileLock(tmp_path / ".lock"), pytest.raises(RecordError, match="locked by another process"):
        RecordDatabase(tmp_path).append(record_of(task))


def test_two_writers_lose_nothing(tmp_path):
    """Two processes append to one file, with one line too long for any pipe's atomicity."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from qimeng_tvm.search import journal
        folder, who = Path(sys.argv[1]), sys.argv[2]
        for i in range(40):
            with journal.locked(folder):
                journal.repair(folder / "f")
                journal.append(folder / "f", [f"{who} {i} ".encode() + who.encode() * 9000])
        """
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), who]) for who in "ab"]
    assert [p.wait(timeout=60) for p in running] == [0, 0]
    lines = (tmp_path / "f").read_bytes().splitlines()
    assert len(lines) == 80
    for who in ("a", "b"):
        mine = [line for line in lines if line.startswith(who.encode())]
        assert [int(line.split()[1]) for line in mine] == list(range(40))
        assert all(line.endswith(who.encode() * 9000) for line in mine)


def test_sidecar_has_one_line_a_record(tmp_path, task):
    database = RecordDatabase(tmp_path)
    database.append(record_of(task, error="two\nlines"))
    lines = (tmp_path / SIDECAR).read_bytes().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["decisions"] == {"tile": 2, "order": "m"}
