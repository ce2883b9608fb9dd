"""Which gateway a call takes."""

from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from agent_server.gateway import Delta, Gateway, ModelOptions
from agent_server.gateway.providers import PROVIDERS, ProviderSettings
from agent_server.messages import Message, ToolSpec

REPLAY = "replay"

Choice = Literal["auto", "litellm"]


class Gateways:
    """Recordings go to `replay`, what speaks chat completions to `chat`, every other provider to `litellm`; with the choice "litellm"
    all but recordings do."""

    def __init__(self, settings: ProviderSettings, chat: Gateway, litellm: Gateway, replay: Gateway, choice: Choice = "auto") -> None:
        self._settings = settings
        self._chat = chat
        self._litellm = litellm
        self._replay = replay
        self._choice = choice

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: ModelOptions) -> AsyncGenerator[Delta, None]:
        return self.gateway(options.provider).stream(messages, tools, options)

    async def close(self) -> None:
        await self._chat.close()
        await self._litellm.close()
        await self._replay.close()

    def gateway(self, provider: str) -> Gateway:
        """Gives the way that a provider's calls take."""
        if provider == REPLAY:
            return self._replay
        is_light = self._choice == "auto" and (self._settings.base_url is not None or provider in PROVIDERS)
        return self._chat if is_light else self._litellm
