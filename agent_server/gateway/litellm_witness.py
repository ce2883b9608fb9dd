"""What really went over the wire in a call of litellm's: the status, the headers, the bytes, and how the connection ended.

litellm's own account leaves out what our contract promises: its errors lose the body, and tell a broken connection from no connection only
in words; its streams drop reasoning details, invent usage and finish reasons, and cannot read an answer that is not streamed. So each
answer of a chat completions endpoint is passed on as it came, and read by the same code as in the light way; and each error is classified
by what was sent, not by litellm's exception. Answers in other formats are translated by litellm.

Leaves out providers that litellm calls by other means than httpx; there, its exceptions are all there is.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import httpx

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.chunks import ErrorPart, decode_error
from agent_server.gateway.faults import answer_error, read_error
from agent_server.gateway.litellm_frames import Call
from agent_server.gateway.providers import Endpoint

ALIVE_PERIOD = 1.0
"""Seconds between two signs of life, while bytes come of which litellm makes nothing."""

TAIL = 4 * 2**10
"""Bytes at the end of what has come that are kept: an error that comes as the last event is shorter."""

ALIVE = b": \n\n"
"""A comment in a stream of events."""

LAST_WORDS = (b'"finishReason"', b'"blockReason"')
"""What is in the last event of an answer of Google's, and in no other: it answers, or refuses to."""

Send = Callable[[bytes], Awaitable[None]]


class Refused(httpx.RequestError):
    """An answer that is no success, or no answer at all: its error is in `Witness.error`."""


class Witness:
    """What is seen of one call. `send` takes the bytes of its answer; `began` is called before."""

    def __init__(self, call: Call, began: Callable[[], None], send: Send) -> None:
        self.endpoint = Endpoint(call.target.api_base or "", call.target.api_key, {}, call.target.provider_model, call.target.provider)
        self.is_keyless = call.target.is_keyless
        self.idle = call.idle
        self.connect = call.connect
        self.error: ModelError | None = None
        self.answer: Answered | None = None
        self.began = began
        self.send = send
        self._alive_at = 0.0

    @property
    def is_chat(self) -> bool:
        """Whether the answer is one of chat completions, which is passed on as it is."""
        return self.answer is not None and self.answer.is_chat

    def fail(self, fault: Fault, what: str) -> ModelError:
        self.error = ModelError(fault, f"{self.endpoint.provider} {what}")
        return self.error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps the error of what breaks while a body is read, and lets it go on."""
        try:
            yield
        except httpx.ReadTimeout:
            self.fail(Fault.STREAM_IDLE, f"sent nothing for {self.idle} s.")
            raise
        except httpx.DecodingError:
            self.fail(Fault.BAD_RESPONSE, "sent a body that cannot be decompressed.")
            raise
        except httpx.RequestError as error:
            self.fail(Fault.STREAM_CUT, f"broke the connection: {str(error) or type(error).__name__}")
            raise

    async def alive(self) -> None:
        if time.monotonic() - self._alive_at > ALIVE_PERIOD:
            self._alive_at = time.monotonic()
            await self.send(ALIVE)


WITNESS: ContextVar[Witness] = ContextVar("witness")
"""Of the call that the current asyncio task makes."""


class Answered(httpx.AsyncByteStream):
    """The body of an answer, decompressed, as it is read.

    `is_finished` tells whether its last word was seen, where we know one: litellm takes every answer of Google's for a finished one.
    """

    def __init__(self, witness: Witness, response: httpx.Response, path: str) -> None:
        self._witness = witness
        self._response = response
        self._last_words = LAST_WORDS if "enerateContent" in path else ()
        self._tail = b""
        self.is_chat = path.endswith("/chat/completions")
        self.is_finished = not self._last_words

    @property
    def said(self) -> ErrorPart | str | None:
        """The error that came as the last event, if one did."""
        last = self._tail.strip().rpartition(b"\n")[2].removeprefix(b"data:")
        try:
            return decode_error(last).error
        except (ValueError, RecursionError):
            return None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        witness = self._witness
        with witness.reading():
            async for data in self._response.aiter_bytes():
                self._look(data)
                await (witness.send(data) if self.is_chat else witness.alive())
                yield data

    async def pass_on(self) -> None:
        """Reads all that litellm has not read. Errors: httpx's; they are in `Witness.error`."""
        if not self._response.is_stream_consumed:
            async for _ in self:
                pass

    async def aclose(self) -> None:
        await self._response.aclose()

    def _look(self, data: bytes) -> None:
        seen = self._tail + data
        self.is_finished = self.is_finished or any(word in seen for word in self._last_words)
        self._tail = seen[-TAIL:]


def install() -> None:
    """Has every request of this process seen by the witness of its call."""
    sending = httpx.AsyncHTTPTransport.handle_async_request

    async def witnessed(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        witness = WITNESS.get(None)
        if witness is None:
            return await sending(self, request)
        return await _exchange(witness, request, lambda: sending(self, request))

    # One place for all of litellm's clients, its own and the openai package's, also those that go through a proxy.
    httpx.AsyncHTTPTransport.handle_async_request = witnessed  # type: ignore[method-assign]  # on purpose


async def _exchange(witness: Witness, request: httpx.Request, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    if witness.error is not None:
        raise Refused("no second attempt", request=request)  # litellm makes one by itself where a connection breaks
    # Some of litellm's providers lose the timeout that they are given.
    request.extensions["timeout"] = {"connect": witness.connect, "read": witness.idle, "write": witness.idle, "pool": witness.idle}
    request.headers["accept-encoding"] = "identity"  # compressed streams arrive in lumps
    if witness.is_keyless:
        request.headers.pop("authorization", None)
    try:
        response = await send()
    except httpx.ReadTimeout:
        witness.fail(Fault.STREAM_IDLE, f"sent nothing for {witness.idle} s.")
        raise
    except httpx.UnsupportedProtocol:
        witness.fail(Fault.BAD_REQUEST, "has no usable URL: it must be like https://host/v1.")
        raise
    except httpx.RequestError as error:
        what = str(error) or type(error).__name__
        witness.fail(Fault.NETWORK, f"cannot be reached at {request.url.host}: {what}")
        raise
    if not response.is_success:
        await _refuse(witness, request, response)
    return _passed_on(witness, request, response)


async def _refuse(witness: Witness, request: httpx.Request, response: httpx.Response) -> None:
    """Keeps the error of an answer that is no success; redirects are not followed, they would carry the key along."""
    with suppress(httpx.RequestError), witness.reading():
        body = await read_error(response.aiter_bytes())
        witness.error = answer_error(witness.endpoint, response.status_code, response.headers, body)
    with suppress(httpx.RequestError):
        await response.aclose()
    raise Refused(f"HTTP {response.status_code}", request=request)


def _passed_on(witness: Witness, request: httpx.Request, response: httpx.Response) -> httpx.Response:
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    answer = Answered(witness, response, request.url.path)
    if media_type == "text/html" and not answer.is_chat:
        witness.fail(Fault.BAD_RESPONSE, f"answered with a web page: is the URL of {request.url.host} the right one?")
        raise Refused("a web page", request=request)
    witness.answer = answer
    witness.began()
    headers = [(name, value) for name, value in response.headers.multi_items() if name not in ("content-encoding", "content-length")]
    return httpx.Response(response.status_code, headers=headers, stream=answer, extensions=response.extensions)
