"""The body of a chat completions request, joined from bytes that are made once for each message.

`messages` is the last key, so that each request of a session repeats the whole one before it, byte for byte, up to the end
of its old messages: that is what providers' prompt caches hit, and step 1,000 costs as little as step 1. Only the marks that
Anthropic's cache needs (`cache.py`) move on with the end of the conversation.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from agent_server.gateway.cache import mark_all, takes_marks
from agent_server.gateway.providers import Endpoint
from agent_server.messages import Image, Message, Part, Text, ToolCall, ToolSpec

TOOL_SETS_LIMIT = 8
"""Sets of tools whose bytes are kept: one for each agent and client that brings its own."""

NOTHING = "(nothing)"
"""What stands for a blank text: several providers refuse one, and so the whole conversation, for ever."""

Encoded = tuple[tuple[str, str], bytes, bytes]
"""For which provider and model, the message, and the message that must follow its tool results (or b"")."""


class _Beginning(msgspec.Struct, frozen=True):
    """What the last request of a conversation was made of: most of the next one is that again."""

    target: tuple[str, str]
    messages: Sequence[Message]
    encoded: list[bytes]


class BodyEncoder:
    """Remembers the bytes of messages for as long as the messages live, compared by identity, and those of a conversation's last
    request as long as its system prompt does. With `marks`, it marks what Anthropic's models are to cache."""

    def __init__(self, *, marks: bool = True) -> None:
        self._marks = marks
        self._beginnings: WeakKeyDictionary[Message, _Beginning] = WeakKeyDictionary()
        self._messages: WeakKeyDictionary[Message, Encoded] = WeakKeyDictionary()
        self._tools: dict[tuple[int, ...], tuple[Sequence[ToolSpec], bytes]] = {}

    def encode(self, endpoint: Endpoint, messages: Sequence[Message], tools: Sequence[ToolSpec], max_tokens: int | None) -> bytes:
        """The whole body, in the order model, tools, options, messages."""
        head = b'{"model":' + msgspec.json.encode(endpoint.model)
        if tools:
            head += b',"tools":' + self._encode_tools(tools)
        options = msgspec.json.encode(_options(endpoint.provider, max_tokens))
        return b"".join((head, b",", options[1:-1], b',"messages":[', b",".join(self._encode_messages(endpoint, messages)), b"]}"))

    def _encode_messages(self, endpoint: Endpoint, messages: Sequence[Message]) -> list[bytes]:
        encoded = self._begun(endpoint, messages)
        images: list[bytes] = []
        for message in messages[len(encoded) :]:
            if images and message.role != "tool":
                encoded += images
                images = []
            own, follower = self._encode_message(endpoint, message)
            encoded.append(own)
            if follower:
                images.append(follower)
        encoded += images
        if messages and len(encoded) == len(messages):  # images of tools stand between them
            self._beginnings[messages[0]] = _Beginning((endpoint.provider, endpoint.model), messages, encoded[:])
        if self._marks and takes_marks(endpoint.provider, endpoint.model):
            mark_all(encoded, messages[0] if messages and messages[0].role == "system" else None)
        return encoded

    def _begun(self, endpoint: Endpoint, messages: Sequence[Message]) -> list[bytes]:
        """Gives the bytes of the messages that the last request had, too, where they begin this one."""
        last = self._beginnings.get(messages[0]) if messages else None
        if last is None or last.target != (endpoint.provider, endpoint.model) or messages[: len(last.messages)] != last.messages:
            return []
        return last.encoded[:]

    def _encode_message(self, endpoint: Endpoint, message: Message) -> tuple[bytes, bytes]:
        target = (endpoint.provider, endpoint.model)
        known = self._messages.get(message)
        if known is None or known[0] != target:
            known = (target, msgspec.json.encode(_message(message, target)), _moved_images(message))
            self._messages[message] = known
        return known[1], known[2]

    def _encode_tools(self, tools: Sequence[ToolSpec]) -> bytes:
        key = tuple(map(id, tools))
        if key not in self._tools:
            if len(self._tools) >= TOOL_SETS_LIMIT:
                self._tools.clear()
            # The specs are kept with their bytes: while they live, no other object has their ids.
            self._tools[key] = (tuple(tools), msgspec.json.encode([_tool(spec) for spec in tools]))
        return self._tools[key][1]


