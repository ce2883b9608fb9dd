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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from agent_server import proctree
from agent_server.errors import InvalidRequest
from agent_server.events import Draft, Event, EventLog
from agent_server.ids import new_id
from agent_server.output import HOLD, Excerpt, OutputEvents, Spool
from agent_server.redaction import MaskedStream, Secrets
from tools import CommandResult

logger = logging.getLogger(__name__)

DRAIN = 2.0
"""Seconds that pipes are read after the command's own end: a child in the background may keep them open for ever."""

READ_BYTES = 64 << 10
"""What a pipe holds, so what one read can bring."""

NICE = 5
OOM_SCORE = b"500"
"""Commands yield to the server: in the scheduler, and when the kernel must kill something."""

LONGEST_ARGUMENT = 100_000
"""Bytes of a shell command that are passed as an argument (the kernel's limit is 128 KiB); a longer one goes into a file."""

LEFTOVERS = 64
"""Pipes of ended commands that are still read so that their background children are not stopped by a full or closed pipe."""


class Command(msgspec.Struct, frozen=True):
    """What to run. `argv` is a sequence for execve, or a string for bash. Units: `timeout` seconds, `limit` bytes kept of
    each of stdout, stderr and both together."""

    argv: str | Sequence[str]
    cwd: Path
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    stdin: bytes | None = None
    timeout: float | None = None
    limit: int = 1 << 20
    is_split: bool = True  # keep stdout and stderr apart as well


class Owner(msgspec.Struct, frozen=True):
    """On whose behalf a command runs, for its events."""

    session_id: str | None = None
    task_id: str | None = None
    tool_call_id: str | None = None


class Ended(CommandResult, frozen=True):
    """A CommandResult with what the API tells besides. `reason` is set where the end was not the command's own:
    `timeout`, `cancelled`, `oom`."""

    process_id: str
    stdout: str
    stderr: str
    reason: str | None


OutputSink = Callable[[str, str, int, int], None]
"""Takes output as it comes: stream, chunk, offset, skipped bytes."""


class ProcessIndex:
    """The table `open_processes`: commands whose end is not in the log."""

    version = 1
    tables: Sequence[str] = ("open_processes",)
    schema: Sequence[str] = ("CREATE TABLE open_processes (process_id TEXT PRIMARY KEY, session_id TEXT, task_id TEXT) WITHOUT ROWID",)

    def apply(self, db: sqlite3.Connection, event: Event) -> None:
        if event.type == "process.started":
            db.execute("INSERT OR IGNORE INTO open_processes VALUES (?, ?, ?)", (event.data["processId"], event.session_id, event.task_id))
        elif event.type == "process.exited":
            db.execute("DELETE FROM open_processes WHERE process_id = ?", (event.data["processId"],))


