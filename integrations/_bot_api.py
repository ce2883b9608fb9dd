"""Telegram's Bot API over HTTP: one call, and what its failures mean. https://core.telegram.org/bots/api

The only module of Telegram's that imports httpx, which takes 190 ms on a small VM: it is imported in a thread, at the start.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from integrations import Doubtful, Rejected, Unavailable, Undeliverable

OFFICIAL = "https://api.telegram.org"

CONNECT_SECONDS = 15.0
CALL_SECONDS = 30.0
"""Seconds for DNS, TCP and TLS, and for an answer."""

ANSWER_BYTES = 16 << 20
"""Bytes of one answer: 100 updates of 4,096 characters with what is quoted in them have under 4 MiB."""

_TOKEN = re.compile(r"[0-9]{1,20}:[A-Za-z0-9_-]{1,100}")


class _Parameters(msgspec.Struct):
    retry_after: float = 0


class _Answer(msgspec.Struct):
    ok: bool
    result: msgspec.Raw = msgspec.Raw(b"null")
    description: str = ""
    error_code: int = 0
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)


class BotApi:
    """The methods of one bot. Each call is one request; whether it is made again is for the caller to say."""

    def __init__(self, token: str, url: str = "") -> None:
        """Makes the client. Blocks for some ms: certificates are read.

        Errors: Rejected when the token or the URL cannot be right.
        """
        base = (url or OFFICIAL).rstrip("/")
        parts = urlsplit(base)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")):
            raise Rejected("TELEGRAM_API_URL must begin with https:// (or be on this machine): the token is in every request.")
        if not _TOKEN.fullmatch(token):
            raise Rejected("TELEGRAM_BOT_TOKEN is not like a bot's token, 123456:ABC-DEF; ask @BotFather for it.")
        self._base = f"{base}/bot{token}/"
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS), follow_redirects=False)

    async def call(self, method: str, parameters: Mapping[str, Any], *, seconds: float = CALL_SECONDS) -> msgspec.Raw:
        """Calls a method and gives its result. It may take `seconds` until the answer.

        Errors: Unavailable when it was not done; Doubtful when that is not known; Rejected for the token; Undeliverable for
        these parameters.
        """
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        body = msgspec.json.encode(parameters)
        headers = {"content-type": "application/json"}
        try:
            async with self._client.stream("POST", self._base + method, content=body, headers=headers, timeout=timeout) as response:
                content = await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError) as error:
            raise Unavailable(f"Telegram cannot be reached: {error or type(error).__name__}.") from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise Doubtful(f"Telegram broke the connection: {str(error) or type(error).__name__}.") from error
        return _result(method, response.status_code, content)

    async def close(self) -> None:
        await self._client.aclose()


async def _read(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > ANSWER_BYTES:
            raise Doubtful(f"Telegram answered with more than {ANSWER_BYTES} bytes.")
    return bytes(content)


def _result(method: str, status: int, content: bytes) -> msgspec.Raw:
    try:
        answer = msgspec.json.decode(content, type=_Answer)
    except msgspec.MsgspecError as error:
        # Not Telegram's own word: a proxy's, or half of one.
        raise Doubtful(f"Telegram answered {method} with {status} and no JSON of its own.") from error
    if answer.ok:
        return answer.result
    code, said = answer.error_code or status, answer.description or "no reason given"
    if code in (401, 404):  # of a token that is none it says Not Found
        raise Rejected(f"Telegram refuses TELEGRAM_BOT_TOKEN ({said}); set the bot's present token.")
    if code == 409:
        raise Unavailable(f"Another program receives this bot's messages ({said}); stop that one, or give this one a bot of its own.", 5)
    if code == 429:
        raise Unavailable(f"Telegram wants to be asked less often ({said}).", max(1.0, answer.parameters.retry_after))
    if code in (502, 504):  # its front says so also where what is behind it was only slow
        raise Doubtful(f"Telegram did not say how {method} ended ({code}: {said}).")
    if code >= 500:
        raise Unavailable(f"Telegram fails at present ({code}: {said}).")
    raise Undeliverable(f"Telegram refused {method} ({code}: {said}).")
