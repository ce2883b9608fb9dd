"""What the conformance suite calls to see a text come back."""

import msgspec

from tools import Tool, ToolContext, ToolResult


class Arguments(msgspec.Struct, frozen=True):
    pass


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    return ToolResult("This is a simple text response for testing.")


TOOL = Tool("test_simple_text", "Gives a text.", Arguments, run, read_only=True)
