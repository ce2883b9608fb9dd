"""A conversation's summary, made by a model: what takes the place of its messages.

The request for it repeats the session's own up to its end, so that a provider's cache pays for most of it. Where that is too
long, less and less of each message goes with it; where the provider refuses it, it is made in another form (`repair.py`). The loop
asks for one (`context.py`) as well as a client (`compaction.py`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from agent_server.gateway import Completion, Fault, Gateway, ModelError, ModelOptions
from agent_server.gateway.retry import OnRetry, stream_with_retries
from agent_server.ids import new_id
from agent_server.messages import Image, Message, Part, Text, ToolCall, ToolSpec, Usage
from agent_server.sessions import repair
from agent_server.sessions.ask import usage_to_wire
from agent_server.sessions.entries import Entry
from agent_server.sessions.tokens import message_tokens, specs_tokens

FEWEST = 2
"""Messages that are worth a summary: one alone, such as the last summary, is as short as it gets."""

ALONE_TOKENS = 8_000
"""Tokens of one alone that is worth a summary all the same, such as a transcript (`repair.py`): twice what a summary has at most."""

RESULT_LENGTH = 1_000
"""Characters that are left of each tool result, and then of each text, where the conversation is too long even to be summarised."""

SHORT_LENGTH = 200
"""Characters that are left of each text where that was not enough."""

NEWEST = 50
"""Messages that are left where that was not enough either: some 6,000 tokens, which every model can read."""

SUMMARY_TOKENS = 4_000
"""Tokens that a summary may have at least, however short a task's answers must be."""

SHORTER = "\n\nThis was asked before, and the answer was so long that it was cut off. Answer in at most 500 words."

LEFT_OUT = "[earlier messages are left out]"

PROMPT = Path(__file__).parents[1] / "prompts" / "summary.md"


class Chosen(msgspec.Struct, frozen=True):
    """The messages that a summary is to replace: the first of a conversation. `keeps` are the ids of those among them that stay."""

    entries: Sequence[Entry]
    keeps: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """What goes."""
        return sum(message_tokens(entry.message) for entry in self.entries if entry.message_id not in self.keeps)


class Summarised(msgspec.Struct, frozen=True):
    """What `session.compacted` says."""

    message_id: str
    summary: str
    replaced: Chosen
    usage: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        entries, keeps = self.replaced.entries, self.replaced.keeps
        ends = {"fromMessageId": entries[0].message_id, "untilMessageId": entries[-1].message_id}
        replaces = {"messages": len(entries) - len(keeps), **ends}
        kept = {"keeps": keeps} if keeps else {}
        return {"messageId": self.message_id, "summary": self.summary, "replaces": replaces, **kept, "usage": self.usage}


class NoSummary(ModelError):
    """An answer that is none, such as a tool call. `usage` is what it cost."""

    def __init__(self, usage: Usage, why: str) -> None:
        super().__init__(Fault.BAD_RESPONSE, f"The model made no summary: {why}. Send the request again, or name another model.")
        self.usage = usage_to_wire(usage)


def choose(entries: Sequence[Entry], *, keep: int = 0, prompt_id: str | None = None) -> Chosen | None:
    """Chooses what to replace of a conversation: all but its last turns of together `keep` tokens; None where that is nothing much.

    A turn is a message with the results of its calls, which are never parted. With `prompt_id`, the message of that id stays, and
    so do the user's messages at the end, which no model has answered.
    """
    cut = len(entries)
    if prompt_id is not None:
        while cut and entries[cut - 1].message.role == "user" and not entries[cut - 1].is_summary:
            cut -= 1
    cut = _cut(entries, cut, keep)
    keeps = tuple(entry.message_id for entry in entries[:cut] if entry.message_id == prompt_id)
    chosen = Chosen(entries[:cut], keeps)
    return chosen if cut - len(keeps) >= FEWEST or (not keep and chosen.tokens > ALONE_TOKENS) else None


def _cut(entries: Sequence[Entry], cut: int, keep: int) -> int:
    while cut:
        begin = cut - 1
        while begin and entries[begin - 1].message_id == entries[cut - 1].message_id:
            begin -= 1
        keep -= sum(message_tokens(entry.message) for entry in entries[begin:cut])
        if keep < 0:
            break
        cut = begin
    return cut


async def _go_on(error: ModelError, attempt: int, delay: float) -> None:
    pass


async def summarise(
    gateway: Gateway,
    chosen: Chosen,
    system: Message,
    specs: Sequence[ToolSpec],
    options: ModelOptions,
    *,
    window: int | None = None,
    is_refused: bool = False,
    on_retry: OnRetry = _go_on,
) -> Summarised:
    """Asks for a summary. `window` is how many tokens the model can read; `is_refused`, whether it has found this conversation too long.

    Errors: ModelError; NoSummary.
    """
    request = Message("user", (Text(await asyncio.to_thread(PROMPT.read_text, "utf-8")),))
    if options.max_tokens is not None:
        options = msgspec.structs.replace(options, max_tokens=max(options.max_tokens, SUMMARY_TOKENS))
    room = None if window is None else window - specs_tokens(specs) - message_tokens(system) - message_tokens(request)
    refused: ModelError | None = None
    for messages in forms([entry.message for entry in chosen.entries], room, is_refused=is_refused):
        try:
            done = await _taken(messages, request, partial(_ask, gateway, system, specs, options, on_retry))
            return Summarised(new_id("msg"), done.message.text, chosen, usage_to_wire(done.usage))
        except ModelError as error:
            if error.fault is not Fault.CONTEXT_OVERFLOW:
                raise
            refused = error
    raise refused or ModelError(Fault.CONTEXT_OVERFLOW, "The conversation is too long even to be summarised; begin a new session.")


