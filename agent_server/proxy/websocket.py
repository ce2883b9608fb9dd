"""A WebSocket to an application, and the client's own, joined: messages, and how each of them ends."""

import asyncio
import contextlib
from collections.abc import Sequence

from starlette.types import Receive, Scope, Send
from websockets.client import ClientProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from agent_server.errors import UpstreamError
from agent_server.proxy.headers import Headers, for_client, for_handshake
from agent_server.proxy.target import Target
from agent_server.proxy.upstream import CHUNK, Streams, Upstreams

MAX_MESSAGE = 16 << 20
"""Bytes of a message, either way: it is held whole while it is passed on. The side that sends a longer one is closed with 1009."""

HANDSHAKE_SECONDS = 10.0
"""Seconds for an application's answer to a handshake."""

UNSURE_SECONDS = 3.0
"""The same where there is another place to try: Vite never answers to a path that it does not know."""

CLOSE_SECONDS = 5.0
"""Seconds for an application to close after it was asked to."""

_NO_CODE, _ABNORMAL = 1005, 1006


class Refused(Exception):
    """The application took no WebSocket; with its answer, if it gave one."""

    def __init__(self, response: Response | None) -> None:
        super().__init__("refused")
        self.response = response


Place = tuple[Target, bool]
"""Where to ask: a target, and whether for its whole path."""


async def relay(places: Sequence[Place], scope: Scope, receive: Receive, send: Send, upstreams: Upstreams, digest: bytes) -> None:
    """Joins the client with the first of these places that takes its handshake; the last one's refusal is passed on.

    Errors: UpstreamError.
    """
    await receive()  # websocket.connect
    for target, is_whole in places[:-1]:
        with contextlib.suppress(Refused, UpstreamError):
            socket = _Socket(target, scope, await upstreams.open(target.port), is_whole=is_whole)
            return await _join(socket, UNSURE_SECONDS, receive, send, upstreams, digest)
    target, is_whole = places[-1]
    try:
        socket = _Socket(target, scope, await upstreams.open(target.port), is_whole=is_whole)
        await _join(socket, HANDSHAKE_SECONDS, receive, send, upstreams, digest)
    except Refused as refused:
        await _refuse(refused.response, target, scope, send, is_whole=is_whole)


async def _join(socket: "_Socket", seconds: float, receive: Receive, send: Send, upstreams: Upstreams, digest: bytes) -> None:
    try:
        headers = await socket.open(digest, seconds)
        upstreams.note(socket.target.port, is_whole=socket.is_whole)
        await socket.join(headers, receive, send)
    finally:
        socket.abort()


class _Socket:
    """The application's end."""

    def __init__(self, target: Target, scope: Scope, streams: Streams, *, is_whole: bool) -> None:
        self._reader, self._writer = streams
        self.target = target
        self.is_whole = is_whole
        self._scope = scope
        offered = [Subprotocol(name) for name in scope["subprotocols"]] or None
        self._protocol = ClientProtocol(parse_uri(f"ws://localhost:{target.port}/"), subprotocols=offered, max_size=MAX_MESSAGE)
        self._parts: list[bytes] = []
        self._is_text = False
        self._early: list[Frame] = []
        self._response: Response | None = None

    async def open(self, digest: bytes, seconds: float) -> Headers:
        """Makes the handshake, and gives the headers of the answer as the client gets them.

        Errors: Refused.
        """
        self._protocol.send_request(self._request(digest))
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                while self._protocol.state is CONNECTING and self._protocol.handshake_exc is None:
                    self._early += await self._receive()
        if self._protocol.state is CONNECTING or self._protocol.handshake_exc is not None or self._response is None:
            raise Refused(self._response)
        return for_client(101, _latin(self._response), self._scope, self.target, is_whole=self.is_whole)

    def _request(self, digest: bytes) -> Request:
        request = self._protocol.connect()
        request.path = (self.target.whole if self.is_whole else self.target.short).decode()
        for name, value in for_handshake(self._scope, self.target, digest):
            if name not in (b"host", b"content-length"):
                request.headers[name.decode()] = value.decode("latin-1")
        return request

    async def join(self, headers: Headers, receive: Receive, send: Send) -> None:
        """Passes messages on until one side has ended, and ends the other the same way."""
        await send({"type": "websocket.accept", "subprotocol": self._protocol.subprotocol, "headers": headers})
        async with asyncio.TaskGroup() as group:
            client = group.create_task(self._from_client(receive))
            with contextlib.suppress(OSError):  # either side's connection is lost
                await self._to_client(send)
            client.cancel()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def _from_client(self, receive: Receive) -> None:
        with contextlib.suppress(OSError, ProtocolError):  # the application's end is closed: the other direction sees how
            while (message := await receive())["type"] == "websocket.receive":
                if message.get("bytes") is not None:
                    self._protocol.send_binary(message["bytes"])
                else:
                    self._protocol.send_text(message["text"].encode())
                await self._flush()
            await self._end(message["code"], message.get("reason"))

    async def _end(self, code: int, reason: str | None) -> None:
        if reason is None and code in (_NO_CODE, _ABNORMAL):
            self.abort()  # the client's connection was lost: it said no goodbye, and neither do we
            return
        self._protocol.send_close(None if code == _NO_CODE else code, reason or "")
        await self._flush()
        await asyncio.sleep(CLOSE_SECONDS)
        self.abort()

    async def _to_client(self, send: Send) -> None:
        frames, self._early = self._early, []
        while True:
            for frame in frames:
                await self._pass(frame, send)
            if self._protocol.close_rcvd is not None or self._protocol.close_sent is not None:
                break
            if self._protocol.eof_sent or self._reader.at_eof():
                return  # without a goodbye; the server cuts the client off the same way
            frames = await self._receive()
        ended = self._protocol.close_rcvd or self._protocol.close_sent
        if ended is not None:
            code = None if ended.code == _NO_CODE else ended.code
            await send({"type": "websocket.close", "code": code, "reason": ended.reason})

    async def _pass(self, frame: Frame, send: Send) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._is_text, self._parts = frame.opcode is Opcode.TEXT, []
        elif frame.opcode is not Opcode.CONT:
            return
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        data, self._parts = b"".join(self._parts), []
        if not self._is_text:
            await send({"type": "websocket.send", "bytes": data})
            return
        try:
            await send({"type": "websocket.send", "text": data.decode()})
        except UnicodeDecodeError:
            self._protocol.fail(1007, "invalid UTF-8")
            await self._flush()

    async def _receive(self) -> list[Frame]:
        """Reads what there is, answers what the protocol answers by itself, and gives the frames."""
        await self._flush()
        data = await self._reader.read(CHUNK)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        await self._flush()
        frames = []
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                frames.append(event)
            elif isinstance(event, Response):
                self._response = event
        return frames

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)
            elif self._writer.can_write_eof():
                self._writer.write_eof()
        await self._writer.drain()


async def _refuse(response: Response | None, target: Target, scope: Scope, send: Send, *, is_whole: bool) -> None:
    if response is None or not 200 <= response.status_code < 600:
        raise UpstreamError(
            f"What listens on port {target.port} did not answer to the WebSocket's handshake.", details={"port": target.port}
        )
    headers = for_client(response.status_code, _latin(response), scope, target, is_whole=is_whole)
    passed = [(name, value) for name, value in headers if name != b"content-length"]
    await send({"type": "websocket.http.response.start", "status": response.status_code, "headers": passed})
    await send({"type": "websocket.http.response.body", "body": bytes(response.body or b""), "more_body": False})


def _latin(response: Response) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]
