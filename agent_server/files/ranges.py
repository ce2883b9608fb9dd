"""The Range header. Source: RFC 9110, 14.2.

One range of bytes is served, also one counted from the end. A header with several, or one that cannot be read, is passed over, as the
RFC allows: the answer is then the whole file.
"""

import re

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


class Unsatisfiable(ValueError):
    """The range has no byte of the file."""


def parse(header: str, size: int) -> tuple[int, int] | None:
    """Gives the first byte and the one after the last; None to serve the whole. Errors: Unsatisfiable."""
    found = _RANGE.fullmatch(header)
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:
        begin, end = max(0, size - int(found[2])), size
    else:
        begin, end = int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)
        if found[2] and int(found[2]) < begin:
            return None
    if begin >= end:
        raise Unsatisfiable
    return begin, end
