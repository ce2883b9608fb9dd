"""An MCP server's standard input and output, as a transport of the SDK: each line is a message.

The SDK's own transport lets a line grow without end, ends with a line that is no UTF-8, waits for a pipe that a daemon of the
server's holds, and knows nothing of what the server said on its standard error. Imported with the first server of a task.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import TransportStreams
from mcp.shared.message import SessionMessage

from agent_server.commands.processes import finish

MAX_MESSAGE = 32 << 20
"""Bytes of one message: an image of a screen has up to 10 MB."""

MAX_NOISE = 2 << 20
"""Bytes of what is no message between two that are: some print what they should log."""

SAID = 2_000
"""Bytes kept of the end of its standard error, for the warning that it did not come up."""

CHUNK = 64 << 10
"""Bytes read at once: short lines in it are gone through in some milliseconds."""

PACE = 0.01
"""Seconds between two reads of standard error: a server that floods it is slowed down, not we."""

DRAIN = 0.5
"""Seconds that its output is read after its end: a daemon of its own may hold the pipe."""

END_WAIT = 1.0
"""Seconds to end by itself after its input is closed, and again after SIGTERM."""


class Said:
    """The end of what a server wrote to its standard error.

    `is_unread` when it ended before it had read the last message to it, `excess` is in words what it was cut off for.
    """

    def __init__(self) -> None:
        self.is_unread = False
        self.excess = ""
        self._tail = b""

    def add(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk)[-SAID:]

    def __str__(self) -> str:
        return self._tail.decode("utf-8", "replace").strip()


@asynccontextmanager
async def stdio_transport(argv: Sequence[str], env: Mapping[str, str], cwd: Path, said: Said) -> AsyncIterator[TransportStreams]:
    """Starts a server and gives its streams; they end when its process has ended.

    Errors: OSError, ValueError when it cannot be started. What it leaves running is for whoever gave the environment to kill.
    """
    pipe = asyncio.subprocess.PIPE
    # A pipe of our own: asyncio would take a socket, which does not tell how much of it was read.
    theirs, ours = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=theirs, stdout=pipe, stderr=pipe, env=dict(env), cwd=cwd, start_new_session=True, limit=CHUNK
        )
    except BaseException as error:
        os.close(ours)
        if isinstance(error, OSError):  # which names nothing
            raise OSError(f"{argv[0][:200]!r} cannot be run in {cwd}: {error.strerror}") from error
        raise
    finally:
        os.close(theirs)
    server = _Server(process, ours, said)
    arriving, given = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    taken, leaving = anyio.create_memory_object_stream[SessionMessage](0)
    writing = asyncio.create_task(server.write(leaving))
    others = [asyncio.create_task(work) for work in (server.read(arriving), server.listen(), server.watch())]
    try:
        yield given, taken
    finally:
        try:
            await finish(server.stop(writing, others))
        finally:
            for stream in (arriving, given, taken, leaving):
                stream.close()


class _Server:
    def __init__(self, process: asyncio.subprocess.Process, stdin: int, said: Said) -> None:
        self._process = process
        self._said = said
        self._stdin = stdin
        self._is_silent = False
        self._ended = asyncio.Event()
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018  # they are pipes
        self._stdout, self._stderr = process.stdout, process.stderr
        os.set_blocking(stdin, False)

    async def read(self, arriving: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        """Passes its messages on until it has ended; what is none is left out."""
        reading = asyncio.create_task(self._read(arriving))
        ending = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait([reading, ending], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([reading], timeout=DRAIN)
        finally:
            reading.cancel()
            ending.cancel()
            self._is_silent = True
            arriving.close()

    async def _read(self, arriving: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        parts: list[bytes] = []
        held = noise = 0
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):  # one of the ends has gone
            while held <= MAX_MESSAGE and noise <= MAX_NOISE and (chunk := await self._stdout.read(CHUNK)):
                *lines, rest = chunk.split(b"\n")
                if lines:
                    lines[0] = b"".join((*parts, lines[0]))
                    parts.clear()
                    held = 0
                for line in lines:
                    if (message := _message(line) if line[:1] in b" \t{" else None) is None:
                        noise += len(line) + 1
                    else:
                        noise = 0
                        await arriving.send(message)
                parts.append(rest)
                held += len(rest)
            if held > MAX_MESSAGE:
                self._said.excess = f"a message of it has over {MAX_MESSAGE} bytes"
            elif noise > MAX_NOISE:
                self._said.excess = f"over {MAX_NOISE} bytes of its output are no messages"

    async def write(self, leaving: MemoryObjectReceiveStream[SessionMessage]) -> None:
        """Passes messages to it."""
        async for sent in leaving:
            text = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                await self._write(text.encode("utf-8", "replace") + b"\n")
            except OSError:  # that it has ended is seen elsewhere
                self._said.is_unread = True

    async def _write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._stdin, left) :]
            except BlockingIOError:
                room = asyncio.Event()
                loop.add_writer(self._stdin, room.set)
                try:
                    await room.wait()
                finally:
                    loop.remove_writer(self._stdin)

    async def listen(self) -> None:
        """Keeps the end of its standard error."""
        while chunk := await self._stderr.read(CHUNK):
            self._said.add(chunk)
            await asyncio.sleep(PACE)

    async def watch(self) -> None:
        """Sees its end. `Process.wait` would wait for the pipes as well, which a daemon may hold."""
        loop = asyncio.get_running_loop()
        try:
            number = os.pidfd_open(self._process.pid)
        except ProcessLookupError:
            self._ended.set()
            return
        loop.add_reader(number, self._ended.set)
        try:
            await self._ended.wait()
        finally:
            loop.remove_reader(number)
            os.close(number)

    async def stop(self, writing: "asyncio.Task[None]", others: "Sequence[asyncio.Task[None]]") -> None:
        """Lets it end by itself, as the protocol has it, and asks it to where it does not."""
        if self._is_silent and await self._has_ended():
            self._said.is_unread |= _unread(self._stdin) > 0
        writing.cancel()
        await asyncio.wait([writing])
        os.close(self._stdin)
        if not await self._has_ended():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGTERM)
            await self._has_ended()
        for work in others:
            work.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # The pipes that others hold are closed with it, and the process is killed where it still runs.
        self._process._transport.close()  # type: ignore[attr-defined]  # there is no public way

    async def _has_ended(self) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), END_WAIT)
        return self._ended.is_set()


def _unread(pipe: int) -> int:
    """Gives how many bytes of a pipe nobody has read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _message(line: bytes) -> SessionMessage | None:
    text = line.decode("utf-8", "replace")
    try:
        return _parsed(text)
    except ValueError:
        pass
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not {"result", "error"} & value.keys() or not isinstance(value.get("id"), int | str):
        return None
    try:  # halves of characters, which JavaScript cuts, are what pydantic refuses
        return _parsed(json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):  # somebody waits for it
        unreadable = types.ErrorData(code=types.PARSE_ERROR, message="its answer is no message of the protocol")
        return SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=value["id"], error=unreadable))


def _parsed(text: str) -> SessionMessage:
    return SessionMessage(types.jsonrpc_message_adapter.validate_json(text, by_name=False))
