"""/processes: the commands that run and those that have ended, their output, input, signals and size."""

import signal
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.commands.process import Process
from agent_server.commands.process_index import Record, find, find_all
from agent_server.commands.terminals import Length, TerminalSize
from agent_server.errors import Conflict, InvalidRequest
from agent_server.events import Event
from agent_server.events.log import EventLog
from agent_server.http import Endpoint, reply
from agent_server.routes.tasks import EVENTS
from agent_server.server import Server, server_of
from agent_server.streams import resume_from, stream
from agent_server.wire import timestamp

TYPES = frozenset({"process.output", "process.exited"})


class ProcessReply(msgspec.Struct, frozen=True, rename="camel"):
    process_id: str
    command: str | list[str]
    cwd: str
    status: Literal["running", "exited"]
    background: bool
    pty: TerminalSize | None
    pid: Annotated[int, Meta(description="null once it has ended")] | None
    started_at: str
    ended_at: str | None
    exit_code: Annotated[int, Meta(description="null while it runs, when a signal ended it, and when nobody saw its end")] | None
    signal: str | None
    reason: Annotated[str, Meta(description="why it ended, where the end was not its own")] | None
    duration_ms: int | None = msgspec.field(name="duration_ms")
    output_file: Annotated[str, Meta(description="where the whole of a long output is")] | None
    session_id: str | None
    task_id: str | None
    tool_call_id: str | None


class ProcessList(msgspec.Struct, frozen=True):
    processes: list[ProcessReply]


class OutputQuery(msgspec.Struct, frozen=True):
    offset: Annotated[int, Meta(ge=0, le=2**62, description="the byte of the masked output to begin at")] = 0
    after: Annotated[int, Meta(ge=0, le=2**62, description="the id of the last event that was seen")] | None = None


class InputRequest(msgspec.Struct, frozen=True):
    input: str = ""
    eof: Annotated[bool, Meta(description="no more input after this; on a terminal Ctrl-D")] = False


class InputReply(msgspec.Struct, frozen=True, rename="camel"):
    process_id: str
    pending: Annotated[int, Meta(description="bytes that the process has not taken yet")]


class SignalRequest(msgspec.Struct, frozen=True):
    signal: Annotated[str | int, Meta(description="such as SIGINT, INT or 2")]


class ResizeRequest(msgspec.Struct, frozen=True):
    cols: Length
    rows: Length


def described(record: Record, process: Process | None) -> ProcessReply:
    """Gives what the API tells of a process: what the log has of it, and of one that runs its number and its terminal's size."""
    started: Any = record.data
    ended: Any = record.ended.data if record.ended is not None else {}
    pty = process.size if process is not None else started.get("pty") and msgspec.convert(started["pty"], TerminalSize)
    return ProcessReply(
        process_id=record.process_id,
        command=started.get("command", ""),
        cwd=started.get("cwd", ""),
        status="running" if record.ended is None else "exited",
        background=started.get("background", False),
        pty=pty,
        pid=process.pid if process is not None and record.ended is None else None,
        started_at=timestamp(record.started.time),
        ended_at=timestamp(record.ended.time) if record.ended is not None else None,
        exit_code=ended.get("exitCode"),
        signal=ended.get("signal"),
        reason=ended.get("reason"),
        duration_ms=ended.get("duration_ms"),
        output_file=ended.get("outputFile"),
        session_id=record.started.session_id,
        task_id=record.started.task_id,
        tool_call_id=started.get("toolCallId"),
    )


async def list_processes(request: Request) -> Response:
    server = server_of(request)
    found = await find_all(server.log)
    return reply(request, ProcessList([described(record, server.processes.get(record.process_id)) for record in found]))


async def get_process(request: Request) -> Response:
    return await _shown(request, server_of(request))


async def end_process(request: Request) -> Response:
    server = server_of(request)
    record = await _record(request, server)
    await server.processes.end(record.process_id)
    return await _shown(request, server)