def _options(provider: str, max_tokens: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {"stream": True}
    if provider != "cohere":  # which refuses it: https://docs.cohere.com/docs/compatibility-api
        options["stream_options"] = {"include_usage": True}
    if provider == "openrouter":
        options["usage"] = {"include": True}
    if max_tokens is not None:
        # OpenAI's reasoning models refuse max_tokens; most others know nothing else.
        options["max_completion_tokens" if provider == "openai" else "max_tokens"] = max_tokens
    return options


def _tool(spec: ToolSpec) -> dict[str, Any]:
    # OpenAI refuses the whole request where an object has no properties: https://github.com/openai/openai-agents-python/issues/449
    parameters = {"type": "object", "properties": {}, **spec.parameters}
    function = {"name": spec.name, "description": spec.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _message(message: Message, target: tuple[str, str]) -> dict[str, Any]:
    if message.role == "assistant":
        return _assistant(message, target)
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": _filled(message.text)}
    return {"role": message.role, "content": _content(message.content)}


def _assistant(message: Message, target: tuple[str, str]) -> dict[str, Any]:
    encoded: dict[str, Any] = {"role": "assistant", "content": None if _is_call_alone(message) else _filled(message.text)}
    encoded |= _reasoning(message, target)
    if message.tool_calls:
        encoded["tool_calls"] = [_call(call) for call in message.tool_calls]
    return encoded


def _is_call_alone(message: Message) -> bool:
    return bool(message.tool_calls) and not message.text.strip()


def _filled(text: str) -> str:
    return text if text.strip() else NOTHING


def _reasoning(message: Message, target: tuple[str, str]) -> dict[str, Any]:
    """What the provider wants back of its reasoning: signatures mean nothing to another one."""
    reasoning = message.reasoning
    if reasoning is None or (reasoning.get("provider"), reasoning.get("model")) != target:
        return {}
    if reasoning.get("details"):
        return {"reasoning_details": reasoning["details"]}
    if reasoning.get("field") == "reasoning_content" and message.tool_calls:
        # DeepSeek and Kimi refuse a tool call without the thought that led to it.
        return {"reasoning_content": reasoning["text"]}
    return {}


def _call(call: ToolCall) -> dict[str, Any]:
    # Providers refuse a history with a name or with arguments that they would not have accepted, for ever.
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", call.name)[:64]
    return {"id": call.id, "type": "function", "function": {"name": name or "_", "arguments": _arguments(call.arguments)}}


def _arguments(raw: str) -> str:
    try:
        msgspec.json.decode(raw, type=dict[str, Any])
    except (ValueError, RecursionError):
        return msgspec.json.encode({"malformed": raw}).decode()
    return raw


def _moved_images(message: Message) -> bytes:
    """The images of a tool's result, as a user's message: chat completions take no images from a tool."""
    images = [part for part in message.content if isinstance(part, Image)]
    if message.role != "tool" or not images:
        return b""
    note = Text(f"[images of tool result {message.tool_call_id}]")
    return msgspec.json.encode({"role": "user", "content": _content((note, *images))})


def _content(parts: Sequence[Part]) -> str | list[Mapping[str, Any]]:
    if all(isinstance(part, Text) for part in parts):
        return _filled("".join(part.text for part in parts if isinstance(part, Text)))
    return [_part(part) for part in parts if not isinstance(part, Text) or part.text.strip()]


def _part(part: Part) -> Mapping[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{part.data}"}}
