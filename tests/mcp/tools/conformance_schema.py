"""What the conformance suite looks for in tools/list: a schema with references, as the tools of other MCP servers have them."""

from functools import cached_property
from typing import Any

import msgspec

from tools import Tool, ToolContext, ToolResult


class Arguments(msgspec.Struct, frozen=True):
    pass


class Described(Tool, frozen=True, dict=True):
    @cached_property
    def parameters(self) -> dict[str, Any]:
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
            "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
            "additionalProperties": False,
        }


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    return ToolResult("")


TOOL = Described("json_schema_2020_12_tool", "Has a schema with references.", Arguments, run)
