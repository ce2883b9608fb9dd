"""POST /execute and POST /exec: commands to their end, or in the background."""

import signal
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.commands import process_index
from agent_server.commands.execution import Command, Ended
from agent_server.commands.process import REPLAY
from agent_server.commands.terminals import TerminalSize
from agent_server.errors import InvalidRequest
from agent_server.http import Endpoint, reply
from agent_server.routes.processes import ProcessReply, described
from agent_server.server import Server, server_of
from agent_server.settings import is_credential

DAY_MS = 24 * 3600 * 1000
TIMEOUT_MS = 120_000

BACKGROUND_LIMIT = 2 * REPLAY
"""Bytes of output that are kept of a command in the background, so that its newer half is what is replayed."""

Timeout = Annotated[int, Meta(ge=1, le=DAY_MS)]


class ExecuteRequest(msgspec.Struct, frozen=True):
    command: Annotated[str, Meta(min_length=1)] | Annotated[list[str], Meta(min_length=1)]
    cwd: Annotated[str, Meta(description="relative to the workspace, or absolute")] = "."
    env: dict[str, str] = {}
    timeout: Annotated[Timeout | None, Meta(description="milliseconds; 120000 where it is left out, none in the background")] = None
    stdin: Annotated[str | None, Meta(description="then end of file; in the background the input stays open")] = None
    background: Annotated[bool, Meta(description="answer 202 once it runs; see /processes")] = False
    pty: Annotated[bool | TerminalSize, Meta(description="run it on a terminal: all of its output is stdout")] = False


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
    reason: Annotated[str, Meta(description="timeout, oom or killed, where that ended it")] | None


class ExecQuery(msgspec.Struct, frozen=True):
    timeout: Annotated[Timeout, Meta(description="milliseconds")] = TIMEOUT_MS


async def execute(request: Request, body: ExecuteRequest) -> Response:
    server = server_of(request)
    _check_argv(body.command, "command")
    if body.env:
        _check_environment(body.env)
        server.secrets.add((value for name, value in body.env.items() if is_credential(name)), is_own=False)
    if not (server.sessions.is_ready and server.checkpoints.is_ready):
        await server.ready()
    command = _command(server, body)
    if body.background:
        process = await server.processes.start(command)
        return reply(request, described(await process_index.find(server.log, process.process_id), process), 202)
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


def _command(server: Server, body: ExecuteRequest) -> Command:
    cwd = server.workspace.resolve(body.cwd, field="cwd")
    stdin = body.stdin.encode() if body.stdin is not None else None
    pty = (TerminalSize() if body.pty else None) if isinstance(body.pty, bool) else body.pty
    if body.background:
        timeout = body.timeout / 1000 if body.timeout is not None else None
        return Command(body.command, cwd, body.env, stdin, timeout, BACKGROUND_LIMIT, is_split=False, is_background=True, pty=pty)
    return Command(body.command, cwd, body.env, stdin, (body.timeout or TIMEOUT_MS) / 1000, pty=pty)


async def exec_(request: Request, query: ExecQuery, body: list[str]) -> Response:
    if not body:
        raise InvalidRequest("The body must be an array of a program and its arguments; it must not be empty.", path="$")
    _check_argv(body, "$")
    server = server_of(request)
    await server.ready()
    ended = await server.processes.run(Command(body, server.workspace.root, timeout=query.timeout / 1000, is_split=False, is_merged=True))
    return Response(ended.output, headers=_end(ended), media_type="text/plain")


def _end(ended: Ended) -> dict[str, str]:
    headers = {"X-Process-Id": ended.process_id}
    if ended.exit_code is not None:
        headers["X-Exit-Code"] = str(ended.exit_code)
    elif ended.signal is not None:
        # As a shell tells it: whoever looks at this header alone must not take a kill for a success.
        headers["X-Exit-Code"] = str(128 + _number(ended.signal))
        headers["X-Signal"] = ended.signal
    if ended.reason is not None:
        headers["X-Reason"] = ended.reason
    return headers


def _number(name: str) -> int:
    try:
        return signal.Signals[name]
    except KeyError:  # a real-time signal, such as SIG40
        return int(name.removeprefix("SIG"))


def _check_environment(env: dict[str, str]) -> None:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidRequest(f"env: {name[:40]!r} cannot be a variable's name, or its value has a NUL character.", path="env")


def _check_argv(command: str | list[str], path: str) -> None:
    if "\0" in (command if isinstance(command, str) else "".join(command)):
        raise InvalidRequest("command: it cannot contain a NUL character.", path=path)


ROUTES = (
    Endpoint(
        "POST",
        "/execute",
        execute,
        "Run a command to its end, or start it in the background",
        body=ExecuteRequest,
        replies={200: ExecuteReply, 202: ProcessReply},
        errors=(403, 429, 503),
    ),
    Endpoint(
        "POST",
        "/exec",
        exec_,
        "Run a program to its end. X-Exit-Code is its exit code; after a signal 128 and its number, with its name in X-Signal",
        body=list[str],
        query=ExecQuery,
        replies={200: "text/plain"},
        errors=(429,),
    ),
)
