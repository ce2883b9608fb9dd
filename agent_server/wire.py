"""How an event looks to a client: one JSON object with the common fields, and those of its type."""

import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from agent_server.events import Event

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}

_QUIET = frozenset(
    {
        *("message.delta", "message.copied", "reasoning.delta", "step.started", "step.finished", "session.created"),
        *("integration.sending", "integration.held", "session.restored", "context.restored"),
    }
)

_WARNINGS = frozenset({"gap", "integration.disconnected", "task.retrying", "message.discarded", "compaction.failed", "session.repaired"})

_OF_TASKS = frozenset(
    {
        *("step", "message", "reasoning", "session", "context", "compaction", "checkpoint", "revert"),
        *("permission", "question", "subagent"),
    }
)

_BREAKS = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\x85\u2028\u2029")
"""No line ends in Server-Sent Events, but for readers that split text as Python does (httpx). JSON escapes the others itself."""

LINE = 300
"""Characters of a log line's message; the whole is in the event's own fields."""


def timestamp(milliseconds: int) -> str:
    """Gives RFC 3339 UTC with milliseconds and `Z`."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def level(event: Event) -> str:
    """Gives DEBUG, INFO, WARNING or ERROR."""
    if event.type == "log":
        return str(event.data.get("level", "INFO"))
    if event.type in ("task.failed", "revert.failed", "integration.error"):
        return "ERROR"
    if event.type in _WARNINGS or event.data.get("isError"):
        return "WARNING"
    return "DEBUG" if event.type in _QUIET else "INFO"


def source(event: Event) -> str:
    """Gives what an event is about, a noun: task, tool, process, port, server and so on; a warning's may be mcp or permissions."""
    if event.type == "log":
        return str(event.data.get("source", "server"))
    noun = event.type.split(".")[0]
    return "task" if noun in _OF_TASKS else noun


def fields(event: Event) -> dict[str, Any]:
    """Gives the fields every event has."""
    return {
        "type": event.type,
        "message": _line(_MESSAGES.get(event.type, _plain)(event.data)) or event.type,
        "timestamp": timestamp(event.time),
        "level": level(event),
        "source": source(event),
        "sessionId": event.session_id,
        "taskId": event.task_id,
        "seq": event.seq,
    }


def encode(event: Event) -> bytes:
    """Gives an event's whole JSON object."""
    return msgspec.json.encode({**event.data, **fields(event)})


def sse(event: Event) -> bytes:
    """Gives an event as Server-Sent Events has it: no `event:` field, so that `onmessage` sees all."""
    return b"id: %d\n%b" % (event.seq, as_data(encode(event)))


def as_data(json: bytes) -> bytes:
    """Gives a JSON text as the data of a Server-Sent Event, on one line for every reader."""
    for mark, escaped in _BREAKS:
        json = json.replace(mark, escaped)
    return b"data: %b\n\n" % json


def _line(text: str) -> str:
    return text if len(text) <= LINE else text[: LINE - 1] + "…"


def _plain(data: Mapping[str, Any]) -> str:
    return ""


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else " ".join(part.get("text", "[image]") for part in prompt)


def _call(data: Mapping[str, Any]) -> str:
    given = data.get("input")
    if not isinstance(given, dict):
        return f"{data['tool']}"
    shown = given.get("description") or given.get("command") or given.get("filePath") or given.get("pattern") or given.get("path") or ""
    return f"{data['tool']} {shown}".rstrip()


def _exit(data: Mapping[str, Any]) -> str:
    if data.get("reason"):
        return f"{data['processId']} ended: {data['reason']}"
    how = f"exited with {data['exitCode']}" if data.get("exitCode") is not None else f"was ended by {data.get('signal')}"
    return f"{data['processId']} {how}"


