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

MOST = 1_000
"""Values of commands' own variables that are masked; of more the oldest go."""

_MASK = MASK.encode()


class Secrets:
    """The values to mask; grows while the server runs: output of an old value may still come."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._own: list[bytes] = []
        self._passing: list[bytes] = []
        self._values: list[bytes] = []
        self._encoded: list[bytes] = []
        self._known: set[bytes] = set()
        self.add(values)

    def add(self, values: Iterable[str], *, is_own: bool = True) -> None:
        """Masks these values too from here on. Values under 8 bytes are left alone, and so is what is a part of the mask.

        Of those that are not the server's own the newest MOST are kept.
        """
        encoded = {text.encode("utf-8", "surrogateescape") for text in values}
        fresh = {value for value in encoded if len(value) >= SHORTEST and value not in _MASK} - self._known
        if fresh:
            if is_own:
                self._own += sorted(fresh)
            else:
                self._passing = [*self._passing, *sorted(fresh)][-MOST:]
            self._values = self._own + self._passing
            self._known = set(self._values)
            self._encoded = [msgspec.json.encode(value.decode("utf-8", "replace"))[1:-1] for value in self._values]

    def mask_bytes(self, data: bytes) -> bytes:
        """Gives the bytes with every secret masked; secrets that overlap become one mask. The same object where there is none."""
        found = self.find(data)
        return _replace(data, found, 0, 0)[0] if found else data

    def find(self, data: bytes) -> list[tuple[int, int]]:
        """Gives where secrets stand: begin and end of each, in order, those that overlap as one."""
        places: list[tuple[int, int]] = []
        for value in self._values:
            at = data.find(value)
            while at >= 0:
                places.append((at, at + len(value)))
                at = data.find(value, at + 1)
        return _united(places) if len(places) > 1 else places

    def mask(self, text: str) -> str:
        """Gives the text with every secret masked."""
        data = text.encode("utf-8", "surrogatepass")
        masked = self.mask_bytes(data)
        return text if masked is data else masked.decode("utf-8", "surrogatepass")

    def encode(self, value: Any) -> tuple[bytes, Any]:
        """Gives a JSON value as bytes and as builtins, every string in it masked, keys too. Numbers are left alone.

        Strings that are not Unicode, as of a file's name, come out with replacement characters.
        """
        try:
            encoded = msgspec.json.encode(value)
        except UnicodeEncodeError:
            value = _in_unicode(msgspec.to_builtins(value))
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
    However the output is cut into pieces, without `release` it comes out as `mask_bytes` gives the whole.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._buffer = b""  # what may be the beginning of a secret
        self._masked = 0  # how many bytes of it are part of a secret whose mask was given out already
        self._given = 0  # how many bytes of it are dealt with: those, and what was released

    @property
    def is_holding(self) -> bool:
        return len(self._buffer) > self._given

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes and gives those that are certain, masked."""
        buffer = self._buffer + data if self._buffer else data
        found = self._secrets.find(buffer)
        kept = len(buffer) - self._secrets.held(buffer)
        if not found and not self._given:
            self._buffer = buffer[kept:]
            return buffer[:kept]
        # A secret that is complete is masked at once, also where another may begin in it or with it.
        certain = next((end for begin, end in found if begin <= kept < end), kept)
        out, masked = _replace(buffer[:certain], [place for place in found if place[1] <= certain], self._masked, self._given)
        self._buffer = buffer[kept:]
        self._masked, self._given = max(0, masked - kept), max(certain, self._given) - kept
        return out

    def release(self) -> bytes:
        """Gives what is held back, and remembers it as the possible beginning of a secret."""
        out, self._masked = _replace(self._buffer, self._secrets.find(self._buffer), self._masked, self._given)
        self._given = len(self._buffer)
        return out

    def end(self) -> bytes:
        """Gives the rest: no more will come, so it is the beginning of no secret."""
        out = self.release()
        self._buffer, self._masked, self._given = b"", 0, 0
        return out


def _united(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    united: list[tuple[int, int]] = []
    for begin, end in sorted(places):
        if united and begin < united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], end))
        else:
            united.append((begin, end))
    return united


def _replace(data: bytes, found: list[tuple[int, int]], masked: int, given: int) -> tuple[bytes, int]:
    """Gives `data` from `given` on with what was found masked, and where the last mask ends.

    What begins before `masked` goes on with a mask that was given out already, unless something was released since.
    """
    parts: list[bytes] = []
    at = given
    for begin, end in found:
        parts.append(data[at:begin])
        if end > at and (begin >= masked or at > masked):
            parts.append(_MASK)
        at, masked = max(at, end), max(masked, end)
    return b"".join((*parts, data[at:])), masked


def _in_unicode(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_in_unicode(name): _in_unicode(inner) for name, inner in value.items()}
    return [_in_unicode(item) for item in value] if isinstance(value, list) else value
