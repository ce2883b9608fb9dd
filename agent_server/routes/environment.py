"""PATCH /env: variables of the commands to come."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agent_server.http import Endpoint, reply
from agent_server.server import server_of
from tools import MASK


class EnvRequest(msgspec.Struct, frozen=True):
    env: dict[str, str | None] = {}


class EnvReply(msgspec.Struct, frozen=True):
    env: dict[str, str]


async def change(request: Request, body: EnvRequest) -> Response:
    environment = server_of(request).environment
    await environment.change(body.env)
    return reply(request, EnvReply(dict.fromkeys(sorted(environment.variables), MASK)))


ROUTES = (
    Endpoint(
        "PATCH",
        "/env",
        change,
        "Set variables for the commands to come, null removes one; answers with the names of all that are set so, values redacted",
        body=EnvRequest,
        replies={200: EnvReply},
        errors=(422,),
    ),
)
