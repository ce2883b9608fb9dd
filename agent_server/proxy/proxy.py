"""The proxy as an application: which request goes where, and how many may be under way."""

import contextlib
from collections.abc import Iterator

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_server.errors import TooManyRequests
from agent_server.ports import Ports
from agent_server.proxy.strays import redirect_of, targets_of
from agent_server.proxy.target import Target, target_of
from agent_server.proxy.upstream import Upstreams

MAX_OPEN = 256
"""Requests and WebSockets under way at the same time: each holds two file descriptors, of usually 1024."""


class Proxy:
    """Answers `/proxy/{port}/{path}`, and requests that belong there. `digest` is the SHA-256 of the server's token."""

    def __init__(self, ports: Ports, digest: bytes) -> None:
        self._own_port = ports.own_port
        self._digest = digest
        self._upstreams = Upstreams(ports.sockets)
        self._open = 0

    @property
    def open(self) -> int:
        """How many requests and WebSockets are under way."""
        return self._open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = target_of(scope, self._own_port)
        if scope["type"] == "websocket":
            await self._join([target], scope, receive, send)
        elif target.rest is None:
            await _redirect(b"%d/" % target.port + (b"?" + target.query if target.query else b""))(scope, receive, send)
        else:
            with self._slot():
                # Imported at the first request: h11 takes 20 ms.
                from agent_server.proxy.relay import relay

                await relay(target, scope, receive, send, self._upstreams, self._digest)

    async def stray(self, scope: Scope, receive: Receive, send: Send, otherwise: ASGIApp) -> None:
        """Answers a request that no route has, if it belongs to a proxied page."""
        if scope["type"] == "websocket" and (targets := targets_of(scope, self._own_port)):
            await self._join(targets, scope, receive, send)
        elif scope["type"] == "http" and (place := redirect_of(scope)) is not None:
            await _redirect(place)(scope, receive, send)
        else:
            await otherwise(scope, receive, send)

    async def _join(self, targets: list[Target], scope: Scope, receive: Receive, send: Send) -> None:
        with self._slot():
            # Imported at the first WebSocket, as uvicorn's own part of it.
            from agent_server.proxy.websocket import relay

            places = [(target, is_whole) for target in targets for is_whole in self._upstreams.ways(target.port)]
            await relay(places, scope, receive, send, self._upstreams, self._digest)

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if self._open >= MAX_OPEN:
            raise TooManyRequests(f"{MAX_OPEN} proxied requests are under way; send this one again when some are done.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def _redirect(place: bytes) -> Response:
    # 307, so that the method and body stay; as bytes, which RedirectResponse would write in its own way.
    response = Response(status_code=307, headers={"Cache-Control": "no-store"})
    response.raw_headers.append((b"location", place))
    return response
