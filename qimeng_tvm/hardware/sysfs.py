"""What the Linux kernel tells about CPUs, caches, quotas and memory; every path under a ``root`` that tests replace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from qimeng_tvm.hardware.model import Cache

# glibc's numbers for sysconf (bits/confname.h): size, ways, line of L1d, L2, L3. Python does not name them.
_SYSCONF_CACHES = ((1, 188), (2, 191), (3, 194))

# When nobody tells: smaller than on any server or desktop core of the last ten years, so blocks still fit.
DEFAULT_CACHES = (Cache(1, 32 << 10, ways=8), Cache(2, 256 << 10, ways=8), Cache(3, 2 << 20, ways=16))
DEFAULT_MEMORY = 2 << 30

_SUFFIX = {"K": 10, "M": 20, "G": 30}


def read(path: Path) -> str:
    """Return the stripped text of a kernel file, or "" when it is not there or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(text: str, default: int = 0) -> int:
    """Read ``48K`` or ``64``; anything else gives ``default``."""
    digits, shift = (text[:-1], _SUFFIX[text[-1]]) if text[-1:] in _SUFFIX else (text, 0)
    return int(digits) << shift if digits.isdigit() else default


def cpu_list(text: str) -> frozenset[int]:
    """Read a kernel CPU list such as ``0-3,8``."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            cpus.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return frozenset(cpus)


def cpuinfo_fields(root: Path) -> dict[str, str]:
    """Return the first processor's fields of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in read(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() not in fields:
            fields[key.strip()] = value.strip()
    return fields


def cpuinfo_flags(root: Path) -> frozenset[str]:
    """Return the features that every processor of /proc/cpuinfo lists; empty when there is no such line."""
    common: frozenset[str] | None = None
    for line in read(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            common = flags if common is None else common & flags
    return common or frozenset()


@lru_cache(maxsize=4096)  # the topology does not change, and a big machine asks thousands of times
def core_of(cpu: int, root: Path) -> frozenset[int]:
    """Return the logical CPUs of the physical core that ``cpu`` belongs to."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    # core_cpus_list is the newer name (Linux 5.2) of thread_siblings_list.
    siblings = cpu_list(read(topology / "core_cpus_list") or read(topology / "thread_siblings_list"))
    return siblings | {cpu}


def _instances(cpu: int, root: Path) -> Iterator[Cache]:
    for index in sorted((root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index*")):
        level, size = number(read(index / "level")), number(read(index / "size"))
        if level < 1 or size < 1 or read(index / "type") not in ("Data", "Unified"):
            continue
        sharers = cpu_list(read(index / "shared_cpu_list")) | {cpu}
        yield Cache(
            level=level,
            size=size,
            line=number(read(index / "coherency_line_size")) or 64,
            ways=number(read(index / "ways_of_associativity")),
            shared_by=len({core_of(sharer, root) for sharer in sharers}),
        )


def caches(allowed: frozenset[int], root: Path, sysconf: Callable[[int], int]) -> tuple[Cache, ...]:
    """Return one cache per level, nearest first.

    Where cores differ (hybrid chips), each level is the instance with the fewest bytes per core that shares it: a block
    sized for it fits on every core.
    """
    smallest: dict[int, Cache] = {}
    for cpu in sorted(allowed):
        for cache in _instances(cpu, root):
            known = smallest.get(cache.level)
            if known is None or cache.size / cache.shared_by < known.size / known.shared_by:
                smallest[cache.level] = cache
    if smallest:
        return tuple(smallest[level] for level in sorted(smallest))
    cores = len({core_of(cpu, root) for cpu in allowed})
    told = []
    for level, base in _SYSCONF_CACHES:
        size, ways, line = (sysconf(base + offset) for offset in range(3))
        if size > 0:
            told.append(Cache(level, size, max(line, 0) or 64, max(ways, 0), cores if level == 3 else 1))
    return tuple(told) or DEFAULT_CACHES


def glibc_sysconf(name: int) -> int:
    """Return a ``sysconf`` value by its glibc number; 0 where the C library does not know it."""
    if not hasattr(os, "confstr_names") or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return 0  # the numbers mean other things elsewhere
    try:
        return os.sysconf(name)
    except (OSError, ValueError):
        return 0


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield this process's cgroup folders for a controller, innermost first, up to each hierarchy's root.

    In a container the path of /proc/self/cgroup may name folders that are not mounted; the walk to the root still
    meets the limit, because the container's own cgroup is mounted there.
    """
    base = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2, alone or beside version 1
            mounts = [base, base / "unified"]
        elif controller in controllers.split(","):
            mounts = [base / controllers, base / controller]
        else:
            continue
        inside = Path(path.lstrip("/"))
        for mount in mounts:
            for folder in (inside, *inside.parents):
                if ".." not in folder.parts:
                    yield mount / folder


def cpu_quota(root: Path) -> float | None:
    """Return the CPUs' worth of time that cgroups allow (the tightest on the way up), or None."""
    quotas = []
    for folder in _cgroup_folders("cpu", root):
        limit, _, period = read(folder / "cpu.max").partition(" ")
        if not limit:
            limit, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
        if limit.isdigit() and int(limit) > 0 and number(period) > 0:  # "max" and -1 mean no limit
            quotas.append(int(limit) / number(period))
    return min(quotas, default=None)


def memory(root: Path) -> int:
    """Return the bytes this process may use: what is available, or a tighter cgroup limit."""
    limits = []
    for line in read(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            limits.append(number(value.split()[0] if value.split() else "") << 10)
    for folder in _cgroup_folders("memory", root):
        limits += [number(read(folder / name)) for name in ("memory.max", "memory.limit_in_bytes")]
    return min((limit for limit in limits if limit > 0), default=DEFAULT_MEMORY)
