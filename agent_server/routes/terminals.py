"""WS /processes/{id}/attach and WS /terminal: a process, as a terminal shows it.

Binary frames are bytes both ways. Text frames are JSON: from the client `{"type":"resize","cols","rows"}` and
`{"type":"eof"}`, from the server `{"type":"process","processId"}` first, `{"type":"exit","exitCode","signal","reason"}` last and
`{"type":"error","message"}` for what could not be done. A terminal lives on when its socket is lost: attaching to its process
gets back to it.
"""

import asyncio
import contextlib
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent_server.commands import process_index
from agent_server.commands.execution import Command
from agent_server.commands.process import FRAME, Overrun, Process
from agent_server.commands.terminals import Length, TerminalSize
from agent_server.errors import AgentServerError, Conflict
from agent_server.http import Socket
from agent_server.routes.commands import BACKGROUND_LIMIT
from agent_server.server import server_of
from agent_server.streams import SEND_TIMEOUT
from agent_server.validation import parse_query

INPUT_WAIT = 5.0
"""Seconds that input may wait for a process to make room for it; then the socket is closed, before any is lost in silence."""

CLOSE_WAIT = 1.0
"""Seconds that the closing frame may take; a peer that does not read would hold it up for ever."""

CONTROL_MAX = 4096
"""Characters of a text frame."""

TRY_AGAIN = 1013
"""The closing code for a peer that was too slow, or input that was not read: attach again."""


class TerminalQuery(msgspec.Struct, frozen=True):
    cols: Length = 80
    rows: Length = 24
    cwd: str = "."
    command: Annotated[str, Meta(min_length=1)] | None = None


class Resize(msgspec.Struct, frozen=True, tag="resize"):
    cols: Length
    rows: Length


class EndOfFile(msgspec.Struct, frozen=True, tag="eof"):
    pass


class Close(NamedTuple):
    code: int
    reason: str


async def attach(socket: WebSocket) -> None:
    server = server_of(socket)
    process_id = socket.path_params["process_id"]
    process = server.processes.get(process_id)
    if process is None or process.has_exited:
        await process_index.find(server.log, process_id)
        raise Conflict("The process has ended; GET /processes/ID tells how, and /processes/ID/output what it printed.")
    await socket.accept()
    await _converse(socket, process)


async def terminal(socket: WebSocket) -> None:
    server = server_of(socket)
    query, _ = parse_query(dict(socket.query_params), TerminalQuery)
    await server.ready()
    argv = query.command or [server.processes.shell.name, "-i"]
    cwd = server.workspace.resolve(query.cwd, field="cwd")
    size = TerminalSize(query.cols, query.rows)
    command = Command(argv, cwd, limit=BACKGROUND_LIMIT, is_split=False, is_background=True, pty=size)
    process = await server.processes.start(command)
    await socket.accept()
    await _converse(socket, process)


async def _converse(socket: WebSocket, process: Process) -> None:
    await _tell(socket, {"type": "process", "processId": process.process_id})
    both = [asyncio.ensure_future(work) for work in (_send(socket, process), _receive(socket, process))]
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for work in both:
            work.cancel()
        await asyncio.wait(both)
    ending = done.pop().result()
    if ending is not None:
        with contextlib.suppress(TimeoutError, WebSocketDisconnect):
            await asyncio.wait_for(socket.close(ending.code, ending.reason), CLOSE_WAIT)


async def _send(socket: WebSocket, process: Process) -> Close | None:
    """Sends what the process prints, to its end. Gives how the socket is to be closed, if it is still there."""
    try:
        async for data in process.watch():
            await asyncio.wait_for(socket.send_bytes(data), SEND_TIMEOUT)
        await process.wait()
        ended = process.ended
        if ended is not None:
            await _tell(socket, {"type": "exit", "exitCode": ended.exit_code, "signal": ended.signal, "reason": ended.reason})
    except (Overrun, TimeoutError):
        return Close(TRY_AGAIN, "the output came faster than it was read: attach again")
    except WebSocketDisconnect:
        return None
    return Close(1000, "the process has ended")


async def _receive(socket: WebSocket, process: Process) -> Close | None:
    """Gives the process what the client sends, until the client is gone."""
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            try:
                await _take(process, message)
            except AgentServerError as error:
                await _tell(socket, {"type": "error", "message": error.message})
    except TimeoutError:
        return Close(TRY_AGAIN, "the process does not read its input: attach again")
    except WebSocketDisconnect:
        return None


async def _take(process: Process, message: Any) -> None:
    data = message.get("bytes")
    if data is None:
        _control(process, message["text"])
        return
    for at in range(0, len(data), FRAME):
        await asyncio.wait_for(process.room(), INPUT_WAIT)
        process.write(data[at : at + FRAME])


def _control(process: Process, text: str) -> None:
    if len(text) > CONTROL_MAX:
        raise AgentServerError(f"A text frame has at most {CONTROL_MAX} characters of JSON; send input in binary frames.")
    try:
        control = msgspec.json.decode(text, type=Resize | EndOfFile)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise AgentServerError(f'A text frame must be {{"type":"resize","cols","rows"}} or {{"type":"eof"}}: {error}.') from error
    if isinstance(control, Resize):
        process.resize(TerminalSize(control.cols, control.rows))
    else:
        process.write(b"", end=True)


async def _tell(socket: WebSocket, message: dict[str, Any]) -> None:
    await asyncio.wait_for(socket.send_text(msgspec.json.encode(message).decode()), SEND_TIMEOUT)


ROUTES = (
    Socket(
        "/processes/{process_id}/attach",
        attach,
        "Attach to a running process: the last 256 KiB of its output, then what comes; binary frames are bytes, text frames JSON "
        '({"type":"resize","cols","rows"}, {"type":"eof"}). A socket that is closed with 1013 may attach again',
    ),
    Socket(
        "/terminal",
        terminal,
        "Open a shell on a terminal (query: cols, rows, cwd, command) and attach to it. It outlives the socket: its first text "
        "frame names its process, to attach to again or to end",
    ),
)
