"""Plan mode: a task that reads, and changes nothing.

The tools are offered as ever, so that the session's requests keep their common beginning; the calls that could change something are
refused, and the prompt says so.
"""

from agent_server.calling.custom import Offered
from tools import Tool

PROMPT = (
    "This is a task in plan mode: look around, ask what you need to know, and answer with a plan. Nothing may be changed: calls of "
    "bash, of tools that write, and of any other tool that does not only read are refused."
)

OVER = "Plan mode is over: from here on you may change things."

REFUSED = "This task is in plan mode, which only reads. Put into the plan what you would do."

HARMLESS = frozenset({"question", "todowrite", "skill", "task"})
"""Tools of ours that change nothing but the conversation. A subagent is in plan mode, too."""


def may_run(tool: Offered) -> bool:
    """Whether a plan may call this tool."""
    return tool.read_only or (isinstance(tool, Tool) and tool.name in HARMLESS)
