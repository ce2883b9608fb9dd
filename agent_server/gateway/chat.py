"""Chat completions over HTTP: OpenRouter, OpenAI, and everything that speaks like them.

What it leaves out: providers with an API of their own, and retries (`retry.py`).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from agent_server.gateway import Delta, Fault, ModelError, ModelOptions
from agent_server.gateway.assemble import Answer, told
from agent_server.gateway.body import BodyEncoder
from agent_server.gateway.calls import call_ids
from agent_server.gateway.faults import answer_error, read_error
from agent_server.gateway.prices import PriceTable
from agent_server.gateway.providers import Endpoint, ProviderSettings, resolve
from agent_server.messages import Message, ToolSpec

if TYPE_CHECKING:
    from agent_server.gateway.transport import Transport

IDLE_TIME = 120.0
"""Seconds without a byte: reasoning models think for a minute in silence, and OpenRouter sends comments meanwhile."""

CALL_TIME = 3600.0
"""Seconds that one call may stream: comments alone could hold it open for ever."""

DRAIN_TIME = 0.2
"""Seconds to wait, after the last event, for the end of the body: a connection that is read to its end is used again."""


class ChatGateway:
    """Calls the provider that the options name, through one HTTP client that lives as long as the gateway."""

    def __init__(
        self,
        settings: ProviderSettings,
        *,
        idle_timeout: float = IDLE_TIME,
        call_timeout: float = CALL_TIME,
        prices: PriceTable | None = None,
    ) -> None:
        self._settings = settings
        self._idle_timeout = idle_timeout
        self._call_timeout = call_timeout
        self._prices = prices or PriceTable()
        self._encoder = BodyEncoder(marks=settings.cache_marks)
        self._transport: Transport | None = None
        # Two calls that come first together must not make two clients.
        self._opening = asyncio.Lock()

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: ModelOptions) -> AsyncGenerator[Delta, None]:
        """Makes one attempt, as the contract says."""
        endpoint = resolve(options.provider, options.model, self._settings)
        body = self._encoder.encode(endpoint, messages, tools, options.max_tokens)
        answer = Answer(endpoint, call_ids(messages))
        return told(
            self._follow(endpoint, body, answer),
            answer,
            lambda completion: self._prices.priced(endpoint.provider, endpoint.model, completion),
        )

    async def close(self) -> None:
        """Closes the connections; a later call would open new ones."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def _follow(self, endpoint: Endpoint, body: bytes, answer: Answer) -> AsyncGenerator[Delta, None]:
        transport = await self._open()
        deadline = time.monotonic() + self._call_timeout
        async with transport.post(endpoint, body) as response:
            chunks = response.aiter_bytes()
            if not response.is_success:
                raise answer_error(endpoint, response.status_code, response.headers, await read_error(chunks))
            async for chunk in chunks:
                for delta in answer.feed(chunk):
                    yield delta
                if answer.is_done:
                    await _drain(chunks)
                    return
                if time.monotonic() > deadline:
                    raise ModelError(Fault.STREAM_IDLE, f"{endpoint.provider} was still answering after {self._call_timeout} s.")

    async def _open(self) -> "Transport":
        async with self._opening:
            if self._transport is None:
                self._transport = await asyncio.to_thread(_make_transport, self._idle_timeout)
            return self._transport


def _make_transport(idle_timeout: float) -> "Transport":
    # Imported here, in a thread, because httpx costs 190 ms and its TLS context 60 ms: nothing may wait for them at the start.
    from agent_server.gateway.transport import open_transport

    return open_transport(idle_timeout)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIME):
            async for _ in chunks:
                pass
