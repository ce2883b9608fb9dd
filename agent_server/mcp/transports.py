"""The SDK's client over the three transports, connected. Imported with the first server of a task: the SDK takes 2 s and 58 MB."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
from mcp import Client, MCPError
from mcp.client._transport import ReadStream, Transport, TransportStreams
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import (
    METHOD_NOT_FOUND,
    UNSUPPORTED_PROTOCOL_VERSION,
    ElicitRequestFormParams,
    ElicitResult,
    Implementation,
    ToolListChangedNotification,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from agent_server import __version__
from agent_server.calling.custom import McpConfig
from agent_server.mcp.listing import mended
from agent_server.mcp.stdio import MAX_MESSAGE, Said, stdio_transport

CONNECT_TIME = 30.0
"""Seconds to connect to a URL, and to send a request there; how long an answer may take is for each request to say."""

LEAVE_TIME = 2.0
"""Seconds for a server to answer that its session is over: a task waits for that with its own."""

NO_HANDSHAKE = frozenset({UNSUPPORTED_PROTOCOL_VERSION, METHOD_NOT_FOUND})
"""What servers answer to `initialize` that speak only the protocol without it."""

NOT_STREAMABLE = frozenset({400, 404, 405, 406, 410, 415})
"""Statuses of a refused `initialize` after which the older SSE is tried.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#backwards-compatibility
"""

OVER = re.compile(rb"session id|session (not found|expired)|not initialized", re.IGNORECASE)
"""How servers that follow the SDKs' older examples refuse a session that they do not know, with a 400.

Source: https://github.com/modelcontextprotocol/typescript-sdk/tree/main/examples/server
"""

for name, level in (("mcp.client", logging.CRITICAL), ("httpx2", logging.WARNING)):
    logging.getLogger(name).setLevel(level)  # what goes wrong is told by the call, or the warning; URLs may have secrets in them


BOTH = "application/json, text/event-stream"
"""What a message to streamable HTTP accepts."""


class Signs:
    """What is to be seen of a server besides its messages.

    `ended` is set at the end of its messages, `is_stale` when its list of tools has changed, `refused` the HTTP status of the last
    message it refused, `is_expired` when it does not know the session any more.
    """

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.is_stale = False
        self.is_expired = False
        self.refused: int | None = None
        self.said = Said()

    async def note(self, response: httpx2.Response) -> None:
        """Looks at a response before anybody else does, and bounds its body."""
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.stream = _Bounded(response.stream)
        if response.status_code < 400:
            return
        if "mcp-session-id" in response.request.headers and await _is_of_the_session(response):
            self.is_expired = True
        if response.request.method == "POST" and response.request.headers.get("accept", "").startswith(BOTH):
            self.refused = response.status_code  # not what an authorization server refuses

    async def refuse_session(self, response: httpx2.Response) -> None:
        """The same for SSE, whose messages are answered elsewhere: one that is refused is the end of the session."""
        if response.request.method == "POST" and response.status_code >= 400 and response.status_code not in (401, 403):
            self.is_expired = True
            self.ended.set()


async def _is_of_the_session(response: httpx2.Response) -> bool:
    """Whether a server refuses a request because it does not know its session: with a 404, or with a 400 that says so."""
    return response.status_code == 404 or (response.status_code == 400 and OVER.search(await response.aread()) is not None)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > MAX_MESSAGE:
                raise httpx2.ReadError(f"The answer is over {MAX_MESSAGE} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def connect(
    config: McpConfig,
    folder: Path,
    environment: Mapping[str, str] | None,
    signs: Signs,
    stack: AsyncExitStack,
    auth: httpx2.Auth | None = None,
) -> Client:
    """Reaches a server, or starts it where there is an `environment`, and agrees with it on a protocol; `stack` holds it.

    Errors: whatever the SDK and its transports raise, and groups of it.
    """
    if environment is not None:
        argv = [config.command or "", *config.args]
        return await _agree(lambda: stdio_transport(argv, {**environment, **config.env}, folder, signs.said), signs, stack)
    if config.type != "sse":
        try:
            return await _agree(lambda: _streamable(config, signs, auth), signs, stack)
        except Exception:  # of whatever kind: what counts is what was refused
            if signs.refused not in NOT_STREAMABLE:
                raise
            signs.is_expired = False
    return await _agree(lambda: _sse(config, signs, auth), signs, stack)


async def _agree(transport: Callable[[], Any], signs: Signs, stack: AsyncExitStack) -> Client:
    # Handshake first: every server in use knows it, and some end when another message comes before it.
    try:
        return await _entered(transport(), "legacy", signs, stack)
    except MCPError as error:
        if error.code not in NO_HANDSHAKE:
            raise
    return await _entered(transport(), "auto", signs, stack)


async def _entered(transport: Transport, mode: str, signs: Signs, stack: AsyncExitStack) -> Client:
    async def note(message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            signs.is_stale = True

    signs.ended.clear()
    async with AsyncExitStack() as attempt:
        client = Client(
            _watched(transport, signs.ended),
            mode=mode,
            message_handler=note,
            elicitation_callback=_fill_in,
            client_info=Implementation(name="agent-server", version=__version__),
            cache=None,
        )
        await attempt.enter_async_context(client)
        if mode == "auto" and client.protocol_version in MODERN_PROTOCOL_VERSIONS:
            following = asyncio.create_task(_follow(client, signs))
            attempt.callback(following.cancel)
        stack.push_async_exit(attempt.pop_all())
    return client


async def _follow(client: Client, signs: Signs) -> None:
    """Notes changes of the list, for the protocol that tells them only to whoever asks."""
    try:
        async with client.listen(tools_list_changed=True) as changes:
            async for _ in changes:
                signs.is_stale = True
    except Exception:  # noqa: S110  # a server need not tell; one that has ended is seen elsewhere
        pass


async def _fill_in(context: Any, params: Any) -> ElicitResult:
    """Answers a server's form: nobody is there to fill it in, so that only one whose every field has a default is accepted."""
    if not isinstance(params, ElicitRequestFormParams):
        return ElicitResult(action="decline")
    fields: Mapping[str, Any] = params.requested_schema.get("properties") or {}
    if not fields or not all("default" in field for field in fields.values()):
        return ElicitResult(action="decline")
    return ElicitResult(action="accept", content={name: field["default"] for name, field in fields.items()})


