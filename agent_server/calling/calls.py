"""Runs the calls of a message: each is started in the log before it runs, and has exactly one result after."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from agent_server.calling.asking import given, permitted, wait_until
from agent_server.calling.context import Context
from agent_server.calling.diagnostics import diagnosed
from agent_server.changes.authorship import FILE_TOOLS
from agent_server.commands.output import make_room
from agent_server.errors import AgentServerError
from agent_server.events import Draft, Event, LogUnavailable
from agent_server.ids import new_id
from agent_server.messages import Image, ToolCall
from agent_server.sessions.entries import INTERRUPTED, SKIPPED, parts_to_wire
from agent_server.sessions.run import Caller, Paused, Run, Surroundings
from tools import MAX_BYTES, MAX_LINES, Tool, ToolError, ToolResult
from tools._output import MAX_OUTPUT, MAX_OUTPUT_LINES

logger = logging.getLogger(__name__)

MAX_SUBAGENTS = 8
"""Subagents of one task that are at work at the same time: each makes model calls and may run commands. Further ones wait for them."""

TOLD_LINES = 10
"""Lines that a result may have besides MAX_LINES of content: a tool tells there how to go on."""


async def run_calls(run: Run) -> None:
    """Gives every open call of the last message its result.

    Calls run in the model's order; neighbours that are read-only run side by side, and so do those that the client runs, and
    subagents. A call that had begun before this process is not run again, unless it is read-only; a subagent's goes on. Once
    a message has come for the task, calls that have not begun are skipped.

    Errors: Paused when the server stops while a client is waited for.
    """
    for kind, group in groupby(run.conversation.open_calls, key=lambda call: _kind(run, call)):
        calls = list(group)
        await run.around.pause.point()
        if kind == "client":
            await _request(run, calls)
        elif kind == "reading":
            for at in range(0, len(calls), run.parallel):
                await _run_side_by_side(run, await _cleared(run, calls[at : at + run.parallel]))
        elif kind == "delegating":
            for at in range(0, len(calls), MAX_SUBAGENTS):
                await _run_subagents(run, await _cleared(run, calls[at : at + MAX_SUBAGENTS]))
        else:
            for call in calls:
                await run.around.pause.point()
                await _run_one(run, call)


def _kind(run: Run, call: ToolCall) -> Literal["client", "reading", "delegating", "effect"]:
    tool = run.tools.get(call.name)
    if tool is not None and tool.run is None:
        return "client"
    if isinstance(tool, Tool) and tool.delegates:
        return "delegating"
    return "reading" if tool is not None and tool.read_only else "effect"


async def _unskipped(run: Run, calls: Sequence[ToolCall]) -> list[ToolCall]:
    """Gives the calls that are to go on, and the others their result: a message waits that may make them needless."""
    if not run.conversation.added:
        return list(calls)
    begun = run.begun | run.requested
    skipped = [run.draft("tool.finished", {**_ended(call, SKIPPED), "skipped": True}) for call in calls if call.id not in begun]
    if skipped:
        await run.append(*skipped)
    return [call for call in calls if call.id in begun]


async def _cleared(run: Run, calls: Sequence[ToolCall]) -> list[ToolCall]:
    """Gives the calls that are to run and may. Errors: Paused when the server stops while a client is asked."""
    return await permitted(run, await _unskipped(run, calls))


async def _run_subagents(run: Run, calls: Sequence[ToolCall]) -> None:
    """Waits for subagents, without a place of its own: those that the subagents need may be the only ones."""
    if not calls:
        return
    if run.is_draining():
        raise Paused
    run.is_waiting = True
    try:
        async with run.slot.left():
            await _run_side_by_side(run, calls, sync=True)
    finally:
        run.is_waiting = False


async def _run_side_by_side(run: Run, calls: Sequence[ToolCall], *, sync: bool = False) -> None:
    fresh = [started(run, call, sync=sync) for call in calls if call.id not in run.begun]
    if fresh:
        await run.append(*fresh)
    try:
        async with run.around.pause.aside(), asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(_settle_beside(run, call))
    except ExceptionGroup as errors:  # LogUnavailable or Paused: all else is a result
        raise errors.exceptions[0] from None
    run.begun.difference_update(call.id for call in calls)


async def _settle_beside(run: Run, call: ToolCall) -> None:
    async with run.around.pause.working():
        await settle(run, call)


async def _run_one(run: Run, call: ToolCall) -> None:
    if call.id in run.begun:
        await run.append(run.draft("tool.finished", interrupted(call, INTERRUPTED)))
        run.begun.discard(call.id)
    elif await _cleared(run, [call]):
        await run.append(started(run, call, sync=call.name in run.tools))
        await settle(run, call)


async def _request(run: Run, calls: Sequence[ToolCall]) -> None:
    """Asks the client to run these calls, and waits for their results, which `deliver` writes."""
    for call in await _cleared(run, calls):
        if call.id in run.requested:
            continue
        try:
            run.tools[call.name].parse(run.arguments.get(call.id, call.arguments))
        except ToolError:
            await run.append(started(run, call, sync=False))
            await settle(run, call)  # which tells what is wrong
        else:
            run.requested.add(call.id)
            await run.append(started(run, call, kind="tool.requested", sync=True))
    if awaited(run, calls):
        await wait_until(run, lambda: not awaited(run, calls))
    run.requested.difference_update(call.id for call in calls)


def awaited(run: Run, calls: Sequence[ToolCall] | None = None) -> list[str]:
    """Gives the ids of the calls that a client was asked for and has not answered."""
    open_ids = {call.id for call in run.conversation.open_calls}
    wanted = open_ids if calls is None else open_ids & {call.id for call in calls}
    return sorted(wanted & run.requested)


def started(caller: Caller, call: ToolCall, *, kind: str = "tool.started", sync: bool) -> Draft:
    """What the log says before a call runs."""
    return caller.draft(kind, {"toolCallId": call.id, "tool": call.name, "input": given(call)}, sync=sync)


def _ended(call: ToolCall, output: str) -> dict[str, Any]:
    return {"toolCallId": call.id, "tool": call.name, "output": output, "isError": True, "interrupted": False, "duration_ms": 0}


def interrupted(call: ToolCall, output: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `tool.finished` says of a call that began and whose end nobody saw."""
    return {**_ended(call, output), "interrupted": True, **({"details": details} if details else {})}


