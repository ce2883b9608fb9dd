"""An HTTP request on its way to an application and the answer on its way back, both as they come."""

import asyncio
import contextlib

from h11 import Response
from starlette.types import Receive, Scope, Send

from agent_server.errors import AgentServerError, UpstreamError
from agent_server.proxy.exchange import Broken, Exchange
from agent_server.proxy.headers import Headers, first, for_client, for_upstream
from agent_server.proxy.strays import remembered
from agent_server.proxy.target import Target
from agent_server.proxy.upstream import Upstreams

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


async def relay(target: Target, scope: Scope, receive: Receive, send: Send, upstreams: Upstreams, digest: bytes) -> None:
    """Answers a request with what the application says. When that breaks off, so does the answer.

    Errors: UpstreamError and InvalidRequest, before the answer has begun.
    """
    turn = _Turn(target, scope, upstreams, digest)
    failure: AgentServerError | None = None
    try:
        await turn.ask(is_whole=upstreams.is_whole(target.port) is True)
        async with asyncio.TaskGroup() as group:
            client = group.create_task(turn.listen(receive))
            try:
                await turn.answer(send)
            except AgentServerError as error:
                failure = error
            finally:
                client.cancel()
    finally:
        turn.end()
    if failure is not None:
        raise failure


class _Turn:
    """The exchanges of one request: two where the application has to be asked for its whole path after all."""

    def __init__(self, target: Target, scope: Scope, upstreams: Upstreams, digest: bytes) -> None:
        self._target = target
        self._scope = scope
        self._upstreams = upstreams
        self._headers, self._has_body = _framed(for_upstream(scope, target, digest), scope)
        self._exchanges: list[Exchange] = []
        self._is_whole = False

    async def ask(self, *, is_whole: bool) -> Exchange:
        exchange = Exchange(*await self._upstreams.open(self._target.port))
        self._exchanges.append(exchange)
        await exchange.ask(self._scope["method"], self._target.whole if is_whole else self._target.short, self._headers)
        self._is_whole = is_whole
        return exchange

    async def listen(self, receive: Receive) -> None:
        """Passes the body on, then waits for the client to go away, and ends what is under way for it."""
        asked = self._exchanges[0]
        while (message := await receive())["type"] == "http.request":
            if self._has_body:
                await asked.send(message.get("body", b""), is_last=not message.get("more_body", False))
        self.end()

    async def answer(self, send: Send) -> None:
        try:
            exchange = self._exchanges[0]
            if not self._has_body:
                await exchange.send(b"", is_last=True)
            exchange, response = await self._settle(exchange, await exchange.head())
            headers = for_client(response.status_code, response.headers, self._scope, self._target, is_whole=self._is_whole)
            if response.status_code > 599:
                raise Broken(f"status {response.status_code}")
        except (Broken, ValueError) as error:
            port = self._target.port
            raise UpstreamError(f"What listens on port {port} gave no valid HTTP answer: {error}.", details={"port": port}) from error
        headers = remembered(self._scope, self._target, headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        with contextlib.suppress(Broken):  # the server cuts an answer without its end off
            async for chunk in exchange.body():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def end(self) -> None:
        for exchange in self._exchanges:
            exchange.abort()

    async def _settle(self, exchange: Exchange, response: Response) -> tuple[Exchange, Response]:
        """Gives the answer that counts, where it is not known yet whether the application serves under the prefix."""
        port = self._target.port
        if self._upstreams.is_whole(port) is not None:
            return exchange, response
        is_sent_here = response.status_code in _REDIRECTS and first(response.headers, b"location") == self._target.whole
        if 200 <= response.status_code < 300:
            self._upstreams.note(port, is_whole=False)
        if not (is_sent_here or response.status_code == 404) or self._has_body or self._scope["method"] not in ("GET", "HEAD"):
            return exchange, response
        with contextlib.suppress(Broken):
            other = await self.ask(is_whole=True)
            await other.send(b"", is_last=True)
            of_whole = await other.head()
            if of_whole.status_code < 400:
                self._upstreams.note(port, is_whole=True)
                return other, of_whole
        self._is_whole = False
        return exchange, response


def _framed(headers: Headers, scope: Scope) -> tuple[Headers, bool]:
    """Gives the headers with those that say how the body comes, and whether there is one."""
    if first(scope["headers"], b"transfer-encoding"):
        return [*((n, v) for n, v in headers if n != b"content-length"), (b"transfer-encoding", b"chunked")], True
    return headers, first(headers, b"content-length") not in (b"", b"0")
