"""What a provider's error means: HTTP answers and errors inside a stream, classified into one ModelError."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import msgspec

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.chunks import ErrorPart, decode_error, joined
from agent_server.gateway.providers import Endpoint

ERROR_LIMIT = 64 * 2**10
"""Bytes of an error's body that are read."""

ERROR_TIME = 3.0
"""Seconds in which they must come: its status says most, and a server may send it a byte at a time."""

MESSAGE_LIMIT = 1000
"""Characters of a provider's message that are passed on; the rest repeats the request or is a page of HTML."""

# Patterns are compiled where they are first used: a start has no use for them.
OVERFLOW = r"""(?isx)exceed_context_size | context[ _](length|window|limit|size)
    | prompt[ ](is[ ])?too[ ]long | input[ ]is[ ]too[ ]long | (input|prompt)[ ]token[ ]count.*exceeds
    | maximum[ ]prompt[ ]length | maximum[ ]model[ ]length | exceeded[ ]model[ ]token[ ]limit
    | prompt[ ]exceeds[ ]max | too[ ]many[ ](input[ ])?tokens | token[ ]limit[ ]exceeded | input[ ]tokens[ ]exceed
    | range[ ]of[ ]input[ ]length | input[ ]length[ ]\d+[ ]exceeds | maximum[ ]input[ ]length
    | current[ ]length[ ]is.*while[ ]limit[ ]is | 4(00|13)[ ]status[ ]code[ ]\(no[ ]body\)
    | reduce[ ]the[ ]length[ ]of[ ]the[ ]messages | inputs`?[ ]tokens.*must[ ]be[ ]<= | request[ ]too[ ]large"""
"""How OpenAI, Anthropic, Google, xAI, Groq, Kimi, Z.ai, Together, DashScope, DeepInfra, NVIDIA, Cerebras, vLLM, llama.cpp and Ollama say
that a prompt is too long, and JavaScript's SDK that nothing was said."""

TEMPLATE = r"(?i)jinja|chat[ _]template|roles must alternate"
"""How llama.cpp and servers on it say, with a 500, that a model's template has no form for this conversation."""

NEVER_FITS = "request too large"
"""What OpenAI says, with a 429, of a request that alone is more than the tokens of a minute: waiting does not help."""

STATUS_OF_CODE = {
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "billing_error": 402,
    "not_found_error": 404,
    "request_too_large": 413,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
}
"""Errors inside a stream have no HTTP status of their own, only a code, and those of OpenAI and Anthropic are words."""

BUSY = frozenset({408, 409, 424, 425})
"""Statuses that ask for another try; 424 is how Bedrock says that a model failed while it answered."""


async def read_error(chunks: AsyncIterator[bytes]) -> bytes:
    """Reads the body of an HTTP answer that is no success: what comes of it in ERROR_TIME, up to ERROR_LIMIT. Errors: those of `chunks`."""
    body = bytearray()
    with suppress(TimeoutError):
        async with asyncio.timeout(ERROR_TIME):
            async for chunk in chunks:
                body += chunk
                if len(body) >= ERROR_LIMIT:
                    break
    return bytes(body[:ERROR_LIMIT])


def answer_error(endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> ModelError:
    """The error of an HTTP answer that is no success. `body` may be cut short."""
    if status == HTTPStatus.BAD_REQUEST and not body.strip():
        # All that Cerebras and Mistral say of a prompt that is too long.
        return _error(endpoint, status, ErrorPart(code="context_length_exceeded"), retry_after(headers))
    try:
        decoded = decode_error(body)
    except (ValueError, RecursionError):
        return _error(endpoint, status, ErrorPart(message=body.decode(errors="replace")), retry_after(headers))
    part = _structured(decoded.error or ErrorPart(message=decoded.message or decoded.detail))
    wait = retry_after(headers)
    return _error(endpoint, status, part, _retry_delay(part) if wait is None else wait)


def stream_error(endpoint: Endpoint, error: ErrorPart | str) -> ModelError:
    """The error that a provider sent as an event, after it had said 200."""
    part = _structured(error)
    code = str(part.code or part.type or "")
    number = int(code) if code.isdecimal() else STATUS_OF_CODE.get(code, 0)
    status = number if 400 <= number < 600 else 502
    return _error(endpoint, status, part, None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms`, or `retry-after` as seconds or as a date; None when there is no sense in it."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            seconds = float(milliseconds) / 1000
        elif value is None:
            return None
        elif value.strip().replace(".", "", 1).isdecimal():
            seconds = float(value)
        else:
            date = parsedate_to_datetime(value)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _retry_delay(part: ErrorPart) -> float | None:
    """Seconds to wait as Google says them. Source: https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto"""
    details = part.details if isinstance(part.details, list) else []
    delay = next((detail["retryDelay"] for detail in details if isinstance(detail, dict) and "retryDelay" in detail), None)
    return retry_after({"retry-after": delay.removesuffix("s")}) if isinstance(delay, str) else None


def _error(endpoint: Endpoint, status: int, part: ErrorPart, wait: float | None) -> ModelError:
    said = _message(part)
    fault = _classify(status, part, said)
    hint = " (out of credit)" if status == 402 else ""
    text = " ".join(joined(f"{endpoint.provider} {status}{hint}: {said or _phrase(status)}").split())
    if endpoint.api_key:
        # Some servers quote the key they refuse.
        text = text.replace(endpoint.api_key, "[key]")
    return ModelError(fault, text[:MESSAGE_LIMIT], retry_after=wait, provider_status=status)


def _classify(status: int, part: ErrorPart, said: str) -> Fault:
    code = f"{part.code} {part.type}"
    if status == 403 and ("moderation" in said.lower() or "reasons" in (part.metadata or {})):
        return Fault.BAD_REQUEST
    if "api key not valid" in said.lower():  # Google's, with a 400
        return Fault.AUTHENTICATION
    if status in (401, 402, 403) or (status == 429 and "insufficient_quota" in code):
        return Fault.AUTHENTICATION
    if status == 429 and NEVER_FITS not in said.lower():
        return Fault.RATE_LIMIT
    if status == 413 or re.search(OVERFLOW, f"{code} {said}"):
        return Fault.CONTEXT_OVERFLOW
    if (status >= 500 or status in BUSY) and not re.search(TEMPLATE, said):
        return Fault.OVERLOADED
    return Fault.BAD_REQUEST


def _structured(error: ErrorPart | str) -> ErrorPart:
    return ErrorPart(message=error) if isinstance(error, str) else error


def _message(part: ErrorPart) -> str:
    """The message, and the one of the provider behind OpenRouter where it says more than "Provider returned error"."""
    raw = (part.metadata or {}).get("raw")
    said = [part.message, raw] if raw != part.message else [part.message]
    return ": ".join(text if isinstance(text, str) else msgspec.json.encode(text).decode() for text in said if text)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no message"
