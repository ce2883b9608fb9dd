"""Which route answers a request: one look for a path without parameters, Starlette's router for the rest."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute, Match, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_server.http import Endpoint, Raw, Socket, on_error

RESTARTED = 1012
"""The code of a WebSocket that the server ended for no fault of the client's (IANA's registry: service restart)."""


class Dispatch:
    """Finds the endpoint of a request whose path has no parameters by one look; the rest is for Starlette's router.

    `default` answers for a path that no route has.
    """

    def __init__(self, offered: Sequence[Endpoint | Socket | Raw], default: ASGIApp) -> None:
        exact = [one for one in offered if isinstance(one, Endpoint) and one.is_exact]
        self._exact = {("HEAD", e.path): e for e in exact if e.method == "GET"} | {(e.method, e.path): e for e in exact}
        self._offered, self._default = offered, default
        self._sockets: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._hold(asyncio.create_task(self._answer(scope, receive, send)), send)
        else:
            await (self._exact.get((scope["method"], scope["path"])) or self._router)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    async def _hold(self, socket: "asyncio.Task[None]", send: Send) -> None:
        self._sockets.add(socket)
        try:
            await asyncio.wait([socket])
        except asyncio.CancelledError:
            socket.cancel()
            await asyncio.wait([socket])
            raise
        finally:
            self._sockets.discard(socket)
        if socket.cancelled():
            with contextlib.suppress(RuntimeError):  # its close was sent already
                await send({"type": "websocket.close", "code": RESTARTED, "reason": "connect again"})
        elif (error := socket.exception()) is not None:
            raise error

    def drop_sockets(self) -> None:
        """Ends every WebSocket, so that clients connect again."""
        for socket in self._sockets:
            socket.cancel()

    @cached_property
    def _router(self) -> ASGIApp:
        # Made at its first use: a hundred patterns take some ms, and /health needs none.
        router = Router(_routes(self._offered), redirect_slashes=False, default=self._default)
        # Endpoints answer for their own errors; what is left is the router's: no such method.
        return ExceptionMiddleware(router, handlers={HTTPException: on_error})


def _routes(offered: Sequence[Endpoint | Socket | Raw]) -> list[BaseRoute]:
    """Gives what Starlette's router takes: of each path one for HTTP, so that a 405 names all its methods, and one for WebSockets."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for one in offered:
        if isinstance(one, Endpoint):
            by_path.setdefault(one.path, {})[one.method] = one
    of_endpoints = [Route(path, _Methods(methods), methods=[*methods]) for path, methods in by_path.items()]
    sockets = [WebSocketRoute(one.path, one) for one in offered if isinstance(one, Socket)]
    return [*of_endpoints, *sockets, *(_RawRoute(one.path, one) for one in offered if isinstance(one, Raw))]


class _Methods:
    def __init__(self, methods: Mapping[str, Endpoint]) -> None:
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._methods["GET" if scope["method"] == "HEAD" else scope["method"]](scope, receive, send)


class _RawRoute(Route):
    """Takes what no endpoint's path fits: where one does, with another method, the answer is its 405."""

    def __init__(self, path: str, app: ASGIApp) -> None:
        super().__init__(path, app, methods=None)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        # As HTTP, since Starlette's own takes no WebSockets; and never in full, so that an endpoint's own path goes before.
        match, found = super().matches({**scope, "type": "http", "method": "GET"})
        return (Match.PARTIAL if match is Match.FULL else match), found

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
