"""A command's pipes: its output as it comes, its input as it is taken. All on the event loop, nothing blocks."""

import asyncio
import os
import select
from collections import deque
from collections.abc import Callable

from agent_server.commands.output import HOLD
from agent_server.commands.terminals import END_OF_FILE, TerminalSize, set_size
from agent_server.redaction import MaskedStream, Secrets

READ_BYTES = 64 << 10
"""What a pipe holds, so what one read can bring."""

IDLE = 0.02
"""Seconds between two reads of what is thrown away: a child in the background that prints for ever costs next to nothing."""


class Pipe:
    """One output pipe, or a terminal, read until its end; after `let_go` what comes is thrown away.

    `take` gets what came, masked; `closed` is called at the end of the output. Nothing is read before `watch` or `drain`.
    """

    def __init__(self, fd: int, secrets: Secrets, take: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        self._fd, self._secrets, self._take, self._closed = fd, secrets, take, closed
        self._masked: MaskedStream | None = None  # many commands print nothing
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = True
        self._is_watched = False
        self._is_wanted = True
        os.set_blocking(fd, False)

    def resize(self, size: TerminalSize) -> None:
        """Gives a terminal another size."""
        if self.is_open:
            set_size(self._fd, size)

    def watch(self) -> None:
        """Reads whatever comes from here on."""
        if self.is_open and not self._is_watched:
            self._is_watched = True
            self._loop.add_reader(self._fd, self._read)

    def pause(self) -> None:
        """Reads nothing until `watch`; the command waits once its pipe is full."""
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._fd)

    def drain(self) -> None:
        """Reads what is there now (a pipe's worth: others may write to it too), and watches for more."""
        size = 0
        while self.is_open and size <= READ_BYTES and (count := self._read()):
            size += count
        self.watch()

    def _read(self) -> int:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:  # of a terminal that no program has open
            data = b""
        if self._is_wanted:
            self._feed(data)
        elif data and self._is_watched:
            self.pause()
            self._timer = self._loop.call_later(IDLE, self.watch)
        if not data:
            self.close()
            self._closed()
        return len(data)

    def _feed(self, data: bytes) -> None:
        """Gives what is certain; all that is left where there is no more data."""
        self._end_timer()
        if self._masked is None:
            if not data:
                return
            self._masked = self._secrets.stream()
        self._give(self._masked.feed(data) if data else self._masked.end())
        if data and self._masked.is_holding:
            self._timer = self._loop.call_later(HOLD, self._release, self._masked)

    def _release(self, masked: MaskedStream) -> None:
        self._timer = None
        self._give(masked.release())

    def _give(self, data: bytes) -> None:
        if data:
            self._take(data)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def let_go(self) -> None:
        """Gives the rest of what was read. What comes later is read and thrown away, so that nobody is stopped by it."""
        if self._is_wanted and self.is_open:
            self._feed(b"")
            self.watch()
        self._is_wanted = False

    def close(self) -> None:
        if self.is_open:
            self.pause()
            self._end_timer()
            self.is_open = False
            os.close(self._fd)


class Feed:
    """A command's input: written as it is taken, without waiting for it.

    With `ends` it ends after `data`, else after `end`. On a terminal the end is Ctrl-D, and more may follow.
    """

    def __init__(self, fd: int, data: bytes, *, ends: bool, is_terminal: bool) -> None:
        self._fd, self._is_terminal = fd, is_terminal
        self._loop = asyncio.get_running_loop()
        self._data: deque[memoryview] = deque()
        self._room: asyncio.Event | None = None
        self._is_watched = self._is_ending = False
        self.is_open = True
        self.pending = 0  # bytes that nobody has taken yet
        os.set_blocking(fd, False)
        self.add(data)
        if ends:
            self.end()

    @property
    def is_ended(self) -> bool:
        """Whether it takes no more."""
        return self._is_ending or not self.is_open

    @property
    def has_reader(self) -> bool:
        """Whether somebody could read it: what waits in a pipe tells nothing of that, but its other end is open."""
        if self.is_ended:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))

    def add(self, data: bytes) -> None:
        """Takes what is to be written. Bounds are the caller's: `pending`, `room`."""
        if data and self.is_open:
            self._data.append(memoryview(data))
            self.pending += len(data)
            self._watch()

    def end(self) -> None:
        """Ends the input after what was added."""
        if self._is_terminal:
            self.add(END_OF_FILE)
        else:
            self._is_ending = True
            if self._data:
                self._watch()
            else:
                self.close()

    async def room(self, size: int) -> None:
        """Returns when fewer bytes are waiting than this, or none will be taken any more."""
        while self.is_open and self.pending >= size:
            if self._room is None:
                self._room = asyncio.Event()
            await self._room.wait()

    def _watch(self) -> None:
        if self.is_open and not self._is_watched:
            self._is_watched = True
            self._loop.add_writer(self._fd, self._write)

    def _write(self) -> None:
        try:
            if self._data:
                self._advance(os.write(self._fd, self._data[0][:READ_BYTES]))
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            self.close()
            return
        if self._data:
            return
        if self._is_ending:
            self.close()
        else:
            self._is_watched = False
            self._loop.remove_writer(self._fd)

    def _advance(self, count: int) -> None:
        self.pending -= count
        first = self._data.popleft()
        if count < len(first):
            self._data.appendleft(first[count:])
        self._tell_room()

    def _tell_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    def close(self) -> None:
        """Gives up what was not taken: a child in the background may have it open, and never read it."""
        if self.is_open:
            self.is_open = False
            if self._is_watched:
                self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._data.clear()
            self.pending = 0
            self._tell_room()
