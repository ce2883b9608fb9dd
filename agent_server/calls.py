"""Runs the calls of a message: each is started in the log before it runs, and has exactly one result after."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from agent_server.conversation import INTERRUPTED
from agent_server.errors import AgentServerError
from agent_server.events import Draft, Event, LogUnavailable
from agent_server.execution import Command, Owner
from agent_server.ids import new_id
from agent_server.messages import ToolCall
from agent_server.output import make_room
from agent_server.run import Caller, Run
from tools import MAX_BYTES, MAX_LINES, CommandResult, ToolError, ToolResult

logger = logging.getLogger(__name__)


async def run_calls(run: Run) -> None:
    """Gives every open call of the last message its result.

    Calls run in the model's order; neighbours that are read-only run side by side. A call that had begun before this
    process is not run again, unless it is read-only.
    """
    for is_read_only, group in groupby(run.conversation.open_calls, key=lambda call: _is_read_only(run, call)):
        calls = list(group)
        if is_read_only:
            for at in range(0, len(calls), run.parallel):
                await _run_side_by_side(run, calls[at : at + run.parallel])
        else:
            for call in calls:
                await _run_one(run, call)


def _is_read_only(run: Run, call: ToolCall) -> bool:
    tool = run.tools.get(call.name)
    return tool is not None and tool.read_only


async def _run_side_by_side(run: Run, calls: Sequence[ToolCall]) -> None:
    fresh = [started(run, call, sync=False) for call in calls if call.id not in run.begun]
    if fresh:
        await run.append(*fresh)
    run.begun.update(call.id for call in calls)
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(settle(run, call))
    except* LogUnavailable as errors:
        raise errors.exceptions[0] from None


async def _run_one(run: Run, call: ToolCall) -> None:
    if call.id in run.begun:
        await run.append(run.draft("tool.finished", interrupted(call, INTERRUPTED)))
        return
    await run.append(started(run, call, sync=call.name in run.tools))
    run.begun.add(call.id)
    await settle(run, call)


def started(caller: Caller, call: ToolCall, *, sync: bool) -> Draft:
    """What the log says before a call runs."""
    try:
        given = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        given = call.arguments
    return caller.draft("tool.started", {"toolCallId": call.id, "tool": call.name, "input": given}, sync=sync)


def interrupted(call: ToolCall, output: str) -> dict[str, Any]:
    """What `tool.finished` says of a call that began and whose end nobody saw."""
    return {"toolCallId": call.id, "tool": call.name, "output": output, "isError": True, "interrupted": True, "duration_ms": 0}


async def settle(caller: Caller, call: ToolCall) -> Event:
    """Runs a call that is in the log as started, and gives the event that says how it ended. Errors: LogUnavailable."""
    began = time.monotonic()
    result = await _result(caller, call)
    data: dict[str, Any] = {
        "toolCallId": call.id,
        "tool": call.name,
        "output": await _bounded(caller, result.content),
        "isError": result.is_error,
        "interrupted": False,
        "duration_ms": round((time.monotonic() - began) * 1000),
    }
    details = dict(result.details)
    if "diff" in details:
        data["diff"] = details.pop("diff")
    if details:
        data["details"] = details
    (event,) = await caller.append(caller.draft("tool.finished", data))
    return event


async def _result(caller: Caller, call: ToolCall) -> ToolResult:
    tool = caller.tools.get(call.name)
    try:
        if tool is None:
            raise ToolError(f"There is no tool {call.name!r}; there are {', '.join(caller.tools)}.")
        arguments = tool.parse(caller.arguments.pop(call.id, call.arguments))
        return await tool.run(arguments, Context(caller, call))
    except (ToolError, AgentServerError) as error:
        return ToolResult(f"Error: {error}", is_error=True)
    except Exception as error:  # the border: a tool's fault must not end the task
        logger.exception("the tool %s failed", call.name)
        return ToolResult(f"Error: the tool itself failed ({type(error).__name__}); try another way.", is_error=True)


async def _bounded(caller: Caller, text: str) -> str:
    """Gives a text within the limits of a tool result; the whole of a longer one goes into a file."""
    if text.count("\n") <= MAX_LINES and len(text.encode("utf-8", "replace")) <= MAX_BYTES:
        return text
    path = caller.around.outputs / f"{new_id('out')}.txt"
    await asyncio.to_thread(_spill, path, caller.around.secrets.mask(text))
    head = "".join(text.splitlines(keepends=True)[:MAX_LINES])
    head = head.encode("utf-8", "replace")[:MAX_BYTES].decode("utf-8", "ignore")
    return f"{head}\n[cut: the whole is in {path}; read or grep that file]"


def _spill(path: Path, text: str) -> None:
    make_room(path.parent)
    path.write_text(text, "utf-8", "replace")


class Context:
    """What a call gets of the server: its ToolContext."""

    def __init__(self, caller: Caller, call: ToolCall) -> None:
        self._caller = caller
        self._call = call

    @property
    def workspace(self) -> Path:
        return self._caller.around.workspace.root

    @property
    def spill_folder(self) -> Path:
        return self._caller.around.outputs

    def resolve(self, path: str, *, write: bool = False) -> Path:
        try:
            return self._caller.around.workspace.resolve(path, also=None if write else self.spill_folder)
        except AgentServerError as error:
            raise ToolError(error.message) from error

    async def run(
        self, command: str | Sequence[str], *, cwd: Path | None = None, timeout: float, limit: int = MAX_BYTES, live: bool = False
    ) -> CommandResult:
        wanted = Command(command, cwd or self.workspace, timeout=timeout, limit=limit, is_split=False)
        owner = Owner(self._caller.session_id, self._caller.task_id, self._call.id)
        return await self._caller.around.processes.run(wanted, owner, self._say if live else _ignore)

    def _say(self, stream: str, chunk: str, offset: int, skipped: int) -> None:
        data = {"toolCallId": self._call.id, "stream": stream, "chunk": chunk, **({"skipped": skipped} if skipped else {})}
        self._caller.say(self._caller.draft("tool.output", data))

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        return self._caller.nested_instructions(path)


def _ignore(stream: str, chunk: str, offset: int, skipped: int) -> None:
    pass
