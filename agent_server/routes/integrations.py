"""GET and PUT /integrations, and the platforms' own callbacks."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.errors import Draining, NotFound, PayloadTooLarge, Unauthorized
from agent_server.http import Endpoint, reply
from agent_server.server import server_of
from integrations import BadSignature, Callback, Unavailable
from tools import MASK

CALLBACK_BYTES = 4 << 20
"""Bytes of a callback: nobody has authenticated it before it is read whole. Platforms send some KiB."""

RETRY_CALLBACK = 30.0
"""Seconds after which a platform is asked to repeat a callback that cannot be taken now, at the least."""


class IntegrationReply(msgspec.Struct, frozen=True):
    name: str
    enabled: bool
    status: Literal["connected", "disabled", "error"]
    missing: Annotated[list[str], Meta(description="variables that it needs and that are not set")]
    error: Annotated[str, Meta(description="what is wrong, where something is")] | None


class IntegrationsReply(msgspec.Struct, frozen=True, rename="camel"):
    integrations: list[IntegrationReply]
    integration_env: Annotated[dict[str, str], Meta(description="the variables that are set, values redacted")]


class IntegrationsRequest(msgspec.Struct, frozen=True, rename="camel"):
    integrations: Annotated[list[str], Meta(description="those that shall be on; null or left out: as before")] | None = None
    integration_env: Annotated[dict[str, str | None], Meta(description="null takes one away; others stay as they are")] = {}


async def show(request: Request) -> Response:
    connections = server_of(request).connections
    states = [IntegrationReply(s.name, s.is_enabled, s.status, s.missing, s.error) for s in connections.states()]
    return reply(request, IntegrationsReply(states, dict.fromkeys(connections.environ(), MASK)))


async def change(request: Request, body: IntegrationsRequest) -> Response:
    await server_of(request).connections.change(body.integrations, body.integration_env)
    return await show(request)


async def callback(request: Request) -> Response:
    given = Callback(dict(request.headers), request.url.query, await _body(request))
    try:
        answer = await server_of(request).connections.callback(request.path_params["name"], given)
    except NotFound as error:
        if not request.scope["is_authenticated"]:  # strangers need not know which integrations are on
            raise Unauthorized("No integration takes this callback; send the token as `Authorization: Bearer …` to see why.") from error
        raise
    except BadSignature as error:
        raise Unauthorized(str(error) or "The callback's signature is not the platform's.") from error
    except Unavailable as error:
        refused = Draining(f"The callback cannot be taken now; send it again later: {error}")
        refused.retry_after = max(error.retry_after, RETRY_CALLBACK)
        raise refused from error
    return Response(answer.body, media_type=answer.content_type)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > CALLBACK_BYTES:
            raise PayloadTooLarge(f"A callback has at most {CALLBACK_BYTES} bytes.", details={"limit": CALLBACK_BYTES})
    return bytes(body)


ROUTES = (
    Endpoint("GET", "/integrations", show, "The integrations, and how each is", replies={200: IntegrationsReply}),
    Endpoint(
        "PUT",
        "/integrations",
        change,
        "Set which integrations are on, and their variables; applied at once, and kept",
        body=IntegrationsRequest,
        replies={200: IntegrationsReply},
        errors=(422,),
    ),
    Endpoint(
        "POST",
        "/integrations/{name}/webhook",
        callback,
        "A platform's signed callback; the integration verifies it",
        replies={200: "text/plain"},
        errors=(401, 404, 503),
        is_public=True,
    ),
)