async def _taken(messages: Sequence[Message], request: Message, ask: Callable[[Sequence[Message]], Awaitable[Completion]]) -> Completion:
    """Asks; in other forms of the conversation where the provider refuses it as it is. Errors: as `_ask`; of refusals, the first."""
    said = [*((message, False) for message in messages), (request, True)]
    refusal: ModelError | None = None
    for form in (None, *(form for form in repair.forms(said) if form != "prompt")):  # which has nothing to summarise
        try:
            return await _whole([*messages, request] if form is None else repair.reformed(said, form), ask)
        except ModelError as error:
            if error.fault is not Fault.BAD_REQUEST and (refusal is None or error.fault is not Fault.CONTEXT_OVERFLOW):
                raise
            refusal = refusal or error
    raise refusal or AssertionError("a conversation has one form at least")


async def _whole(messages: Sequence[Message], ask: Callable[[Sequence[Message]], Awaitable[Completion]]) -> Completion:
    """Asks, and once more for something shorter where the answer was cut off. Errors: as `_ask`."""
    done = await ask(messages)
    if done.finish_reason != "length":
        return done
    request = msgspec.structs.replace(messages[-1], content=(*messages[-1].content, Text(SHORTER)))
    again = await ask([*messages[:-1], request])
    usage = _sum(done.usage, again.usage)
    if again.finish_reason == "length":
        raise NoSummary(usage, "it was cut off, even a short one")
    return msgspec.structs.replace(again, usage=usage)


def _sum(one: Usage, other: Usage) -> Usage:
    costs = [usage.cost for usage in (one, other) if usage.cost is not None]
    counts = {name: getattr(one, name) + getattr(other, name) for name in ("prompt", "completion", "cached", "reasoning")}
    return Usage(**counts, cost=sum(costs) if costs else None)


async def _ask(
    gateway: Gateway,
    system: Message,
    specs: Sequence[ToolSpec],
    options: ModelOptions,
    on_retry: OnRetry,
    messages: Sequence[Message],
) -> Completion:
    done: Completion | None = None
    async for delta in stream_with_retries(gateway, [system, *messages], specs, options, on_retry=on_retry):
        if isinstance(delta, Completion):
            done = delta
    if done is None or not (done.message.text.strip() or done.finish_reason == "length"):
        raise NoSummary(done.usage if done is not None else Usage(), "it called a tool instead")
    return done


def forms(messages: Sequence[Message], room: int | None, *, is_refused: bool) -> Iterator[Sequence[Message]]:
    """Gives the conversation shorter and shorter, from the first form that fits; each is to be tried when the one before was refused."""
    shapes = (
        messages,
        [_shortened(message, RESULT_LENGTH) if message.role == "tool" else message for message in messages],
        [_shortened(message, RESULT_LENGTH) for message in messages],
        [_shortened(message, SHORT_LENGTH) for message in messages],
        _newest([_shortened(message, SHORT_LENGTH) for message in messages]),
    )
    sizes = [sum(map(message_tokens, form)) for form in shapes]
    refused = sizes[0] if is_refused else None
    is_tried = False
    for form, size in zip(shapes[:-1], sizes[:-1], strict=True):
        if (refused is None or size < refused) and (room is None or size <= room):
            yield form
            refused, is_tried = size, True
    if not is_tried or refused is None or sizes[-1] < refused:
        yield shapes[-1]


def _newest(messages: Sequence[Message]) -> Sequence[Message]:
    begin = max(0, len(messages) - NEWEST)
    while begin < len(messages) and messages[begin].role == "tool":
        begin += 1  # a result without its call
    return [Message("user", (Text(LEFT_OUT),)), *messages[begin:]] if begin else messages


def _shortened(message: Message, length: int) -> Message:
    content = tuple(_short_part(part, length) for part in message.content)
    calls = tuple(_short_call(call, length) for call in message.tool_calls)
    reasoning = message.reasoning
    if reasoning is not None:
        reasoning = {**reasoning, "text": reasoning["text"][:length]}
        reasoning.pop("details", None)  # signed: cut, they would be refused
    return Message(message.role, content, calls, message.tool_call_id, reasoning)


def _short_part(part: Part, length: int) -> Text:
    if isinstance(part, Image):
        return Text("[image]")
    return part if len(part.text) <= length else Text(f"{part.text[:length]}\n[cut]")


def _short_call(call: ToolCall, length: int) -> ToolCall:
    if len(call.arguments) <= length:
        return call
    return ToolCall(call.id, call.name, msgspec.json.encode({"cut": call.arguments[:length]}).decode())
