"""The JSON of chat completions as providers send it: the one place where an answer's shape is checked.

Everything is optional, because every field is missing or null somewhere.
"""

import json
from typing import Any

import msgspec


class FunctionPart(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallPart(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: FunctionPart | None = None


class MessagePart(msgspec.Struct):
    """A piece of a message in a stream, or a whole one outside of it. Mistral's content is a list of typed parts."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    tool_calls: list[CallPart] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part["text"] for part in self.content if isinstance(part.get("text"), str))
        return (self.content or "") + (self.refusal or "")


class ErrorPart(msgspec.Struct):
    message: Any = None
    code: str | int | None = None
    type: str | None = None
    metadata: dict[str, Any] | None = None
    details: Any = None


class Choice(msgspec.Struct):
    delta: MessagePart | None = None
    message: MessagePart | None = None
    finish_reason: str | None = None
    error: ErrorPart | str | None = None


class PromptDetails(msgspec.Struct):
    """What was written into a cache is `cache_write_tokens` at OpenRouter, and `cache_creation_tokens` at litellm."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_creation_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class UsagePart(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cost: float | None = None


class Chunk(msgspec.Struct):
    """One event of a stream, or a whole answer that was not streamed."""

    choices: list[Choice] | None = None
    usage: UsagePart | None = None
    error: ErrorPart | str | None = None


class ErrorBody(msgspec.Struct):
    """The body of an HTTP error: OpenAI's shape, or what vLLM and FastAPI say at the top level."""

    error: ErrorPart | str | None = None
    message: str | None = None
    detail: Any = None


CHUNK = msgspec.json.Decoder(Chunk, strict=False)  # some servers write numbers as strings
ERROR_BODY = msgspec.json.Decoder(ErrorBody | list[ErrorBody])


def decode_error(data: bytes) -> ErrorBody:
    """Reads the body of an error, or an event that is one; Vertex AI's are lists of one. Errors: ValueError, RecursionError."""
    body = ERROR_BODY.decode(data)
    return body if isinstance(body, ErrorBody) else next(iter(body), ErrorBody())


def decode(data: bytes) -> Chunk:
    """Reads an event or a whole answer. Its texts may begin and end with half a character: see `Pieces`.

    Errors: ValueError, RecursionError.
    """
    try:
        return CHUNK.decode(data)
    except ValueError:
        # JavaScript cuts texts by UTF-16: a piece ends in "\\ud83d", which msgspec takes for no JSON, and the next begins with "\\ude00".
        if b"\\u" not in data:
            raise
        return msgspec.convert(json.loads(data), Chunk, strict=False)


def joined(text: str) -> str:
    """A text whose halves of characters are put together; those that stay alone are replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Pieces:
    """A text that comes in pieces: half a character at the end of one waits for the next."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, piece: str) -> str:
        """Gives what is whole."""
        text = self._half + piece
        whole = text[:-1] if "\ud800" <= text[-1:] <= "\udbff" else text
        self._half = text[len(whole) :]
        return joined(whole)