async def settle(caller: Caller, call: ToolCall) -> Event:
    """Runs a call that is in the log as started, and gives the event that says how it ended. Errors: LogUnavailable."""
    began = time.monotonic()
    context = Context(caller, call)
    result = await _result(caller, call, context)
    data: dict[str, Any] = {
        "toolCallId": call.id,
        "tool": call.name,
        "output": await bounded(caller.around, result.content),
        "isError": result.is_error,
        "interrupted": False,
        "duration_ms": round((time.monotonic() - began) * 1000),
    }
    details = dict(result.details)
    if "diff" in details:
        data["diff"] = details.pop("diff")
    if context.files:
        details["files"] = context.files
    if details:
        data["details"] = details
    if result.pictures:
        data["images"] = parts_to_wire([Image(picture.media_type, picture.data) for picture in result.pictures])
    data |= nudged(caller.nudge(call, data), data)
    (event,) = await caller.append(caller.draft("tool.finished", data))
    return event


def nudged(nudge: str | None, data: Mapping[str, Any]) -> dict[str, Any]:
    """What changes in a tool.finished for a model that is to be told something with the result."""
    return {"output": f"{data['output']}\n\n{nudge}", "nudge": nudge} if nudge is not None else {}


async def _result(caller: Caller, call: ToolCall, context: Context) -> ToolResult:
    tool = caller.tools.get(call.name)
    try:
        if tool is None:
            raise ToolError(f"There is no tool {call.name!r}; there are {', '.join(caller.tools)}.")
        arguments = tool.parse(caller.arguments.pop(call.id, call.arguments))
        if tool.run is None:
            raise ToolError(f"{call.name} is run by the client, which was not asked.")
        result = await tool.run(arguments, context)
        return await diagnosed(caller, call, result) if call.name in FILE_TOOLS and not result.is_error else result
    except (ToolError, AgentServerError) as error:
        if isinstance(error, LogUnavailable) and isinstance(tool, Tool) and tool.delegates:
            raise  # the subagent may have begun: the task finds it again when it goes on
        return ToolResult(f"Error: {error}", is_error=True)
    except Paused:
        raise
    except Exception as error:  # the border: a tool's fault must not end the task
        logger.exception("the tool %s failed", call.name)
        return ToolResult(f"Error: the tool itself failed ({type(error).__name__}); try another way.", is_error=True)


async def bounded(around: Surroundings, text: str) -> str:
    """Gives a text within the limits of a tool result; the whole of a longer one goes into a file."""
    if text.count("\n") < MAX_LINES + TOLD_LINES and len(text.encode("utf-8", "replace")) <= MAX_BYTES:
        return text
    path = around.outputs / f"{new_id('out')}.txt"
    await asyncio.to_thread(_spill, path, around.secrets.mask(text))
    head = "\n".join(text.split("\n", MAX_OUTPUT_LINES)[:MAX_OUTPUT_LINES])
    head = head.encode("utf-8", "replace")[:MAX_OUTPUT].decode("utf-8", "ignore")
    return f"{head}\n[cut: the whole is in {path} (read or grep it)]"


def _spill(path: Path, text: str) -> None:
    make_room(path.parent)
    path.write_text(text, "utf-8", "replace")
