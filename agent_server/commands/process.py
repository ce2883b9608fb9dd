"""One command as others see it: they write to it, signal it, watch what it prints and wait for its end."""

import asyncio
import os
from collections.abc import AsyncIterator

from agent_server.commands.execution import Command, Ended, Execution, Owner
from agent_server.commands.terminals import TerminalSize
from agent_server.errors import Conflict, PayloadTooLarge, TooManyRequests

INPUT_MAX = 1 << 20
"""Bytes of input that wait for a command to read them."""

REPLAY = 256 << 10
"""Bytes of the newest output that whoever begins to watch gets first."""

FRAME = 64 << 10
"""Bytes of output that a watcher gets at a time."""


class Overrun(Exception):
    """A watcher was so slow that what it has not seen is no longer in memory. No reply is made of it: a socket is closed."""


class Process:
    """One command of this server, from when it was asked for until its end is in the log.

    `reason` is why the server ended it, if it did; `ended` is there once it has ended.
    """

    def __init__(self, process_id: str, command: Command, owner: Owner) -> None:
        self.process_id = process_id
        self.command = command
        self.owner = owner
        self.size = command.pty
        self.reason: str | None = None
        self.ended: Ended | None = None
        self._execution: Execution | None = None
        self._is_over = False
        self._over: asyncio.Event | None = None

    @property
    def has_begun(self) -> bool:
        return self._execution is not None

    @property
    def execution(self) -> Execution:
        assert self._execution is not None  # noqa: S101  # nobody gets one that has not begun
        return self._execution

    @property
    def is_left(self) -> bool:
        """Whether a tool has left it in the background, for its session."""
        return self.command.is_background and self.owner.tool_call_id is not None

    @property
    def pid(self) -> int:
        return self.execution.pid

    @property
    def has_exited(self) -> bool:
        """Whether it has ended; what it left in the background may still write."""
        return self.execution.has_exited

    @property
    def reads_input(self) -> bool:
        """Whether what is written to it may be read."""
        feed = self.execution.feed
        return not self.has_exited and feed is not None and feed.has_reader

    def begin(self, execution: Execution) -> None:
        self._execution = execution

    def settle(self) -> None:
        """Lets those go on who wait for its end."""
        self._is_over = True
        if self._over is not None:
            self._over.set()

    async def wait(self) -> None:
        """Returns when its end is in the log."""
        if not self._is_over:
            self._over = self._over or asyncio.Event()
            await self._over.wait()

    def write(self, data: bytes, *, end: bool = False) -> int:
        """Gives it input, and with `end` no more after that. Gives the bytes that it has not taken yet.

        Errors: Conflict when it takes none, PayloadTooLarge and TooManyRequests when there is no room for it.
        """
        feed = self.execution.feed
        if feed is None:
            raise Conflict("The process was started without an input that stays open; start it with `background` or `pty`.")
        if self.has_exited:
            raise Conflict("The process has ended; it takes no input.")
        if not feed.has_reader:
            raise Conflict("The process's input is closed; nothing can be written to it any more.")
        if len(data) > INPUT_MAX:
            raise PayloadTooLarge(f"The input is over {INPUT_MAX} bytes; send it in parts.", details={"limit": INPUT_MAX})
        if feed.pending + len(data) > INPUT_MAX:
            raise TooManyRequests(f"{feed.pending} bytes of input wait to be read by the process; send this again when it has read them.")
        feed.add(data)
        if end:
            feed.end()
        return feed.pending

    async def room(self) -> None:
        """Returns when a FRAME of input can be written, or none any more."""
        if self.execution.feed is not None:
            await self.execution.feed.room(INPUT_MAX - FRAME + 1)

    def signal(self, number: int) -> None:
        """Sends a signal to its process group.

        Errors: Conflict when it has ended.
        """
        if self.has_exited:  # its number may be another's by now
            raise Conflict("The process has ended; it takes no signal.")
        try:
            os.killpg(self.pid, number)
        except OSError as error:
            raise Conflict(f"The signal cannot be sent: {error.strerror}.") from error

    def resize(self, size: TerminalSize) -> None:
        """Gives its terminal another size.

        Errors: Conflict when it has none, or has ended.
        """
        if self.size is None:
            raise Conflict("The process has no terminal; start it with `pty`.")
        if self.has_exited:
            raise Conflict("The process has ended; its terminal has no size any more.")
        self.execution.resize(size)
        self.size = size

    async def watch(self) -> AsyncIterator[bytes]:
        """Gives its output as it comes, masked, from the last REPLAY bytes on, until it ends.

        Whoever is slow holds nothing but a place in what is kept anyway. Errors: Overrun when that place is lost.
        """
        run = self.execution
        place = max(run.floor, run.total - REPLAY)
        while True:
            while place < run.total:
                if place < run.floor:
                    raise Overrun
                data = run.since(place)[:FRAME]
                place += len(data)
                yield data
            if run.is_done:
                return
            await run.more()
