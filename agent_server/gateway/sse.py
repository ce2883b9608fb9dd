"""Server-sent events, as a parser that takes bytes as they come and gives each event's data.

Event names, ids and retry times are left out: chat completions use none of them.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from collections.abc import Iterator

EVENT_LIMIT = 16 * 2**20
"""Bytes. No real event comes near it; a server that never ends its line must not fill the memory."""


class EventTooLong(ValueError):
    """An event above EVENT_LIMIT."""


class EventParser:
    """Lines may end in LF, CRLF or CR and be cut anywhere, also inside a character: only whole lines are looked at."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Gives the data of each event that this chunk ends.

        Errors: EventTooLong.
        """
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = self._after_cr or chunk.endswith(b"\r")
        for piece in chunk.splitlines(keepends=True):
            self._size += len(piece)
            if self._size > EVENT_LIMIT:
                raise EventTooLong(f"an event of more than {EVENT_LIMIT} bytes")
            self._line += piece
            if piece.endswith((b"\n", b"\r")):
                yield from self._end_line()

    def rest(self) -> bytes:
        """The data of an event whose blank line never came; b"" when there is none."""
        self._take_field(bytes(self._line))
        self._line.clear()
        return b"\n".join(self._data)

    def _end_line(self) -> Iterator[bytes]:
        line = bytes(self._line).rstrip(b"\r\n")
        self._line.clear()
        if line:
            self._take_field(line)
            return
        if self._data:
            yield b"\n".join(self._data)
        self._data.clear()
        self._size = 0

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif not self._data:
            # Comments keep a stream alive for hours: they must not add up to an event that is too long.
            self._size = 0
