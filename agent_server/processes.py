"""Runs commands: one runner for /execute, the bash tool and everything later.

A command gets its own session and process group, a clean environment, no stdin unless given, lower priority, and its
process id as a mark in the environment (see `proctree.py`). It is spawned with `subprocess.Popen` (vfork) and watched by
a pidfd and readers on the event loop, which costs a third of asyncio's own subprocesses.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_server import proctree
from agent_server.errors import InvalidRequest
from agent_server.events import Draft, Event, EventLog, LogUnavailable
from agent_server.execution import Command, Ended, Execution, OutputSink, Owner
from agent_server.ids import new_id
from agent_server.output import Spool
from agent_server.pipes import Pipe
from agent_server.redaction import Secrets

logger = logging.getLogger(__name__)

SPAWN_GAP = 0.0005
"""Seconds between two spawns in one turn of the event loop (each takes about so long)."""

LONGEST_ARGUMENT = 100_000
"""Bytes of a shell command that are passed as an argument (the kernel's limit is 128 KiB); a longer one goes into a file."""

LEFTOVERS = 64
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
        self._environment = {"HOME": str(Path.home()), "PATH": os.defpath, "TERM": "dumb", **_light_locale(environment)}
        self._spill = spill_folder
        self._mark = mark
        self._shell = shutil.which("bash") or shutil.which("sh") or "/bin/sh"
        self._oom_kills = _oom_kills()
        self._no_input = os.open(os.devnull, os.O_RDONLY)
        self._spawned_at = 0.0
        self._leftovers: list[Pipe] = []
        self._running: set[str] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    async def run(self, command: Command, owner: Owner = Owner(), sink: OutputSink | None = None) -> Ended:  # noqa: B008  # frozen
        """Runs a command to its end, and tells it as process.started, process.output (unless `sink` takes it) and process.exited.

        Errors: InvalidRequest when it cannot be started. Cancellation: the whole tree is dead before it is raised.
        """
        process_id = new_id("proc")
        shown = command.argv if isinstance(command.argv, str) else list(command.argv)
        ids = {"processId": process_id, **({"toolCallId": owner.tool_call_id} if owner.tool_call_id else {})}
        # Not waited for: what finds a command again after a crash is its mark in the environment, which needs no log.
        self._log.say(self._draft("process.started", {**ids, "command": shown, "cwd": str(command.cwd)}, owner))
        run = Execution(command, self._secrets, Spool(self._spill, process_id), sink or self._tell(process_id, owner))
        self._running.add(process_id)
        try:
            await self._turn()
            try:
                run.start(*self._spawn(command, process_id))
            except (OSError, ValueError) as error:
                failure = _not_started(command, error)
                self._log.say(self._draft("process.exited", {**ids, "reason": f"could not be started: {failure}"}, owner))
                raise failure from error
            reason = await self._wait(run, process_id)
            result = await run.result(process_id, reason or self._oom(run))
        except asyncio.CancelledError:
            with contextlib.suppress(LogUnavailable):
                await finish(self._abort(run, process_id, ids, owner))
            raise
        finally:
            self._running.discard(process_id)
            self._adopt(run)
        await self._log.append(self._draft("process.exited", {**ids, **_end(result)}, owner))
        return result

    async def _turn(self) -> None:
        """Waits for a turn of the event loop when something was spawned just now: it takes a while, and others want theirs."""
        loop = asyncio.get_running_loop()
        while loop.time() - self._spawned_at < SPAWN_GAP:  # noqa: ASYNC110  # it is the next turn that is waited for
            await asyncio.sleep(0)
        self._spawned_at = loop.time()

    async def _wait(self, run: Execution, process_id: str) -> str | None:
        await run.end(run.command.timeout)
        if not run.is_done and run.returncode is not None:
            await run.end(None)  # it has ended in time; only a child in the background has its output open
        if run.is_done:
            return None
        await self._end(run, process_id)
        return "timeout"

    async def _abort(self, run: Execution, process_id: str, ids: Mapping[str, Any], owner: Owner) -> None:
        if run.popen is not None:
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
        """Ends what a killed server left running, and tells the end of every command that it did not."""
        count = await self.kill_all()
        if count:
            logger.warning("%d processes were left running by the server before this one; they were ended", count)
        rows = await self._log.query(lambda db: db.execute("SELECT process_id, session_id, task_id FROM open_processes").fetchall())
        reason = "the server ended before it"
        await self._log.append(*(Draft("process.exited", {"processId": p, "reason": reason}, s, t) for p, s, t in rows))

    def _spawn(self, command: Command, process_id: str) -> "tuple[subprocess.Popen[bytes], int, int]":
        env = {**self._environment, **command.env, proctree.VARIABLE: f"{self._mark}/{process_id}"}
        stdin = self._no_input if command.stdin is None else subprocess.PIPE
        (stdout, to_stdout), (stderr, to_stderr) = os.pipe(), os.pipe()
        try:
            argv = self._argv(command.argv, process_id)
            popen = subprocess.Popen(
                argv, cwd=command.cwd, env=env, stdin=stdin, stdout=to_stdout, stderr=to_stderr, bufsize=0, start_new_session=True
            )
        except BaseException:
            os.close(stdout)
            os.close(stderr)
            raise
        finally:
            os.close(to_stdout)
            os.close(to_stderr)
        return popen, stdout, stderr

    def _argv(self, argv: str | Sequence[str], process_id: str) -> list[str]:
        if not isinstance(argv, str):
            return list(argv)
        if len(argv.encode("utf-8", "surrogatepass")) <= LONGEST_ARGUMENT:
            return [self._shell, "-c", argv]
        script = self._spill / f"{process_id}.sh"
        script.write_text(argv)
        return [self._shell, str(script)]

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

    def _oom(self, run: Execution) -> str | None:
        # The counter is the whole machine's, so it is asked only when a command was killed and we did not do it.
        if run.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
            before, self._oom_kills = self._oom_kills, _oom_kills()
            if self._oom_kills > before:
                return "oom"
        return None

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


def _light_locale(environment: Mapping[str, str]) -> dict[str, str]:
    """Gives the environment with C.UTF-8 asked for where it differs from C: its other categories cost each bash 80 system calls."""
    if environment.get("LANG", "C.UTF-8").upper().replace("-", "") != "C.UTF8" or "LC_ALL" in environment:
        return dict(environment)
    return {"LC_CTYPE": "C.UTF-8", **{name: value for name, value in environment.items() if name != "LANG"}}


def _not_started(command: Command, error: OSError) -> InvalidRequest:
    if not command.cwd.is_dir():
        return InvalidRequest(f"The folder {command.cwd} does not exist; name one that does.", path="cwd")
    name = "the shell" if isinstance(command.argv, str) else repr(command.argv[0])
    return InvalidRequest(f"{name} cannot be run: {error.strerror}. Check that it is installed and executable.", path="command")


def _oom_kills() -> int:
    try:
        with open("/proc/vmstat", "rb") as file:
            return next((int(line[9:]) for line in file if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0
