"""How many tokens a message takes, about: a cheap estimate that is the same everywhere and every time.

What a provider counts is known only after a request, and each counts otherwise; `context.py` corrects the estimate by that.
"""

from collections.abc import Sequence

import msgspec

from agent_server.messages import Image, Message, ToolSpec

TOKEN_BYTES = 4
"""Bytes of UTF-8 for one token: about what tokenizers make of English and code, and a little less than they make of other scripts."""

MESSAGE_TOKENS = 4
"""Tokens of a message besides its content: its role, its marks."""

CALL_TOKENS = 12
"""Tokens of a tool call besides its arguments: its id, its name."""

IMAGE_TOKENS = 1_600
"""Tokens of an image: what the largest that providers take as it is costs there."""


def text_tokens(text: str) -> int:
    """Estimates a text."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // TOKEN_BYTES)


def message_tokens(message: Message) -> int:
    """Estimates one message, with its calls and what is sent back of its reasoning."""
    content = sum(IMAGE_TOKENS if isinstance(part, Image) else text_tokens(part.text) for part in message.content)
    calls = sum(CALL_TOKENS + text_tokens(call.arguments) for call in message.tool_calls)
    return MESSAGE_TOKENS + content + calls + _reasoning_tokens(message)


def specs_tokens(specs: Sequence[ToolSpec]) -> int:
    """Estimates what the tools take in each request."""
    return sum(CALL_TOKENS + text_tokens(spec.description) + len(msgspec.json.encode(spec.parameters)) // TOKEN_BYTES for spec in specs)


def _reasoning_tokens(message: Message) -> int:
    reasoning = message.reasoning
    if reasoning is None:
        return 0
    if reasoning.get("details"):
        return len(msgspec.json.encode(reasoning["details"])) // TOKEN_BYTES
    is_sent = reasoning.get("field") == "reasoning_content" and bool(message.tool_calls)
    return text_tokens(reasoning["text"]) if is_sent else 0
