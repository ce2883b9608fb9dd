"""What tools do with commands in the background: start them, read what they print, end them; only those of the call's own session.

How each stands is read from the log's index, so that it is known after a restart, too. What it printed is in its file, from the
first byte on; of one that runs, the newest is in memory, and may not be on the disk yet.
"""

import asyncio
import codecs
import time
from contextlib import suppress
from pathlib import Path

from agent_server.commands import process_index
from agent_server.commands.execution import Command, Owner
from agent_server.commands.process import REPLAY, Process
from agent_server.commands.process_index import Record
from agent_server.errors import NotFound
from agent_server.sessions.run import Caller
from tools import ProcessOutput, ProcessState, ToolError

MOST = 16
"""Commands that one session may have in the background at the same time: a bound for all is `processes.BACKGROUND`."""

MEMORY_BYTES = 2 * REPLAY
"""Bytes of output kept in memory of each, as of those that clients start, so that a terminal can attach to it."""

SETTLE = 0.1
"""Seconds that are given to what follows a first piece of output which was waited for: lines come in bursts."""


class Background:
    """The commands in the background of the session that a call is made in: `tools.Background`."""

    def __init__(self, caller: Caller, owner: Owner) -> None:
        self._caller = caller
        self._owner = owner
        self._log = caller.around.log
        self._processes = caller.around.processes

    async def start(self, command: str, *, cwd: Path, timeout: float | None) -> str:
        left = self._processes.of_session(self._caller.session_id)
        if len(left) >= MOST:
            ids = ", ".join(process.process_id for process in left)
            raise ToolError(f"{MOST} commands of this session run in the background, which is the most; end some with bash_kill: {ids}.")
        wanted = Command(
            command, cwd, timeout=timeout, limit=MEMORY_BYTES, is_split=False, is_merged=True, is_background=True, is_spooled=True
        )
        return (await self._processes.start(wanted, self._owner)).process_id

    async def read(self, process_id: str, *, offset: int | None, wait: float, limit: int) -> ProcessOutput:
        await self._find(process_id)
        begin = offset if offset is not None else self._caller.read_until(process_id)
        process = self._processes.get(process_id)
        if process is not None and wait > 0:
            await self._await_news(process, begin, wait)
        if process is not None and process.execution.is_done:
            await process.wait()  # its end is told next
        record = await self._find(process_id)
        printed = _Printed(self._processes.get(process_id), self._caller.around.outputs / f"{process_id}.txt", record)
        return await printed.between(begin, limit)

    async def kill(self, process_id: str) -> ProcessState:
        record = await self._find(process_id)
        await self._processes.end(process_id)
        if record.ended is not None:
            return _state(record)
        return _state(await self._find(process_id))

    async def _await_news(self, process: Process, begin: int, wait: float) -> None:
        """Returns when there is output from `begin` on, when it has ended, or after `wait` seconds."""
        run, pause = process.execution, self._caller.around.pause
        async with pause.aside():
            with suppress(TimeoutError):
                async with pause.clock.timeout(wait):
                    while run.total <= begin and not run.is_done:
                        await run.more()
                    if not run.is_done:
                        await asyncio.sleep(SETTLE)

    async def _find(self, process_id: str) -> Record:
        with suppress(NotFound):
            record = await process_index.find(self._log, process_id)
            if record.started.session_id != self._caller.session_id:
                raise ToolError(f"The process {process_id} belongs to another session; only those of this session can be read or ended.")
            if record.is_left:
                return record
        raise ToolError(f"There is no command {process_id[:64]!r} in the background. {await self._known()}")

    async def _known(self) -> str:
        own = [record for record in await process_index.find_all(self._log) if self._is_own(record)]
        if not own:
            return "This session has started none; start one by bash with background: true."
        shown = [f"{record.process_id} ({'runs' if record.ended is None else 'has ended'})" for record in own[:MOST]]
        return f"This session has {', '.join(shown)}."

    def _is_own(self, record: Record) -> bool:
        return record.is_left and record.started.session_id == self._caller.session_id


class _Printed:
    """What a command has printed, wherever that is."""

    def __init__(self, process: Process | None, file: Path, record: Record) -> None:
        self._run = process.execution if process is not None else None
        self._file = file
        self._record = record

    async def between(self, begin: int, limit: int) -> ProcessOutput:
        """Gives what there is from `begin` to the present end, at most `limit` bytes of it: head and tail."""
        end = await self._total()
        begin = min(begin, end)  # where the next reading begins: what is still to come must not be passed over
        is_open = self._record.ended is None
        if end - begin <= limit:
            place, data = await self._piece(begin, end)
            text, held_back = _decoded(data, is_open=is_open)
            # Of a character that came in part nothing is given, until the rest is there.
            return self._told(text, place, end - held_back, 0, end - begin - len(data))
        half = limit // 2
        place, head = await self._piece(begin, begin + half)
        _, tail = await self._piece(end - (limit - half), end)
        if not head and not tail:
            return self._told("", end, end, 0, end - begin)
        start = next((at for at in range(min(4, len(tail))) if tail[at] & 0xC0 != 0x80), 0)
        first, cut = _decoded(head, is_open=True)
        last, held_back = _decoded(tail[start:], is_open=is_open)
        left_out = end - begin - limit + start + cut
        text = f"{first}\n[... {left_out} bytes left out ...]\n{last}"
        return self._told(text, place, end - held_back, left_out, limit - len(head) - len(tail))

    def _told(self, text: str, begin: int, end: int, left_out: int, dropped: int) -> ProcessOutput:
        file = self._file if self._file.exists() else None
        return ProcessOutput(text, begin, end, left_out, dropped, file, _state(self._record))

    async def _total(self) -> int:
        if self._run is not None:
            return self._run.total
        told = self._record.ended.data.get("outputBytes") if self._record.ended is not None else None
        if told is not None:
            return int(told)
        return await asyncio.to_thread(_size, self._file)  # nobody saw its end: what is there is what is known

    async def _piece(self, begin: int, end: int) -> tuple[int, bytes]:
        """Gives these bytes, and the place of the first one; fewer where some are kept nowhere."""
        data = b""
        if self._run is None or begin < self._run.floor:
            data = await asyncio.to_thread(_bytes, self._file, begin, end)
        place = begin + len(data)
        if self._run is None or place >= end:
            return begin, data
        newest = max(place, self._run.floor)
        rest = self._run.since(newest)[: max(0, end - newest)]
        if not data:
            return newest, rest
        return begin, data + rest if newest == place else data


def _decoded(data: bytes, *, is_open: bool) -> tuple[str, int]:
    """Gives the text, and how many bytes at its end are the beginning of a character whose rest is to come."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=not is_open)
    return text, len(decoder.getstate()[0])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it printed nothing, or the file was one of the oldest
        return 0


def _bytes(path: Path, begin: int, end: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    except OSError:
        return b""


def _state(record: Record) -> ProcessState:
    if record.ended is None:
        return ProcessState(True, None, None, None, max(0.0, time.time() - record.started.time / 1000))
    data = record.ended.data
    return ProcessState(False, data.get("exitCode"), data.get("signal"), data.get("reason"))
