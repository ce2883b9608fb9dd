"""Fetches the snapshot that an instance begins with. Imported where it is needed: httpx is not for every start."""

import asyncio
import logging
from collections.abc import Callable

import httpx

from agent_server.errors import AgentServerError

logger = logging.getLogger(__name__)

TRIES = 3
RETRY_DELAY = 1.0
"""Seconds before the second try; twice as many before the third."""

IDLE = 30.0
"""Seconds without a byte, or for a connection, after which a try has failed."""

TOTAL = 3600.0
"""Seconds that all tries have together: 16 GiB at 40 Mbit/s would take as long."""

REDIRECTS = 5


class DownloadFailed(AgentServerError):
    """The snapshot could not be fetched. Its URL may hold a signature, and is not named."""

    code = "UPSTREAM_ERROR"
    status = 502


async def download(url: str, begin: Callable[[], Callable[[bytes], object]]) -> None:
    """Fetches all of it; each try begins anew, with a writer from `begin`, which is called in a thread and may raise.

    Errors: DownloadFailed; whatever the writer raises.
    """
    try:
        async with asyncio.timeout(TOTAL):
            for tries in range(1, TRIES + 1):
                try:
                    return await _try(url, begin())
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    what = (
                        f"the server answered {error.response.status_code}"
                        if isinstance(error, httpx.HTTPStatusError)
                        else type(error).__name__
                    )
                    if tries == TRIES or not _is_transient(error):
                        raise DownloadFailed(f"It could not be downloaded: {what}.") from error
                    logger.warning("the snapshot could not be downloaded (%s); trying again", what)
                await asyncio.sleep(RETRY_DELAY * tries)
    except TimeoutError:
        raise DownloadFailed(f"It could not be downloaded within {TOTAL:.0f} s.") from None


async def _try(url: str, write: Callable[[bytes], object]) -> None:
    async with (
        httpx.AsyncClient(timeout=IDLE, follow_redirects=True, max_redirects=REDIRECTS) as client,
        # As it is: the archive is compressed itself, and must not be unpacked on the way.
        client.stream("GET", url, headers={"accept-encoding": "identity"}) as response,
    ):
        response.raise_for_status()
        async for chunk in response.aiter_raw(1 << 20):
            await asyncio.to_thread(write, chunk)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
