"""From a command to a process with its pipes, or with its terminal; and in words why there is none."""

import errno
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent_server.commands.execution import Command
from agent_server.commands.shell import Shell
from agent_server.commands.spawn import Child, spawn, spawn_on_terminal
from agent_server.commands.terminals import open_terminal, program
from agent_server.errors import AgentServerError, InvalidRequest, TooManyRequests

LONGEST_ARGUMENT = 100_000
"""Bytes of a shell command that are passed as an argument (the kernel's limit is 128 KiB); a longer one is read from a file."""


class Launched(NamedTuple):
    """A process, our ends of its outputs (stdout and stderr, or one for a terminal), and that of its input if it has one."""

    child: Child
    outputs: Sequence[int]
    stdin: int | None


def launch(command: Command, env: Mapping[str, str], *, shell: Shell, no_input: int) -> Launched:
    """Starts a command; `no_input` is the stdin of one that has none.

    Errors: OSError when it cannot be started, ValueError for what no argument or variable can hold.
    """
    kept: list[int] = []
    given: list[int] = []
    try:
        if command.pty is not None:
            return _on_terminal(command, env, shell.name, kept, given)
        for _ in ("both",) if command.is_merged else ("stdout", "stderr"):
            reading, writing = os.pipe()
            kept.append(reading)
            given.append(writing)
        outputs, stdout, stderr = tuple(kept), given[0], given[-1]
        stdin, feed = no_input, None
        if command.takes_input:
            stdin, feed = os.pipe()
            kept.append(feed)
            given.append(stdin)
        argv, script = _argv(command.argv, shell.name)
        given += script
        program = shell.program_with(env) if isinstance(command.argv, str) else None
        child = spawn(argv, program=program, cwd=command.cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=script)
        return Launched(child, outputs, feed)
    except BaseException:
        for fd in kept:
            os.close(fd)
        raise
    finally:
        for fd in given:
            os.close(fd)


def _on_terminal(command: Command, env: Mapping[str, str], shell: str, kept: list[int], given: list[int]) -> Launched:
    assert command.pty is not None  # noqa: S101  # asked before
    if not command.cwd.is_dir() or not os.access(command.cwd, os.X_OK):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    ours, theirs = open_terminal(command.pty)
    kept.append(ours)
    given.append(theirs)
    kept.append(os.dup(ours))  # input and output end each at their own time
    argv, script = _argv(command.argv, shell)
    given += script
    argv[0] = program(argv[0], command.cwd, env)
    child = spawn_on_terminal(argv, cwd=command.cwd, env=env, terminal=os.ttyname(theirs), pass_fds=script)
    return Launched(child, (ours,), kept[1])


def _argv(argv: str | Sequence[str], shell: str) -> tuple[list[str], list[int]]:
    """Gives the arguments, and the descriptors that they name."""
    if not isinstance(argv, str):
        return list(argv), []
    text = os.fsencode(argv)
    if len(text) <= LONGEST_ARGUMENT:
        return [shell, "-c", argv], []
    # In memory: a script may hold secrets, and what is on disk outlives it.
    script = os.memfd_create("script")
    with open(script, "wb", closefd=False) as file:
        file.write(text)
    return [shell, f"/dev/fd/{script}"], [script]


def not_started(command: Command, error: OSError | ValueError) -> AgentServerError:
    """Gives what a client is told of a command that could not be started."""
    if not isinstance(error, OSError):
        return InvalidRequest(f"The command, its folder or its variables hold what no process can take: {error}.", path="command")
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC):
        return TooManyRequests(f"No process can be started now: {error.strerror}; end some commands, or try again later.")
    if not command.cwd.is_dir():
        what = "is no folder" if command.cwd.exists() else "does not exist"
        return InvalidRequest(f"{command.cwd} {what}; name a folder that exists.", path="cwd")
    if not os.access(command.cwd, os.X_OK):
        return InvalidRequest(f"The folder {command.cwd} cannot be entered: {error.strerror}.", path="cwd")
    if error.errno == errno.E2BIG:
        advice = "An argument or variable may have 128 KiB, all together about 2 MiB; pass long texts by stdin or a file."
        return InvalidRequest(f"The command cannot be run: {error.strerror}. {advice}", path="command")
    name = "the shell" if isinstance(command.argv, str) else repr(command.argv[0][:200])
    return InvalidRequest(f"{name} cannot be run: {error.strerror}. Check that it is installed and executable.", path="command")
