"""The `task` tool: a subagent does a part of the work in a context of its own, and only its last message comes back."""

from typing import Annotated

import msgspec

from tools import Assignment, SubagentType, Tool, ToolContext, ToolError, ToolResult

MAX_TITLE = 200
"""Characters of a description that are kept: it is a line in lists."""


class Arguments(msgspec.Struct, frozen=True):
    description: Annotated[str, msgspec.Meta(description="3 to 5 words.")]
    prompt: Annotated[str, msgspec.Meta(description="All it needs to know, and what to report.")]
    subagent_type: Annotated[SubagentType, msgspec.Meta(description="explore only reads, general does all.")]
    task_id: Annotated[str | None, msgspec.Meta(description="Of an earlier result: has that subagent go on.")] = None


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    if not arguments.prompt.strip():
        raise ToolError("prompt must not be blank: say what the subagent is to do.")
    title = " ".join(arguments.description.split())[:MAX_TITLE] or arguments.subagent_type
    assignment = Assignment(arguments.subagent_type, title, arguments.prompt, arguments.task_id or None)
    outcome = await context.delegate(assignment)
    # The id comes first: the end of a long result is cut.
    if outcome.is_error:
        text = f"Error: the subagent did not finish: {outcome.text}\ntask_id: {outcome.conversation} (to have it go on)"
    else:
        text = f"task_id: {outcome.conversation}\n\n{outcome.text}"
    return ToolResult(text, outcome.details, outcome.is_error)


TOOL = Tool(
    name="task",
    description=(
        "Hands a part of the work to a subagent with a context of its own, and gives its last message. Use explore for broad searches, "
        "general for a part that stands alone. It knows nothing of this conversation. Calls in one message run side by side: "
        "do not let two change the same files. Do what takes few calls yourself."
    ),
    arguments=Arguments,
    run=run,
    delegates=True,
)
