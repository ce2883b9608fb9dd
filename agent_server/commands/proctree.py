"""Finds and ends process trees, by what the kernel tells in /proc. Linux only.

A child that called setsid and lost its parent shares neither group, session nor ancestors with its command; what it
keeps is the environment. So each command carries a mark in one variable, and a tree is: every process with that mark,
and all their descendants. A daemon started with an emptied environment (`env -i`) whose parent has ended escapes this.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Sequence
from typing import Any

VARIABLE = "AGENT_SERVER_PROCESS"
"""The environment variable that carries a command's mark: `<data directory's id>/<process id>`."""

TERM_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""

KILL_WAIT = 5.0
"""Seconds to repeat SIGKILL for, against trees that grow while they are killed."""

_POLL = 0.02

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def protect_self() -> None:
    """Closes our memory, environment and files to other processes of the same user, and adopts orphans of our commands."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Files that whoever started us left open; Python's own are closed to commands as it is.
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the list itself
            if int(name) > 2:
                os.set_inheritable(int(name), False)


def find(mark: str, roots: Collection[int] = ()) -> set[int]:
    """Gives the living processes whose mark begins with `mark`, those children of ours that are in `roots`, and the descendants
    of them all; never ourselves. Blocks for some ms.

    A root is found also while it has no environment to see: in the middle of an execve, or emptied by `env -i`.
    """
    wanted = f"{VARIABLE}={mark}".encode()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        with contextlib.suppress(OSError):  # it ended, or is not ours to read
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state in (b"Z", b"X"):
                continue
            parents[pid] = int(parent)
            with open(f"/proc/{pid}/environ", "rb") as file:
                environ = file.read()
            if environ.startswith(wanted) or b"\0" + wanted in environ:
                found.add(pid)
    found |= {pid for pid in roots if parents.get(pid) == os.getpid()}
    found.discard(os.getpid())
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


async def kill(mark: str, *, grace: float = TERM_GRACE, roots: Callable[[], Collection[int]] = tuple) -> set[int]:
    """Ends the whole tree: SIGTERM, `grace` seconds, SIGKILL until nothing is left. Gives what is left (nothing, as a rule).

    `roots` gives those of it that are children of ours and were not reaped yet; it is called in other threads.
    """
    return await _kill(lambda: find(mark, roots()), grace)


async def _kill(look: Callable[[], set[int]], grace: float) -> set[int]:
    loop = asyncio.get_running_loop()
    left = await asyncio.to_thread(_look_twice, look)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_WAIT)):
        until = loop.time() + seconds
        told: set[int] = set()
        while left and loop.time() < until:
            # Each is asked to end once; what is to be killed is killed again, with all it has become.
            for pid in left if number == signal.SIGKILL else left - told:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)  # a stopped process takes no SIGTERM
            told |= left
            await asyncio.sleep(_POLL)
            left = await asyncio.to_thread(_look_twice, look)
    return left


def _look_twice(look: Callable[[], set[int]]) -> set[int]:
    # A process in the middle of an execve has no environment to see, and one that is forked behind our back is missed.
    return look() or look()


class Reaper:
    """Reaps what was adopted: orphans of commands that have ended.

    It never waits for any child (`waitpid(-1)` steals exit codes). A zombie that is still there a second later, and was
    not started by `popen`, is one nobody waits for: commands are reaped by the event loop at once.
    """

    PERIOD = 1.0

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._own: dict[int, subprocess.Popen[bytes]] = {}

    def popen(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Starts a process whose end somebody asks for when they like. From any thread."""
        process = subprocess.Popen(argv, **options)
        self._own[process.pid] = process
        return process

    async def run(self) -> None:
        """Looks once a second, for ever."""
        while True:
            await asyncio.sleep(self.PERIOD)
            self.look()

    def look(self) -> None:
        for pid, process in self._own.copy().items():
            if process.returncode is not None:
                del self._own[pid]
        zombies = {pid for pid in _children() if _is_zombie(pid)} - set(self._own)
        for pid in zombies & self._seen:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = zombies


def _children() -> list[int]:
    # Adopted processes are listed with the main thread. Without CONFIG_PROC_CHILDREN there is no such file.
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False
