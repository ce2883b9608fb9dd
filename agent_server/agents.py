"""The agent types. Each is a value: what it is told, which tools it has, where it stops. The loop is the same for all."""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from agent_server.settings import AgentType


class Agent(msgspec.Struct, frozen=True):
    """A configuration of the one loop.

    `prompts` names the files of `prompts/` that begin its system prompt; `tools` those it may use (None: all there are);
    `parallel` how many read-only calls run side by side.
    """

    name: AgentType
    prompts: tuple[str, ...]
    tools: tuple[str, ...] | None = None
    max_steps: int = 500
    parallel: int = 8


AGENTS: Mapping[AgentType, Agent] = MappingProxyType(
    {
        "opencode": Agent("opencode", ("coding.md", "tools.md")),
        "moltbot": Agent("moltbot", ("assistant.md", "tools.md")),
    }
)
