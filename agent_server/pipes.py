"""A command's pipes: its output as it comes, its input as it is taken. All on the event loop, nothing blocks."""

import asyncio
import os
from collections.abc import Callable
from typing import IO

from agent_server.output import HOLD
from agent_server.redaction import MaskedStream, Secrets

READ_BYTES = 64 << 10
"""What a pipe holds, so what one read can bring."""

IDLE = 0.02
"""Seconds between two reads of what is thrown away: a child in the background that prints for ever costs next to nothing."""


class Pipe:
    """One output pipe, read until its end; after `let_go` what comes is thrown away.

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
        except OSError:
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
            self.close()

    def close(self) -> None:
        """Gives up what was not taken: a child in the background may have it open, and never read it."""
        if not self._file.closed:
            self._loop.remove_writer(self._file.fileno())
            self._file.close()
