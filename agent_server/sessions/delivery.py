"""The result of a call that a client has run: what the log says of it, and whether it may be given."""

import hashlib
import time
from typing import Any

from agent_server.calling.calls import bounded, nudged
from agent_server.errors import Conflict, NotFound
from agent_server.events import Event
from agent_server.sessions.conversation import Conversation
from agent_server.sessions.run import Surroundings
from agent_server.sessions.tasks import Task


async def result(around: Surroundings, task: Task, call_id: str, text: str, *, is_error: bool) -> dict[str, Any] | None:
    """Gives what `tool.finished` says of a client's result; None when the very same was given before.

    Errors: NotFound for a call that the client was not asked for; Conflict for one that has another result.
    """
    # What is stored may be masked and cut: the digest is of what came.
    digest = hashlib.sha256(f"{is_error} {text}".encode("utf-8", "surrogatepass")).hexdigest()
    requested, ended, open_ids = await _history(around, task, call_id)
    if requested is None:
        raise NotFound(f"The client was not asked to run a call {call_id[:128]} of this task.", details={"toolCallId": call_id})
    if ended is not None:
        if ended.data.get("digest") == digest:
            return None
        raise Conflict("This call has another result already; a result cannot be changed.", details={"toolCallId": call_id})
    return {
        "toolCallId": call_id,
        "tool": requested.data["tool"],
        "output": await bounded(around, f"Error: {text}" if is_error else text),
        "isError": is_error,
        "interrupted": False,
        "duration_ms": max(0, time.time_ns() // 1_000_000 - requested.time),
        "digest": digest,
        "awaited": len(open_ids - {call_id}),
    }


def with_nudge(around: Surroundings, state: Conversation, data: dict[str, Any]) -> dict[str, Any]:
    """Gives what `tool.finished` says of a client's result, with what the model is to be told where it repeats itself."""
    call = next((call for call in state.open_calls if call.id == data["toolCallId"]), None)
    if call is None:
        return data
    masked = {**data, "output": around.secrets.mask(data["output"])}
    return data | nudged(state.repetition.nudge(call.name, call.arguments, masked), data)


async def _history(around: Surroundings, task: Task, call_id: str) -> tuple[Event | None, Event | None, set[str]]:
    """Gives the request for a call and its end, and all calls that are requested and not ended."""
    requested: Event | None = None
    ended: Event | None = None
    open_ids: set[str] = set()
    for event in await around.log.read(task_id=task.task_id, types=("tool.requested", "tool.finished")):
        found = event.data["toolCallId"]
        if event.type == "tool.requested":
            open_ids.add(found)
        else:
            open_ids.discard(found)
        if found == call_id:
            requested, ended = (event, None) if event.type == "tool.requested" else (requested, event)
    return requested, ended, open_ids
