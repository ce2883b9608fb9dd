"""How many tokens a model can read: what the settings say, else a table of the common models, else litellm's, else a default.

A window that is assumed too large costs a refused call, which leads to a compaction all the same; one too small, a compaction
too many. So names are matched by families, and the smaller one is taken where providers serve a model with different windows.
"""

import re

from agent_server.gateway.prices import PriceTable

DEFAULT_WINDOW = 128_000
"""Tokens, for a model that nobody knows: what most models of today have at least."""

WINDOWS: tuple[tuple[str, int], ...] = (
    (r"claude", 200_000),
    (r"gpt-4\.1", 1_047_576),
    (r"gpt-5", 272_000),  # what it reads of its 400,000
    (r"gpt-4o|gpt-4-turbo|chatgpt-4o", 128_000),
    (r"gpt-4-32k", 32_768),
    (r"gpt-4(?![\w.-]*\d{2}k)", 8_192),
    (r"gpt-3\.5", 16_385),
    (r"gpt-oss", 131_072),
    (r"(^|/)o[134](-|$)", 200_000),
    (r"gemini-1\.5-pro", 2_097_152),
    (r"gemini", 1_048_576),
    (r"gemma-?3", 131_072),
    (r"grok-(4(\.\d+)?-fast|4\.1)", 2_000_000),
    (r"grok-(4|code)", 256_000),
    (r"grok", 131_072),
    (r"kimi-k2(\.\d|-0905|-thinking)", 262_144),
    (r"kimi|moonshot", 128_000),
    (r"deepseek", 128_000),
    (r"qwen-?3-(coder|next|max)", 256_000),
    (r"qwen-?3", 131_072),
    (r"qwen", 32_768),
    (r"glm-(4\.[6-9]|5)", 200_000),
    (r"glm", 128_000),
    (r"minimax-m2", 196_608),
    (r"llama-?4", 327_680),
    (r"llama-?3\.[123]", 128_000),
    (r"mixtral", 32_768),
    (r"mistral|codestral|devstral|magistral", 128_000),
)
"""Patterns in lower-case names, of which the first that fits counts, and tokens of prompt."""


class Windows:
    """Answers from memory; litellm's table is read for models that no pattern fits. `fixed` is AGENT_CONTEXT_TOKENS."""

    def __init__(self, fixed: int | None = None, prices: PriceTable | None = None) -> None:
        self._fixed = fixed
        self._prices = prices or PriceTable()

    async def find(self, provider: str, model: str) -> int:
        """Gives the window of a model, in tokens. Errors: none."""
        if self._fixed is not None:
            return self._fixed
        if (known := known_window(model)) is not None:
            return known
        price = await self._prices.lookup(provider, model)
        return price.context if price is not None and price.context else DEFAULT_WINDOW


def known_window(model: str) -> int | None:
    """Gives what the table of patterns has for a model's name."""
    name = model.lower()
    return next((tokens for pattern, tokens in WINDOWS if re.search(pattern, name)), None)
