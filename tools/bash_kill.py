"""The `bash_kill` tool: the end of a command in the background."""

from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolResult
from tools.bash_output import details, ending


class Arguments(msgspec.Struct, frozen=True, rename="camel"):
    process_id: Annotated[str, msgspec.Meta(description="As bash gave it.")]


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    state = await context.background.kill(arguments.process_id)
    return ToolResult(ending(state), details(arguments.process_id, state))


TOOL = Tool(
    name="bash_kill",
    description="Ends a command in the background with all its children, and says how it ended. bash_output still gives its output.",
    arguments=Arguments,
    run=run,
)