class Processes:
    """All commands of this server. `mark` tells ours from those of other servers on the machine."""

    def __init__(self, log: EventLog, secrets: Secrets, environment: Mapping[str, str], spill_folder: Path, mark: str) -> None:
        self._log = log
        self._secrets = secrets
        self._environment = {"HOME": str(Path.home()), "PATH": os.defpath, "LANG": "C.UTF-8", "TERM": "dumb", **environment}
        self._spill = spill_folder
        self._mark = mark
        self._shell = shutil.which("bash") or shutil.which("sh") or "/bin/sh"
        self._oom_kills = _oom_kills()
        self._has_spawned = False
        self._leftovers: list[_Pipe] = []
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
        run = _Run(command, self._secrets, Spool(self._spill / f"{process_id}.txt"), sink or self._tell(process_id, owner))
        self._running.add(process_id)
        try:
            await self._turn()
            try:
                run.start(self._spawn(command, process_id))
            except OSError as error:
                await self._log.append(self._draft("process.exited", {**ids, "reason": f"could not be started: {error.strerror}"}, owner))
                raise _not_started(command, error) from error
            reason = await self._wait(run, process_id)
            result = await run.result(process_id, reason or self._oom(run))
        except asyncio.CancelledError:
            with contextlib.suppress(InvalidRequest):
                await finish(self._abort(run, process_id, ids, owner))
            raise
        finally:
            self._running.discard(process_id)
            self._adopt(run)
        await self._log.append(self._draft("process.exited", {**ids, **_end(result)}, owner))
        return result

    async def _turn(self) -> None:
        """Waits for a turn of the event loop in which nothing was spawned: a spawn takes about 1 ms, and others want theirs."""
        while self._has_spawned:  # noqa: ASYNC110  # it is the next turn that is waited for
            await asyncio.sleep(0)
        self._has_spawned = True
        asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._has_spawned = False

    async def _wait(self, run: "_Run", process_id: str) -> str | None:
        await run.end(run.command.timeout)
        if run.is_done:
            return None
        await self._end(run, process_id)
        return "timeout"

    async def _abort(self, run: "_Run", process_id: str, ids: Mapping[str, Any], owner: Owner) -> None:
        if run.popen is not None:
            await self._end(run, process_id)
        result = await run.result(process_id, "cancelled")
        await self._log.append(self._draft("process.exited", {**ids, **_end(result)}, owner))

    async def _end(self, run: "_Run", process_id: str) -> None:
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

    def _spawn(self, command: Command, process_id: str) -> "subprocess.Popen[bytes]":
        env = {**self._environment, **command.env, proctree.VARIABLE: f"{self._mark}/{process_id}"}
        popen = subprocess.Popen(
            self._argv(command.argv, process_id),
            cwd=command.cwd,
            env=env,
            stdin=subprocess.DEVNULL if command.stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        with contextlib.suppress(OSError):  # it may have ended already
            os.setpriority(os.PRIO_PROCESS, popen.pid, NICE)
            fd = os.open(f"/proc/{popen.pid}/oom_score_adj", os.O_WRONLY)
            os.write(fd, OOM_SCORE)
            os.close(fd)
        return popen

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

    def _oom(self, run: "_Run") -> str | None:
        # The counter is the whole machine's, so it is asked only when a command was killed and we did not do it.
        if run.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
            before, self._oom_kills = self._oom_kills, _oom_kills()
            if self._oom_kills > before:
                return "oom"
        return None

    def _adopt(self, run: "_Run") -> None:
        self._leftovers = [pipe for pipe in (*self._leftovers, *run.pipes) if pipe.is_open]
        while len(self._leftovers) > LEFTOVERS:
            self._leftovers.pop(0).close()


class _Run:
    """One command while it runs: its pipes, what is kept of them, and the future of its end."""

    def __init__(self, command: Command, secrets: Secrets, spool: Spool, sink: OutputSink) -> None:
        self.command = command
        self.popen: subprocess.Popen[bytes] | None = None
        self.pipes: list[_Pipe] = []
        self.timed_out = False
        self._loop = asyncio.get_running_loop()
        self.is_done = False
        self._waiter: asyncio.Future[None] | None = None
        self._secrets = secrets
        self._spool = spool
        self._spooling = False
        self._events = OutputEvents(sink)
        self._all = Excerpt(command.limit)
        self._each = {name: Excerpt(command.limit) for name in ("stdout", "stderr")} if command.is_split else {}
        self._began = self._ended = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def returncode(self) -> int | None:
        return self.popen.returncode if self.popen is not None else None

    def start(self, popen: "subprocess.Popen[bytes]") -> None:
        self.popen = popen
        assert popen.stdout is not None  # noqa: S101  # for the type checker: it was asked for
        assert popen.stderr is not None  # noqa: S101
        for name, file in (("stdout", popen.stdout), ("stderr", popen.stderr)):
            self.pipes.append(_Pipe(file, name, self._secrets.stream(), self._take, self._check))
        if popen.stdin is not None:
            _Feed(popen.stdin, self.command.stdin or b"")
        try:
            self._pidfd = os.pidfd_open(popen.pid)
            self._loop.add_reader(self._pidfd, self._exited)
        except OSError:  # a kernel or sandbox without pidfd
            self._pidfd = -1
            self._loop.run_in_executor(None, popen.wait).add_done_callback(lambda _: self._exited())

    def _exited(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        assert self.popen is not None  # noqa: S101
        self.popen.poll()
        self._ended = self._loop.time()
        for pipe in self.pipes:
            pipe.read()
        self._timer = self._loop.call_later(DRAIN, self.finish)
        self._check()

    def _check(self) -> None:
        if self.returncode is not None and not any(pipe.is_open for pipe in self.pipes):
            self.finish()

    def finish(self) -> None:
        """Takes what was read as all there is."""
        if self._timer is not None:
            self._timer.cancel()
        for pipe in self.pipes:
            pipe.let_go()
        self._events.end()
        self.is_done = True
        self._wake()

    async def end(self, timeout: float | None) -> None:
        """Waits for the end, or so many seconds; `is_done` tells which."""
        if not self.is_done:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(timeout, self._wake) if timeout is not None else None
            await self._waiter
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, name: str, data: bytes) -> None:
        if not self._spooling and self._all.total + len(data) > self.command.limit:
            self._spooling = True
            self._spool.write(self._all.whole(), self._resume)
        if self._spooling:
            self._spool.write(data, self._resume)
            if self._spool.is_full:
                for pipe in self.pipes:
                    pipe.pause()
        self._all.add(data)
        if self._each:
            self._each[name].add(data)
        self._events.add(name, data)

    def _resume(self) -> None:
        if not self._spool.is_full:
            for pipe in self.pipes:
                pipe.resume()

    async def result(self, process_id: str, reason: str | None) -> Ended:
        await self._spool.close()
        code = self.returncode
        return Ended(
            output=self._all.text(),
            exit_code=code if code is not None and code >= 0 else None,
            signal=_signal_name(-code) if code is not None and code < 0 else None,
            timed_out=reason == "timeout",
            truncated=self._spooling,
            output_file=self._spool.path if self._spooling and self._spool.error is None else None,
            duration=self._ended - self._began,
            process_id=process_id,
            stdout=self._each["stdout"].text() if self._each else "",
            stderr=self._each["stderr"].text() if self._each else "",
            reason=reason,
        )


class _Pipe:
    """One output pipe, read on the event loop until its end; after `let_go` what comes is thrown away."""

    def __init__(
        self, file: IO[bytes], name: str, masked: MaskedStream, take: Callable[[str, bytes], None], closed: Callable[[], None]
    ) -> None:
        self._fd, self._file, self._name, self._masked = file.fileno(), file, name, masked
        self._take, self._closed = take, closed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = True
        self._is_wanted = True
        os.set_blocking(self._fd, False)
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> bool:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not self._is_wanted:
            if not data:
                self.close()
            return True
        self._give(self._masked.feed(data) if data else self._masked.end())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not data:
            self.close()
            self._closed()
        elif self._masked.is_holding:
            self._timer = self._loop.call_later(HOLD, self._release)
        return True

    def read(self) -> None:
        """Reads what is there now (a pipe's worth: others write to it too)."""
        if self.is_open:
            self._readable()

    def _release(self) -> None:
        self._give(self._masked.release())

    def _give(self, data: bytes) -> None:
        if data:
            self._take(self._name, data)

    def pause(self) -> None:
        if self.is_open:
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        if self.is_open:
            self._loop.add_reader(self._fd, self._readable)

    def let_go(self) -> None:
        if self._is_wanted:
            self._is_wanted = False
            if self._timer is not None:
                self._timer.cancel()
            self._give(self._masked.end())
            self.resume()

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._fd)
            self._file.close()


class _Feed:
    """Writes a command's stdin without waiting for it, then closes it."""

    def __init__(self, file: IO[bytes], data: bytes) -> None:
        self._file, self._data = file, memoryview(data)
        self._loop = asyncio.get_running_loop()
        os.set_blocking(file.fileno(), False)
        self._loop.add_writer(file.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._data = self._data[os.write(self._file.fileno(), self._data[:READ_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:  # it does not read, or has ended
            self._data = self._data[:0]
        if not self._data:
            self._loop.remove_writer(self._file.fileno())
            self._file.close()


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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


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
