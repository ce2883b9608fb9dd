"""The OpenAPI 3.1 document, made from the types that validate requests and describe replies."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agent_server import __version__
from agent_server.guard import COOKIE
from agent_server.http import Endpoint, ErrorReply, Raw, Socket, reply

_REASONS = {
    200: "The answer",
    201: "Created",
    202: "Accepted",
    204: "Nothing more will come",
    206: "The range that was asked for",
    304: "What If-None-Match names",
    400: "INVALID_REQUEST: details.path names the field",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND, or the code of what was looked for",
    405: "METHOD_NOT_ALLOWED",
    409: "CONFLICT, TASK_CANCELLED or INSTANCE_NOT_RUNNING",
    413: "PAYLOAD_TOO_LARGE",
    416: "INVALID_REQUEST: the range has nothing of the file",
    422: "IDEMPOTENCY_MISMATCH or RESOURCE_LIMIT_EXCEEDED",
    429: "TOO_MANY_REQUESTS, with Retry-After",
    500: "INTERNAL",
    501: "CONTROL_PLANE_ONLY",
    502: "MODEL_ERROR or UPSTREAM_ERROR",
    503: "DRAINING, with Retry-After",
    504: "TASK_TIMEOUT",
}


def document(routes: Sequence[Endpoint | Socket | Raw]) -> dict[str, Any]:
    """Gives the document of these routes. WebSockets and what an application answers by itself are described in words."""
    endpoints = [route for route in routes if isinstance(route, Endpoint)]
    named = [kind for e in endpoints for kind in (e.body, e.query, *(one for answer in e.replies.values() for one in _each(answer)))]
    kinds = {kind for kind in named if kind is not None and not isinstance(kind, str)}
    ordered = [*sorted(kinds, key=lambda kind: kind.__name__), ErrorReply]
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, by_kind, components)
    for route in routes:
        if not isinstance(route, Endpoint):
            paths.setdefault(re.sub(r":\w+}", "}", route.path), {})[route.method.lower()] = _described(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "agent-server", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
        "security": [{"bearer": []}, {"key": []}, {"cookie": []}],
    }


def _operation(endpoint: Endpoint, schemas: Mapping[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{re.sub('[^A-Za-z0-9]+', '_', endpoint.path)}".rstrip("_"),
        "summary": endpoint.summary,
    }
    parameters = _path_parameters(endpoint.path)
    if endpoint.query is not None:
        schema = components[endpoint.query.__name__]
        required = schema.get("required", ())
        parameters += [{"name": n, "in": "query", "required": n in required, "schema": s} for n, s in schema["properties"].items()]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        is_required = bool(components.get(endpoint.body.__name__, {"required": "a list"}).get("required"))
        operation["requestBody"] = {"required": is_required, "content": {"application/json": {"schema": schemas[endpoint.body]}}}
    if endpoint.streamed is not None:
        operation["requestBody"] = {"required": True, "content": {endpoint.streamed: {"schema": {"type": "string", "format": "binary"}}}}
    operation["responses"] = {str(status): _response(status, kind, schemas) for status, kind in endpoint.replies.items()}
    public = (400, 403, 405, 413, 500) if endpoint.is_public else (400, 401, 403, 405, 413, 500)
    for status in sorted({*public, *endpoint.errors} - set(endpoint.replies)):
        operation["responses"][str(status)] = _response(status, ErrorReply, schemas)
    if endpoint.is_public:
        operation["security"] = []
    return operation


def _described(route: Socket | Raw) -> dict[str, Any]:
    upgrade = {"101": {"description": "Switching to the WebSocket protocol"}} if isinstance(route, Socket) else {}
    operation = {"summary": route.summary, "responses": {**upgrade, "default": {"description": "As the summary says"}}}
    parameters = _path_parameters(route.path)
    return {**operation, "parameters": parameters} if parameters else operation


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = re.findall("{([^:}]+)", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _response(status: int, answer: Any, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    content = {}
    for kind in _each(answer):
        if isinstance(kind, str):
            content[kind] = {"schema": {"type": "string"}}
        else:
            content["application/json"] = {"schema": schemas[kind]}
    described: dict[str, Any] = {"description": _REASONS[status], "headers": _headers(status)}
    return {**described, "content": content} if content else described


def _each(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,) if answer else ()


def _headers(status: int) -> dict[str, Any]:
    named = {"X-Request-Id": "as the client gave it, or made for it", "X-Ignored-Fields": "the request's fields that are not known"}
    if status in (429, 503):
        named["Retry-After"] = "seconds"
    if status in (206, 416):
        named["Content-Range"] = "which bytes, of how many"
    if status in (206, 304):
        named["ETag"] = "the file's version"
    if status == 405:
        named["Allow"] = "the methods there are"
    if status == 401:
        named["WWW-Authenticate"] = "Bearer"
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in named.items()}


class Document(msgspec.Struct, frozen=True):
    """An OpenAPI 3.1 document."""

    openapi: str


def endpoint(routes: Sequence[Endpoint | Socket | Raw]) -> Endpoint:
    """Gives the route that shows the document of these routes, and of itself."""

    async def show(request: Request) -> Response:
        return reply(request, document([*routes, shown]))

    shown = Endpoint("GET", "/openapi.json", show, "This document", replies={200: Document})
    return shown
