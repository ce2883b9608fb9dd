"""POST /execute: a command to its end."""

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.errors import InvalidRequest
from agent_server.execution import Command
from agent_server.http import Endpoint, reply
from agent_server.server import server_of
from agent_server.settings import is_credential

DAY_MS = 24 * 3600 * 1000


class ExecuteRequest(msgspec.Struct, frozen=True):
    command: Annotated[str, Meta(min_length=1)] | Annotated[list[str], Meta(min_length=1)]
    cwd: Annotated[str, Meta(description="relative to the workspace, or absolute")] = "."
    env: dict[str, str] = {}
    timeout: Annotated[int, Meta(ge=1, le=DAY_MS, description="milliseconds")] = 120_000
    stdin: str | None = None
    background: bool = False
    pty: bool | dict[str, int] = False


class ExecuteReply(msgspec.Struct, frozen=True, rename="camel"):
    output: Annotated[str, Meta(description="stdout and stderr as they came")]
    stdout: str
    stderr: str
    exit_code: Annotated[int, Meta(description="null when a signal ended it")] | None
    signal: str | None
    duration_ms: int = msgspec.field(name="duration_ms")
    timed_out: bool
    truncated: bool
    output_file: str | None
    process_id: str
    reason: Annotated[str, Meta(description="timeout or oom, where that ended it")] | None


async def execute(request: Request, body: ExecuteRequest) -> Response:
    server = server_of(request)
    if body.background or body.pty:
        field = "background" if body.background else "pty"
        raise InvalidRequest(f"{field}: it is not offered by this version; leave the field out.", path=field)
    _check_argv(body.command)
    if body.env:
        _check_environment(body.env)
        server.secrets.add((value for name, value in body.env.items() if is_credential(name)), is_own=False)
    if not (server.sessions.is_ready and server.checkpoints.is_ready):
        await server.sessions.ready()  # until then every command is taken for one of the server before
        await server.checkpoints.ready()
    stdin = body.stdin.encode() if body.stdin is not None else None
    command = Command(body.command, server.workspace.resolve(body.cwd, field="cwd"), body.env, stdin, body.timeout / 1000)
    ended = await server.processes.run(command)
    return reply(
        request,
        ExecuteReply(
            output=ended.output,
            stdout=ended.stdout,
            stderr=ended.stderr,
            exit_code=ended.exit_code,
            signal=ended.signal,
            duration_ms=round(ended.duration * 1000),
            timed_out=ended.timed_out,
            truncated=ended.truncated,
            output_file=str(ended.output_file) if ended.output_file is not None else None,
            process_id=ended.process_id,
            reason=ended.reason,
        ),
    )


def _check_environment(env: dict[str, str]) -> None:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidRequest(f"env: {name[:40]!r} cannot be a variable's name, or its value has a NUL character.", path="env")


def _check_argv(command: str | list[str]) -> None:
    if "\0" in (command if isinstance(command, str) else "".join(command)):
        raise InvalidRequest("command: it cannot contain a NUL character.", path="command")


ROUTES = (
    Endpoint("POST", "/execute", execute, "Run a command to its end", body=ExecuteRequest, replies={200: ExecuteReply}, errors=(403,)),
)