async def output(request: Request, query: OutputQuery) -> Response:
    server = server_of(request)
    record = await _record(request, server)
    after = resume_from(request, query.after)
    if record.ended is not None and after is not None and after >= record.ended.seq:
        return Response(status_code=204)
    return stream(_output(server.log, record, max(after or 0, record.started.seq), query.offset))


async def _output(log: EventLog, record: Record, after: int, offset: int) -> AsyncIterator[Event]:
    async for event in log.follow(after=after, task_id=record.started.task_id, types=TYPES, for_client=True):
        if event.type == "gap":
            yield event
        elif event.data.get("processId") == record.process_id:
            if (shown := _from(event, offset)) is not None:
                yield shown
            if event.type == "process.exited":
                return


def _from(event: Event, offset: int) -> Event | None:
    """Gives the part of an event that is at this byte of the output or after it."""
    begin = event.data.get("offset", offset)
    if begin >= offset:
        return event
    rest = event.data["chunk"].encode()[offset - begin :]
    if not rest:
        return None
    return msgspec.structs.replace(event, data={**event.data, "chunk": rest.decode("utf-8", "ignore"), "offset": offset})


async def write(request: Request, body: InputRequest) -> Response:
    process = await _running(request)
    pending = process.write(body.input.encode(), end=body.eof)
    return reply(request, InputReply(process.process_id, pending))


async def send_signal(request: Request, body: SignalRequest) -> Response:
    number = _signal(body.signal)
    process = await _running(request)
    process.signal(number)
    return await _shown(request, server_of(request))


def _signal(given: str | int) -> int:
    name = str(given).upper()
    if name.isascii() and name.isdigit() and len(name) <= 2 and 0 < int(name) < signal.NSIG:
        return int(name)
    for one in (name, f"SIG{name}"):
        if one in signal.Signals.__members__:
            return signal.Signals[one]
    raise InvalidRequest(f"signal: {str(given)[:40]!r} is no signal; name one, such as SIGINT, INT or 2.", path="signal")


async def resize(request: Request, body: ResizeRequest) -> Response:
    process = await _running(request)
    process.resize(TerminalSize(body.cols, body.rows))
    return await _shown(request, server_of(request))


async def _shown(request: Request, server: Server) -> Response:
    record = await _record(request, server)
    return reply(request, described(record, server.processes.get(record.process_id)))


async def _record(request: Request, server: Server) -> Record:
    return await find(server.log, request.path_params["process_id"])


async def _running(request: Request) -> Process:
    server = server_of(request)
    process = server.processes.get(request.path_params["process_id"])
    if process is None:
        await _record(request, server)
        raise Conflict("The process has ended; GET /processes/ID tells how.")
    return process


ROUTES = (
    Endpoint("GET", "/processes", list_processes, "List the processes that run and the newest that have ended", replies={200: ProcessList}),
    Endpoint("GET", "/processes/{process_id}", get_process, "Show a process", replies={200: ProcessReply}, errors=(404,)),
    Endpoint(
        "DELETE",
        "/processes/{process_id}",
        end_process,
        "End a process with all its children; of one that has ended, what it left in the background",
        replies={200: ProcessReply},
        errors=(404, 409),
    ),
    Endpoint(
        "GET",
        "/processes/{process_id}/output",
        output,
        "Follow the output of a process to its end",
        query=OutputQuery,
        replies={200: EVENTS, 204: ""},
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/processes/{process_id}/stdin",
        write,
        "Write to a process's input",
        body=InputRequest,
        replies={200: InputReply},
        errors=(404, 409, 429),
    ),
    Endpoint(
        "POST",
        "/processes/{process_id}/signal",
        send_signal,
        "Send a signal to a process's group",
        body=SignalRequest,
        replies={200: ProcessReply},
        errors=(404, 409),
    ),
    Endpoint(
        "POST",
        "/processes/{process_id}/resize",
        resize,
        "Change the size of a process's terminal",
        body=ResizeRequest,
        replies={200: ProcessReply},
        errors=(404, 409),
    ),
)
