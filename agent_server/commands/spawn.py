"""Starts a process, the cheap way where it can.

posix_spawn takes a third less of our time than Popen (both use vfork), but knows no working directory: it serves where a
command is to run in our own, which is the workspace, as most do. Everything else takes Popen, but for a terminal's process:
only posix_spawn can open its terminal between setsid and exec, which is what makes it the controlling one.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

_RESET = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores and commands expect to end them."""

_ENTER = ("/bin/sh", "-c", 'cd -- "$0" && exec "$@"')
"""Goes into a folder before a program, for posix_spawn."""


class Child(Protocol):
    """What `subprocess.Popen` and `Spawned` have in common. `returncode` is negative for a signal."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


class Spawned:
    """A process that posix_spawn started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        code = self._wait(0)
        assert code is not None  # noqa: S101  # it was waited for
        return code

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def spawn(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: int,
    stdout: int,
    stderr: int,
    pass_fds: Sequence[int] = (),
    program: str | None = None,
) -> Child:
    """Starts a process in a session of its own, which inherits these descriptors and no others; `program` is the file, if not argv[0].

    Errors: OSError when it cannot be started, ValueError for what no argument or variable can hold.
    """
    if pass_fds or not argv[0].startswith("/") or not _is_here(cwd):
        return subprocess.Popen(
            argv,
            executable=program,
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            bufsize=0,
            start_new_session=True,
        )
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, stdout, stderr))]
    return Spawned(os.posix_spawn(program or argv[0], [*argv], env, file_actions=actions, setsid=True, setsigdef=_RESET))


def spawn_on_terminal(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], terminal: str, pass_fds: Sequence[int] = ()) -> Child:
    """Starts a process in a session of its own, whose controlling terminal is the one at this path.

    `argv[0]` is an absolute path, and `cwd` a folder that can be entered: what is wrong with them would only be seen on the terminal.
    Errors: as `spawn`.
    """
    # The first terminal that the leader of a session opens becomes its controlling one.
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
    actions += [(os.POSIX_SPAWN_DUP2, 0, number) for number in (1, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds]  # onto itself: it loses its close-on-exec
    program = argv if _is_here(cwd) else (*_ENTER, str(cwd), *argv)
    return Spawned(os.posix_spawn(program[0], [*program], env, file_actions=actions, setsid=True, setsigdef=_RESET))


def _is_here(cwd: Path) -> bool:
    # Compared as files: the workspace may have been removed and made again under its name.
    try:
        wanted, here = os.stat(cwd), os.stat(".")
    except OSError:
        return False
    return (wanted.st_ino, wanted.st_dev) == (here.st_ino, here.st_dev)
