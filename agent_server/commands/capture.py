"""What is kept of a command's output: head and tail in memory, the whole in a file once it is long; all of it told as events."""

from collections.abc import Callable
from pathlib import Path

from agent_server.commands.output import Excerpt, OutputEvents, Spool

OutputSink = Callable[[str, str, int, int], None]
"""Takes output as it comes: stream, chunk, offset, skipped bytes."""


class Capture:
    """The output of one command, stdout and stderr together as they came and, if `is_split`, each for itself.

    Units: `limit` bytes are kept of each. `resume` is called when a full spool has been written. One that `is_spilled` has the
    whole in a file, long or not.
    """

    def __init__(
        self, limit: int, spool: Spool, sink: OutputSink, resume: Callable[[], None], *, is_split: bool, is_spilled: bool = False
    ) -> None:
        self._limit, self._is_split, self._spool, self._resume = limit, is_split, spool, resume
        self._events = OutputEvents(sink)
        self._all = Excerpt(limit)
        self._only: str | None = None  # the stream that has written, while it is the only one
        self._each: dict[str, Excerpt] = {}  # kept from when both have
        self.is_spilled = is_spilled

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the disk that the command should."""
        return self._spool.is_full

    @property
    def total(self) -> int:
        return self._all.total

    @property
    def floor(self) -> int:
        """The offset from which on the output is in memory."""
        return self._all.floor

    def since(self, offset: int) -> bytes:
        """Gives the output from an offset on, which is not below `floor`."""
        return self._all.since(offset)

    @property
    def file(self) -> Path | None:
        """Where the whole is, if it is longer than what is kept."""
        return self._spool.path if self.is_spilled and self._spool.error is None else None

    def add(self, name: str, data: bytes) -> None:
        if not self.is_spilled and self._all.total + len(data) > self._limit:
            self.is_spilled = True
            self._spool.write(self._all.whole(), self._resume)
        if self.is_spilled:
            self._spool.write(data, self._resume)
        if self._only is None and not self._each:
            self._only = name
        elif self._is_split and self._only not in (None, name):
            self._each = {self._only: self._all.copy(), name: Excerpt(self._limit)}
            self._only = None
        self._all.add(data)
        if self._each:
            self._each[name].add(data)
        self._events.add(name, data)

    def end(self) -> None:
        """Tells the rest."""
        self._events.end()

    async def close(self) -> None:
        """Returns when the file has everything."""
        await self._spool.close()

    def texts(self) -> tuple[str, str, str]:
        """Gives what is kept, as text: of both, of stdout, of stderr. Without `is_split` the two are one once both have written."""
        both = self._all.text()
        if self._each:
            return both, self._each["stdout"].text(), self._each["stderr"].text()
        return both, both if self._only == "stdout" else "", both if self._only == "stderr" else ""
