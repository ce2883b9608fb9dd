"""What a call costs and how much a model can read, from the table that the litellm package brings along.

Nothing is fetched and litellm is not imported, which would take seconds and 158 MB: its table is a JSON file. Prices that rise
with the length of the prompt, of batches and of other service tiers are left out: OpenRouter sends the true cost itself.
"""

import asyncio
import importlib.util
from pathlib import Path

import msgspec

from agent_server.gateway import Completion
from agent_server.messages import Usage

TABLE = "model_prices_and_context_window_backup.json"

LITELLM_NAMES = {"together": "together_ai", "fireworks": "fireworks_ai"}

NAMES_LIMIT = 64
"""Models whose entries are kept. A session uses one or two; a client that makes up names must not fill the memory."""


class Price(msgspec.Struct, frozen=True):
    """USD per token, and `context` in tokens. None where the table has nothing."""

    input: float | None = msgspec.field(default=None, name="input_cost_per_token")
    output: float | None = msgspec.field(default=None, name="output_cost_per_token")
    cached: float | None = msgspec.field(default=None, name="cache_read_input_token_cost")
    written: float | None = msgspec.field(default=None, name="cache_creation_input_token_cost")
    reasoning: float | None = msgspec.field(default=None, name="output_cost_per_reasoning_token")
    context: int | None = msgspec.field(default=None, name="max_input_tokens")

    def cost(self, usage: Usage) -> float | None:
        """What this usage costs in USD; None when the table knows no price."""
        if self.input is None or self.output is None:
            return None
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.written is None else self.written
        reasoning = self.output if self.reasoning is None else self.reasoning
        return (
            (usage.prompt - usage.cached - usage.written) * self.input
            + usage.cached * cached
            + usage.written * written
            + (usage.completion - usage.reasoning) * self.output
            + usage.reasoning * reasoning
        )


class PriceTable:
    """Answers from memory; the file is read, in a thread, once for each model that is asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Price | None] = {}

    async def lookup(self, provider: str, model: str) -> Price | None:
        """The entry of a model, under the names that providers and litellm give it; None when it is unknown."""
        if (provider, model) not in self._known:
            price = await asyncio.to_thread(read_price, provider, model)
            if len(self._known) >= NAMES_LIMIT:
                self._known.clear()
            self._known[provider, model] = price
        return self._known[provider, model]

    async def priced(self, provider: str, model: str, completion: Completion) -> Completion:
        """Gives a completion with its cost: the provider's own figure, else that of the table, else None."""
        usage = completion.usage
        if usage.cost is not None or not (usage.prompt or usage.completion):
            return completion
        price = await self.lookup(provider, model)
        return msgspec.structs.replace(completion, usage=msgspec.structs.replace(usage, cost=price.cost(usage) if price else None))


def read_price(provider: str, model: str) -> Price | None:
    """Reads the table for one model. Blocks for some 5 ms and takes 4 MB while it does."""
    package = importlib.util.find_spec("litellm")
    if package is None or not package.submodule_search_locations:
        return None
    try:
        content = Path(package.submodule_search_locations[0], TABLE).read_bytes()
        # Raw values are views of the file's bytes: of 4,000 entries only the wanted one becomes objects.
        entries = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        raw = next((entries[name] for name in _names(provider, model) if name in entries), None)
        return None if raw is None else msgspec.json.decode(raw, type=Price)
    except (OSError, ValueError):
        return None


def _names(provider: str, model: str) -> tuple[str, ...]:
    last = model.rpartition("/")[2]
    # Anthropic writes claude-sonnet-4-5 what OpenRouter writes claude-sonnet-4.5.
    return (f"{LITELLM_NAMES.get(provider, provider)}/{model}", model, last, last.replace(".", "-"))
