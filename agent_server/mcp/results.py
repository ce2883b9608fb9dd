"""What a call of an MCP server's tool gave, as text for the model. Images and audio are named, not shown."""

from typing import Any

import msgspec

from tools import ToolResult


def result_of(answer: Any) -> ToolResult:
    """Gives the SDK's CallToolResult as a tool's result; its structured content only where there is no other text."""
    parts = [_text(block) for block in answer.content]
    if answer.structured_content is not None and not any(block.type == "text" for block in answer.content):
        parts.append(msgspec.json.encode(answer.structured_content).decode())
    return ToolResult("\n".join(parts) or "(The tool gave nothing.)", is_error=bool(answer.is_error))


def _text(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "image" | "audio":
            return f"[{block.type} {block.mime_type}, {_size(block.data)} bytes; not shown]"
        case "resource_link":
            return f"[resource {block.name}: {block.uri}{_kind(block)}]"
        case "resource":
            held = block.resource
            if hasattr(held, "text"):
                return f"[resource {held.uri}{_kind(held)}]\n{held.text}"
            return f"[resource {held.uri}{_kind(held)}, {_size(held.blob)} bytes; not shown]"
    return f"[{block.type}]"


def _kind(thing: Any) -> str:
    return f", {thing.mime_type}" if thing.mime_type else ""


def _size(base64: str) -> int:
    return len(base64.rstrip("=")) * 3 // 4
