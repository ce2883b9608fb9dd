"""A server's list of tools, as the SDK gets it.

The SDK refuses a whole list for one tool that is none. And it holds results against the schemas in it: with patterns over which Python's
`re` may take for ever, on the event loop; what does not fit is thrown away.
"""

from collections.abc import Mapping
from typing import Any

from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCResponse

HINTS = ("readOnlyHint", "idempotentHint")


def mended(message: SessionMessage | Exception) -> SessionMessage | Exception:
    """Gives a message; of one that lists tools only what is used of them, as the protocol has it."""
    answer = message.message if isinstance(message, SessionMessage) else None
    if isinstance(answer, JSONRPCResponse) and "content" not in answer.result and isinstance(tools := answer.result.get("tools"), list):
        answer.result["tools"] = [_tool(tool) for tool in tools if isinstance(tool, dict) and isinstance(tool.get("name"), str)]
    return message


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    schema, said, hints = given.get("inputSchema"), given.get("description"), given.get("annotations")
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        schema = {}
    tool = {"name": given["name"], "inputSchema": {"type": "object", **schema}}
    if isinstance(said, str):
        tool["description"] = said
    if isinstance(hints, dict):
        tool["annotations"] = {name: hints[name] for name in HINTS if isinstance(hints.get(name), bool)}
    return tool
