"""What real providers refuse in a conversation, so that a history that would break there breaks in tests."""

import json
import re
from collections.abc import Sequence
from typing import Any

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

MARKS = 4
"""Anthropic's models take no more."""


def complaint(body: dict[str, Any]) -> str | None:
    """Why a provider would answer 400 to this body; None when it would not."""
    messages = body.get("messages") or []
    if not messages:
        return "messages must not be empty"
    if messages[-1]["role"] not in ("user", "tool"):
        return f"the last message must be a user's or a tool's, not of role {messages[-1]['role']}"
    if sum("cache_control" in part for message in messages for part in _parts(message)) > MARKS:
        return f"at most {MARKS} marks for the cache may be set"
    names = [tool["function"]["name"] for tool in body.get("tools", [])]
    if "tools" in body and (not names or len(names) != len(set(names)) or not all(map(NAME.fullmatch, names))):
        return f"tools need distinct names of the form {NAME.pattern}"
    return next((text for message in messages if (text := _content_complaint(message))), None) or _pairing_complaint(messages)


def anthropic_complaint(body: dict[str, Any]) -> str | None:
    """Why Anthropic's own API would answer 400 to this body; None when it would not.

    Source: https://docs.claude.com/en/docs/agents-and-tools/tool-use/implement-tool-use
    """
    if json.dumps(body).count('"cache_control"') > MARKS:
        return f"A maximum of {MARKS} blocks with cache_control may be provided"
    seen: set[str] = set()
    waiting: list[str] = []
    for number, message in enumerate(body["messages"]):
        blocks = _blocks(message)
        if message["role"] != ("user", "assistant")[number % 2]:
            return f"messages.{number}: roles must alternate, from user on"
        if not blocks or any(block["type"] == "text" and not block["text"].strip() for block in blocks):
            return f"messages.{number}: text content blocks must be non-empty, and contain non-whitespace text"
        answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if sorted(answered) != sorted(waiting) or any(block["type"] != "tool_result" for block in blocks[: len(answered)]):
            return f"messages.{number}: each `tool_use` block must have one `tool_result` block at the beginning of the next message"
        waiting = [block["id"] for block in blocks if block["type"] == "tool_use"]
        if seen & {*waiting} or len(waiting) > len({*waiting}) or not all(map(NAME.fullmatch, waiting)):
            return f"messages.{number}: `tool_use` ids must be unique, and match {NAME.pattern}"
        seen.update(waiting)
    return "the conversation must end with a user message" if waiting or len(body["messages"]) % 2 == 0 else None


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def refusal(body: dict[str, Any], what: str) -> str | None:
    """Why a provider that does not take `what` would answer 400 to this body; None when it would not."""
    messages = body["messages"][1:]
    roles = [message["role"] for message in messages]
    match what:
        case "reasoning" if any("reasoning_details" in message or "reasoning_content" in message for message in messages):
            return "messages.1.content.0: Invalid `signature` in `thinking` block"
        case "images" if "image_url" in json.dumps(messages):
            return "Could not process image"
        case "calls" if "tool" in roles:
            return "messages.2: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_1"
        case "roles" if any(role != ("user", "assistant")[number % 2] for number, role in enumerate(roles)):
            return "Conversation roles must alternate user/assistant/user/assistant/..."
        case "summaries" if "## Next steps" in json.dumps(messages[-1:]):
            return "prompt is too long: 210000 tokens > 200000 maximum"
        case _ if what.startswith("longer than ") and len(json.dumps(messages)) > int(what.removeprefix("longer than ")):
            return "prompt is too long: 210000 tokens > 200000 maximum"
        case "everything":
            return "The model `nonesuch` does not exist"
        case _ if what.startswith("word ") and what.removeprefix("word ") in json.dumps(messages):
            return "The prompt was filtered due to content management policy"
    return None


def _content_complaint(message: dict[str, Any]) -> str | None:
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    if role == "assistant":
        if text := _parts_complaint(message):
            return text
        if not _spoken(content) and not calls:
            return "an assistant's message must have content or tool_calls"
        if isinstance(content, str) and content and not content.strip():
            return "text content blocks must contain non-whitespace text"
        return next((text for call in calls or [] if (text := _call_complaint(call))), None)
    if not content or (isinstance(content, str) and not content.strip()):
        return f"a message of role {role} must have content"
    return _parts_complaint(message)


def _spoken(content: Any) -> bool:
    """Whether it has a text that is not blank."""
    texts = [part.get("text", "-") for part in content] if isinstance(content, list) else [content or ""]
    return any(text.strip() for text in texts)


def _parts_complaint(message: dict[str, Any]) -> str | None:
    parts = _parts(message)
    marked = [part for part in parts if "cache_control" in part]
    if message["role"] != "user" and parts and not (marked and all(part["type"] == "text" for part in parts)):
        return f"content of role {message['role']} must be a string, or texts of which one is marked for the cache"
    if any(not part.get("text", "-").strip() for part in marked):
        return "cache_control cannot be set for empty text blocks"
    if any(part["type"] == "text" and not part["text"].strip() for part in parts):
        return "text content blocks must contain non-whitespace text"
    return None


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _call_complaint(call: dict[str, Any]) -> str | None:
    function = call["function"]
    if not NAME.fullmatch(function["name"]):
        return f"the name of tool call {call['id']} must match {NAME.pattern}"
    try:
        if isinstance(json.loads(function["arguments"]), dict):
            return None
    except ValueError:
        pass
    return f"the arguments of tool call {call['id']} must be a JSON object"


def _pairing_complaint(messages: Sequence[dict[str, Any]]) -> str | None:
    """Each call needs exactly one result, right after the message that made it; no id may come twice."""
    seen: set[str] = set()
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message.get("tool_call_id") not in waiting:
                return f"the result of {message.get('tool_call_id')} answers no tool call of the message before it"
            waiting.remove(message["tool_call_id"])
            continue
        if waiting:
            return f"tool calls without a result: {', '.join(waiting)}"
        waiting = [call["id"] for call in message.get("tool_calls") or []]
        if repeated := [id_ for number, id_ in enumerate(waiting) if id_ in seen or id_ in waiting[:number]]:
            return f"tool call ids that come twice: {', '.join(repeated)}"
        seen.update(waiting)
    return f"tool calls without a result: {', '.join(waiting)}" if waiting else None
