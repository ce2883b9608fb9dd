"""What a client adds to a task at work: messages, and the results of calls that it runs itself."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from agent_server.errors import InvalidRequest
from agent_server.http import Endpoint, reply
from agent_server.routes.tasks import Prompt, check_prompt
from agent_server.server import server_of
from agent_server.sessions import tasks


class MessageRequest(msgspec.Struct, frozen=True):
    prompt: Prompt


class MessageAccepted(msgspec.Struct, frozen=True, rename="camel"):
    task_id: str
    session_id: str
    message_id: str
    status: Literal["processing", "completed", "failed"]


class ToolResultRequest(msgspec.Struct, frozen=True, rename="camel"):
    tool_call_id: Annotated[str, Meta(min_length=1)]
    output: Annotated[Any | UnsetType, Meta(description="a text, or JSON that the model is shown as text")] = UNSET
    error: Annotated[str, Meta(min_length=1, description="in place of output: why the call failed")] | UnsetType | None = UNSET


class ToolResultAccepted(msgspec.Struct, frozen=True, rename="camel"):
    task_id: str
    session_id: str
    tool_call_id: str
    status: Literal["processing", "completed", "failed"]


async def add_message(request: Request, body: MessageRequest) -> Response:
    server, task_id = server_of(request), request.path_params["task_id"]
    check_prompt(body.prompt)
    prompt = body.prompt if isinstance(body.prompt, str) else msgspec.to_builtins(body.prompt)
    message_id = await server.sessions.steer(task_id, prompt)
    task = await tasks.find(server.log, task_id)
    return reply(request, MessageAccepted(task_id, task.session_id, message_id, _status(task)))


async def add_tool_result(request: Request, body: ToolResultRequest) -> Response:
    server, task_id = server_of(request), request.path_params["task_id"]
    has_error = isinstance(body.error, str)
    if (body.output is not UNSET) == has_error:
        raise InvalidRequest("output: send either output or error.", path="output")
    given = body.error if has_error else body.output
    text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
    await server.sessions.deliver(task_id, body.tool_call_id, text, is_error=has_error)
    task = await tasks.find(server.log, task_id)
    return reply(request, ToolResultAccepted(task_id, task.session_id, body.tool_call_id, _status(task)))


def _status(task: tasks.Task) -> Literal["processing", "completed", "failed"]:
    return task.status  # type: ignore[return-value]  # the index holds one of these


ROUTES = (
    Endpoint(
        "POST",
        "/tasks/{task_id}/messages",
        add_message,
        "Steer a running task: the message enters before its next model call",
        body=MessageRequest,
        replies={200: MessageAccepted},
        errors=(404, 409, 429, 503),
    ),
    Endpoint(
        "POST",
        "/tasks/{task_id}/tool-results",
        add_tool_result,
        "Give the result of a call that the client was asked to run",
        body=ToolResultRequest,
        replies={200: ToolResultAccepted},
        errors=(404, 409, 503),
    ),
)
