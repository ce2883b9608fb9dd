"""One command from its spawn to its end: what was asked, what is kept of its output, how it ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from agent_server.output import Excerpt, OutputEvents, Spool
from agent_server.pipes import Feed, Pipe
from agent_server.redaction import Secrets
from agent_server.spawn import Child
from tools import CommandResult

DRAIN = 2.0
"""Seconds that pipes are read after the command's own end: a child in the background may keep them open for ever."""

WATCH_DELAY = 0.005
"""Seconds after the spawn until a command's pipes are watched and it is put behind the server: most are over by then."""

NICE = 5
OOM_SCORE = b"500"
"""What puts commands behind the server."""


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


class Execution:
    """One command while it runs: its pipes, what is kept of them, and the future of its end."""

    def __init__(self, command: Command, secrets: Secrets, spool: Spool, sink: OutputSink) -> None:
        self.command = command
        self.child: Child | None = None
        self.pipes: list[Pipe] = []
        self._loop = asyncio.get_running_loop()
        self.is_done = False
        self._waiter: asyncio.Future[None] | None = None
        self._secrets = secrets
        self._spool = spool
        self._spooling = False
        self._events = OutputEvents(sink)
        self._all = Excerpt(command.limit)
        self._only: str | None = None  # the stream that has written, while it is the only one
        self._each: dict[str, Excerpt] = {}  # kept from when both have
        self._began = self._ended = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._feed: Feed | None = None
        self._oom_kills: int | None = None

    @property
    def returncode(self) -> int | None:
        return self.child.returncode if self.child is not None else None

    @property
    def cause(self) -> str | None:
        """`oom` where the kernel killed for want of memory while the command ran, and something ended it with SIGKILL.

        The kernel's counter is the whole machine's: it is asked only where it may be the answer.
        """
        was_killed = self.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return "oom" if was_killed and self._oom_kills is not None and oom_kills() > self._oom_kills else None

    def start(self, child: Child, stdout: int, stderr: int) -> None:
        """Watches a process that was spawned, and the read ends of its pipes."""
        self.child = child
        for name, fd in (("stdout", stdout), ("stderr", stderr)):
            self.pipes.append(Pipe(fd, self._secrets.stream(), partial(self._take, name), self._check))
        if child.stdin is not None:
            self._feed = Feed(child.stdin, self.command.stdin or b"")
        # Most commands are over before this: their pipes are then read once, at the end, and never watched.
        self._timer = self._loop.call_later(WATCH_DELAY, self._watch)
        try:
            self._pidfd = os.pidfd_open(child.pid)
            self._loop.add_reader(self._pidfd, self._exited)
        except OSError:  # a kernel or sandbox without pidfd
            self._pidfd = -1
            self._loop.run_in_executor(None, child.wait).add_done_callback(lambda _: self._exited())

    def _watch(self) -> None:
        assert self.child is not None  # noqa: S101  # it was started
        self._loop.run_in_executor(None, self._yield, self.child.pid)  # its system calls take a while where many run
        for pipe in self.pipes:
            pipe.watch()

    def _yield(self, pid: int) -> None:
        yield_to_server(pid)
        self._oom_kills = oom_kills()

    def _exited(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        assert self.child is not None  # noqa: S101  # it was started
        self.child.poll()
        self._ended = self._loop.time()
        self._set_timer(None)
        for pipe in self.pipes:
            pipe.drain()
        self._check()  # both may have ended before it did
        if not self.is_done:
            self._set_timer(self._loop.call_later(DRAIN, self.finish))

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _check(self) -> None:
        if self.returncode is not None and not any(pipe.is_open for pipe in self.pipes):
            self.finish()

    def finish(self) -> None:
        """Takes what was read as all there is."""
        if self.is_done:
            return
        self._set_timer(None)
        for pipe in self.pipes:
            pipe.let_go()
        if self._feed is not None:
            self._feed.close()
        self._events.end()
        self.is_done = True
        self._wake()

    async def end(self, timeout: float | None) -> None:
        """Waits for the end, or so many seconds; `is_done` tells which."""
        if not self.is_done:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(timeout, self._wake) if timeout is not None else None
            try:
                await self._waiter
            finally:
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
        if self._only is None and not self._each:
            self._only = name
        elif self.command.is_split and self._only not in (None, name):
            self._each = {self._only: self._all.copy(), name: Excerpt(self.command.limit)}
            self._only = None
        self._all.add(data)
        if self._each:
            self._each[name].add(data)
        self._events.add(name, data)

    def _resume(self) -> None:
        if not self._spool.is_full:
            for pipe in self.pipes:
                pipe.watch()

    def _text_of(self, name: str, output: str) -> str:
        if self._each:
            return self._each[name].text()
        return output if self._only == name else ""

    async def result(self, process_id: str, reason: str | None) -> Ended:
        await self._spool.close()
        code, output = self.returncode, self._all.text()
        return Ended(
            output=output,
            exit_code=code if code is not None and code >= 0 else None,
            signal=_signal_name(-code) if code is not None and code < 0 else None,
            timed_out=reason == "timeout",
            truncated=self._spooling,
            output_file=self._spool.path if self._spooling and self._spool.error is None else None,
            duration=self._ended - self._began,
            process_id=process_id,
            stdout=self._text_of("stdout", output),
            stderr=self._text_of("stderr", output),
            reason=reason,
        )


def yield_to_server(pid: int) -> None:
    """Puts a command and its children behind the server: in the scheduler, and when the kernel must kill something."""
    with contextlib.suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PGRP, pid, NICE)
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            children = file.read().split()
        for each in (b"%d" % pid, *children):
            fd = os.open(b"/proc/%b/oom_score_adj" % each, os.O_WRONLY)
            try:
                os.write(fd, OOM_SCORE)
            finally:
                os.close(fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


def oom_kills() -> int:
    """Gives how many processes the kernel has killed for want of memory. Source: /proc/vmstat."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return next((int(line[9:]) for line in file if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0
