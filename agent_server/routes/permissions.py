"""What a session's tasks ask their client: whether calls may run, and what the model wants to know."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.errors import InvalidRequest
from agent_server.events import Event
from agent_server.events.log import EventLog
from agent_server.http import Endpoint, reply
from agent_server.server import server_of
from agent_server.sessions import session_index, tasks, waits
from agent_server.wire import timestamp

MAX_TASKS = 1_000
"""Tasks whose requests are looked at: more cannot be queued."""

MAX_ANSWER = 10_000
"""Characters of a message, or of one answer: a model is to read it."""


class Allowed(msgspec.Struct, frozen=True):
    permission: str
    pattern: str


class PermissionShown(msgspec.Struct, frozen=True, rename="camel"):
    permission_id: str
    task_id: str
    session_id: str
    tool_call_id: str
    tool: str
    permission: Annotated[str, Meta(description="the key of the rules that the call goes by")]
    patterns: Annotated[list[str], Meta(description="what the call does that a rule asks about")]
    always: Annotated[list[Allowed], Meta(description="what the answer always allows from then on")]
    input: Annotated[Any, Meta(description="the arguments of the call")]
    created_at: str


class PermissionList(msgspec.Struct, frozen=True):
    permissions: list[PermissionShown]


class PermissionReply(msgspec.Struct, frozen=True):
    response: Annotated[
        Literal["once", "always", "reject"], Meta(description="always: also what comes in this session and fits the patterns of always")
    ]
    message: Annotated[str, Meta(max_length=MAX_ANSWER, description="with reject: what the model is told")] | None = None


class PermissionReplied(msgspec.Struct, frozen=True, rename="camel"):
    permission_id: str
    task_id: str
    session_id: str
    response: Literal["once", "always", "reject"]


class OptionShown(msgspec.Struct, frozen=True):
    label: str
    description: str


class QuestionText(msgspec.Struct, frozen=True):
    question: str
    header: str
    options: list[OptionShown]
    multiple: bool


class QuestionShown(msgspec.Struct, frozen=True, rename="camel"):
    question_id: str
    task_id: str
    session_id: str
    tool_call_id: str
    questions: list[QuestionText]
    created_at: str


class QuestionList(msgspec.Struct, frozen=True):
    questions: list[QuestionShown]


Chosen = Annotated[list[Annotated[str, Meta(max_length=MAX_ANSWER)]], Meta(max_length=50)]


class QuestionReply(msgspec.Struct, frozen=True):
    answers: Annotated[list[Chosen], Meta(max_length=10, description="to each question the labels that are chosen, or a text")] | None = (
        None
    )
    rejected: Annotated[bool, Meta(description="in place of answers: there will be none")] = False


class QuestionAnswered(msgspec.Struct, frozen=True, rename="camel"):
    question_id: str
    task_id: str
    session_id: str
    rejected: bool


async def list_permissions(request: Request) -> Response:
    return reply(request, {"permissions": await _open_of_session(request, "permission.requested")})


async def list_questions(request: Request) -> Response:
    return reply(request, {"questions": await _open_of_session(request, "question.asked")})


async def list_all(request: Request) -> Response:
    return reply(request, {"permissions": await _open(server_of(request).log, "permission.requested", None)})


async def _open_of_session(request: Request, kind: str) -> list[dict[str, Any]]:
    log, session_id = server_of(request).log, request.path_params["session_id"]
    await session_index.find(log, session_id)
    return await _open(log, kind, session_id)


async def _open(log: EventLog, kind: str, session_id: str | None) -> list[dict[str, Any]]:
    found: list[Event] = []
    for task in await tasks.find_all(log, status="processing", session_id=session_id, limit=MAX_TASKS):
        if task.phase == "waiting":
            found += (await waits.load(log, task.task_id)).open.values()
    return [_shown(event) for event in sorted(found, key=lambda event: event.seq) if event.type == kind]


def _shown(event: Event) -> dict[str, Any]:
    return {**event.data, "taskId": event.task_id, "sessionId": event.session_id, "createdAt": timestamp(event.time)}


async def reply_permission(request: Request, body: PermissionReply) -> Response:
    session_id, permission_id = request.path_params["session_id"], request.path_params["permission_id"]

    def answer(asked: Event) -> Mapping[str, Any]:
        said: dict[str, Any] = {"tool": asked.data["tool"], "response": body.response}
        if body.message:
            said["message"] = body.message
        return {**said, "always": asked.data["always"]} if body.response == "always" else said

    asked = await server_of(request).sessions.reply(session_id, "permission.requested", "permission.replied", permission_id, answer)
    return reply(request, PermissionReplied(permission_id, asked.task_id or "", session_id, body.response))


async def reply_question(request: Request, body: QuestionReply) -> Response:
    session_id, question_id = request.path_params["session_id"], request.path_params["question_id"]
    if (body.answers is None) != body.rejected:
        raise InvalidRequest("answers: send either answers or rejected.", path="answers")

    def answer(asked: Event) -> Mapping[str, Any]:
        if body.answers is None:
            return {"rejected": True, "reason": "client"}
        _check(body.answers, asked.data["questions"])
        return {"answers": body.answers}

    asked = await server_of(request).sessions.reply(session_id, "question.asked", "question.answered", question_id, answer)
    return reply(request, QuestionAnswered(question_id, asked.task_id or "", session_id, body.rejected))


def _check(answers: Sequence[Sequence[str]], questions: Sequence[Mapping[str, Any]]) -> None:
    if len(answers) != len(questions):
        text = f"answers: there are {len(questions)} questions and {len(answers)} answers; send one list for each question."
        raise InvalidRequest(text, path="answers")
    for number, (chosen, question) in enumerate(zip(answers, questions, strict=True)):
        if len(chosen) > 1 and not question["multiple"]:
            raise InvalidRequest(f"answers[{number}]: this question takes one answer.", path=f"answers[{number}]")


ROUTES = (
    Endpoint("GET", "/permissions", list_all, "List the calls of all sessions that wait for a permission", replies={200: PermissionList}),
    Endpoint(
        "GET",
        "/sessions/{session_id}/permissions",
        list_permissions,
        "List the calls that wait for a permission",
        replies={200: PermissionList},
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/sessions/{session_id}/permissions/{permission_id}",
        reply_permission,
        "Say whether a call may run",
        body=PermissionReply,
        replies={200: PermissionReplied},
        errors=(404, 409, 503),
    ),
    Endpoint(
        "GET",
        "/sessions/{session_id}/questions",
        list_questions,
        "List the questions that wait for an answer",
        replies={200: QuestionList},
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/sessions/{session_id}/questions/{question_id}",
        reply_question,
        "Answer a question of the agent",
        body=QuestionReply,
        replies={200: QuestionAnswered},
        errors=(404, 409, 503),
    ),
)
