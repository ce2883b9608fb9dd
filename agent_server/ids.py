"""Ids that are prefixed, unguessable and sortable by the time they were made."""

import hashlib
import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(120, -1, -10)


def new_id(prefix: str) -> str:
    """Gives `prefix_` and 26 characters: 48 bits of Unix milliseconds, then 80 random bits, in Crockford's base 32.

    Source: the ULID specification, in lower case.
    """
    return _id(prefix, time.time_ns() // 1_000_000, os.urandom(10))


def derived_id(prefix: str, base: str, *parts: str) -> str:
    """Gives the one id that these make, however often they are asked for: sorted where the id `base` is, and as unguessable."""
    digest = hashlib.sha256("\0".join((base, *parts)).encode("utf-8", "surrogatepass")).digest()
    return _id(prefix, time_of(base), digest[:10])


def _id(prefix: str, milliseconds: int, rest: bytes) -> str:
    number = milliseconds << 80 | int.from_bytes(rest, "big")
    return prefix + "_" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def time_of(identifier: str) -> int:
    """Gives when an id was made, in Unix milliseconds."""
    number = 0
    for character in identifier.rpartition("_")[2][:10]:
        number = number << 5 | _ALPHABET.index(character)
    return number
