"""What this machine is and uses, as the kernel counts it. Source: proc(5), sysfs' cgroup v2 files."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpus() -> int:
    """Gives how many processors we may use."""
    return len(os.sched_getaffinity(0))


def cpu_seconds() -> float:
    """Gives the processor time of everything that ran on this machine, or in this container, since its start."""
    for line in _lines(_CGROUP / "cpu.stat"):
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    first = next(iter(_lines(Path("/proc/stat"))), "cpu")
    figures = [int(part) for part in first.split()[1:8]] + [0] * 7
    return (sum(figures[:3]) + sum(figures[5:7])) / float(os.sysconf("SC_CLK_TCK"))  # without idle and waiting for disks


def memory() -> tuple[int, int]:
    """Gives the bytes of memory there are, and those in use; caches that can be given up are not in use."""
    figures = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in _lines(Path("/proc/meminfo")) if len(line.split()) > 1}
    total = figures.get("MemTotal", 0)
    used = total - figures.get("MemAvailable", 0)
    limit = next(iter(_lines(_CGROUP / "memory.max")), "max").strip()
    if limit.isdigit() and 0 < int(limit) < total:
        total, used = int(limit), min(used, int(next(iter(_lines(_CGROUP / "memory.current")), "0")))
    return total, used


def resident() -> int:
    """Gives the bytes of memory this process has in use."""
    return _statm(1)


def virtual() -> int:
    """Gives the bytes of address space this process has."""
    return _statm(0)


def network() -> tuple[int, int]:
    """Gives the bytes received and sent by this machine, loopback apart."""
    received = sent = 0
    for line in _lines(Path("/proc/net/dev"))[2:]:
        name, _, figures = line.partition(":")
        if name.strip() != "lo":
            counted = figures.split()
            received, sent = received + int(counted[0]), sent + int(counted[8])
    return received, sent


def _statm(field: int) -> int:
    figures = next(iter(_lines(Path("/proc/self/statm"))), "0 0").split()
    return int(figures[field]) * os.sysconf("SC_PAGE_SIZE")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # a sandbox without it
        return []
