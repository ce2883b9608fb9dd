"""Every provider that litellm knows, in a process of its own.

Importing litellm takes 5 to 7 s of processor time, and its calls more than 200 MB: this module never does. An answer is put together by
the code of the light way (`assemble.py`). What it leaves out: retries (`retry.py`); a call whose process died is a transient fault.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from agent_server.gateway import Delta, ModelOptions
from agent_server.gateway.assemble import Answer, told
from agent_server.gateway.body import BodyEncoder
from agent_server.gateway.calls import call_ids
from agent_server.gateway.chat import CALL_TIME, IDLE_TIME
from agent_server.gateway.litellm_frames import Call, Target
from agent_server.gateway.litellm_processes import Processes
from agent_server.gateway.litellm_targets import target
from agent_server.gateway.prices import PriceTable
from agent_server.gateway.providers import Endpoint, ProviderSettings
from agent_server.messages import Message, ToolSpec

CONNECT_TIME = 15.0
"""Seconds for DNS, TCP and TLS, as in the light way."""


class LitellmGateway:
    """Calls the provider that the options name, by way of one process at a time."""

    def __init__(
        self,
        settings: ProviderSettings,
        *,
        idle_timeout: float = IDLE_TIME,
        call_timeout: float = CALL_TIME,
        prices: PriceTable | None = None,
        processes: Processes | None = None,
    ) -> None:
        self._settings = settings
        self._idle_timeout = idle_timeout
        self._call_timeout = call_timeout
        self._prices = prices or PriceTable()
        self._encoder = BodyEncoder(marks=settings.cache_marks)
        self._processes = processes or Processes(settings.environ)

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: ModelOptions) -> AsyncGenerator[Delta, None]:
        """Makes one attempt, as the contract says."""
        to = target(options.provider, options.model, self._settings)
        endpoint = Endpoint(to.api_base or "", to.api_key, {}, to.provider_model, to.provider)
        body = self._encoder.encode(endpoint, messages, tools, options.max_tokens)
        answer = Answer(endpoint, call_ids(messages))
        return told(
            self._follow(to, body, answer), answer, lambda completion: self._prices.priced(endpoint.provider, endpoint.model, completion)
        )

    async def close(self) -> None:
        """Ends the process; a later call would start another."""
        await self._processes.close()

    async def _follow(self, to: Target, body: bytes, answer: Answer) -> AsyncGenerator[Delta, None]:
        call = Call(0, to, msgspec.Raw(body), self._idle_timeout, CONNECT_TIME)
        async with self._processes.use() as process, aclosing(process.call(call, self._call_timeout)) as pieces:
            async for piece in pieces:
                for delta in answer.feed(piece):
                    yield delta
                if answer.is_done:
                    return
