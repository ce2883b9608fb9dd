"""What becomes of a command's output: masked as it comes, kept head and tail, whole in a file when it is long, told as events."""

import asyncio
import codecs
import contextlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from agent_server.redaction import Secrets

HOLD = 0.2
"""Seconds that the beginning of a secret is held back at the most."""

COALESCE = 0.05
COALESCE_BYTES = 4096
"""Deltas and output are gathered for 50 ms or 4 KB before they become an event."""

EVENT_BURST = 1 << 20
EVENT_RATE = 64 << 10
"""Bytes of one command's output that become events: a first burst, then so many a second. The rest is in the file, and
the next event tells how many bytes were skipped."""

PIECE = 4096
"""Bytes up to which small pieces of output are kept as one: each object takes some 40 bytes more than its content."""

SPOOL_MAX = 256 << 20
"""Bytes of a spilled output at the most: a command that prints for ever must not fill the disk."""

OUTPUTS_MAX = 1 << 30
"""Bytes of all spilled outputs together, about; the oldest go first."""

SPOOL_PENDING = 1 << 20
"""Bytes waiting to be written; above it the command's pipes are not read, so that it waits."""


CUT = "\n[... "
"""Begins the line that stands for what is left out of an output."""


class Excerpt:
    """The head and the tail of a byte stream, `limit` bytes in all."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._rest = limit - self._half
        self.total = 0
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            if len(data) > self._rest:
                data = data[-self._rest :]
                self._tail.clear()
                self._tail_size = 0
            self._tail_size += len(data)
            if self._tail and len(self._tail[-1]) + len(data) <= PIECE:
                self._tail[-1] += data
            else:
                self._tail.append(data)
            while self._tail_size - len(self._tail[0]) >= self._rest:
                self._tail_size -= len(self._tail.popleft())

    def copy(self) -> "Excerpt":
        other = Excerpt(self._half + self._rest)
        other.total = self.total
        other._head, other._tail, other._tail_size = bytearray(self._head), deque(self._tail), self._tail_size
        return other

    @property
    def is_cut(self) -> bool:
        return self.total > self._half + self._rest

    @property
    def floor(self) -> int:
        """The offset from which on everything is kept."""
        floor = self.total - self._tail_size
        return floor if floor > len(self._head) else 0

    def since(self, offset: int) -> bytes:
        """Gives everything from this offset on, which is not below `floor`."""
        wanted = self.total - offset
        parts: deque[bytes] = deque()
        for piece in reversed(self._tail):
            if wanted <= 0:
                break
            parts.appendleft(piece[-wanted:])
            wanted -= len(piece)
        if wanted > 0:
            parts.appendleft(bytes(self._head[-wanted:]))
        return b"".join(parts)

    def whole(self) -> bytes:
        """Everything so far; only while nothing was cut."""
        return bytes(self._head) + b"".join(self._tail)

    def text(self) -> str:
        """Gives the text, with a line that says how much is left out of the middle."""
        if not self.is_cut:
            return self.whole().decode("utf-8", "replace")
        tail = b"".join(self._tail)[-self._rest :]
        start = next((i for i in range(min(4, len(tail))) if tail[i] & 0xC0 != 0x80), 0)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        head = decoder.decode(bytes(self._head))
        left_out = self.total - len(self._head) - len(tail) + start + len(decoder.getstate()[0])
        return f"{head}{CUT}{left_out} bytes left out ...]\n{tail[start:].decode('utf-8', 'replace')}"


class Spool:
    """A file for the whole of an output, written by worker threads."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._pending: list[bytes] = []
        self._size = 0
        self._written = 0
        self._flush: asyncio.Task[None] | None = None
        self._file: BinaryIO | None = None
        self.error: OSError | None = None

    @property
    def path(self) -> Path:
        return self._folder / f"{self._name}.txt"

    @property
    def is_full(self) -> bool:
        return self._size > SPOOL_PENDING

    def write(self, data: bytes, done: Callable[[], None]) -> None:
        """Takes bytes; `done` is called when what was pending is on disk."""
        if self._written >= SPOOL_MAX or self.error is not None:
            return
        self._written += len(data)
        if self._written >= SPOOL_MAX:
            data += b"\n[... what follows is not kept: the file is at its limit of %d MiB ...]\n" % (SPOOL_MAX >> 20)
        self._pending.append(data)
        self._size += len(data)
        if self._flush is None:
            self._flush = asyncio.create_task(self._run(done))

    async def _run(self, done: Callable[[], None]) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                await asyncio.to_thread(self._append, batch)
            except OSError as error:  # a full disk: the command goes on, its output is cut
                self.error, self._pending = error, []
            self._size = sum(map(len, self._pending))
            done()
        self._flush = None

    def _append(self, batch: list[bytes]) -> None:
        if self._file is None:
            make_room(self._folder)
            self._file = self.path.open("wb", buffering=0)
        data = memoryview(b"".join(batch))
        while data:  # a disk that is nearly full takes a part, and only then says so
            data = data[self._file.write(data) :]

    async def close(self) -> None:
        if self._flush is not None:
            await asyncio.wait([self._flush])  # cancelled, it leaves the writing alone
        if self._file is not None:
            self._file.close()


