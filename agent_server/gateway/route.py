"""Which gateway a call takes."""

from collections.abc import AsyncGenerator, Sequence

from agent_server.gateway import Delta, Gateway, ModelOptions
from agent_server.messages import Message, ToolSpec

REPLAY = "replay"


class Gateways:
    """Recordings go to `replay`, every other provider to `chat`."""

    def __init__(self, chat: Gateway, replay: Gateway) -> None:
        self._chat = chat
        self._replay = replay

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: ModelOptions) -> AsyncGenerator[Delta, None]:
        gateway = self._replay if options.provider == REPLAY else self._chat
        return gateway.stream(messages, tools, options)

    async def close(self) -> None:
        await self._chat.close()
        await self._replay.close()
