"""One streamed answer: bytes in, deltas out, and at the end the whole message. No I/O, so that every way of cutting a stream
into chunks can be tested; `told` gives it as both ways do."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import aclosing
from typing import Any

import msgspec

from agent_server.gateway import Completion, Delta, Fault, ModelError, ReasoningDelta, TextDelta
from agent_server.gateway.calls import OpenCalls
from agent_server.gateway.chunks import CallPart, Choice, Chunk, MessagePart, Pieces, PromptDetails, UsagePart, decode, joined
from agent_server.gateway.faults import stream_error
from agent_server.gateway.providers import Endpoint
from agent_server.gateway.sse import EventParser, EventTooLong
from agent_server.messages import Message, Text, Usage

MESSAGE_LIMIT = 32 * 2**20
"""Characters of text, reasoning and arguments in one message; hundreds of times what models write at most."""

CALL_SIZE = 100
"""Characters that a piece of a tool call counts for besides its arguments, so that empty ones are bounded too."""

DONE = b"[DONE]"

FULL = "model_context_window_exceeded"
"""The finish reason of Z.ai and Anthropic where a prompt, or what was answered so far, fills the model's window."""

BEFORE = b"\xef\xbb\xbf \t\r\n"
"""What may come before an answer, and means nothing: a byte order mark, and blanks that keep a connection open."""


async def told(
    pieces: AsyncGenerator[Delta, None], answer: "Answer", priced: Callable[[Completion], Awaitable[Completion]]
) -> AsyncGenerator[Delta, None]:
    """Gives the deltas of an answer as they come, and last its Completion. Errors: ModelError."""
    try:
        async with aclosing(pieces) as deltas:
            async for delta in deltas:
                yield delta
    except ModelError:
        # What breaks after the finish reason costs at most the usage: not worth a second call.
        if not answer.is_finished:
            raise
    last, completion = answer.end()
    for delta in last:
        yield delta
    yield await priced(completion)


class Answer:
    """The state of one answer. `taken` are the ids of the conversation's tool calls, which this one must not repeat."""

    def __init__(self, endpoint: Endpoint, taken: Set[str]) -> None:
        self._endpoint = endpoint
        self._taken = taken
        self._events = EventParser()
        self._has_begun = False
        self._whole: bytearray | None = None
        self._text: list[str] = []
        self._text_pieces = Pieces()
        self._reasoning: list[str] = []
        self._reasoning_pieces = Pieces()
        self._reasoning_field = ""
        self._details: list[dict[str, Any]] = []
        self._calls = OpenCalls()
        self._usage = Usage()
        self._size = 0
        self._finish_reason = ""
        self.is_done = False

    @property
    def is_finished(self) -> bool:
        """Whether the provider has said that the message is complete; only its usage may still come."""
        return self.is_done or bool(self._finish_reason)

    def feed(self, chunk: bytes) -> list[Delta]:
        """Takes the next bytes: of a stream, or of one JSON object, as some servers and proxies send it. Errors: ModelError."""
        if not self._has_begun:
            chunk = chunk.lstrip(BEFORE)
            self._begin(chunk)
        if self._whole is None:
            return self._feed_events(chunk)
        self._grow(len(chunk))
        self._whole += chunk
        return []

    def _begin(self, chunk: bytes) -> None:
        """Looks at the first bytes, and not at the content type: not every server says what it sends."""
        self._has_begun = bool(chunk)
        if chunk.startswith(b"<"):
            where = self._endpoint
            raise ModelError(Fault.BAD_RESPONSE, f"{where.provider} answered with a web page: is the URL of {where.host} the right one?")
        if chunk.startswith(b"{"):
            self._whole = bytearray()

    def _feed_events(self, chunk: bytes) -> list[Delta]:
        deltas: list[Delta] = []
        try:
            for data in self._events.feed(chunk):
                deltas += self._take(data)
        except EventTooLong as error:
            raise self._error(Fault.BAD_RESPONSE, f"sent {error}") from error
        return deltas

    def end(self) -> tuple[list[Delta], Completion]:
        """Gives what has not been given yet, and the message. Errors: ModelError, such as STREAM_CUT or EMPTY."""
        deltas = self._last_event() if self._whole is None else self._add_whole(bytes(self._whole))
        if not self.is_finished:
            raise self._error(Fault.STREAM_CUT, "ended its answer before it was complete")
        return deltas, self._completion()

    def _add_whole(self, content: bytes) -> list[Delta]:
        self._size = 0
        deltas = self._add(self._decode(content))
        self.is_done = True
        return deltas

    def _last_event(self) -> list[Delta]:
        rest = self._events.rest()
        try:
            return self._take(rest)
        except ModelError as error:
            if error.fault is not Fault.BAD_RESPONSE:
                raise
            return []  # half an event is how a stream looks that was cut

    def _completion(self) -> Completion:
        text, calls = "".join(self._text), tuple(self._calls.finish(self._taken))
        if not all(call.name for call in calls):
            raise self._error(Fault.BAD_RESPONSE, "sent a tool call without a name")
        reason = self._finish_reason or ("tool_calls" if calls else "stop")
        if not text.strip() and not calls:
            if reason in ("content_filter", "refusal"):
                raise self._error(Fault.BAD_REQUEST, f"refused to answer this conversation ({reason})")
            if reason == FULL:
                raise self._error(Fault.CONTEXT_OVERFLOW, f"had no room for an answer ({reason})")
            raise self._error(Fault.EMPTY, f"answered with neither text nor a tool call (finish reason {reason})")
        content = (Text(text),) if text else ()
        return Completion(Message("assistant", content, calls, reasoning=self._kept_reasoning()), self._usage, reason)

    def _take(self, data: bytes) -> list[Delta]:
        if data.strip() == DONE:
            self.is_done = True
            return []
        return self._add(self._decode(data)) if data.strip() else []

    def _decode(self, data: bytes) -> Chunk:
        try:
            return decode(data)
        except (ValueError, RecursionError) as error:
            raise self._error(Fault.BAD_RESPONSE, f"sent what is no chat completion ({error})") from error

    def _add(self, chunk: Chunk) -> list[Delta]:
        if chunk.error is not None:
            raise stream_error(self._endpoint, chunk.error)
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
        # Only one choice was asked for.
        return self._add_choice(chunk.choices[0]) if chunk.choices else []

    def _add_choice(self, choice: Choice) -> list[Delta]:
        if choice.error is not None:
            raise stream_error(self._endpoint, choice.error)
        if choice.finish_reason == "error":
            raise self._error(Fault.OVERLOADED, "broke its answer off with finish reason error")
        part = choice.delta or _numbered(choice.message)
        reasoning = self._add_reasoning(part, is_piece=choice.delta is not None)
        text = self._text_pieces.add(part.text)
        self._grow(len(text) + len(reasoning))
        if text:
            self._text.append(text)
        for call in part.tool_calls or ():
            self._grow(CALL_SIZE + self._calls.add(call))
        self._finish_reason = choice.finish_reason or self._finish_reason
        return [*([ReasoningDelta(reasoning)] if reasoning else []), *([TextDelta(text)] if text else [])]

    def _add_reasoning(self, part: MessagePart, *, is_piece: bool) -> str:
        """Takes the reasoning of a piece and gives its text, which some servers say twice, under both names."""
        text = self._reasoning_pieces.add(part.reasoning_content or part.reasoning or "")
        if text:
            self._reasoning.append(text)
            self._reasoning_field = self._reasoning_field or ("reasoning_content" if part.reasoning_content else "reasoning")
        for detail in part.reasoning_details or ():
            self._grow(sum(len(value) for value in detail.values() if isinstance(value, str)))
            if not (is_piece and merge_detail(self._details, detail)):
                self._details.append(detail)
        return text

    def _kept_reasoning(self) -> Mapping[str, Any] | None:
        if not self._reasoning and not self._details:
            return None
        return {
            "text": "".join(self._reasoning),
            **({"details": [_whole(detail) for detail in self._details]} if self._details else {}),
            "field": self._reasoning_field or "reasoning",
            "provider": self._endpoint.provider,
            "model": self._endpoint.model,
        }

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MESSAGE_LIMIT:
            raise self._error(Fault.BAD_RESPONSE, f"sent a message of more than {MESSAGE_LIMIT} characters")

    def _error(self, fault: Fault, what: str) -> ModelError:
        return ModelError(fault, f"{self._endpoint.provider} {what}.")


