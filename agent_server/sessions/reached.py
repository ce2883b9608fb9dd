"""The final answer of a task that a limit has ended: what was reached, told without asking a model once more.

It has no call of its own, because each limit is a hard bound: the last step, the last cent and the last second are used up.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent_server.errors import AgentServerError
from agent_server.messages import ToolCall
from agent_server.sessions.conversation import Conversation
from agent_server.sessions.entries import Entry
from agent_server.sessions.tasks import Task

LIMITS = frozenset({"max_steps", "max_cost", "timeout", "stuck", "resumptions"})
"""The values of details.reason that are limits."""

NOT_ENDED = "it had not ended."

SAID = 2_000
"""Characters of the last message that are repeated: the whole is in the session."""

SHOWN = 200
"""Characters of a call's arguments, and of its result."""

MOST_FILES = 20
"""Changed files that are named; `changes` has them all."""


def is_limit(error: AgentServerError) -> bool:
    return error.details.get("reason") in LIMITS


def reached(task: Task, error: AgentServerError, state: Conversation, changes: Sequence[Mapping[str, Any]], now: int) -> str:
    """Gives the answer, as plain text. `now` is Unix milliseconds."""
    return "\n".join(_lines(task, error, state, changes, now))


def _lines(task: Task, error: AgentServerError, state: Conversation, changes: Sequence[Mapping[str, Any]], now: int) -> Iterator[str]:
    yield f"The task is not finished. {error.message}"
    cost = f", {task.usage['cost']:.4f} USD" if task.usage["cost"] is not None else ""
    seconds = (now - (task.started_at or now)) / 1000
    yield f"Reached: {_count(task.steps, 'step')} in {seconds:.1f} s, {_count(task.usage['total_tokens'], 'token')}{cost}."
    used = ", ".join(f"{tool['name']} ({tool['count']})" for tool in task.tools_used)
    yield f"Tools used: {used or 'none'}."
    yield f"Files changed: {_files(changes) or 'none'}."
    own = [entry for entry in state.closed(NOT_ENDED) if entry.task_id == task.task_id and entry.message.role in ("assistant", "tool")]
    yield from _last_call(own)
    said = next((entry.message.text.strip() for entry in reversed(own) if _says(entry)), None)
    yield f"Last said: {_shortened(said, SAID)}" if said else "Nothing was said yet."


def _says(entry: Entry) -> bool:
    return entry.message.role == "assistant" and bool(entry.message.text.strip())


def _last_call(own: Sequence[Entry]) -> Iterator[str]:
    calls: dict[str, ToolCall] = {call.id: call for entry in own for call in entry.message.tool_calls}
    for entry in reversed(own):
        if entry.message.role == "tool" and (call := calls.get(entry.message.tool_call_id or "")) is not None:
            result = _shortened(" ".join(entry.message.text.split()), SHOWN)
            yield f"Last call: {call.name} {_shortened(call.arguments, SHOWN)}: {result}"
            return


def _files(changes: Sequence[Mapping[str, Any]]) -> str:
    named = ", ".join(f"{change['path']} ({change['status']})" for change in changes[:MOST_FILES])
    left = len(changes) - MOST_FILES
    return f"{named} and {left} more" if left > 0 else named


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
