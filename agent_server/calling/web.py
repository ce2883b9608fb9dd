"""A client's tool that is called by URL: the arguments are posted there, and what comes back is the result.

A call is never made twice: whether the other side has acted on the first one cannot be known. Redirects are not followed,
so that the arguments go where the client has said and nowhere else.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from agent_server.calling.custom import Owned
from tools import ToolError, ToolResult

if TYPE_CHECKING:
    import httpx

CONNECT_TIME = 15.0
"""Seconds for DNS, TCP and TLS."""

CALL_TIME = 300.0
"""Seconds for a whole call: longer work belongs into a tool that the client runs itself."""

REPLY_BYTES = 1 << 20
"""Bytes of a reply that are read: twenty times what a model is shown of it."""

ERROR_LENGTH = 2_000
"""Characters of an error's body that the model is shown."""


class WebTools:
    """Makes the calls, through one HTTP client that is made at the first one."""

    def __init__(self, *, call_time: float = CALL_TIME) -> None:
        self._call_time = call_time
        self._client: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()  # two first calls at once must not make two clients

    async def call(self, name: str, url: str, arguments: dict[str, Any], context: Owned) -> ToolResult:
        """Posts a call and gives the reply: a JSON string as its text, other JSON and text as they are.

        Errors: ToolError for whatever goes wrong, and for every status that is no success.
        """
        owner = context.owner
        ids = {"toolCallId": owner.tool_call_id, "taskId": owner.task_id, "sessionId": owner.session_id}
        body = msgspec.json.encode({"name": name, "arguments": arguments, **ids})
        headers = {"content-type": "application/json", "idempotency-key": owner.tool_call_id or ""}
        client = await self._open()
        try:
            async with asyncio.timeout(self._call_time):
                status, is_json, reply = await _post(client, url, body, headers)
        except TimeoutError:
            raise ToolError(f"{name} did not answer within {self._call_time:g} s; it may have done what it was asked.") from None
        text = reply.decode("utf-8", "replace")
        if not 200 <= status < 300:
            what = "a redirect, which is not followed" if 300 <= status < 400 else f"status {status}"
            raise ToolError(f"{name} answered with {what}: {text[:ERROR_LENGTH]}".rstrip(": "))
        return ToolResult(_plain(reply, text) if is_json else text)

    async def _open(self) -> "httpx.AsyncClient":
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(_make_client)
            return self._client

    async def close(self) -> None:
        """Closes the connections. May be called twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _make_client() -> "httpx.AsyncClient":
    # Imported at the first call, in a thread: httpx takes 190 ms and its TLS context 60 ms.
    import httpx

    return httpx.AsyncClient(timeout=httpx.Timeout(None, connect=CONNECT_TIME), follow_redirects=False)


async def _post(client: "httpx.AsyncClient", url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bool, bytes]:
    # Loaded by now, with the client.
    import httpx

    read = bytearray()
    try:
        async with client.stream("POST", url, content=body, headers=headers) as response:
            async for chunk in response.aiter_bytes():
                read += chunk
                if len(read) > REPLY_BYTES:
                    raise ToolError(f"The tool's reply is over {REPLY_BYTES} bytes; ask it for less.")
            is_json = response.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
            return response.status_code, is_json, bytes(read)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = type(error).__name__ if not str(error) else str(error)
        raise ToolError(f"The tool could not be called ({what}); whether it has done anything is not known.") from error


def _plain(reply: bytes, text: str) -> str:
    try:
        value = msgspec.json.decode(reply)
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, str) else text
