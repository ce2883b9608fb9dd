"""Runs commands: one runner for /execute, the bash tool and everything later.

A command gets its own session and process group, a clean environment, no stdin unless given, lower priority, and its
process id as a mark in the environment (see `proctree.py`). It is spawned with vfork (`spawn.py`) and watched by a pidfd on
the event loop, which costs a third of asyncio's own subprocesses.
"""

import asyncio
import contextlib
import logging
import os
import pwd
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_server.clock import Clock
from agent_server.commands import proctree
from agent_server.commands.capture import OutputSink
from agent_server.commands.execution import Command, Ended, Execution, Owner
from agent_server.commands.launch import launch, not_started
from agent_server.commands.orphans import watched
from agent_server.commands.output import Spool
from agent_server.commands.pipes import Pipe
from agent_server.commands.process import Process
from agent_server.commands.process_index import unfinished
from agent_server.commands.shell import find_shell
from agent_server.commands.terminals import TYPE
from agent_server.errors import Conflict, Draining, TooManyRequests
from agent_server.events import Draft, LogUnavailable
from agent_server.events.log import EventLog
from agent_server.ids import new_id
from agent_server.redaction import Secrets

logger = logging.getLogger(__name__)

BACKGROUND = 128
TERMINALS = 64
"""Commands in the background at the same time, and how many of them may have a terminal: each keeps up to 512 KiB of output."""

CLOSE_WAIT = 3.0
"""Seconds that commands which were killed at a stop get until their ends are logged: more than DRAIN."""

LEFTOVERS = 128
"""Pipes of ended commands that are still read so that their background children are not stopped by a full or closed pipe."""