def make_room(folder: Path) -> None:
    """Makes the folder, and removes its oldest files while all together are over OUTPUTS_MAX. Blocks.

    Errors: OSError when the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[tuple[float, int, str]] = []
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # another command's call has just removed it
            files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    kept = 0
    for _, size, path in sorted(files, reverse=True):
        kept += size
        if kept > OUTPUTS_MAX:
            with contextlib.suppress(OSError):
                os.unlink(path)


class Coalescer:
    """Gathers text for 50 ms or 4 KB, then gives it to `send`. Of one stream: order among several is the caller's."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._parts: list[str] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)
        if self._size >= COALESCE_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._parts:
            text, self._parts, self._size = "".join(self._parts), [], 0
            self._send(text)


class MaskedText:
    """Turns the pieces of a text into events: masked also where a secret is split, decoded, coalesced."""

    def __init__(self, secrets: Secrets, send: Callable[[str], None]) -> None:
        self._masked = secrets.stream()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._coalescer = Coalescer(send)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, text: str) -> None:
        self._give(self._masked.feed(text.encode("utf-8", "replace")))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._masked.is_holding:
            self._timer = asyncio.get_running_loop().call_later(HOLD, self._release)

    def _release(self) -> None:
        self._timer = None
        self._give(self._masked.release())

    def _give(self, data: bytes) -> None:
        if text := self._decoder.decode(data):
            self._coalescer.add(text)

    def end(self) -> None:
        """Gives the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._give(self._masked.end())
        if text := self._decoder.decode(b"", final=True):
            self._coalescer.add(text)
        self._coalescer.flush()


class OutputEvents:
    """Turns a command's masked output into events, within EVENT_BURST and EVENT_RATE.

    `send(stream, chunk, offset, skipped)`: `offset` counts bytes of the masked output, of both streams together.
    """

    def __init__(self, send: Callable[[str, str, int, int], None]) -> None:
        self._send = send
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._stream = "stdout"
        self._coalescer = Coalescer(self._emit)
        self._offset = self._start = 0
        self._skipped = 0
        self._allowed = float(EVENT_BURST)
        self._at = 0.0

    def add(self, stream: str, data: bytes) -> None:
        if stream != self._stream:
            self._coalescer.flush()
            self._stream, self._start = stream, self._offset
        if not self._admit(len(data)):
            self._coalescer.flush()
            self._offset += len(data)
            self._start = self._offset
            self._skipped += len(data)
            return
        self._offset += len(data)
        decoder = self._decoders.get(stream)
        if decoder is None:
            decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        if text := decoder.decode(data):
            self._coalescer.add(text)

    def _admit(self, size: int) -> bool:
        now = asyncio.get_running_loop().time()
        self._allowed = min(EVENT_BURST, self._allowed + (now - self._at) * EVENT_RATE)
        self._at = now
        if self._allowed < size:
            return False
        self._allowed -= size
        return True

    def _emit(self, text: str) -> None:
        skipped, self._skipped = self._skipped, 0
        self._send(self._stream, text, self._start, skipped)
        decoder = self._decoders.get(self._stream)
        # Of a character that came in part nothing is in this chunk.
        self._start = self._offset - (len(decoder.getstate()[0]) if decoder is not None else 0)

    def end(self) -> None:
        """Gives the rest, and what was skipped last."""
        for stream, decoder in self._decoders.items():
            if text := decoder.decode(b"", final=True):
                if stream != self._stream:
                    self._coalescer.flush()
                    self._stream = stream
                self._coalescer.add(text)
        self._coalescer.flush()
        if self._skipped:
            self._emit("")
