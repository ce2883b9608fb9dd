"""The agent types. Each is a value: what it is told, which tools it has, where it stops. The loop is the same for all."""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from agent_server.settings import AgentType
from tools import SubagentType, Tool

INSTRUCTIONS = ("AGENTS.md", "CLAUDE.md")
"""The first of these in a folder holds its instructions."""


class Agent(msgspec.Struct, frozen=True):
    """A configuration of the one loop.

    `prompts` names the files of `prompts/` that begin its system prompt, and `parts` those of the workspace that go on with it: in
    their order, of each entry the first that is there. `tools` are those it may use (None: all there are, but for those in `without`),
    with `is_read_only` only such as change nothing; `parallel` is how many read-only calls run side by side; `refused` names the
    integrations that must not reach it.
    """

    name: AgentType | SubagentType
    prompts: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]
    refused: frozenset[str] = frozenset()
    tools: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    is_read_only: bool = False
    max_steps: int = 500
    parallel: int = 8

    def may_use(self, tool: Tool) -> bool:
        """Whether it is offered this tool of ours."""
        is_named = tool.name in self.tools if self.tools is not None else tool.name not in self.without
        return is_named and (tool.read_only or not self.is_read_only)


AGENTS: Mapping[AgentType, Agent] = MappingProxyType(
    {
        "opencode": Agent("opencode", ("coding.md", "tools.md"), (INSTRUCTIONS,), frozenset({"Discord"})),
        "moltbot": Agent("moltbot", ("assistant.md", "tools.md"), (("AGENTS.md",), ("SOUL.md",), ("IDENTITY.md",), ("USER.md",))),
    }
)

SUBAGENTS: Mapping[str, Agent] = MappingProxyType(
    {
        "explore": Agent(
            "explore", ("explore.md",), (INSTRUCTIONS,), tools=("read", "glob", "grep", "list", "webfetch"), is_read_only=True
        ),
        # Without what would make subagents of its own, and what speaks to a person or for the whole task.
        "general": Agent("general", ("coding.md", "general.md", "tools.md"), (INSTRUCTIONS,), without=("task", "todowrite", "question")),
    }
)
"""What the `task` tool delegates to."""
