"""One HTTP/1.1 request to an application, and its answer.

On h11, not httpx: an application may answer while it still reads, and a client that writes all of a body before it
reads, as httpx does, waits for ever for one that sends back what it gets. httpx also writes paths in its own way.
"""

import asyncio
from collections.abc import AsyncIterator

import h11

from agent_server.errors import InvalidRequest
from agent_server.proxy.headers import Headers
from agent_server.proxy.upstream import CHUNK

MAX_HEAD = 64 << 10
"""Bytes of an answer's first line and headers, as of a request's own."""


class Broken(Exception):
    """The application's answer broke off, or is no HTTP."""


class Exchange:
    """The request is sent by `ask` and `send`, the answer comes from `head` and `body`: each pair in a task of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    async def ask(self, method: str, path: bytes, headers: Headers) -> None:
        """Sends the request's head.

        Errors: InvalidRequest for bytes that no request has.
        """
        try:
            await self._write(h11.Request(method=method, target=path, headers=[*headers, (b"connection", b"close")]))
        except h11.LocalProtocolError as error:
            raise InvalidRequest(f"This request cannot be passed on: {error}.", path="$") from error

    async def send(self, data: bytes, *, is_last: bool) -> None:
        """Sends a part of the body, and waits while the application does not read."""
        if data:
            await self._write(h11.Data(data=data))
        if is_last:
            await self._write(h11.EndOfMessage())

    async def head(self) -> h11.Response:
        """Gives the answer's head. What comes before it, such as 103 Early Hints, is passed over.

        Errors: Broken.
        """
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise Broken("no answer")

    async def body(self) -> AsyncIterator[bytes]:
        """Gives the answer's body as it comes.

        Errors: Broken when it ends before its end.
        """
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    def abort(self) -> None:
        """Ends the connection at once."""
        self._writer.transport.abort()

    async def _write(self, event: h11.Event) -> None:
        try:
            data = self._http.send(event)
            if data:
                self._writer.write(data)
            await self._writer.drain()
        except OSError:  # it reads no more; its answer may have been sent before
            return

    async def _next(self) -> h11.Event:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(CHUNK))
        except (h11.RemoteProtocolError, OSError) as error:
            raise Broken(str(error)) from error
        if isinstance(event, h11.Event):
            return event
        raise Broken("the connection ended")
