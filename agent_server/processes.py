"""Runs commands: one runner for /execute, the bash tool and everything later.

A command gets its own session and process group, a clean environment, no stdin unless given, lower priority, and its
process id as a mark in the environment (see `proctree.py`). It is spawned with vfork (`spawn.py`) and watched by a pidfd on
the event loop, which costs a third of asyncio's own subprocesses.
"""

import asyncio
import contextlib
import errno
import logging
import os
import pwd
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_server import proctree
from agent_server.capture import OutputSink
from agent_server.errors import AgentServerError, InvalidRequest, TooManyRequests
from agent_server.events import Draft, Event, LogUnavailable
from agent_server.events.log import EventLog
from agent_server.execution import Command, Ended, Execution, Owner
from agent_server.ids import new_id
from agent_server.output import Spool
from agent_server.pipes import Pipe
from agent_server.redaction import Secrets
from agent_server.spawn import Child, spawn

logger = logging.getLogger(__name__)

LONGEST_ARGUMENT = 100_000
"""Bytes of a shell command that are passed as an argument (the kernel's limit is 128 KiB); a longer one is read from a file."""

LEFTOVERS = 128
"""Pipes of ended commands that are still read so that their background children are not stopped by a full or closed pipe."""


class ProcessIndex:
    """The table `open_processes`: commands whose end is not in the log."""

    version = 1
    tables: Sequence[str] = ("open_processes",)
    schema: Sequence[str] = ("CREATE TABLE open_processes (process_id TEXT PRIMARY KEY, session_id TEXT, task_id TEXT) WITHOUT ROWID",)

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        ended = {event.data["processId"] for event in events if event.type == "process.exited"}
        for event in events:
            # Most commands begin and end in one transaction, and leave no trace here.
            if event.type == "process.started" and event.data["processId"] not in ended:
                db.execute(
                    "INSERT OR IGNORE INTO open_processes VALUES (?, ?, ?)", (event.data["processId"], event.session_id, event.task_id)
                )
        if ended:
            db.executemany("DELETE FROM open_processes WHERE process_id = ?", [(process_id,) for process_id in ended])


