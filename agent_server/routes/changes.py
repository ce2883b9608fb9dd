"""GET /changes: what was changed in the workspace, and by which task."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.http import Endpoint, reply
from agent_server.server import server_of

Since = Annotated[
    str,
    # No colon: git would take what follows for a path. No two dots: that is a range, or leads out of a folder.
    Meta(pattern=r"^(?!.*\.\.)[^-:\x00-\x20\x7f][^:\x00-\x1f\x7f]{0,255}$(?!\n)", description="a task, a checkpoint, or a revision of git"),
]


class ChangesQuery(msgspec.Struct, frozen=True, rename="camel"):
    since: Since | None = None
    task_id: Annotated[str, Meta(min_length=1)] | None = None
    diff: bool = False


class ChangeReply(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    path: str
    status: Literal["added", "modified", "deleted", "renamed"]
    additions: int
    deletions: int
    task_ids: Annotated[list[str], Meta(description="the tasks that changed it, of those whose first 1,000 changes it is among")]
    old_path: str | None = None
    binary: bool = False
    diff: str | None = None
    truncated: bool = False


class ChangesReply(msgspec.Struct, frozen=True, rename="camel"):
    changes: list[ChangeReply]
    files: list[str]
    base: str
    truncated: bool
    left_out: Annotated[dict[str, Any], Meta(description="files that are not compared: count, and the first 100 of them with the reason")]


async def changes(request: Request, query: ChangesQuery) -> Response:
    found = await server_of(request).checkpoints.changes(since=query.since, task_id=query.task_id, patch=query.diff)
    return reply(request, found)


ROUTES = (
    Endpoint("GET", "/changes", changes, "What changed in the workspace", query=ChangesQuery, replies={200: ChangesReply}, errors=(404,)),
)
