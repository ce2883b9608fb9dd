"""A web server on loopback for the tests of `webfetch`: what it answers is given as bytes, so that it can answer wrongly, too."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

Answer: TypeAlias = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


class WebServer:
    """Answers by path; `requests` are the heads that came, `answers` may be added to. `port` is its own."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.requests: list[str] = []
        self.port = 0

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.requests.append(head)
                answer = self.answers.get(head.split(" ")[1], reply(b"no such page", status="404 Not Found", type="text/plain"))
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                else:
                    await answer(writer)
        finally:
            writer.close()


def reply(body: bytes, *, status: str = "200 OK", type: str = "text/html", **headers: str) -> bytes:
    """A whole response."""
    named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    kind = f"Content-Type: {type}\r\n" if type else ""
    return f"HTTP/1.1 {status}\r\n{kind}{named}Content-Length: {len(body)}\r\n\r\n".encode() + body


def redirect(place: str, status: str = "302 Found") -> bytes:
    return f"HTTP/1.1 {status}\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()


@asynccontextmanager
async def web_server(answers: Mapping[str, Answer], host: str = "127.0.0.1") -> AsyncIterator[WebServer]:
    """A server while the context lasts; connections that are still open at its end are broken off."""
    web = WebServer(answers)
    working: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(web.serve(reader, writer))
        working.add(task)
        task.add_done_callback(working.discard)

    server = await asyncio.start_server(accept, host, 0)
    web.port = server.sockets[0].getsockname()[1]
    try:
        yield web
    finally:
        server.close()
        for task in list(working):
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await asyncio.sleep(0)  # closed connections are let go of in the next turn
        await server.wait_closed()
