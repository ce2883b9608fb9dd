"""A session's conversation: the fold of its events into the messages a model is sent.

The same `apply` takes the events read from the log after a restart and those the loop has just appended, so that both
give the same messages, and so the same bytes. Every tool call has exactly one result in what `messages` gives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agent_server.events import Event
from agent_server.events.log import EventLog
from agent_server.messages import Image, Message, Part, Text, ToolCall

NOT_RUN = "Not run: the task ended before this call began."
INTERRUPTED = "Interrupted: the server stopped while this call ran. It may have run, in part or whole; check before you repeat it."


class Conversation:
    """The messages of one session, without the system prompt, and what the loop must know of them.

    `began` is what session.created says, `instructions` the nested instruction files that were shown; `steps` and `cost`
    (USD) are the present task's, `usage` the last model call's.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.began: Mapping[str, Any] | None = None
        self.instructions: set[str] = set()
        self.steps = 0
        self.usage: Mapping[str, Any] = {}
        self.cost = 0.0
        self._messages: list[Message] = []
        self._prompts: dict[str, Any] = {}
        self._open: dict[str, ToolCall] = {}
        self._task_id: str | None = None
        self._task_at = 0

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation so far. Do not change it."""
        return self._messages

    @property
    def open_calls(self) -> Sequence[ToolCall]:
        """The calls of the last message that have no result yet."""
        return list(self._open.values())

    @property
    def is_answered(self) -> bool:
        """Whether the last message is an assistant's without calls: the task's final answer."""
        return bool(self._messages) and self._messages[-1].role == "assistant" and not self._messages[-1].tool_calls

    def apply(self, event: Event) -> None:
        """Takes the next event in. Skips types that are none of a conversation's."""
        data = event.data
        match event.type:
            case "session.created":
                self.began = data
            case "task.created":
                self._prompts[event.task_id or ""] = data["prompt"]
            case "task.started":
                self._close_calls()
                self._task_id, self._task_at = event.task_id, len(self._messages)
                self.steps, self.cost = 0, 0.0
                self._messages.append(Message("user", parts(self._prompts.pop(event.task_id or "", ""))))
            case "message.completed":
                self._assistant(data)
            case "tool.finished":
                self._result(data["toolCallId"], data["output"])
                self.instructions.update(data.get("details", {}).get("instructions", ()))
            case "task.completed":
                self._close_calls()
            case "task.failed" if event.task_id != self._task_id:
                self._prompts.pop(event.task_id or "", None)  # it never began, while another one may be at work
            case "task.failed":
                self._close_calls()
                # A prompt that no model answered is left out: it may be the very reason of the failure.
                if len(self._messages) == self._task_at + 1 and self._messages[-1].role == "user":
                    self._messages.pop()

    def _assistant(self, data: Mapping[str, Any]) -> None:
        calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in data.get("toolCalls", ()))
        content = (Text(data["text"]),) if data["text"] else ()
        self._messages.append(Message("assistant", content, calls, reasoning=data.get("reasoning")))
        self._open = {call.id: call for call in calls}
        self.steps += 1
        self.usage = data.get("usage") or {}
        self.cost += self.usage.get("cost") or 0.0

    def _result(self, call_id: str, output: str) -> None:
        if self._open.pop(call_id, None) is not None:
            self._messages.append(Message("tool", (Text(output),), tool_call_id=call_id))

    def _close_calls(self) -> None:
        for call_id in list(self._open):
            self._result(call_id, NOT_RUN)


def parts(prompt: Any) -> tuple[Part, ...]:
    """Turns a prompt as the API has it (a text, or an array of parts) into a message's content."""
    if isinstance(prompt, str):
        return (Text(prompt),)
    return tuple(Text(part["text"]) if part["type"] == "text" else Image(part["mediaType"], part["data"]) for part in prompt)


async def load(log: EventLog, session_id: str) -> Conversation:
    """Folds a session's conversation from the log."""
    conversation = Conversation(session_id)
    for event in await log.read(session_id=session_id, context=True):
        conversation.apply(event)
    return conversation
