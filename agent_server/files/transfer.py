"""Contents on their way: a request's body in pieces, and responses that let go of what they read from, however they end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from agent_server.errors import InvalidRequest
from agent_server.files.files import CHUNK_BYTES
from agent_server.streams import SEND_TIMEOUT, event_source

IDLE_SECONDS = 60.0
"""Seconds in which something must come of a body; a client that sends nothing is taken for gone."""


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """Gives the body in pieces of some size. Errors: ClientDisconnect; InvalidRequest when nothing comes for long."""
    waiting = bytearray()
    has_more = True
    while has_more:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                message = await request.receive()
        except TimeoutError as error:
            raise InvalidRequest(f"Nothing of the body came for {IDLE_SECONDS:.0f} s; send it again.", path="body") from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        waiting += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(waiting) >= CHUNK_BYTES or (waiting and not has_more):
            yield bytes(waiting)
            waiting.clear()


class Pull:
    """Gives what a blocking generator makes; a thread is taken only while it makes the next piece."""

    def __init__(self, made: Generator[bytes, None, None]) -> None:
        self._made = made
        # Held while a piece is made, when the generator cannot be closed.
        self._making = threading.Lock()
        self._is_closed = False

    async def pieces(self) -> AsyncIterator[bytes]:
        while (piece := await asyncio.to_thread(self._next)) is not None:
            yield piece

    def close(self) -> None:
        """Closes the generator: at once, or when the piece it is at is made."""
        self._is_closed = True
        if self._making.acquire(blocking=False):
            self._made.close()
            self._making.release()

    def _next(self) -> bytes | None:
        with self._making:
            piece = next(self._made, None)
        if self._is_closed:
            self.close()
        return piece


class Sending(StreamingResponse):
    """Sends what an iterator gives to a client that keeps taking it; `close` is called at the end."""

    def __init__(self, content: AsyncIterator[bytes], close: Callable[[], None], status: int, headers: Mapping[str, str]) -> None:
        super().__init__(content, status, headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT):
                await send(message)

        try:
            # A client that takes nothing for so long is cut off: it sees that the rest is missing.
            with suppress(TimeoutError):
                await super().__call__(scope, receive, send_soon)
        finally:
            self._close()


class Live(Response):
    """Sends events that have no ids; `close` is called at the end."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        self._stream = event_source(events)
        self._close = close
        self.status_code, self.raw_headers, self.body_iterator = 200, self._stream.raw_headers, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._stream(scope, receive, send)
        finally:
            self._close()
