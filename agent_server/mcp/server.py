"""The application behind /mcp: loaded at its first request, bounded, and ended with the server."""

import asyncio
import contextlib
import importlib
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from agent_server.errors import AgentServerError, Draining, NotFound
from agent_server.http import failure
from agent_server.mcp.calls import Calls
from agent_server.streams import SEND_TIMEOUT, own_the_drain

ANSWER_SECONDS = 1.0
"""Seconds that the answers of ended calls get on their way at the stop."""


class McpServer:
    """An ASGI application. `run` must be running for it to answer."""

    def __init__(self, calls: Calls, max_body: int) -> None:
        self.calls = calls
        self._max_body = max_body
        self._loading = asyncio.Lock()  # one load, of many first requests
        self._sessions: Any = None
        self._group: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()
        self._posts = 0
        self._is_draining = False

    async def run(self) -> None:
        """Holds the sessions and their calls until `drain`."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self.calls.run(self._stop))
            await self._stop.wait()

    async def drain(self, grace: float) -> None:
        """Lets calls end, for `grace` seconds at the most, and then ends every stream."""
        self._is_draining = True
        await self.calls.drain(grace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                while self._posts:  # noqa: ASYNC110  # seldom, and not for long
                    await asyncio.sleep(0.01)
        self._stop.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotFound("/mcp speaks HTTP, not WebSocket; send a POST.")
        if self._is_draining or self._group is None:
            raise Draining("The server is stopping; connect again in a few seconds.")

        is_post = scope["method"] == "POST"
        self._posts += is_post
        try:
            sessions = self._sessions or await self._load(self._group)
            await sessions.handle_request(scope, receive, _Answer(scope, receive, send))
        finally:
            self._posts -= is_post

    async def _load(self, group: asyncio.TaskGroup) -> Any:
        async with self._loading:
            if self._sessions is None:
                # In a thread, at the first request: it takes seconds, in which everything else is answered.
                sdk = await asyncio.to_thread(importlib.import_module, "agent_server.mcp.sdk")
                own_the_drain()
                sessions = sdk.sessions(self.calls, self._max_body)
                running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                group.create_task(self._hold(sessions, running))
                await running
                self._sessions = sessions
        return self._sessions

    async def _hold(self, sessions: Any, running: "asyncio.Future[None]") -> None:
        async with sessions.run():
            running.set_result(None)
            await self._stop.wait()


class _Answer:
    """Sends one answer of the SDK, each write in SEND_TIMEOUT; of a refusal that is no JSON-RPC error it makes the error envelope."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._is_replaced = False

    async def __call__(self, message: Message) -> None:
        if self._is_replaced:
            return
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = Headers(raw=message["headers"])
            if headers.get("content-type") != "application/json":
                self._is_replaced = True
                await self._refuse(message["status"], headers)
                return
        async with asyncio.timeout(SEND_TIMEOUT):
            await self._send(message)

    async def _refuse(self, status: int, headers: Headers) -> None:
        code = _CODES.get(status, "INVALID_REQUEST")
        error = AgentServerError(
            f"The MCP request was refused ({HTTPStatus(status).phrase}); check its method, headers and size.", code=code
        )
        response = failure(HTTPConnection(self._scope), error)
        response.status_code = status
        if "allow" in headers:
            response.headers["Allow"] = headers["allow"]
        await response(self._scope, self._receive, self._send)


_CODES = {405: "METHOD_NOT_ALLOWED", 413: "PAYLOAD_TOO_LARGE"}
