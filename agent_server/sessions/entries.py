"""The entries of a conversation: one message each, with what the server must know of it besides, and their forms on the wire.

The texts are here that the server itself puts into messages: what stands for an output that was removed, or for a call that never ran.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent_server.calling import plan
from agent_server.events import Event
from agent_server.messages import Image, Message, Part, Text, ToolCall

NOT_RUN = "Not run: the task ended before this call began."
SKIPPED = "skipped due to a queued message"
INTERRUPTED = "Interrupted: the server stopped while this call ran. It may have run, in part or whole; check before you repeat it."

SUMMARY = "What was said and done before this is summarised here; the messages themselves are no longer shown.\n\n{}"

GO_ON = "\n\nThis is no new request: go on with the task from here, without beginning anew."
"""What a summary in the midst of a task ends with."""

_PLAN = Text("\n\n" + plan.PROMPT)

PRUNED = "[This old output was removed to make room; make the call again if it is still needed.]"

ANSWER = (
    "Your answer to this, the last message without tool calls, must be one JSON value and nothing else: no prose, no code fence. "
    "It must be valid under this JSON Schema:\n{}"
)


class Entry(msgspec.Struct, frozen=True):
    """One message in its place. A tool's result has the id of the message that made the call, so that an id names a whole turn.

    `created_at` is Unix milliseconds; `instructions` names the nested instruction files that a result showed, `todos` is the list
    that a call wrote, `files` has the stamps of the files that its call, or what is summarised, has read or written.
    """

    message_id: str
    message: Message
    created_at: int
    task_id: str | None = None
    is_error: bool = False
    is_summary: bool = False
    instructions: tuple[str, ...] = ()
    todos: Sequence[Mapping[str, Any]] | None = None
    files: Mapping[str, str | None] = {}


def accepted(event: Event) -> Entry:
    """Gives the prompt of a task, as its task.created has it."""
    content = parts(event.data["prompt"])
    if (schema := event.data.get("outputSchema")) is not None:
        content = (*content, Text("\n\n" + ANSWER.format(msgspec.json.encode(schema, order="sorted").decode())))
    if event.data.get("mode") == "plan":
        content = (*content, _PLAN)
    task_id = event.task_id or ""
    return Entry(prompt_id(task_id), Message("user", content), event.time, task_id)


def is_plan(entry: Entry) -> bool:
    """Whether it is the prompt of a task in plan mode."""
    return entry.message.role == "user" and entry.message.content[-1:] == (_PLAN,)


def with_plan_over(entry: Entry) -> Entry:
    """Gives the prompt of a task that comes after one in plan mode, and is in none."""
    message = msgspec.structs.replace(entry.message, content=(*entry.message.content, Text("\n\n" + plan.OVER)))
    return msgspec.structs.replace(entry, message=message)


def returned(asked: Entry, call_id: str, data: Mapping[str, Any], at: int | None = None) -> Entry:
    """Gives the result of a call, as its tool.finished has it: `asked` is the message that made it, `at` Unix milliseconds."""
    message = Message("tool", (Text(data["output"]), *parts(data.get("images", ()))), tool_call_id=call_id)
    details = data.get("details", {})
    told = {"instructions": tuple(details.get("instructions", ())), "files": details.get("files", {}), "todos": details.get("todos")}
    at = asked.created_at if at is None else at
    return Entry(asked.message_id, message, at, asked.task_id, bool(data.get("isError")), **told)


def without_output(entry: Entry) -> Entry:
    """Gives a result that was pruned."""
    message = Message("tool", (Text(PRUNED),), tool_call_id=entry.message.tool_call_id)
    return msgspec.structs.replace(entry, message=message, instructions=())


def still_true(gone: Sequence[Entry]) -> dict[str, Any]:
    """What still holds of entries whose place a summary takes: the files that were seen, and the newest todo list."""
    files = {name: stamp for entry in gone for name, stamp in entry.files.items()}
    return {"files": files, "todos": next((entry.todos for entry in reversed(gone) if entry.todos is not None), None)}


def summary_message(summary: str, *, goes_on: bool) -> Message:
    """Gives the message that a summary is. With `goes_on`, it stands in the midst of a task."""
    return Message("user", (Text(SUMMARY.format(summary) + (GO_ON if goes_on else "")),))


def prompt_id(task_id: str) -> str:
    """Gives the id of the message that a task's prompt is."""
    return f"msg_{task_id.removeprefix('task_')}"


def parts(prompt: Any) -> tuple[Part, ...]:
    """Turns a prompt as the API has it (a text, or an array of parts) into a message's content."""
    if isinstance(prompt, str):
        return (Text(prompt),)
    return tuple(Text(part["text"]) if part["type"] == "text" else Image(part["mediaType"], part["data"]) for part in prompt)


def parts_to_wire(content: Sequence[Part]) -> list[dict[str, Any]]:
    """Gives a message's content as the API has it."""
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "image", "mediaType": part.media_type, "data": part.data}
        for part in content
    ]


def entry_to_wire(entry: Entry) -> dict[str, Any]:
    """Gives an entry as message.copied says it: `entry_from_wire` makes the same bytes for a provider of it."""
    message = entry.message
    lists = {"todos": entry.todos} if entry.todos is not None else {}
    return {
        "messageId": entry.message_id,
        "role": message.role,
        "content": parts_to_wire(message.content),
        "toolCalls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls],
        "toolCallId": message.tool_call_id,
        "reasoning": message.reasoning,
        "createdAt": entry.created_at,
        "taskId": entry.task_id,
        "isError": entry.is_error,
        "isSummary": entry.is_summary,
        "instructions": entry.instructions,
        **lists,
        "files": entry.files,
    }


def entry_from_wire(data: Mapping[str, Any]) -> Entry:
    calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in data["toolCalls"])
    message = Message(data["role"], parts(data["content"]), calls, data["toolCallId"], data["reasoning"])
    flags = (data["isError"], data["isSummary"], tuple(data["instructions"]))
    told = {"files": data.get("files", {}), "todos": data.get("todos")}
    return Entry(data["messageId"], message, data["createdAt"], data["taskId"], *flags, **told)