@asynccontextmanager
async def _streamable(config: McpConfig, signs: Signs, auth: httpx2.Auth | None) -> AsyncIterator[TransportStreams]:
    async with (
        _http(config, auth, signs.note) as http,
        streamable_http_client(config.url or "", http_client=http, max_sse_event_size=MAX_MESSAGE) as streams,
    ):
        yield streams


@asynccontextmanager
async def _sse(config: McpConfig, signs: Signs, auth: httpx2.Auth | None) -> AsyncIterator[TransportStreams]:
    def factory(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
        return _http(config, auth, signs.note, signs.refuse_session)

    async with sse_client(config.url or "", httpx_client_factory=factory, auth=auth) as streams:
        yield streams


def _http(config: McpConfig, auth: httpx2.Auth | None, *hooks: Callable[..., Any]) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(CONNECT_TIME, read=None)
    watching = {"request": [_hasten], "response": [*hooks]}
    return httpx2.AsyncClient(headers=dict(config.headers), auth=auth, timeout=timeout, event_hooks=watching)


async def _hasten(request: httpx2.Request) -> None:
    if request.method == "DELETE":
        request.extensions["timeout"] = httpx2.Timeout(LEAVE_TIME).as_dict()


@asynccontextmanager
async def _watched(transport: Any, ended: asyncio.Event) -> AsyncIterator[TransportStreams]:
    async with transport as (reading, writing):
        yield _Watched(reading, ended), writing


class _Watched:
    """A stream of messages that tells its end, and mends what the SDK would refuse."""

    def __init__(self, stream: ReadStream[SessionMessage | Exception], ended: asyncio.Event) -> None:
        self._stream = stream
        self._ended = ended

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        try:
            return mended(await self._stream.receive())
        except BaseException:
            self._ended.set()
            raise

    async def aclose(self) -> None:
        self._ended.set()
        await self._stream.aclose()

    def __aiter__(self) -> "_Watched":
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return mended(await self._stream.__anext__())
        except BaseException:
            self._ended.set()
            raise

    async def __aenter__(self) -> "_Watched":
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        self._ended.set()
        return await self._stream.__aexit__(kind, error, trace)
