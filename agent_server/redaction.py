"""Keeps secrets out of everything that is stored or said: exact values are replaced by a mask, wherever they stand.

There are two ways to it: `Secrets.mask` for whole texts and JSON values, and `Secrets.stream` for output that comes in
pieces. Encoded forms of a secret (base64, URL-encoded) are not recognised.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from tools import MASK

SHORTEST = 8
"""A secret has at least this many UTF-8 bytes; masking shorter values would garble ordinary text."""

_MASK = MASK.encode()


class Secrets:
    """The values to mask; grows while the server runs, and never shrinks: output of an old value may still come."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values: list[bytes] = []
        self._encoded: list[bytes] = []
        self._known: set[bytes] = set()
        self.add(values)

    def add(self, values: Iterable[str]) -> None:
        """Masks these values too from here on. Values under 8 bytes are left alone."""
        fresh = {value for text in values if len(value := text.encode("utf-8", "surrogateescape")) >= SHORTEST} - self._known
        if fresh:
            self._known |= fresh
            # Longest first: a secret that contains another is masked whole.
            self._values = sorted(self._known, key=len, reverse=True)
            self._encoded = [msgspec.json.encode(value.decode("utf-8", "replace"))[1:-1] for value in self._values]

    def mask_bytes(self, data: bytes) -> bytes:
        for value in self._values:
            if value in data:
                data = data.replace(value, _MASK)
        return data

    def mask(self, text: str) -> str:
        """Gives the text with every secret masked."""
        data = text.encode("utf-8", "surrogatepass")
        masked = self.mask_bytes(data)
        return text if masked is data else masked.decode("utf-8", "surrogatepass")

    def encode(self, value: Any) -> tuple[bytes, Any]:
        """Gives a JSON value as bytes and as builtins, every string in it masked, keys too."""
        encoded = msgspec.json.encode(value)
        # A secret stands in the bytes as JSON writes it. Only where one does is the value walked through.
        if not any(form in encoded for form in self._encoded):
            return encoded, value
        masked = self._walk(msgspec.to_builtins(value))
        return msgspec.json.encode(masked), masked

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, dict):
            return {self._walk(name): self._walk(inner) for name, inner in value.items()}
        return [self._walk(item) for item in value] if isinstance(value, list) else value

    def stream(self) -> "MaskedStream":
        return MaskedStream(self)

    def held(self, tail: bytes) -> int:
        """How many bytes at the end of `tail` are the beginning of a secret."""
        longest = 0
        for value in self._values:
            end = tail[-(len(value) - 1) :]
            at = end.find(value[:1])
            while at >= 0:
                if value.startswith(end[at:]):
                    longest = max(longest, len(end) - at)
                    break
                at = end.find(value[:1], at + 1)
        return longest


class MaskedStream:
    """Masks secrets in output that comes in pieces.

    It holds back only an end that is the beginning of a secret. Whoever feeds it calls `release` when that has waited
    long enough (200 ms): the held bytes are given out, and if the next ones complete the secret, those are masked.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._buffer = b""
        self._given = 0  # how many bytes at the beginning of the buffer were released already

    @property
    def is_holding(self) -> bool:
        return len(self._buffer) > self._given

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes and gives those that are certain, masked."""
        buffer = self._buffer + data
        masked = self._secrets.mask_bytes(buffer)
        # What was released stays out; where a secret began in it, the rest of the secret becomes the mask.
        skip = next((i for i in range(self._given) if masked[i] != buffer[i]), self._given)
        certain = len(masked) - self._secrets.held(masked)
        self._buffer, self._given = masked[certain:], max(0, skip - certain)
        return masked[skip:certain]

    def release(self) -> bytes:
        """Gives what is held back, and remembers it as the possible beginning of a secret."""
        data, self._given = self._buffer[self._given :], len(self._buffer)
        return data

    def end(self) -> bytes:
        """Gives the rest: no more will come, so it is no secret."""
        data, self._buffer, self._given = self._buffer[self._given :], b"", 0
        return data
