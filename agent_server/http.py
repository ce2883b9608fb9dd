"""What every route shares: typed bodies and queries, JSON replies, the error envelope."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, get_origin

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from agent_server.errors import AgentServerError, PayloadTooLarge
from agent_server.redaction import Secrets
from agent_server.validation import parse_body, parse_list, parse_query

logger = logging.getLogger(__name__)

IGNORED_NAMES = 20
"""Unknown fields that X-Ignored-Fields names at the most."""

_HTTP_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "PAYLOAD_TOO_LARGE"}


class Endpoint(msgspec.Struct, frozen=True):
    """One route: how it is reached, and the types that validate what comes and describe what goes.

    `body` (a struct or a list) and `query` are validated before the handler sees them; `replies` gives for each status the type of
    the JSON body, or the media type of another one, or both where the client chooses ("" is no body); `errors` are the statuses
    of the error envelope, besides those all have. `streamed` is the media type of a body that
    the handler takes as it comes.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]
    summary: str
    body: type[msgspec.Struct] | type[list[Any]] | None = None
    query: type[msgspec.Struct] | None = None
    replies: Mapping[int, Any] = msgspec.field(default_factory=dict)
    errors: Sequence[int] = ()
    is_public: bool = False
    streamed: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether its path is one, with no parameter in it."""
        return "{" not in self.path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, as an ASGI application."""
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        except Exception as error:  # the border: a route's fault is told to the log, and to the client only by its request id
            if not isinstance(error, (AgentServerError, HTTPException)):
                logger.exception("%s %s failed, request %s", self.method, self.path, scope["request_id"])
            response = await on_error(request, error)
        if scope["method"] == "HEAD" and hasattr(response, "body_iterator"):  # a stream, whose end nobody would see
            response = Response(status_code=response.status_code, headers=response.headers)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        given: list[Any] = []
        ignored: list[str] = []
        if self.query is not None:
            value, unknown = parse_query(dict(request.query_params), self.query)
            given.append(value)
            ignored += unknown
        if self.body is not None:
            parse: Callable[[bytes, Any], tuple[Any, list[str]]] = parse_list if get_origin(self.body) is list else parse_body
            value, unknown = parse(await _body(request), self.body)
            given.append(value)
            ignored += unknown
        response = await self.handler(request, *given)
        if ignored:
            response.headers["X-Ignored-Fields"] = ", ".join(_printable(name) for name in ignored[:IGNORED_NAMES])
        return response


class Socket(msgspec.Struct, frozen=True):
    """One WebSocket route. The handler accepts the socket; an error it raises before that is the answer to the handshake."""

    path: str
    handler: Callable[[WebSocket], Awaitable[None]]
    summary: str

    @property
    def method(self) -> str:
        return "GET"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        try:
            await self.handler(socket)
        except WebSocketDisconnect:
            return
        except Exception as error:  # the border, as for an Endpoint
            if not isinstance(error, (AgentServerError, HTTPException)):
                logger.exception("WS %s failed, request %s", self.path, scope["request_id"])
            if socket.application_state is WebSocketState.CONNECTING:
                await (await on_error(socket, error))(scope, receive, send)
            elif socket.application_state is WebSocketState.CONNECTED:
                await socket.close(1011)


class Raw(msgspec.Struct, frozen=True):
    """A path, for HTTP with any method and for WebSockets, that an ASGI application answers by itself.

    An AgentServerError that it raises before its answer has begun becomes the envelope.
    """

    path: str
    app: ASGIApp
    summary: str

    @property
    def method(self) -> str:
        return "GET"  # and every other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def tell(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, tell)
        except ClientDisconnect:
            return
        except Exception as error:  # the border, as for an Endpoint
            if not isinstance(error, AgentServerError):
                logger.exception("%s failed, request %s", self.path, scope["request_id"])
            if has_begun:
                raise
            await (await on_error(HTTPConnection(scope), error))(scope, receive, send)


async def missing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers for a path that no route has."""
    await (await on_error(HTTPConnection(scope), HTTPException(404)))(scope, receive, send)


async def _body(request: Request) -> bytes:
    limit: int = request.app.state.server.settings.max_body
    length = request.headers.get("content-length", "")
    is_over = length.isdigit() and int(length) > limit
    body = bytearray()
    while not is_over:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        is_over = len(body) > limit
        if not is_over and not message.get("more_body", False):
            return bytes(body)
    raise PayloadTooLarge(f"The body is over {limit} bytes; send less, or raise MAX_BODY_BYTES.", details={"limit": limit})


class ErrorDetail(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    code: str
    message: str
    details: dict[str, Any]
    request_id: str
    current_status: str | None = msgspec.field(name="current_status", default=None)


class ErrorReply(msgspec.Struct, frozen=True):
    """What every status from 400 on has for a body."""

    error: ErrorDetail


def reply(request: HTTPConnection, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Gives a JSON response, secrets masked."""
    secrets: Secrets = request.app.state.secrets
    content, _ = secrets.encode(value)
    return _JSON(content, status, headers)


class _JSON(Response):
    def __init__(self, content: bytes, status: int, headers: Mapping[str, str] | None) -> None:
        # Not Starlette's own: what it looks for, a charset and headers that are set already, is not there.
        self.status_code, self.body, self.background = status, content, None
        self.raw_headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
        if headers:
            self.raw_headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def failure(request: HTTPConnection, error: AgentServerError) -> Response:
    """Gives the error envelope."""
    headers = {"Retry-After": str(round(error.retry_after))} if error.retry_after is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return reply(request, envelope(error, request.scope.get("request_id", "")), error.status, headers)


def envelope(error: AgentServerError, request_id: str) -> ErrorReply:
    return ErrorReply(ErrorDetail(error.code, error.message, error.details, request_id, error.current_status))


async def on_error(request: HTTPConnection, error: Exception) -> Response:
    """Turns any exception of a route into the envelope. What is no error of ours says nothing of its cause."""
    if isinstance(error, AgentServerError):
        return failure(request, error)
    if isinstance(error, HTTPException):
        response = failure(request, _of_http(request, error))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response
    return failure(request, _fault())


def _fault() -> AgentServerError:
    return AgentServerError("The server failed on this request; its log has the details under the request id.")


def _of_http(request: HTTPConnection, error: HTTPException) -> AgentServerError:
    messages = {
        404: f"There is nothing at {request.url.path}; GET /openapi.json lists the routes.",
        405: f"{request.url.path} does not take {request.scope.get('method')}; the Allow header lists what it takes.",
    }
    code = _HTTP_CODES.get(error.status_code, "INVALID_REQUEST")
    return AgentServerError(messages.get(error.status_code, error.detail), code=code)


def _printable(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-.[]") else "?" for c in name[:64])
