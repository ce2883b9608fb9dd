"""A conversation's summary, made by a model: what takes the place of its messages.

The request for it repeats the session's own up to its end, so that a provider's cache pays for most of it. It needs no more than
a conversation: the loop may ask for one as well as a client (`compaction.py`).
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent_server.gateway import Completion, Fault, Gateway, ModelError, ModelOptions
from agent_server.gateway.retry import stream_with_retries
from agent_server.ids import new_id
from agent_server.messages import Message, Text, ToolSpec
from agent_server.sessions.ask import usage_to_wire
from agent_server.sessions.conversation import Conversation, Entry

FEWEST = 2
"""Messages that are worth a summary: one alone, such as the last summary, is as short as it gets."""

RESULT_LENGTH = 1_000
"""Characters that are left of each tool result where the conversation is too long even to be summarised."""

PROMPT = Path(__file__).parents[1] / "prompts" / "summary.md"


class Summarised(msgspec.Struct, frozen=True):
    """What `session.compacted` says."""

    message_id: str
    summary: str
    replaced: Sequence[Entry]
    usage: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        ends = {"fromMessageId": self.replaced[0].message_id, "untilMessageId": self.replaced[-1].message_id}
        replaces = {"messages": len(self.replaced), **ends}
        return {"messageId": self.message_id, "summary": self.summary, "replaces": replaces, "usage": self.usage}


async def summarise(
    gateway: Gateway, state: Conversation, system: Message, specs: Sequence[ToolSpec], options: ModelOptions, *, keep: int = 0
) -> Summarised | None:
    """Asks for a summary of a conversation, save its last turns of together `keep` characters; None where that is nothing much.

    A turn whose calls are open is never in it, nor is a call parted from its result.

    Errors: ModelError.
    """
    replaced = _replaced(state, keep)
    if len(replaced) < FEWEST:
        return None
    request = Message("user", (Text(await asyncio.to_thread(PROMPT.read_text, "utf-8")),))
    messages = [system, *(entry.message for entry in replaced), request]
    try:
        done = await _ask(gateway, messages, specs, options)
    except ModelError as error:
        if error.fault is not Fault.CONTEXT_OVERFLOW:
            raise
        done = await _ask(gateway, [_shortened(message) for message in messages], specs, options)
    return Summarised(new_id("msg"), done.message.text, replaced, usage_to_wire(done.usage))


def _replaced(state: Conversation, keep: int) -> Sequence[Entry]:
    entries = state.settled
    cut = len(entries)
    left = keep
    while cut:
        begin = next(at for at, entry in enumerate(entries) if entry.message_id == entries[cut - 1].message_id)
        left -= sum(_length(entry.message) for entry in entries[begin:cut])
        if left < 0:
            break
        cut = begin
    return entries[:cut]


def _length(message: Message) -> int:
    return len(message.text) + sum(len(call.arguments) for call in message.tool_calls)


async def _ask(gateway: Gateway, messages: Sequence[Message], specs: Sequence[ToolSpec], options: ModelOptions) -> Completion:
    async def go_on(error: ModelError, attempt: int, delay: float) -> None:
        pass

    async for delta in stream_with_retries(gateway, messages, specs, options, on_retry=go_on):
        if isinstance(delta, Completion) and delta.message.text.strip():
            return delta
    text = "The model made no summary: it called a tool instead. Send the request again, or name another model."
    raise ModelError(Fault.BAD_RESPONSE, text)


def _shortened(message: Message) -> Message:
    if message.role != "tool" or len(message.text) <= RESULT_LENGTH:
        return message
    return Message("tool", (Text(f"{message.text[:RESULT_LENGTH]}\n[cut]"),), tool_call_id=message.tool_call_id)
