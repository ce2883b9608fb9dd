"""POST /sessions/{id}/revert and /unrevert: the last tasks of a session, taken back and brought back."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.errors import InvalidRequest
from agent_server.http import Endpoint, reply
from agent_server.server import server_of

Force = Annotated[bool, Meta(description="also restore files that somebody else changed since; a checkpoint keeps what they are now")]


class RevertRequest(msgspec.Struct, frozen=True, rename="camel"):
    task_id: Annotated[str, Meta(min_length=1, description="this task and all later ones of the session are reverted")] | None = None
    message_id: Annotated[str, Meta(min_length=1, description="the message that began that task, instead of its id")] | None = None
    force: Force = False


class UnrevertRequest(msgspec.Struct, frozen=True):
    force: Force = False


class RevertReply(msgspec.Struct, frozen=True, rename="camel"):
    session_id: str
    revert_id: str
    task_ids: list[str]
    files: Annotated[list[str], Meta(description="the paths that were restored, the first 1,000")]
    file_count: int
    overwritten: Annotated[list[str], Meta(description="those of them that somebody else had changed; see force")]
    checkpoint_id: Annotated[str, Meta(description="the checkpoint of the workspace as it was before, for GET /changes?since=")]
    left_out: Annotated[dict[str, Any], Meta(description="files that are not recorded, and so not restored: count, and some with a reason")]


async def revert(request: Request, body: RevertRequest) -> Response:
    if (body.task_id is None) == (body.message_id is None):
        raise InvalidRequest("taskId: name either a task, or by messageId the message that began one.", path="taskId")
    session_id = request.path_params["session_id"]
    done = await server_of(request).reverts.revert(session_id, task_id=body.task_id, message_id=body.message_id, force=body.force)
    return _reply(request, session_id, done)


async def unrevert(request: Request, body: UnrevertRequest) -> Response:
    session_id = request.path_params["session_id"]
    return _reply(request, session_id, await server_of(request).reverts.unrevert(session_id, force=body.force))


def _reply(request: Request, session_id: str, done: Mapping[str, Any]) -> Response:
    return reply(request, {name: value for name, value in {"sessionId": session_id, **done}.items() if name not in ("action", "skipped")})


ROUTES = (
    Endpoint(
        "POST",
        "/sessions/{session_id}/revert",
        revert,
        "Take a task and all later ones of its session back: the files they changed, and their part of the conversation",
        body=RevertRequest,
        replies={200: RevertReply},
        errors=(404, 409, 422, 503),
    ),
    Endpoint(
        "POST",
        "/sessions/{session_id}/unrevert",
        unrevert,
        "Bring back what the last revert of a session took, unless a task came after it",
        body=UnrevertRequest,
        replies={200: RevertReply},
        errors=(404, 409, 503),
    ),
)
