"""Ids that are prefixed, unguessable and sortable by the time they were made."""

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(120, -1, -10)


def new_id(prefix: str) -> str:
    """Gives `prefix_` and 26 characters: 48 bits of Unix milliseconds, then 80 random bits, in Crockford's base 32.

    Source: the ULID specification, in lower case.
    """
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return prefix + "_" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def time_of(identifier: str) -> int:
    """Gives when an id was made, in Unix milliseconds."""
    number = 0
    for character in identifier.rpartition("_")[2][:10]:
        number = number << 5 | _ALPHABET.index(character)
    return number
