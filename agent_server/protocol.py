"""HTTP/1.1 as uvicorn speaks it on httptools, with some things of our own.

A response's head and body leave in one write; what is no HTTP is answered with the error envelope; the head of a request
is bounded in size and time, since it is read before anybody's token is known; and an offer to speak HTTP/2 is passed over.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agent_server.errors import InvalidRequest
from agent_server.http import envelope
from agent_server.ids import new_id

MAX_HEAD = 64 << 10
"""Bytes of a request's first line and headers."""

HEAD_SECONDS = 30.0
"""Seconds in which they must have come, from the connection on, or from their first byte on a connection that was used before."""

LINGER_SECONDS = 30.0
"""Seconds in which a client must take something of what is left for it when its connection is closed."""

# The parser gives no body for a request that offers an upgrade, and curl --http2 and Java's HttpClient offer this one with every request.
_HTTP2_OFFER = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


def websocket_protocol(**options: Any) -> asyncio.Protocol:
    """Makes uvicorn's protocol of a connection that becomes a WebSocket."""
    # Imported at the first one: it takes 20 ms.
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    return WebSocketsSansIOProtocol(**options)


class Protocol(HttpToolsProtocol):
    """One connection."""

    _is_in_head = False
    _is_in_body = False
    _head = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's says so too
        transport.set_write_buffer_limits(high=0)  # each write leaves at once, before what else is to be done in this turn
        super().connection_made(_Gathering(transport))  # type: ignore[arg-type]  # it has all that a transport has
        self._deadline = self.loop.call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if b"h2c" in data and not self._is_in_body:
            head, end, body = data.partition(b"\r\n\r\n")
            data = _HTTP2_OFFER.sub(b"\r\nx-upgrade: h2c", head + end) + body
        super().data_received(data)
        if self._is_in_head:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.send_400_response("")
            elif self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        self._is_in_head, self._head = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head, self._is_in_body = False, True
        self._end_deadline()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_400_response(self, msg: str) -> None:
        request_id = new_id("req")
        error = InvalidRequest("This is no valid HTTP/1.1 request; check its first line, Host and lengths.", path="$")
        body = msgspec.json.encode(envelope(error, request_id))
        head = (
            f"HTTP/1.1 400 {HTTPStatus(400).phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _Gathering:
    """A transport that sends two writes of one turn of the event loop in one piece: a response's head and its body."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._written: bytes | None = None
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._written is None:
            self._written = data
            self._loop.call_soon(self._send)
        else:
            data, self._written = self._written + data, None
            self._transport.write(data)

    def _send(self) -> None:
        if self._written is not None:
            data, self._written = self._written, None
            self._transport.write(data)

    def close(self) -> None:
        self._send()
        self._linger(self._transport.get_write_buffer_size())
        self._transport.close()

    def _linger(self, size: int) -> None:
        """Ends a connection whose rest is not taken any more: it would stay for as long as the client does."""
        if size:
            self._loop.call_later(LINGER_SECONDS, self._look, size)

    def _look(self, before: int) -> None:
        size = self._transport.get_write_buffer_size()
        if size < before:
            self._linger(size)
        else:
            self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
