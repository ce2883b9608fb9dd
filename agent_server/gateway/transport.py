"""The HTTP of model calls, and the only module that imports httpx.

httpx takes 190 ms to import on a small VM and its TLS context as long again to build. `chat.py` imports this module in a thread,
at the first call, so that neither the start nor `/health` waits for it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.providers import Endpoint

CONNECT_TIME = 15.0
"""Seconds for DNS, TCP and TLS."""

KEEP_TIME = 60.0
"""Seconds an idle connection is kept: most tool calls are over by then, and the next call saves the handshakes."""


def open_transport(idle_timeout: float) -> "Transport":
    """Makes a Transport. Blocks. Errors: ModelError when the environment names a proxy or certificates that cannot be used."""
    try:
        return Transport(idle_timeout)
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise ModelError(Fault.NETWORK, f"No HTTP client can be made; check the proxy and certificate variables: {error}") from error


class Transport:
    """One client for all calls. It honours HTTP_PROXY and its kin. `idle_timeout` is in seconds without a byte."""

    def __init__(self, idle_timeout: float) -> None:
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(idle_timeout, connect=CONNECT_TIME, pool=None),
            # How many calls run at once is bounded by the tasks that make them.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEP_TIME),
        )

    @asynccontextmanager
    async def post(self, endpoint: Endpoint, body: bytes) -> AsyncIterator[httpx.Response]:
        """Sends a body and gives the answer, whose bytes are read within the context; leaving it early closes the connection.

        Errors: ModelError, for whatever goes wrong while sending or, in the context, while reading.
        """
        has_begun = False
        try:
            async with self._client.stream("POST", endpoint.url, content=body, headers=_headers(endpoint)) as response:
                has_begun = True
                yield response
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ModelError(
                Fault.BAD_REQUEST, f"{endpoint.provider} has no usable URL: AGENT_BASE_URL must be like https://host/v1."
            ) from error
        except httpx.ReadTimeout as error:
            raise ModelError(Fault.STREAM_IDLE, f"{endpoint.provider} sent nothing for {self._client.timeout.read} s.") from error
        except httpx.DecodingError as error:
            raise ModelError(Fault.BAD_RESPONSE, f"{endpoint.provider} sent a body that cannot be decompressed.") from error
        except httpx.RequestError as error:
            what = str(error) or type(error).__name__
            if has_begun:
                raise ModelError(Fault.STREAM_CUT, f"{endpoint.provider} broke the connection: {what}") from error
            raise ModelError(Fault.NETWORK, f"{endpoint.provider} cannot be reached at {endpoint.host}: {what}") from error

    async def close(self) -> None:
        await self._client.aclose()


def _headers(endpoint: Endpoint) -> dict[str, str]:
    # Compressed streams arrive in lumps.
    headers = {"content-type": "application/json", "accept": "text/event-stream", "accept-encoding": "identity"}
    if endpoint.api_key:
        headers["authorization"] = f"Bearer {endpoint.api_key}"
    return headers | dict(endpoint.headers)
