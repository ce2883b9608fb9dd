"""A small HTTP/1.1 server for emulators: keep-alive, chunked streams, and the right to misbehave.

Frameworks are left out on purpose: they take long to start, and none lets a server cut a stream or time its last byte.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class Request:
    """`arrived_ns` is CLOCK_MONOTONIC once the last byte is read: one clock for all processes of a machine."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    arrived_ns: int = field(default_factory=time.monotonic_ns)


class Connection:
    """The answering side of one connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def answer(
        self, status: int, body: bytes, content_type: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        head = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
        self._writer.write(_head(status, head) + body)
        await self._writer.drain()

    async def begin(self, content_type: str) -> None:
        """Begins a chunked stream."""
        self._writer.write(_head(200, {"content-type": content_type, "transfer-encoding": "chunked"}))

    async def send(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._writer.drain()

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def cut(self) -> None:
        """Closes the connection in the midst of whatever it was."""
        self._writer.close()


Answerer = Callable[[Request, Connection], Awaitable[None]]


async def serve(answer: Answerer, port: int) -> asyncio.Server:
    """Listens on loopback; port 0 takes a free one."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                request = await _read(reader)
                await answer(request, Connection(writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The client has hung up.
        finally:
            writer.close()

    return await asyncio.start_server(converse, "127.0.0.1", port)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
