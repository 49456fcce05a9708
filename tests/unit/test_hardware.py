"""Detection of machines from fake /sys and /proc trees, the cache of figures, and profiles."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from qimeng_tvm import hardware as hw
from qimeng_tvm.errors import HardwareError
from qimeng_tvm.hardware import cache as cache_module
from qimeng_tvm.hardware import peak, sysfs
from qimeng_tvm.hardware.host import LlvmHost, detect_cores, detect_features, detect_vectors, host, isa_of
from qimeng_tvm.hardware.profiles import read_profile
from qimeng_tvm.hardware.target import target_dict
from qimeng_tvm.hardware.threads import cpus_by_core

TRIPLE = "x86_64-unknown-linux-gnu"
ZEN5 = LlvmHost("znver5", TRIPLE, {})
ZEN5_FLAGS = (
    "fpu sse2 avx avx2 fma f16c gfni avx_vnni avx512f avx512bw avx512cd avx512dq avx512vl avx512ifma avx512vbmi "
    "avx512_vbmi2 avx512_vnni avx512_bf16 avx512_bitalg avx512_vpopcntdq"
)


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def put_cache(root: Path, cpu: int, index: int, *facts: int | str) -> None:
    """Write one cache folder; ``facts`` are level, type, size, ways and the CPUs that share it."""
    base = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    names = ("level", "type", "size", "ways_of_associativity", "shared_cpu_list")
    for name, value in {**dict(zip(names, facts, strict=True)), "coherency_line_size": 64}.items():
        put(root, f"{base}/{name}", str(value))


def put_core(root: Path, siblings: str) -> None:
    for cpu in sysfs.cpu_list(siblings):
        put(root, f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", siblings)


def server(root: Path, flags: str = ZEN5_FLAGS) -> Path:
    """Four cores of two threads (n and n+4); L3 shared by two cores."""
    for core in range(4):
        put_core(root, f"{core},{core + 4}")
        low = core // 2 * 2
        for cpu in (core, core + 4):
            put_cache(root, cpu, 0, 1, "Data", "48K", 12, f"{core},{core + 4}")
            put_cache(root, cpu, 1, 1, "Instruction", "32K", 8, f"{core},{core + 4}")
            put_cache(root, cpu, 2, 2, "Unified", "1024K", 16, f"{core},{core + 4}")
            put_cache(root, cpu, 3, 3, "Unified", "32M", 16, f"{low}-{low + 1},{low + 4}-{low + 5}")
    put(root, "proc/cpuinfo", f"processor : 0\nmodel name : Some EPYC\nflags : {flags}")
    put(root, "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB")
    return root


def no_sysconf(_name: int) -> int:
    return 0


# --- cores, affinity, quota -------------------------------------------------------------------------------------------


def test_cores_are_physical(tmp_path: Path) -> None:
    root = server(tmp_path)
    assert detect_cores(frozenset(range(8)), root) == 4
    assert detect_cores(frozenset({0, 4}), root) == 1
    assert detect_cores(frozenset({0, 5}), root) == 2
    assert detect_cores(frozenset({0, 1, 2}), tmp_path / "no-topology") == 3


def test_older_kernel_names_siblings_otherwise(tmp_path: Path) -> None:
    put(tmp_path, "sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1")
    assert sysfs.core_of(0, tmp_path) == {0, 1}


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3.0),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/not/mounted/here", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/../../escaped", {"cpu.max": "200000 100000"}, 2.0),
        (
            "3:cpu,cpuacct:/box",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "250000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n0::/", {"unified/cpu.max": "100000 100000"}, 1.0),
        ("0::/", {"cpu.max": "garbage"}, None),
        ("0::/", {}, None),
    ],
)
def test_cpu_quota(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None) -> None:
    put(tmp_path, "proc/self/cgroup", cgroup)
    for name, text in files.items():
        put(tmp_path, f"sys/fs/cgroup/{name}", text)
    assert sysfs.cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("limit", "cores"), [("50000", 1), ("250000", 2), ("1600000", 4), ("max", 4)])
def test_quota_limits_cores_but_leaves_one(tmp_path: Path, limit: str, cores: int) -> None:
    root = server(tmp_path)
    put(root, "proc/self/cgroup", "0::/")
    put(root, "sys/fs/cgroup/cpu.max", f"{limit} 100000")
    assert detect_cores(frozenset(range(8)), root) == cores


def test_cpus_are_ordered_by_core_before_sibling(tmp_path: Path) -> None:
    root = tmp_path
    put_core(root, "0-1")
    put_core(root, "2-3")
    assert cpus_by_core(frozenset(range(4)), root) == (0, 2, 1, 3)
    assert cpus_by_core(frozenset({1, 2, 3}), root) == (1, 2, 3)


# --- caches -----------------------------------------------------------------------------------------------------------


def test_caches_of_a_server(tmp_path: Path) -> None:
    found = sysfs.caches(frozenset(range(8)), server(tmp_path), no_sysconf)
    assert found == (
        hw.Cache(1, 48 << 10, 64, 12, 1),
        hw.Cache(2, 1 << 20, 64, 16, 1),
        hw.Cache(3, 32 << 20, 64, 16, 2),
    )


def test_hybrid_caches_fit_every_core(tmp_path: Path) -> None:
    """A big core with two threads, and four small cores that share one L2."""
    put_core(tmp_path, "0-1")
    for cpu in (0, 1):
        put_cache(tmp_path, cpu, 0, 1, "Data", "48K", 12, "0-1")
        put_cache(tmp_path, cpu, 1, 2, "Unified", "2048K", 16, "0-1")
    for cpu in range(2, 6):
        put_core(tmp_path, str(cpu))
        put_cache(tmp_path, cpu, 0, 1, "Data", "32K", 8, str(cpu))
        put_cache(tmp_path, cpu, 1, 2, "Unified", "4096K", 16, "2-5")
    both = sysfs.caches(frozenset(range(6)), tmp_path, no_sysconf)
    assert both == (hw.Cache(1, 32 << 10, 64, 8, 1), hw.Cache(2, 4 << 20, 64, 16, 4))
    big = sysfs.caches(frozenset({0, 1}), tmp_path, no_sysconf)
    assert big == (hw.Cache(1, 48 << 10, 64, 12, 1), hw.Cache(2, 2 << 20, 64, 16, 1))


def test_caches_fall_back_to_sysconf_then_to_defaults(tmp_path: Path) -> None:
    told = {188: 65536, 189: 4, 190: 64, 191: 524288, 192: 8, 193: 64, 194: -1}
    found = sysfs.caches(frozenset({0, 1}), tmp_path, lambda name: told.get(name, 0))
    assert found == (hw.Cache(1, 65536, 64, 4, 1), hw.Cache(2, 524288, 64, 8, 1))
    assert sysfs.caches(frozenset({0}), tmp_path, no_sysconf) == sysfs.DEFAULT_CACHES


@pytest.mark.parametrize(
    ("text", "value"), [("48K", 48 << 10), ("32M", 32 << 20), ("64", 64), ("", 0), ("x", 0), ("K", 0)]
)
def test_numbers_of_the_kernel(text: str, value: int) -> None:
    assert sysfs.number(text) == value


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0,2", {0, 2}), ("junk", set())]
)
def test_cpu_lists(text: str, cpus: set[int]) -> None:
    assert sysfs.cpu_list(text) == cpus


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {}, 8 << 30),
        ("0::/box", {"box/memory.max": str(1 << 30)}, 1 << 30),
        ("0::/box", {"box/memory.max": "max"}, 8 << 30),
        ("4:memory:/box", {"memory/box/memory.limit_in_bytes": str(2 << 30)}, 2 << 30),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 8 << 30),
    ],
)
def test_memory(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB")
    put(tmp_path, "proc/self/cgroup", cgroup)
    for name, text in files.items():
        put(tmp_path, f"sys/fs/cgroup/{name}", text)
    assert sysfs.memory(tmp_path) == expected


def test_memory_when_nobody_tells(tmp_path: Path) -> None:
    assert sysfs.memory(tmp_path) == sysfs.DEFAULT_MEMORY


# --- features and targets ---------------------------------------------------------------------------------------------


def test_nothing_hidden_needs_no_mattr(tmp_path: Path) -> None:
    machine = host(root=server(tmp_path), allowed=frozenset(range(8)), llvm=ZEN5, sysconf=no_sysconf)
    assert machine.has("avx512vnni", "avx512bf16", "avxvnni")
    assert (machine.vector_bits, machine.vector_registers) == (512, 32)
    assert (machine.cores, machine.smt, machine.isa, machine.name) == (4, 2, "x86", "Some EPYC")
    assert "mattr" not in target_dict(machine, 2)
    assert target_dict(machine, 2)["num-cores"] == 2


def test_features_hidden_by_cpuid_go_with_what_needs_them(tmp_path: Path) -> None:
    llvm = replace(ZEN5, flags={"avx512f": False, "avx512vp2intersect": False})
    machine = host(root=tmp_path, allowed=frozenset({0}), llvm=llvm, sysconf=no_sysconf)
    assert not [name for name in machine.features if name.startswith("avx512")]
    assert machine.has("avx2", "fma", "avxvnni")
    assert (machine.vector_bits, machine.vector_registers) == (256, 16)
    changes = target_dict(machine, 1)["mattr"]
    assert {"-avx512f", "-avx512vnni", "-avx512bf16"} <= set(changes)
    # The target really is free of them, as LLVM reads it.
    from tvm.target import codegen

    assert not codegen.llvm_cpu_has_features(["avx512f"], hw.target_of(machine, 1))
    assert codegen.llvm_cpu_has_features(["avx2", "fma"], hw.target_of(machine, 1))


def test_features_hidden_by_the_kernel(tmp_path: Path) -> None:
    flags = " ".join(flag for flag in ZEN5_FLAGS.split() if flag not in ("avx512_bf16", "avx_vnni"))
    features = detect_features(replace(ZEN5, flags={"avx512bf16": True}), server(tmp_path, flags))
    assert "avx512bf16" not in features
    assert "avxvnni" not in features
    assert "avx512vnni" in features


def test_a_feature_must_be_on_every_processor(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "flags : sse2 avx avx2\n\nflags : sse2 avx")
    assert sysfs.cpuinfo_flags(tmp_path) == {"sse2", "avx"}


def test_features_beyond_the_cpu_name_are_added(tmp_path: Path) -> None:
    llvm = LlvmHost("x86-64", TRIPLE, {"avx2": True, "fma": True, "avx512f": False})
    machine = host(root=tmp_path, allowed=frozenset({0}), llvm=llvm, sysconf=no_sysconf)
    assert machine.has("avx2", "fma", "avx")
    assert {"+avx2", "+fma"} <= set(target_dict(machine, 1)["mattr"])


@pytest.mark.parametrize(
    ("isa", "features", "expected"),
    [
        ("x86", {"avx512f", "avx2", "sse2"}, (512, 32)),
        ("x86", {"avx2", "sse2"}, (256, 16)),
        ("x86", {"sse2"}, (128, 16)),
        ("arm", {"neon"}, (128, 32)),
        ("riscv", {"v", "zvl128b"}, (128, 32)),
        ("riscv", {"v", "zvl128b", "zvl256b"}, (256, 32)),
    ],
)
def test_vectors(isa: str, features: set[str], expected: tuple[int, int]) -> None:
    assert detect_vectors(isa, frozenset(features)) == expected


def test_no_vector_unit_and_no_known_isa_are_errors() -> None:
    with pytest.raises(HardwareError, match="no vector unit"):
        detect_vectors("riscv", frozenset({"m"}))
    with pytest.raises(HardwareError, match="powerpc64le"):
        isa_of("powerpc64le-unknown-linux-gnu")


# --- this machine -----------------------------------------------------------------------------------------------------


def test_host_is_whole_and_stable() -> None:
    first, second = hw.host(), hw.Hardware.host()
    assert first.fingerprint == second.fingerprint
    assert 1 <= first.cores <= (os.cpu_count() or 1)
    assert first.memory_bytes > 0
    assert [cache.level for cache in first.caches] == sorted({cache.level for cache in first.caches})
    assert not first.peaks
    assert first.copy_gbps == 0  # nothing was measured


def test_threads_lower_the_cores_only() -> None:
    one = hw.host(1)
    assert one.cores == 1
    assert one.fingerprint == hw.host().fingerprint
    assert hw.host(10_000).cores == hw.host().cores
    with pytest.raises(HardwareError, match="at least 1"):
        hw.host(0)


def test_fingerprint_follows_legality_and_not_figures() -> None:
    machine = hw.load("zen5")
    assert machine.fingerprint == replace(machine, peaks={"float32": 1.0}, copy_gbps=2.0, cores=1).fingerprint
    assert machine.fingerprint != replace(machine, features=machine.features - {"avx512bf16"}).fingerprint
    assert machine.fingerprint != replace(machine, vector_bits=256).fingerprint
    assert machine.fingerprint != replace(machine, caches=machine.caches[:2]).fingerprint


def test_a_short_feature_list_loses_nothing_it_needs() -> None:
    from tvm.target import codegen

    short = replace(hw.load("zen3"), features=frozenset({"avx2", "fma"}))
    target = hw.target_of(short, 1)
    assert codegen.llvm_cpu_has_features(["avx2", "fma", "avx", "sse4.2", "64bit"], target)
    assert not codegen.llvm_cpu_has_features(["bmi2"], target)


def test_an_ordinary_target_has_no_list(tmp_path: Path) -> None:
    """What LLVM never chooses by itself (rdpru, shstk, ...) may be hidden or added without a word."""
    flags = {"rdpru": False, "mwaitx": False, "pku": False, "shstk": True}
    machine = host(root=tmp_path, allowed=frozenset({0}), llvm=LlvmHost("znver3", TRIPLE, flags), sysconf=no_sysconf)
    assert "rdpru" not in machine.features
    assert "mattr" not in target_dict(machine, 1)


def test_target_needs_a_thread() -> None:
    with pytest.raises(HardwareError, match="at least 1"):
        hw.target_of(hw.host(), 0)


# --- the cache of figures ---------------------------------------------------------------------------------------------

FIGURES = peak.Peaks({"float32": 100.0}, {"float32": 190.0}, 10.0, 20.0, 30.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def measure(machine: hw.Hardware) -> peak.Peaks:
        calls.append(machine.name)
        return FIGURES

    monkeypatch.setattr(peak, "measure", measure)
    return calls


def test_figures_are_measured_once(tmp_path: Path, counted: list[str]) -> None:
    machine = hw.host()
    first = hw.measured(machine, directory=tmp_path)
    assert first == hw.measured(machine, directory=tmp_path)
    assert len(counted) == 1
    assert first.peaks == {"float32": 100.0}
    assert (first.copy_gbps, first.read_gbps, first.read_gbps_all) == (10.0, 20.0, 30.0)
    assert not list(tmp_path.glob("*.tmp"))
    hw.measured(machine, directory=tmp_path, refresh=True)
    assert len(counted) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "\x00\x01",
        '{"peaks": {}}',
        '"text"',
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("190.0", "-1.0"),
        lambda text: text.replace("190.0", '"fast"'),
        lambda text: json.dumps({**json.loads(text), "fingerprint": "0" * 16}),
        lambda text: json.dumps({**json.loads(text), "tvm": "0.1"}),
    ],
)
def test_damaged_file_is_measured_again(tmp_path: Path, counted: list[str], damage: object) -> None:
    machine = hw.host()
    good = hw.measured(machine, directory=tmp_path)
    path = cache_module.cache_path(machine, tmp_path)
    text = path.read_text()
    path.write_text(damage(text) if callable(damage) else str(damage))
    with pytest.warns(RuntimeWarning, match="measuring again") as seen:
        assert hw.measured(machine, directory=tmp_path) == good
    assert len(seen) == 1
    assert len(counted) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hw.measured(machine, directory=tmp_path) == good  # mended
    assert len(counted) == 2


def test_unwritable_folder_is_not_fatal(tmp_path: Path, counted: list[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="not kept"):
        assert hw.measured(hw.host(), directory=blocked / "cache").peaks == {"float32": 100.0}
    assert len(counted) == 1


def test_disturbed_figures_are_used_but_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "measure", lambda machine: replace(FIGURES, disturbed=True))
    with pytest.warns(RuntimeWarning, match="other processes"):
        assert hw.measured(hw.host(), directory=tmp_path).peaks == {"float32": 100.0}
    assert not list(tmp_path.glob("*.json"))


def test_other_cores_or_name_are_other_figures(tmp_path: Path) -> None:
    machine = hw.host()
    paths = {
        cache_module.cache_path(other, tmp_path)
        for other in (machine, replace(machine, cores=machine.cores + 1), replace(machine, name="other"))
    }
    assert len(paths) == 3


def test_another_machine_is_not_measured_here(tmp_path: Path, counted: list[str]) -> None:
    other = replace(hw.host(), cpu="somebody-else")
    with pytest.raises(HardwareError, match="not this machine"):
        hw.measured(other, directory=tmp_path)
    assert not counted


# --- profiles ---------------------------------------------------------------------------------------------------------


def test_shipped_profiles_are_there() -> None:
    assert hw.names()[0] == "host"
    assert {"zen3", "zen5", "sapphire_rapids", "cascade_lake", "skylake_sp"} <= set(hw.names())


@pytest.mark.parametrize("name", hw.names()[1:])
def test_profile_loads_and_agrees_with_llvm(name: str) -> None:
    from tvm.target import codegen

    machine = hw.Hardware.load(name)
    assert machine.name == name
    assert codegen.llvm_is_valid_cpu(machine.cpu, machine.triple)
    assert "mattr" not in target_dict(machine, 2)  # every feature listed is one the chip has, as LLVM knows it
    assert detect_vectors(machine.isa, machine.features) == (machine.vector_bits, machine.vector_registers)
    assert hw.target_of(machine, 2).attrs["num-cores"] == 2
    for cache in machine.caches:
        assert cache.size % (cache.line * cache.ways) == 0


def test_profiles_tell_chips_apart() -> None:
    assert not hw.load("zen3").has("avx512f")
    assert hw.load("cascade_lake").has("avx512vnni")
    assert not hw.load("cascade_lake").has("avx512bf16")
    assert hw.load("sapphire_rapids").has("avx512bf16", "avx512vnni")
    assert hw.load("Sapphire-Rapids") == hw.load("sapphire_rapids")
    assert len({hw.load(name).fingerprint for name in hw.names()}) == len(hw.names())


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(HardwareError, match=r"'zen99'.*cascade_lake.*zen5"):
        hw.load("zen99")


GOOD = """
name = "board"
isa = "riscv"
cpu = "generic-rv64"
triple = "riscv64-unknown-linux-gnu"
cores = 4
vector_bits = 256
vector_registers = 32
memory_gib = 4
features = ["m", "a", "f", "d", "v", "zvl256b"]
[[caches]]
level = 1
kib = 32
"""


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(GOOD)
    machine = hw.load(str(file))
    assert machine.has("v", "zvl256b")
    assert {"+v", "+zvl256b"} <= set(target_dict(machine, 4)["mattr"])
    with pytest.raises(HardwareError, match="cannot be read"):
        hw.load(str(tmp_path / "missing.toml"))


def test_a_core_that_llvm_does_not_know_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(GOOD.replace("generic-rv64", "generic-rv46"))
    with pytest.raises(HardwareError, match=r"board: cpu: LLVM knows no core 'generic-rv46' .*near: .*generic-rv64"):
        hw.load(str(file))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores = 4", "cores = 0", "cores"),
        ("cores = 4", 'cores = "four"', "cores"),
        ("cores = 4", "", "cores"),
        ('isa = "riscv"', 'isa = "mips"', "isa"),
        ("kib = 32", "kib = -1", "caches.0.kib"),
        ("memory_gib", "memory", "memory"),
        ("level = 1\nkib = 32", "level = 2\nkib = 1\n[[caches]]\nlevel = 1\nkib = 1", "nearest first"),
        ("cores = 4", "cores =", "not TOML"),
    ],
)
def test_bad_profiles_name_the_field(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(HardwareError, match=message) as caught:
        read_profile(GOOD.replace(old, new), "board")
    assert "board" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- showing ----------------------------------------------------------------------------------------------------------


def test_describe_and_json() -> None:
    machine = FIGURES.on(replace(hw.load("zen3"), cores=2))
    rows = dict(hw.describe(machine))
    assert rows["vector registers"] == "16 x 256 bits"
    assert rows["L3 cache"] == "32 MiB, 16-way, 64 B lines, shared by 8 cores"
    assert rows["peak float32"] == "100 GFLOP/s on 1 core, 190 on 2 cores"
    assert rows["fingerprint"] == machine.fingerprint
    assert dict(hw.describe(hw.load("zen3")))["peak"] == "not measured"
    back = json.loads(json.dumps(hw.to_json(machine)))
    assert back["caches"][0] == {"level": 1, "size": 32768, "line": 64, "ways": 8, "shared_by": 1}
    assert back["peaks_all"] == {"float32": 190.0}
    assert back["fingerprint"] == machine.fingerprint
