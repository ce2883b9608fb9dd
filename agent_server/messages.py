"""The provider-neutral conversation: what the loop folds from the log and the gateway turns into a provider's form."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec


class Text(msgspec.Struct, frozen=True):
    text: str


class Image(msgspec.Struct, frozen=True):
    """An image as the client sent it: a media type such as `image/png`, and base64 data."""

    media_type: str
    data: str


Part: TypeAlias = Text | Image


class ToolCall(msgspec.Struct, frozen=True):
    """A call as the model wrote it. `arguments` is its raw text: it may not be valid JSON."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """One message; compared by identity, so that an encoder can remember the bytes it made of it.

    `tool_calls` and `reasoning` are only on an assistant's, `tool_call_id` only on a tool's. `reasoning` is what the
    provider sent and may want back: `{"text", "details"?, "field", "provider", "model"}`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, Text))


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one model call, and its cost in USD (None: unknown). `prompt` includes the `cached` ones and those `written` into
    the cache, `completion` the `reasoning` ones."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    cost: float | None = None
    written: int = 0


class ToolSpec(msgspec.Struct, frozen=True):
    """What a model is told of a tool: `parameters` is a JSON Schema object."""

    name: str
    description: str
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict)