class Processes:
    """All commands of this server. `mark` tells ours from those of other servers on the machine."""

    def __init__(self, log: EventLog, secrets: Secrets, environment: Mapping[str, str], spill_folder: Path, mark: str) -> None:
        self._log = log
        self._secrets = secrets
        self.shell = find_shell()
        self._inherited = self._environment = {**_defaults(self.shell.name), **_light_locale(environment)}
        self._spill = spill_folder
        self._mark = mark
        self._no_input = os.open(os.devnull, os.O_RDONLY)
        self._clock = Clock()
        self._has_spawned = False
        self._leftovers: list[Pipe] = []
        self._running: dict[str, Process] = {}  # in the order in which they were asked for
        self._attending: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._recovered = asyncio.Event()
        self._recovered.set()

    def set_variables(self, variables: Mapping[str, str]) -> None:
        """Gives commands that start from here on these variables too, over those they inherit."""
        self._environment = {**self._inherited, **variables}

    @property
    def environment(self) -> Mapping[str, str]:
        """What commands get that start from here on, but their mark."""
        return self._environment

    @property
    def terminals(self) -> int:
        """How many of those that run have a terminal."""
        return sum(process.command.pty is not None for process in self._running.values())

    @property
    def running(self) -> int:
        return len(self._running)

    def list(self) -> "list[Process]":
        """Gives the commands that run, in the order in which they began."""
        return [process for process in self._running.values() if process.has_begun]

    def get(self, process_id: str) -> Process | None:
        """Gives a command that runs."""
        process = self._running.get(process_id)
        return process if process is not None and process.has_begun else None

    def newest_reading_stdin(self) -> Process | None:
        """Gives the newest command whose input is open."""
        return next((process for process in reversed(self.list()) if process.reads_input), None)

    async def run(self, command: Command, owner: Owner = Owner(), sink: OutputSink | None = None) -> Ended:  # noqa: B008  # frozen
        """Runs a command to its end, and tells it as process.started, process.output (unless `sink` takes it) and process.exited.

        Errors: InvalidRequest when it cannot be started. Cancellation: the whole tree is dead before it is raised.
        """
        return await self._attend(await self._begin(command, owner, sink))

    async def start(self, command: Command, owner: Owner = Owner(), sink: OutputSink | None = None) -> Process:  # noqa: B008  # frozen
        """Starts a command that `is_background`, and returns when its start is in the log. It ends by itself, by `end` or with the server.

        Errors: InvalidRequest when it cannot be started, TooManyRequests when too many run.
        """
        self._check_room(command)
        process = await self._begin(command, owner, sink)
        work = asyncio.create_task(self._see_off(process))
        self._attending.add(work)
        work.add_done_callback(self._attending.discard)
        await self._log.append()
        return process

    def _check_room(self, command: Command) -> None:
        if self._is_closed:
            raise Draining("The server is stopping; start commands when it is up again.")
        behind = [process for process in self._running.values() if process.command.is_background]
        if len(behind) >= BACKGROUND:
            raise TooManyRequests(f"{BACKGROUND} commands run in the background; end some (DELETE /processes/ID).")
        if command.pty is not None and sum(process.size is not None for process in behind) >= TERMINALS:
            raise TooManyRequests(f"{TERMINALS} terminals are open; end some (DELETE /processes/ID).")

    async def _begin(self, command: Command, owner: Owner, sink: OutputSink | None) -> Process:
        process = Process(new_id("proc"), command, owner)
        self._running[process.process_id] = process
        try:
            if not self._recovered.is_set():
                await self._recovered.wait()
            if self._has_spawned:
                await self._turn()
            self._has_spawned = True
            asyncio.get_running_loop().call_soon(self._next_turn)
            try:
                launched = launch(command, self._variables(process), shell=self.shell, no_input=self._no_input)
            except (OSError, ValueError) as error:
                failure = not_started(command, error)
                reason = f"could not be started: {failure}"
                self._log.say(self._started(process), self._draft("process.exited", {**_ids(process), "reason": reason}, owner))
                raise failure from error
        except BaseException:
            del self._running[process.process_id]
            raise
        # All else is done while it runs. What finds it again after a crash is its mark in the environment, which needs no log.
        spool = Spool(self._spill, process.process_id)
        process.begin(Execution(command, self._secrets, spool, sink or self._tell(process), self._clock, *launched))
        self._log.say(self._started(process))
        return process

    async def _turn(self) -> None:
        """Waits for a turn of the event loop in which nothing was spawned: it takes half a millisecond, and others want theirs."""
        while self._has_spawned:  # noqa: ASYNC110  # it is the next turn that is waited for
            await asyncio.sleep(0)

    def _next_turn(self) -> None:
        self._has_spawned = False

    def _variables(self, process: Process) -> dict[str, str]:
        command = process.command
        fitting = {"TERM": TYPE} if command.pty is not None else {}
        mark = {proctree.VARIABLE: f"{self._mark}/{process.process_id}"}
        return {**self._environment, "PWD": str(command.cwd), **fitting, **command.env, **mark}

    async def _attend(self, process: Process) -> Ended:
        """Waits for a command's end, and tells it."""
        run = process.execution
        try:
            await self._wait(process)
            result = await run.result(process.process_id, process.reason or run.cause)
        except asyncio.CancelledError:
            with contextlib.suppress(LogUnavailable):
                await finish(self._abort(process))
            raise
        finally:
            del self._running[process.process_id]
            process.settle()
            if run.has_open_pipes:
                self._adopt(run)
        await self._tell_end(process, result)
        return result

    async def _see_off(self, process: Process) -> None:
        try:
            await self._attend(process)
        except LogUnavailable as error:
            logger.error("the end of %s could not be logged: %s", process.process_id, error)

    async def _wait(self, process: Process) -> None:
        run = process.execution
        await run.end(run.command.timeout)
        if not run.is_done and run.has_exited:
            await run.end(None)  # it has ended in time; only a child in the background has its output open
        if not run.is_done:
            process.reason = process.reason or "timeout"
            await self._end(process)

    async def _abort(self, process: Process) -> None:
        process.reason = process.reason or "cancelled"
        await self._end(process)
        await self._tell_end(process, await process.execution.result(process.process_id, process.reason))

    async def _end(self, process: Process) -> None:
        await self.kill(process.process_id)
        await process.execution.end(proctree.KILL_WAIT)
        process.execution.finish()  # a process in an uninterruptible sleep cannot be waited for

    async def end(self, process_id: str) -> None:
        """Ends a command's whole tree, and returns when its end is in the log; of one that has ended, what it left in the background.

        Errors: Conflict when a part of it cannot be ended.
        """
        process = self.get(process_id)
        if process is not None and not process.has_exited:
            process.reason = process.reason or "killed"
        left = await self.kill(process_id)
        if left:
            numbers = ", ".join(map(str, sorted(left)))
            raise Conflict(f"The kernel does not end {numbers} of it yet; try again later.", details={"pids": sorted(left)})
        if process is not None:
            await process.wait()

    def of_session(self, session_id: str) -> Sequence[Process]:
        """Gives what tools have started in the background in a session and has not ended, also what is about to begin."""
        return [process for process in self._running.values() if process.is_left and process.owner.session_id == session_id]

    async def end_left(self, reason: str, *, session_id: str, task_id: str | None = None) -> None:
        """Ends what tools have left in the background in a session, or in one task of it. What the kernel does not end is logged."""
        left = [process for process in self.of_session(session_id) if task_id is None or process.owner.task_id == task_id]
        for process in left:
            process.reason = process.reason or reason
        for error in await asyncio.gather(*(self.end(process.process_id) for process in left), return_exceptions=True):
            if isinstance(error, Conflict):
                logger.warning("a command in the background goes on: %s", error)
            elif error is not None:
                raise error

    @contextlib.asynccontextmanager
    async def lent(self, argv: Sequence[str], cwd: Path, owner: Owner) -> AsyncIterator[dict[str, str]]:
        """Gives the environment for a process that somebody else starts within the context; at its end all that carry it are dead,
        and also soon after the server's own.

        Errors: OSError.
        """
        process_id = new_id("proc")
        await self._recovered.wait()
        data = {"processId": process_id, "command": [*argv], "cwd": str(cwd), "background": True}
        await self._log.append(self._draft("process.started", data, owner))
        mark = f"{self._mark}/{process_id}"
        try:
            with watched(mark):
                yield {**self._environment, "PWD": str(cwd), proctree.VARIABLE: mark}
        finally:
            try:
                await finish(self.kill(process_id))
            finally:
                self._log.say(self._draft("process.exited", {"processId": process_id, "reason": "it was no longer needed"}, owner))

    async def kill(self, process_id: str) -> set[int]:
        """Ends a command's whole tree: SIGTERM, 2 s, SIGKILL. Also what it left in the background. Gives what cannot be ended."""
        return await proctree.kill(f"{self._mark}/{process_id}", roots=lambda: self._pids(process_id))

    async def kill_all(self, *, grace: float = proctree.TERM_GRACE) -> int:
        """Ends every command of this data directory, also those of a server that was killed. Gives how many there were."""
        found = await asyncio.to_thread(proctree.find, f"{self._mark}/", self._pids())
        if found:
            await proctree.kill(f"{self._mark}/", grace=grace, roots=self._pids)
        return len(found)

    def _pids(self, process_id: str | None = None) -> set[int]:
        """Gives the numbers of commands that were not reaped yet: of this one, or of all."""
        running = [self._running.get(process_id)] if process_id is not None else [*self._running.values()]
        return {process.pid for process in running if process is not None and process.has_begun and not process.has_exited}

    async def recover(self) -> None:
        """Ends what a killed server left running, and tells the end of every command that it did not.

        To be called before any command runs; those asked for meanwhile wait for it, so that they are not taken for left ones.
        """
        self._recovered.clear()
        try:
            count = await self.kill_all()
            if count:
                logger.warning("%d processes were left running by the server before this one; they were ended", count)
            reason = "the server ended before it"
            left = [row for row in await unfinished(self._log) if row[0] not in self._running]
            await self._log.append(*(Draft("process.exited", {"processId": p, "reason": reason}, s, t) for p, s, t in left))
        finally:
            self._recovered.set()

    async def close(self) -> None:
        """Ends every command, and returns when the ends of those in the background are in the log."""
        self._is_closed = True
        for process in self.list():
            if not process.has_exited:
                process.reason = process.reason or "the server was stopped"
        await self.kill_all()
        if self._attending:
            await asyncio.wait(self._attending, timeout=CLOSE_WAIT)
            for process in self.list():
                process.execution.finish()
            await asyncio.gather(*self._attending)
        for pipe in self._leftovers:
            pipe.close()

    def _started(self, process: Process) -> Draft:
        command = process.command
        shown = command.argv if isinstance(command.argv, str) else [*command.argv]
        data: dict[str, Any] = {**_ids(process), "command": shown, "cwd": str(command.cwd)}
        if command.is_background:
            data["background"] = True
        if command.pty is not None:
            data["pty"] = {"cols": command.pty.cols, "rows": command.pty.rows}
        return self._draft("process.started", data, process.owner)

    async def _tell_end(self, process: Process, result: Ended) -> None:
        process.ended = result
        await self._log.append(self._draft("process.exited", {**_ids(process), **_end(result)}, process.owner))

    def _draft(self, kind: str, data: Mapping[str, Any], owner: Owner) -> Draft:
        return Draft(kind, data, owner.session_id, owner.task_id)

    def _tell(self, process: Process) -> OutputSink:
        process_id, owner = process.process_id, process.owner

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
    """Awaits what must not be left half done. Cancellation: is raised when it is done; an error of the work's own goes before."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


def _ids(process: Process) -> dict[str, str]:
    call = process.owner.tool_call_id
    return {"processId": process.process_id, "toolCallId": call} if call else {"processId": process.process_id}


def _end(result: Ended) -> dict[str, Any]:
    data: dict[str, Any] = {"exitCode": result.exit_code} if result.signal is None else {"signal": result.signal}
    if result.reason is not None:
        data["reason"] = result.reason
    if result.output_file is not None:
        data["outputFile"] = str(result.output_file)
    if result.size is not None:
        data["outputBytes"] = result.size
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
