"""What every route shares: typed bodies and queries, JSON replies, the error envelope."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agent_server.errors import AgentServerError, InvalidRequest
from agent_server.redaction import Secrets

T = TypeVar("T", bound=msgspec.Struct)

IGNORED_NAMES = 20
"""Unknown fields that X-Ignored-Fields names at the most."""

_HTTP_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "PAYLOAD_TOO_LARGE"}


class Endpoint(msgspec.Struct, frozen=True):
    """One route: how it is reached, and the types that validate what comes and describe what goes.

    `body` and `query` are validated before the handler sees them; `replies` gives for each status the type of the JSON
    body, or the media type of another one; `errors` are the statuses of the error envelope, besides those all have.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]
    summary: str
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    replies: Mapping[int, type[msgspec.Struct] | str] = msgspec.field(default_factory=dict)
    errors: Sequence[int] = ()
    is_public: bool = False

    def route(self) -> Route:
        return Route(self.path, self, methods=[self.method])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, as an ASGI application."""
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        given: list[Any] = []
        ignored: list[str] = []
        if self.query is not None:
            fields, unknown = _rename(dict(request.query_params), self.query)
            given.append(_convert(fields, self.query, strict=False))
            ignored += unknown
        if self.body is not None:
            fields, unknown = _rename(_decode(await request.body()), self.body)
            given.append(_convert(fields, self.body, strict=True))
            ignored += unknown
        response = await self.handler(request, *given)
        if ignored:
            response.headers["X-Ignored-Fields"] = ", ".join(_printable(name) for name in ignored[:IGNORED_NAMES])
        return response


class ErrorDetail(msgspec.Struct, frozen=True, rename="camel"):
    code: str
    message: str
    details: dict[str, Any]
    request_id: str


class ErrorReply(msgspec.Struct, frozen=True):
    """What every status from 400 on has for a body."""

    error: ErrorDetail


def reply(request: Request, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Gives a JSON response, secrets masked."""
    secrets: Secrets = request.app.state.secrets
    content, _ = secrets.encode(value)
    return Response(content, status, headers, media_type="application/json")


def failure(request: Request, error: AgentServerError) -> Response:
    """Gives the error envelope."""
    body = ErrorReply(ErrorDetail(error.code, error.message, error.details, request.scope.get("request_id", "")))
    headers = {"Retry-After": str(round(error.retry_after))} if error.retry_after is not None else None
    return reply(request, body, error.status, headers)


async def on_error(request: Request, error: Exception) -> Response:
    """Turns any exception of a route into the envelope. What is no error of ours says nothing of its cause."""
    if isinstance(error, AgentServerError):
        return failure(request, error)
    if isinstance(error, HTTPException):
        response = failure(request, _of_http(request, error))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response
    return failure(request, AgentServerError("The server failed on this request; its log has the details under the request id."))


def _of_http(request: Request, error: HTTPException) -> AgentServerError:
    messages = {
        404: f"There is nothing at {request.url.path}; GET /openapi.json lists the routes.",
        405: f"{request.url.path} does not take {request.method}; the Allow header lists what it takes.",
    }
    code = _HTTP_CODES.get(error.status_code, "INVALID_REQUEST")
    return AgentServerError(messages.get(error.status_code, error.detail), code=code)


def _decode(body: bytes) -> Any:
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", path="$") from error


def _rename(given: Any, kind: type[msgspec.Struct]) -> tuple[dict[str, Any], list[str]]:
    """Gives the known fields by their own names, whichever spelling came, and the names of the unknown ones."""
    if not isinstance(given, dict):
        raise InvalidRequest("The body must be a JSON object.", path="$")
    names = _spellings(kind)
    known: dict[str, Any] = {}
    for name, value in given.items():
        if name in names and (name == names[name] or names[name] not in given):
            known[names[name]] = value
    return known, [name for name in given if name not in names]


@cache
def _spellings(kind: type[msgspec.Struct]) -> dict[str, str]:
    own = [member.encode_name for member in msgspec.structs.fields(kind)]
    other = {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name): name for name in own}
    camel = {re.sub("_([a-z])", lambda m: m[1].upper(), name): name for name in own}
    return {**other, **camel, **{name: name for name in own}}


def _convert(fields: dict[str, Any], kind: type[T], *, strict: bool) -> T:
    try:
        return msgspec.convert(fields, kind, strict=strict)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$.")
        path = place.rstrip("`")
        if not path and (missing := re.search("field `(.+)`", text)):
            path = missing[1]
        raise InvalidRequest(f"{path or 'The body'}: {text}.", path=path or "$") from error


def _printable(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "?" for c in name[:64])
