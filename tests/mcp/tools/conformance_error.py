"""What the conformance suite calls to see an error come back."""

import msgspec

from tools import Tool, ToolContext, ToolError, ToolResult


class Arguments(msgspec.Struct, frozen=True):
    pass


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    raise ToolError("This tool intentionally returns an error for testing")


TOOL = Tool("test_error_handling", "Fails.", Arguments, run)