def merge_detail(details: Sequence[dict[str, Any]], piece: Mapping[str, Any]) -> bool:
    """Adds a piece to the detail it continues: same type and index, no other id. Texts grow, a signature comes once.

    Gives whether there is one; a piece without an index can only continue the last.
    Source: https://openrouter.ai/docs/use-cases/reasoning-tokens#preserving-reasoning-blocks
    """
    candidates = reversed(details if piece.get("index") is not None else details[-1:])
    known = next((detail for detail in candidates if _continues(detail, piece)), None)
    if known is None:
        return False
    for key, value in piece.items():
        if key in ("text", "summary") and isinstance(value, str):
            known[key] = (known.get(key) or "") + value
        elif value is not None:
            known[key] = value
    return True


def _continues(detail: Mapping[str, Any], piece: Mapping[str, Any]) -> bool:
    def agree(key: str) -> bool:
        return detail.get(key) is None or piece.get(key) is None or bool(detail[key] == piece[key])

    same = detail.get("type") == piece.get("type") and detail.get("index") == piece.get("index")
    return same and agree("id") and agree("data") and agree("signature")


def _whole(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {name: joined(value) if isinstance(value, str) else value for name, value in detail.items()}


def _numbered(message: MessagePart | None) -> MessagePart:
    """A whole message as one piece: each of its calls is another one, whatever their ids."""
    if message is None:
        return MessagePart()
    calls = [CallPart(index, call.id, call.function) for index, call in enumerate(message.tool_calls or ())]
    return msgspec.structs.replace(message, tool_calls=calls)


def _usage(part: UsagePart) -> Usage:
    prompt, completion = part.prompt_tokens or 0, part.completion_tokens or 0
    of_prompt = part.prompt_tokens_details or PromptDetails()
    cached = min(of_prompt.cached_tokens or part.prompt_cache_hit_tokens or 0, prompt)
    written = of_prompt.cache_write_tokens or of_prompt.cache_creation_tokens or part.cache_creation_input_tokens or 0
    reasoning = (part.completion_tokens_details and part.completion_tokens_details.reasoning_tokens) or 0
    if part.total_tokens == prompt + completion + reasoning:
        # xAI counts reasoning beside the completion, all others within it.
        completion += reasoning
    return Usage(prompt, completion, cached, min(reasoning, completion), part.cost, min(written, prompt - cached))