_MESSAGES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "log": lambda d: str(d.get("text", "")),
    "task.created": lambda d: f"task accepted: {d.get('title', '')}",
    "task.started": lambda d: "task started",
    "task.resumed": lambda d: "task goes on after a restart",
    "task.retrying": lambda d: f"model call failed ({d['reason']}), try {d['attempt'] + 1} in {d['delay_ms']} ms: {d['error']}",
    "task.completed": lambda d: f"task completed: {d.get('response', '')}",
    "task.failed": lambda d: f"task failed: {d['error']['message']}",
    "step.started": lambda d: f"step {d['step']}",
    "step.finished": lambda d: f"step {d['step']} finished",
    "message.delta": lambda d: str(d["delta"]),
    "reasoning.delta": lambda d: str(d["delta"]),
    "message.completed": lambda d: str(d["text"]) or ", ".join(call["name"] for call in d.get("toolCalls", ())),
    "message.discarded": lambda d: f"message {d['messageId']} broke off and is made again",
    "message.added": lambda d: f"message added: {_text(d['prompt'])}",
    "message.copied": lambda d: f"{d['role']}: {_text(d['content'])}",
    "session.compacted": lambda d: f"{d['replaces']['messages']} messages were summarised",
    "session.pruned": lambda d: f"{len(d['toolCallIds'])} old tool outputs were removed from the conversation",
    "compaction.failed": lambda d: f"the conversation could not be made shorter: {d['error']}",
    "session.repaired": lambda d: f"the provider refused the conversation, and took it in another form: {d['form']}",
    "session.deleted": lambda d: "session deleted",
    "tool.started": _call,
    "tool.requested": lambda d: f"the client is to run {_call(d)}",
    "permission.requested": lambda d: f"may this be done? {_call(d)}",
    "subagent.asked": lambda d: f"may a subagent do this? {_call(d)}",
    "permission.replied": lambda d: f"answered {d['response']}: {d.get('tool', '')}",
    "question.asked": lambda d: " ".join(each["question"] for each in d["questions"]),
    "question.answered": lambda d: "no answer" if d.get("rejected") else "; ".join(", ".join(chosen) for chosen in d["answers"]),
    "tool.output": lambda d: str(d["chunk"]),
    "tool.finished": lambda d: f"{d['tool']} {'failed' if d.get('isError') else 'done'} after {d['duration_ms']} ms",
    "process.started": lambda d: d["command"] if isinstance(d["command"], str) else shlex.join(d["command"]),
    "process.output": lambda d: str(d["chunk"]),
    "process.exited": _exit,
    "port.opened": lambda d: f"port {d['port']} is open: {d['process'] or 'a process'} listens on {d['address']}",
    "port.closed": lambda d: f"port {d['port']} is closed",
    "port.registered": lambda d: f"port {d['port']} is registered",
    "checkpoint.created": lambda d: f"checkpoint {d['name']}",
    "integration.connected": lambda d: f"{d['integration']} is connected {d.get('account', '')}".rstrip(),
    "integration.disconnected": lambda d: f"{d['integration']} is disconnected: {d['reason']}",
    "integration.error": lambda d: f"{d['integration']}: {d['error']}",
    "integration.received": lambda d: f"{d['integration']}: a message from {d['sender']}",
    "integration.sending": lambda d: f"{d['integration']}: message {d['part']} of {d['parts']} of a reply leaves",
    "integration.held": lambda d: f"{d['integration']}: message {d['part']} of {d['parts']} of a reply did not leave",
    "integration.sent": lambda d: f"{d['integration']}: message {d['part']} of {d['parts']} of a reply is sent",
    "revert.started": lambda d: f"{d['action']} of {len(d['taskIds'])} tasks begins",
    "revert.failed": lambda d: f"{d['action']} failed: {d['error']['message']}",
    "session.reverted": lambda d: f"{len(d['taskIds'])} tasks reverted, {d['fileCount']} files restored",
    "session.unreverted": lambda d: f"{len(d['taskIds'])} tasks brought back, {d['fileCount']} files restored",
    "snapshot.created": lambda d: f"snapshot {d['name']} made",
    "snapshot.deleted": lambda d: f"snapshot {d['name']} deleted",
    "snapshot.restored": lambda d: f"snapshot {d['name']} restored, with {d['sessions']} conversations",
    "lifecycle.quiesced": lambda d: "quiesced",
    "lifecycle.resumed": lambda d: f"resumed as {d['instanceId']}",
    "lifecycle.stopped": lambda d: f"no tasks are taken: {d['status']}",
    "lifecycle.started": lambda d: "tasks are taken again",
    "gap": lambda d: f"events {d['from']} to {d['to']} are no longer kept",
}
