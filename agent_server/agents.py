"""The agent types. Each is a value: what it is told, which tools it has, where it stops. The loop is the same for all."""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from agent_server.settings import AgentType

INSTRUCTIONS = ("AGENTS.md", "CLAUDE.md")
"""The first of these in a folder holds its instructions."""


class Agent(msgspec.Struct, frozen=True):
    """A configuration of the one loop.

    `prompts` names the files of `prompts/` that begin its system prompt, and `parts` those of the workspace that go on with it: in
    their order, of each entry the first that is there. `tools` are those it may use (None: all there are), `parallel` is how many
    read-only calls run side by side; `refused` names the integrations that must not reach it.
    """

    name: AgentType
    prompts: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]
    refused: frozenset[str] = frozenset()
    tools: tuple[str, ...] | None = None
    max_steps: int = 500
    parallel: int = 8


AGENTS: Mapping[AgentType, Agent] = MappingProxyType(
    {
        "opencode": Agent("opencode", ("coding.md", "tools.md"), (INSTRUCTIONS,), frozenset({"Discord"})),
        "moltbot": Agent("moltbot", ("assistant.md", "tools.md"), (("AGENTS.md",), ("SOUL.md",), ("IDENTITY.md",), ("USER.md",))),
    }
)
