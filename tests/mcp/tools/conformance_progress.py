"""What the conformance suite calls to see progress: a command that says something three times, as far apart as output is gathered."""

import msgspec

from tools import Tool, ToolContext, ToolResult


class Arguments(msgspec.Struct, frozen=True):
    pass


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    result = await context.run("for each in begun half done; do echo $each; sleep 0.1; done", timeout=10, live=True)
    return ToolResult(result.output)


TOOL = Tool("test_tool_with_progress", "Says something now and then.", Arguments, run)