class Processes:
    """All commands of this server. `mark` tells ours from those of other servers on the machine."""

    def __init__(self, log: EventLog, secrets: Secrets, environment: Mapping[str, str], spill_folder: Path, mark: str) -> None:
        self._log = log
        self._secrets = secrets
        self._shell = shutil.which("bash") or shutil.which("sh") or "/bin/sh"
        self._inherited = self._environment = {**_defaults(self._shell), **_light_locale(environment)}
        self._spill = spill_folder
        self._mark = mark
        self._no_input = os.open(os.devnull, os.O_RDONLY)
        self._has_spawned = False
        self._leftovers: list[Pipe] = []
        self._running: set[str] = set()
        self._recovered = asyncio.Event()
        self._recovered.set()

    def set_variables(self, variables: Mapping[str, str]) -> None:
        """Gives commands that start from here on these variables too, over those they inherit."""
        self._environment = {**self._inherited, **variables}

    @property
    def running(self) -> int:
        return len(self._running)

    async def run(self, command: Command, owner: Owner = Owner(), sink: OutputSink | None = None) -> Ended:  # noqa: B008  # frozen
        """Runs a command to its end, and tells it as process.started, process.output (unless `sink` takes it) and process.exited.

        Errors: InvalidRequest when it cannot be started. Cancellation: the whole tree is dead before it is raised.
        """
        process_id = new_id("proc")
        shown = command.argv if isinstance(command.argv, str) else list(command.argv)
        ids = {"processId": process_id, "toolCallId": owner.tool_call_id} if owner.tool_call_id else {"processId": process_id}
        run: Execution | None = None
        self._running.add(process_id)
        try:
            if not self._recovered.is_set():
                await self._recovered.wait()
            if self._has_spawned:
                await self._turn()
            self._has_spawned = True
            asyncio.get_running_loop().call_soon(self._next_turn)
            try:
                spawned = self._spawn(command, process_id)
            except (OSError, ValueError) as error:
                failure = _not_started(command, error)
                self._log.say(self._draft("process.started", {**ids, "command": shown, "cwd": str(command.cwd)}, owner))
                self._log.say(self._draft("process.exited", {**ids, "reason": f"could not be started: {failure}"}, owner))
                raise failure from error
            # All else is done while it runs. What finds it again after a crash is its mark in the environment, which needs no log.
            run = Execution(command, self._secrets, Spool(self._spill, process_id), sink or self._tell(process_id, owner), *spawned)
            self._log.say(self._draft("process.started", {**ids, "command": shown, "cwd": str(command.cwd)}, owner))
            reason = await self._wait(run, process_id)
            result = await run.result(process_id, reason or run.cause)
        except asyncio.CancelledError:
            if run is not None:  # else nothing was started, and nothing told
                with contextlib.suppress(LogUnavailable):
                    await finish(self._abort(run, process_id, ids, owner))
            raise
        finally:
            self._running.discard(process_id)
            if run is not None and run.has_open_pipes:
                self._adopt(run)
        await self._log.append(self._draft("process.exited", {**ids, **_end(result)}, owner))
        return result

    async def _turn(self) -> None:
        """Waits for a turn of the event loop in which nothing was spawned: it takes half a millisecond, and others want theirs."""
        while self._has_spawned:  # noqa: ASYNC110  # it is the next turn that is waited for
            await asyncio.sleep(0)

    def _next_turn(self) -> None:
        self._has_spawned = False

    async def _wait(self, run: Execution, process_id: str) -> str | None:
        await run.end(run.command.timeout)
        if not run.is_done and run.has_exited:
            await run.end(None)  # it has ended in time; only a child in the background has its output open
        if run.is_done:
            return None
        await self._end(run, process_id)
        return "timeout"

    async def _abort(self, run: Execution, process_id: str, ids: Mapping[str, Any], owner: Owner) -> None:
        await self._end(run, process_id)
        result = await run.result(process_id, "cancelled")
        await self._log.append(self._draft("process.exited", {**ids, **_end(result)}, owner))

    async def _end(self, run: Execution, process_id: str) -> None:
        await self.kill(process_id)
        await run.end(proctree.KILL_WAIT)
        run.finish()  # a process in an uninterruptible sleep cannot be waited for

    async def kill(self, process_id: str) -> None:
        """Ends a command's whole tree: SIGTERM, 2 s, SIGKILL. Also what it left in the background."""
        await proctree.kill(f"{self._mark}/{process_id}")

    async def kill_all(self, *, grace: float = proctree.TERM_GRACE) -> int:
        """Ends every command of this data directory, also those of a server that was killed. Gives how many there were."""
        found = await asyncio.to_thread(proctree.find, f"{self._mark}/")
        if found:
            await proctree.kill(f"{self._mark}/", grace=grace)
        return len(found)

    async def recover(self) -> None:
        """Ends what a killed server left running, and tells the end of every command that it did not.

        To be called before any command runs; those asked for meanwhile wait for it, so that they are not taken for left ones.
        """
        self._recovered.clear()
        try:
            count = await self.kill_all()
            if count:
                logger.warning("%d processes were left running by the server before this one; they were ended", count)
            rows = await self._log.query(lambda db: db.execute("SELECT process_id, session_id, task_id FROM open_processes").fetchall())
            reason = "the server ended before it"
            left = [row for row in rows if row[0] not in self._running]
            await self._log.append(*(Draft("process.exited", {"processId": p, "reason": reason}, s, t) for p, s, t in left))
        finally:
            self._recovered.set()

    def _spawn(self, command: Command, process_id: str) -> tuple[Child, int, int]:
        env = {**self._environment, "PWD": str(command.cwd), **command.env, proctree.VARIABLE: f"{self._mark}/{process_id}"}
        stdin = self._no_input if command.stdin is None else subprocess.PIPE
        kept: list[int] = []
        given: list[int] = []
        try:
            for _ in range(2):
                reading, writing = os.pipe()
                kept.append(reading)
                given.append(writing)
            argv, script = self._argv(command.argv)
            given += script
            child = spawn(argv, cwd=command.cwd, env=env, stdin=stdin, stdout=given[0], stderr=given[1], pass_fds=script)
        except BaseException:
            for fd in kept:
                os.close(fd)
            raise
        finally:
            for fd in given:
                os.close(fd)
        return child, kept[0], kept[1]

    def _argv(self, argv: str | Sequence[str]) -> tuple[list[str], list[int]]:
        """Gives the arguments, and the descriptors that they name."""
        if not isinstance(argv, str):
            return list(argv), []
        text = os.fsencode(argv)
        if len(text) <= LONGEST_ARGUMENT:
            return [self._shell, "-c", argv], []
        # In memory: a script may hold secrets, and what is on disk outlives it.
        script = os.memfd_create("script")
        with open(script, "wb", closefd=False) as file:
            file.write(text)
        return [self._shell, f"/dev/fd/{script}"], [script]

    def _draft(self, kind: str, data: Mapping[str, Any], owner: Owner) -> Draft:
        return Draft(kind, data, owner.session_id, owner.task_id)

    def _tell(self, process_id: str, owner: Owner) -> OutputSink:
        def send(stream: str, chunk: str, offset: int, skipped: int) -> None:
            data = {
                "processId": process_id,
                "stream": stream,
                "chunk": chunk,
                "offset": offset,
                **({"skipped": skipped} if skipped else {}),
            }
            self._log.say(self._draft("process.output", data, owner))

        return send

    def _adopt(self, run: Execution) -> None:
        self._leftovers = [pipe for pipe in (*self._leftovers, *run.pipes) if pipe.is_open]
        while len(self._leftovers) > LEFTOVERS:
            self._leftovers.pop(0).close()


async def finish(work: Any) -> Any:
    """Awaits a clean-up to its end, also when we are cancelled again meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()


def _end(result: Ended) -> dict[str, Any]:
    data: dict[str, Any] = {"exitCode": result.exit_code} if result.signal is None else {"signal": result.signal}
    if result.reason is not None:
        data["reason"] = result.reason
    return {**data, "duration_ms": round(result.duration * 1000)}


def _defaults(shell: str) -> dict[str, str]:
    """Gives what commands expect where the server was started with less. A bash without SHELL looks it up in the user database."""
    try:
        user = pwd.getpwuid(os.geteuid())
        name, home = user.pw_name, user.pw_dir
    except KeyError:  # an arbitrary id, as in some containers
        name, home = str(os.geteuid()), "/"
    return {"HOME": home, "USER": name, "LOGNAME": name, "SHELL": shell, "PATH": os.defpath, "TERM": "dumb"}


def _light_locale(environment: Mapping[str, str]) -> dict[str, str]:
    """Gives the environment with C.UTF-8 asked for where it differs from C: its other categories cost each bash 80 system calls."""
    if environment.get("LANG", "").upper().replace("-", "") != "C.UTF8" or "LC_ALL" in environment:
        return dict(environment)
    return {"LC_CTYPE": "C.UTF-8", **{name: value for name, value in environment.items() if name != "LANG"}}


def _not_started(command: Command, error: OSError | ValueError) -> AgentServerError:
    if not isinstance(error, OSError):
        return InvalidRequest(f"The command, its folder or its variables hold what no process can take: {error}.", path="command")
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
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
