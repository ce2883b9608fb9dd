"""Tool calls put together from the pieces of a stream, whatever a server leaves out or says twice."""

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import msgspec

from agent_server.gateway.chunks import CallPart, FunctionPart, joined
from agent_server.messages import Message, ToolCall


def call_ids(messages: Sequence[Message]) -> set[str]:
    """The ids that calls of this conversation have."""
    return {call.id for message in messages for call in message.tool_calls}


def unique_id(wanted: str, taken: Set[str]) -> str:
    """The wanted id, or the first `{wanted}_{n}` that no call has; `call_{n}` when none is wanted. Deterministic."""
    if wanted and wanted not in taken:
        return wanted
    prefix, number = wanted or "call", len(taken)
    while f"{prefix}_{number}" in taken:
        number += 1
    return f"{prefix}_{number}"


def distinct(calls: Iterable[ToolCall], taken: Set[str]) -> Iterator[ToolCall]:
    """The calls with ids that none of `taken` and no other one of them is: some servers count anew in each message, or send none."""
    ids = set(taken)
    for call in calls:
        unique = unique_id(call.id, ids)
        ids.add(unique)
        yield call if unique == call.id else ToolCall(unique, call.name, call.arguments)


class OpenCall(msgspec.Struct):
    """A call that may go on."""

    index: int | None
    id: str = ""
    name: str = ""
    pieces: list[str] = msgspec.field(default_factory=list)

    @property
    def arguments(self) -> str:
        return joined("".join(self.pieces)).strip() or "{}"

    @property
    def is_whole(self) -> bool:
        """Whether arguments have come and are complete."""
        return bool(self.pieces) and _is_object(joined("".join(self.pieces)))


class OpenCalls:
    """The calls of one message. OpenAI numbers the pieces with `index` and says id and name once; many others do not."""

    def __init__(self) -> None:
        self._calls: list[OpenCall] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, part: CallPart) -> int:
        """Takes one piece and gives the characters it has added."""
        function = part.function or FunctionPart()
        name, text = function.name or "", _text(function.arguments)
        if not (part.id or name or text):
            return 0
        call = self._find(part, name)
        # Ids and names are said again in each piece by llama.cpp and others: the first one counts.
        call.id = call.id or part.id or ""
        call.name = call.name or name
        if text:
            call.pieces.append(text)
        return len(text)

    def finish(self, taken: Set[str]) -> Iterator[ToolCall]:
        """The calls, in their order, with ids that no call of the conversation has."""
        return distinct((ToolCall(call.id, call.name, call.arguments) for call in self._calls), taken)

    def _find(self, part: CallPart, name: str) -> OpenCall:
        call = self._numbered(part) if part.index is not None else self._unnumbered(part, name)
        if call is None:
            call = OpenCall(part.index)
            self._calls.append(call)
        return call

    def _numbered(self, part: CallPart) -> OpenCall | None:
        call = next((call for call in reversed(self._calls) if call.index == part.index), None)
        # Gemini's endpoint gives every parallel call the index 0, each whole and with its own id; old versions of
        # vLLM give every piece of one call another id.
        if call and part.id and call.id and part.id != call.id and call.is_whole:
            return None
        return None if call and _begins_anew(call, part) else call

    def _unnumbered(self, part: CallPart, name: str) -> OpenCall | None:
        if part.id:
            call = next((call for call in reversed(self._calls) if call.id == part.id), None)
            return None if call and _begins_anew(call, part) else call
        last = self._calls[-1] if self._calls else None
        if last and name and (last.is_whole or last.name != name):
            return None
        return last


def _begins_anew(call: OpenCall, part: CallPart) -> bool:
    """Whether a piece with the id or index of a call is another call: some servers give all calls of a message the same ones."""
    if part.function is None or not part.function.name:
        return False
    return _text(part.function.arguments).lstrip().startswith("{") and call.is_whole


def _text(arguments: str | dict[str, Any] | None) -> str:
    return msgspec.json.encode(arguments).decode() if isinstance(arguments, dict) else arguments or ""


def _is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError):
        return False
    return True
