"""What /proc tells of a process: CPU time, memory, children. Linux only; the memory of others is for root to read."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from agent_server.commands.proctree import VARIABLE

CALM = 0.5
"""Cores that others may use when a measurement begins."""

CALM_WAIT = 20.0
"""Seconds to wait for that."""

_CALM_WINDOW = 0.3


def cpu(pid: int) -> float:
    """Gives the seconds of CPU, user and system, that a process has used itself. Source: clock_getcpuclockid(3), in nanoseconds."""
    return time.clock_gettime((~pid << 3) | 2)


def pss(pid: int) -> float:
    """Gives the proportional set size of one process in MB. Errors: OSError when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except PermissionError as error:
        # The server hides its memory from its own user (PR_SET_DUMPABLE), so that commands cannot read it.
        raise SystemExit("benchmarks: the server's memory is only for root to read: run them as root, or in a container.") from error
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def tree_pss(pid: int) -> float:
    """Gives the proportional set size of a server and its children in MB, without the commands it runs for others."""
    total = pss(pid)
    own = _read(pid, "cmdline")
    for child in children(pid):
        # A child between vfork and exec has its parent's memory and its parent's name.
        if _read(child, "cmdline") not in (own, b"") and VARIABLE.encode() not in _read(child, "environ"):
            try:
                total += pss(child)
            except (OSError, StopIteration):  # it has ended
                continue
    return total


def children(pid: int) -> list[int]:
    """Gives all descendants of a process."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return []
    found: list[int] = []
    for thread in threads:
        for child in map(int, _read(pid, f"task/{thread}/children").split()):
            found += [child, *children(child)]
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""


def settle() -> None:
    """Waits until others leave the machine in peace, or for CALM_WAIT."""
    until = time.monotonic() + CALM_WAIT
    while time.monotonic() < until:
        before = _busy()
        time.sleep(_CALM_WINDOW)
        if _busy() - before <= CALM * _CALM_WINDOW:
            return


def _busy() -> float:
    """Seconds that all cores together have worked."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Memory:
    """Samples a server's memory in a thread, commands apart: (monotonic seconds, MB)."""

    def __init__(self, pid: int, interval: float) -> None:
        self._pid = pid
        self._interval = interval
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self.samples: list[tuple[float, float]] = []

    @property
    def peak(self) -> float:
        return max(size for _, size in self.samples)

    def at(self, moment: float) -> float:
        """Gives the sample nearest to a moment."""
        return min(self.samples, key=lambda sample: abs(sample[0] - moment))[1]

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.samples.append((time.monotonic(), tree_pss(self._pid)))
            self._stop.wait(self._interval)

    def __enter__(self) -> "Memory":
        self._sampling = self._pool.submit(self._sample)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._sampling.result(10)
