"""Looking after records: listed, taken out, put together, thrown away."""

import json

import pytest

from qimeng_tvm.errors import RecordError
from qimeng_tvm.search import Record, RecordDatabase
from qimeng_tvm.search.curate import entries, export, matching, merge, prune
from qimeng_tvm.search.records import TRACES, WORKLOADS


def record(tile, seconds=None, *, operator="matmul 8x8x8 float32", workload="00ff-t1", status="ok", **more):
    speed = 1.0 / seconds if seconds else None
    return Record(
        workload, "machine-a", "cpu.gemm@3", {"tile": tile}, status=status, seconds_min=seconds,
        seconds_median=seconds, gflops=speed, operator=operator, machine="A machine", schedule=f"s{tile}", **more,
    )  # fmt: skip


@pytest.fixture
def database(tmp_path):
    found = RecordDatabase(tmp_path / "records")
    found.append(
        record(1, 0.3),
        record(2, 0.1, verified=True),
        record(3, 0.2),
        record(4, status="numbers", error="C[0] is wrong"),
        record(5, status="schedule", error="refused"),
        record(6, 0.5, operator="matmul 9x9x9 float32", workload="11ff-t2", threads=2),
    )
    return found


def test_records_are_grouped_by_operator(database):
    first, second = entries(database.load())
    assert (first.operator, first.trials, first.failed, first.threads) == ("matmul 8x8x8 float32", 4, 1, 1)
    assert first.best.decisions == {"tile": 2} and first.best.verified
    assert (second.operator, second.trials, second.threads) == ("matmul 9x9x9 float32", 1, 2)


def test_records_of_other_versions_are_never_the_best(tmp_path):
    database = RecordDatabase(tmp_path)
    database.append(record(1, 0.1, intrins=("qimeng.x86.avx2_f32.gemm.1x1x1x1x0x0x0@999",)))
    (entry,) = entries(database.load())
    assert entry.trials == 1 and entry.best is None


def test_records_are_found_by_what_they_are_of(database):
    assert len(matching(database.load(), "9x9x9")) == 1
    assert len(matching(database.load(), "A machine")) == 6
    assert len(matching(database.load(), "00ff")) == 5
    assert matching(database.load(), "convolution") == ()


def test_exported_lines_are_records(database, tmp_path):
    path = tmp_path / "out" / "records.jsonl"
    assert export(database.load(), path) == 6
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["decisions"]["tile"] for line in lines] == [1, 2, 3, 4, 5, 6]
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot write"):
        export(database.load(), tmp_path / "file" / "records.jsonl")


def test_merging_keeps_the_faster_time_and_what_was_found_wrong(database, tmp_path):
    other = RecordDatabase(tmp_path / "other")
    other.append(
        record(1, 0.05),
        record(2, 0.4),
        record(3, status="numbers", error="wrong there"),
        record(4, 0.01),
        record(7, 0.02),
    )
    assert merge(database, other.folder) == 3
    merged = {r.decisions["tile"]: r for r in database.load()}
    assert (merged[1].seconds_min, merged[2].seconds_min, merged[7].seconds_min) == (0.05, 0.1, 0.02)
    assert merged[3].status == "numbers" and merged[4].status == "numbers"
    assert merge(database, other.folder) == 0
    with pytest.raises(RecordError, match="no tuning records"):
        merge(database, tmp_path / "nowhere")


def test_merging_renumbers_the_workloads_of_tvm(tmp_path):
    into, other = RecordDatabase(tmp_path / "a"), RecordDatabase(tmp_path / "b")
    into.append(record(1, 0.1), tvm_record=(b'["one"]', b"[1]"))
    other.append(record(2, 0.2), tvm_record=(b'["two"]', b"[2]"))
    other.append(record(3, 0.3), tvm_record=(b'["one"]', b"[3]"))
    for _ in range(2):
        merge(into, other.folder)
    assert (into.folder / WORKLOADS).read_bytes().splitlines() == [b'["one"]', b'["two"]']
    assert sorted((into.folder / TRACES).read_bytes().splitlines()) == [b"[0,[1]]", b"[0,[3]]", b"[1,[2]]"]
    (other.folder / WORKLOADS).write_bytes(b'["two"]\n')
    with pytest.raises(RecordError, match="names workload 1"):
        merge(RecordDatabase(tmp_path / "c"), other.folder)


def test_pruning_keeps_the_fastest_and_the_failures(database):
    database.append(record(9, 0.001, intrins=("qimeng.x86.avx2_f32.gemm.1x1x1x1x0x0x0@999",)))
    assert prune(database, 2) == 2
    left = {r.decisions["tile"]: r.status for r in RecordDatabase(database.folder).load()}
    assert left == {2: "ok", 3: "ok", 4: "numbers", 5: "schedule", 6: "ok"}
    assert prune(database, 2) == 0
