"""What a task is made of: what `task.created` says."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec


class Submission(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A task as it is created. `tools` are the client's own, as `custom.py` describes them, checked by `custom.check`;
    `interactive` says whether its client answers questions (None: whether somebody follows it)."""

    prompt: str | list[dict[str, Any]]
    model: str
    provider: str
    timeout_ms: int = msgspec.field(name="timeout_ms")
    max_steps: int
    max_tokens: int | None = msgspec.field(name="max_tokens", default=None)
    max_cost: float | None = None
    system: str | None = None
    auto_tools: bool = True
    tools: Sequence[dict[str, Any]] = ()
    output_schema: dict[str, Any] | None = None
    mode: Literal["build", "plan"] = "build"
    interactive: bool | None = None


def title(prompt: str | list[dict[str, Any]]) -> str:
    """Gives the line that stands for a prompt in lists."""
    text = prompt if isinstance(prompt, str) else " ".join(part.get("text", "") for part in prompt)
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:99] + "…"
