"""One command from its spawn to its end: what was asked, what is kept of its output, how it ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from agent_server.clock import Clock
from agent_server.commands.capture import Capture, OutputSink
from agent_server.commands.output import Spool
from agent_server.commands.pipes import Feed, Pipe
from agent_server.commands.spawn import Child
from agent_server.commands.terminals import TerminalSize
from agent_server.redaction import Secrets
from tools import CommandResult

DRAIN = 2.0
"""Seconds that pipes are read after the command's own end: a child in the background may keep them open for ever."""

WATCH_DELAY = 0.005
"""Seconds after the spawn until a command's pipes are watched and it is put behind the server: most are over by then."""

NICE = 5
OOM_SCORE = b"500"
"""What puts commands behind the server: the first on top of its own."""


class Command(msgspec.Struct, frozen=True):
    """What to run. `argv` is a sequence for execve, or a string for bash. Units: `timeout` seconds, `limit` bytes kept of
    each of stdout, stderr and both together. In the background its input stays open; with `pty` it has a terminal. The whole
    output of one that `is_spooled` is in a file from its first byte on."""

    argv: str | Sequence[str]
    cwd: Path
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    stdin: bytes | None = None
    timeout: float | None = None
    limit: int = 1 << 20
    is_split: bool = True  # keep stdout and stderr apart as well
    is_merged: bool = False  # one pipe for both, which keeps their order; all of it is stdout
    is_background: bool = False
    is_spooled: bool = False
    pty: TerminalSize | None = None

    @property
    def takes_input(self) -> bool:
        return self.stdin is not None or self.is_background


class Owner(msgspec.Struct, frozen=True):
    """On whose behalf a command runs, for its events."""

    session_id: str | None = None
    task_id: str | None = None
    tool_call_id: str | None = None


class Ended(CommandResult, frozen=True):
    """A CommandResult with what the API tells besides. `reason` is set where the end was not the command's own:
    `timeout`, `cancelled`, `oom`. `size` is how many bytes it has printed, of one that `is_spooled`."""

    process_id: str
    stdout: str
    stderr: str
    reason: str | None
    size: int | None = None


class Execution:
    """One command while it runs: its process, its pipes, and the future of its end.

    `outputs` are the read ends of stdout and stderr, or a terminal's, and `stdin` the write end of its input: it closes them in
    the end. `spool` is where a long output goes.
    """

    def __init__(
        self,
        command: Command,
        secrets: Secrets,
        spool: Spool,
        sink: OutputSink,
        clock: Clock,
        child: Child,
        outputs: Sequence[int],
        stdin: int | None,
    ) -> None:
        self.command = command
        self._clock = clock
        self.is_done = False
        self._child = child
        self._spool, self._sink = spool, sink
        self._loop = asyncio.get_running_loop()
        self._began = self._ended = self._loop.time()
        self._capture: Capture | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._more: asyncio.Event | None = None
        self.feed: Feed | None = None
        self._oom_kills: int | None = None
        self.pipes = [
            Pipe(fd, secrets, partial(self._take, name), self._check) for fd, name in zip(outputs, ("stdout", "stderr"), strict=False)
        ]
        if stdin is not None:
            self.feed = Feed(stdin, command.stdin or b"", ends=not command.is_background, is_terminal=command.pty is not None)
        # Most commands are over before this: their pipes are then read once, at the end, and never watched.
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(WATCH_DELAY, self._watch)
        try:
            self._pidfd = os.pidfd_open(child.pid)
            self._loop.add_reader(self._pidfd, self._exited)
        except OSError:  # a kernel or sandbox without pidfd
            self._pidfd = -1
            self._loop.run_in_executor(None, child.wait).add_done_callback(lambda _: self._exited())

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def has_exited(self) -> bool:
        return self._child.returncode is not None

    @property
    def has_open_pipes(self) -> bool:
        return self.pipes[0].is_open or self.pipes[-1].is_open

    @property
    def cause(self) -> str | None:
        """`oom` where the kernel killed for want of memory while the command ran, and something ended it with SIGKILL.

        The kernel's counter is the whole machine's: it is asked only where it may be the answer.
        """
        was_killed = self._child.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return "oom" if was_killed and self._oom_kills is not None and oom_kills() > self._oom_kills else None

    def _watch(self) -> None:
        self._loop.run_in_executor(None, self._yield, self._child.pid)  # its system calls take a while where many run
        for pipe in self.pipes:
            pipe.watch()

    def _yield(self, pid: int) -> None:
        yield_to_server(pid)
        self._oom_kills = oom_kills()

    def _exited(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._child.poll()
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
        if not self.has_open_pipes and self.has_exited:
            self.finish()

    def finish(self) -> None:
        """Takes what was read as all there is."""
        if self.is_done:
            return
        self._set_timer(None)
        for pipe in self.pipes:
            pipe.let_go()
        if self.feed is not None:
            self.feed.close()
        if self._capture is not None:
            self._capture.end()
        self.is_done = True
        self._wake()
        self._tell_more()

    async def end(self, timeout: float | None) -> None:
        """Waits for the end, or so many seconds; `is_done` tells which."""
        if not self.is_done:
            self._waiter = self._loop.create_future()
            timer = self._clock.call_later(timeout, self._wake) if timeout is not None else None
            try:
                await self._waiter
            finally:
                if timer is not None:
                    timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, name: str, data: bytes) -> None:
        if self._capture is None:
            wanted = self.command
            self._capture = Capture(
                wanted.limit, self._spool, self._sink, self._resume, is_split=wanted.is_split, is_spilled=wanted.is_spooled
            )
        self._capture.add(name, data)
        if self._capture.is_full:
            for pipe in self.pipes:
                pipe.pause()
        self._tell_more()

    def _tell_more(self) -> None:
        if self._more is not None:
            self._more.set()
            self._more = None

    @property
    def total(self) -> int:
        """Bytes of its output so far, masked."""
        return self._capture.total if self._capture is not None else 0

    @property
    def floor(self) -> int:
        """The offset from which on the output is in memory."""
        return self._capture.floor if self._capture is not None else 0

    def since(self, offset: int) -> bytes:
        """Gives the output from an offset on, which is not below `floor`."""
        return self._capture.since(offset) if self._capture is not None else b""

    async def more(self) -> None:
        """Waits for more output, or the end."""
        if self._more is None:
            self._more = asyncio.Event()
        await self._more.wait()

    def resize(self, size: TerminalSize) -> None:
        self.pipes[0].resize(size)

    def _resume(self) -> None:
        if not self._spool.is_full:
            for pipe in self.pipes:
                pipe.watch()

    async def result(self, process_id: str, reason: str | None) -> Ended:
        output = stdout = stderr = ""
        if self._capture is not None:
            await self._capture.close()
            output, stdout, stderr = self._capture.texts()
        code = self._child.returncode
        return Ended(
            output=output,
            exit_code=code if code is not None and code >= 0 else None,
            signal=_signal_name(-code) if code is not None and code < 0 else None,
            timed_out=reason == "timeout",
            truncated=self._capture is not None and self._capture.is_spilled,
            output_file=self._capture.file if self._capture is not None else None,
            duration=self._ended - self._began,
            process_id=process_id,
            stdout=stdout,
            stderr=stderr,
            reason=reason,
            size=self.total if self.command.is_spooled else None,
        )


def yield_to_server(pid: int) -> None:
    """Puts a command and its children behind the server: in the scheduler, and when the kernel must kill something."""
    with contextlib.suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PGRP, pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE)  # 19 at the most, by the kernel
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
