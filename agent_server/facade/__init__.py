"""This instance as clients of a control plane know instances: one module for each of those, in their own shapes.

What only a control plane can do is answered with CONTROL_PLANE_ONLY and a sentence on who does it.
"""

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from agent_server.errors import ControlPlaneOnly, NotFound
from agent_server.server import Server


def server_named(connection: HTTPConnection, name: str) -> Server:
    """Gives the server, when it is the instance of this id or name.

    Errors: NotFound, INSTANCE_NOT_FOUND.
    """
    server: Server = connection.app.state.server
    if not is_this(server, name):
        raise NotFound(f"There is no instance {name[:100]!r} here; GET /instances names the one there is.", code="INSTANCE_NOT_FOUND")
    return server


def is_this(server: Server, name: str) -> bool:
    return name in (server.data.identity.instance_id, server.data.identity.instance_name)


async def control_plane_only(request: Request) -> Response:
    """Answers what is beyond one instance.

    Errors: ControlPlaneOnly; NotFound when it is asked for another instance.
    """
    if "id" in request.path_params:
        server_named(request, request.path_params["id"])
    raise ControlPlaneOnly(f"{request.method} {request.url.path} is the control plane's: it makes, places and removes instances; ask it.")
