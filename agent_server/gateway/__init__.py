"""The contract between the loop and the models: one call, streamed, a pure function of the conversation.

A gateway makes one attempt and keeps nothing. Retries, their events and their bounds are `retry.py`, on top of it.
"""

from collections.abc import AsyncGenerator, Sequence
from enum import Enum
from typing import Protocol, TypeAlias

import msgspec

from agent_server.errors import AgentServerError
from agent_server.messages import Message, ToolSpec, Usage


class ModelOptions(msgspec.Struct, frozen=True):
    """What a call may choose. `provider` and `model` are as the client named them; `max_tokens` bounds one response."""

    provider: str
    model: str
    max_tokens: int | None = None


class TextDelta(msgspec.Struct, frozen=True):
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    text: str


class Completion(msgspec.Struct, frozen=True):
    """The end of a stream: the whole message, what it used, and the provider's finish reason."""

    message: Message
    usage: Usage
    finish_reason: str


Delta: TypeAlias = TextDelta | ReasoningDelta | Completion


class Fault(Enum):
    """Why a model call failed, and whether the same call may succeed later."""

    AUTHENTICATION = "authentication"
    BAD_REQUEST = "bad_request"
    CONTEXT_OVERFLOW = "context_overflow"
    RATE_LIMIT = "rate_limit"
    OVERLOADED = "overloaded"
    NETWORK = "network"
    STREAM_CUT = "stream_cut"
    STREAM_IDLE = "stream_idle"
    BAD_RESPONSE = "bad_response"
    EMPTY = "empty"

    @property
    def is_transient(self) -> bool:
        return self not in (Fault.AUTHENTICATION, Fault.BAD_REQUEST, Fault.CONTEXT_OVERFLOW)


class ModelError(AgentServerError, RuntimeError):
    """A model call that failed. `retry_after` is the provider's own wish, in seconds; `status` its HTTP status."""

    code = "MODEL_ERROR"
    status = 502

    def __init__(self, fault: Fault, message: str, *, retry_after: float | None = None, provider_status: int | None = None) -> None:
        super().__init__(message, details={"reason": fault.value, **({"providerStatus": provider_status} if provider_status else {})})
        self.fault = fault
        self.retry_after = retry_after


class Gateway(Protocol):
    """One way to a model."""

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: ModelOptions) -> AsyncGenerator[Delta, None]:
        """Makes one attempt and gives its deltas, the last of which is one Completion.

        Errors: ModelError, and nothing else, also at once; an answer with neither text nor calls is Fault.EMPTY. Cancellation: the
        connection is closed. May be called many times at once.
        """
        ...

    async def close(self) -> None:
        """Lets connections and children go. May be called twice."""
