"""Marks for Anthropic's prompt cache, in chat completions: up to where a request is worth keeping.

Other providers cache what repeats by themselves. Anthropic does so only up to a mark, four of which a request may have: one is
put on the stable part of the system prompt (which covers the tools, that come before it), and one on each of the last two
messages, so that the next request finds the end of this one. It is looked for in 20 parts before a mark, and a turn may have more
calls and results than that: one mark has to be before them (see docs/decisions/0042). A mark is not part of what the model reads:
without marks, and with a text that stands alone written as a string, the bytes are the same as ever.
Source: https://openrouter.ai/docs/features/prompt-caching, https://docs.claude.com/en/docs/build-with-claude/prompt-caching
"""

from collections.abc import Mapping, MutableSequence
from typing import Any

import msgspec

from agent_server.gateway.providers import COMPATIBLE
from agent_server.messages import Message, Text

MARK: Mapping[str, Any] = {"type": "ephemeral"}

LAST = 2
"""Messages at the end that are marked."""

_ANTHROPIC = ("claude", "anthropic/")

_PASSING = frozenset({"openrouter", COMPATIBLE, "bedrock", "vertex_ai", "azure_ai"})
"""Providers that pass marks on to Anthropic's models."""


def takes_marks(provider: str, model: str) -> bool:
    """Whether it is one of Anthropic's models, behind an API that passes marks on."""
    return provider == "anthropic" or (provider in _PASSING and any(name in model.lower() for name in _ANTHROPIC))


def mark_all(encoded: MutableSequence[bytes], system: Message | None) -> None:
    """Marks messages in the form of chat completions, in place: the first one if it is `system`, and the last two that can be.

    The results of one turn are one message to Anthropic. Where both marks are on such, a third is put before the turn's results.
    """
    begin = 0
    if system is not None and encoded:
        begin = 1
        encoded[0] = msgspec.json.encode(_system(system))
    marks = turns = 0
    is_result = False
    for at in range(len(encoded) - 1, begin - 1, -1):
        message = msgspec.json.decode(encoded[at])
        was_result, is_result = is_result, message["role"] == "tool"
        is_another = not (is_result and was_result)
        if (marks < LAST or is_another) and (marked := mark(message)) is not None:
            encoded[at] = msgspec.json.encode(marked)
            marks += 1
            turns += is_another
        if turns == LAST:
            return


def mark(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """Gives a message with a mark on its last part; None where it has nothing to mark: Anthropic refuses marks on empty texts."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    if not parts or (parts[-1]["type"] == "text" and not parts[-1]["text"].strip()):
        return None
    parts[-1] = {**parts[-1], "cache_control": MARK}
    return {**message, "content": parts}


def _system(message: Message) -> dict[str, Any]:
    """The system prompt in its parts: the first is the same for all tasks of a session, another one is a task's own."""
    texts = [part.text for part in message.content if isinstance(part, Text) and part.text.strip()]
    parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
    if not parts:
        return {"role": "system", "content": ""}
    parts[0]["cache_control"] = MARK
    return {"role": "system", "content": parts}
