"""Attempts at a model call: how many, how long between them, and who is told."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from agent_server.gateway import Delta, Gateway, ModelError, ModelOptions
from agent_server.messages import Message, ToolSpec

MAX_TRIES = 4
BASE_DELAY = 1.0
"""Seconds before the second try; each later wait is twice the one before."""

MAX_DELAY = 30.0
"""Seconds. The cap of the growing waits."""

MAX_RETRY_AFTER = 60.0
"""Seconds. The most of a provider's own wish that is granted: a task must not sleep for an hour."""

OnRetry = Callable[[ModelError, int, float], Awaitable[None]]
"""Is awaited before each wait with the error, the number of tries made, and the seconds until the next one."""


async def stream_with_retries(
    gateway: Gateway,
    messages: Sequence[Message] | Callable[[], Sequence[Message]],
    tools: Sequence[ToolSpec],
    options: ModelOptions,
    *,
    on_retry: OnRetry,
    base_delay: float = BASE_DELAY,
) -> AsyncGenerator[Delta, None]:
    """Gives the deltas of the attempts, one after another, until one of them ends in its Completion.

    Where `messages` is a function, each attempt sends what it gives then. The deltas before an `on_retry` belong to a broken
    attempt and are to be discarded there. Errors: the last ModelError, with `details["tries"]`. Cancellation: close it
    (`contextlib.aclosing`), so that the connection is closed at once.
    """
    for tries in range(1, MAX_TRIES + 1):
        try:
            sent = messages() if callable(messages) else messages
            async with aclosing(gateway.stream(sent, tools, options)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        except ModelError as error:
            error.details["tries"] = tries
            if not error.fault.is_transient or tries == MAX_TRIES:
                raise
            failed = error
        delay = wait_before(tries, failed.retry_after, base_delay)
        await on_retry(failed, tries, delay)
        await asyncio.sleep(delay)


def wait_before(tries: int, retry_after: float | None, base_delay: float = BASE_DELAY) -> float:
    """Seconds to wait after that many tries: between half and all of the growing delay, or what the provider wished for."""
    delay: float = min(MAX_DELAY, base_delay * 2 ** (tries - 1))
    jittered = delay * random.uniform(0.5, 1)  # noqa: S311 - spreads the load, keeps no secret
    return max(jittered, min(retry_after or 0.0, MAX_RETRY_AFTER))
