"""What the server and litellm's process say to each other: one JSON object a line, over its standard input and output.

A call is answered by `Began` and `Bytes`, and ended by one `End` or `Failed`. The bytes are those of an answer as chat completions give
it: a stream of events, or one JSON object.
"""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

PIECE = 64 * 2**10
"""Bytes of an answer in one line at most."""

LINE_LIMIT = 256 * 2**10
"""Bytes of a line from the process: a piece in base64, or an error's message, with room to spare."""

CALL_LIMIT = 256 * 2**20
"""Bytes of a line to the process: a conversation with the largest images that a provider takes is below it."""

WINDOW = 32
"""Pieces of one call that the process may send before the server has taken some: a slow reader holds up its own call alone."""


class Target(msgspec.Struct, frozen=True):
    """Where a call goes, in litellm's terms. `api_key` None leaves it to `environ`, or is none where `is_keyless`."""

    model: str
    provider: str
    provider_model: str
    api_base: str | None
    api_key: str | None
    headers: Mapping[str, str]
    environ: Mapping[str, str]
    is_keyless: bool = False

    def __repr__(self) -> str:
        return "<Target>"  # a key must not get into a log line by way of its holder


class Call(msgspec.Struct, frozen=True, tag=True):
    """A model call: `body` is a chat completions request; `idle` and `connect` are seconds."""

    id: int
    target: Target
    body: msgspec.Raw
    idle: float
    connect: float


class More(msgspec.Struct, frozen=True, tag=True):
    """Lets a call send that many more pieces."""

    id: int
    pieces: int


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Nobody wants the rest of a call."""

    id: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """litellm is imported."""


class Began(msgspec.Struct, frozen=True, tag=True):
    """The provider has answered: its first bytes may be as long in coming as the answer was."""

    id: int


class Bytes(msgspec.Struct, frozen=True, tag=True):
    id: int
    data: bytes


class End(msgspec.Struct, frozen=True, tag=True):
    id: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """`fault` is a value of Fault."""

    id: int
    fault: str
    message: str
    retry_after: float | None = None
    provider_status: int | None = None


ToChild: TypeAlias = Call | More | Cancel
FromChild: TypeAlias = Ready | Began | Bytes | End | Failed

TO_CHILD = msgspec.json.Decoder(ToChild)
FROM_CHILD = msgspec.json.Decoder(FromChild)


def encode(frame: ToChild | FromChild) -> bytes:
    """Gives the line of a frame."""
    return msgspec.json.encode(frame) + b"\n"
