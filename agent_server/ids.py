"""Ids that are prefixed, unguessable and sortable by the time they were made."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """Gives `prefix_` and 26 characters: 48 bits of Unix milliseconds, then 80 random bits, in Crockford's base 32.

    Source: the ULID specification, in lower case.
    """
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
