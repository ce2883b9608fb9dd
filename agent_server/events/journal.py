"""Makes events survive our death before they are in the database: a memory-mapped file, so that it costs a copy.

What was written to a shared mapping belongs to the kernel: it outlives a kill -9, though not the machine's end. So an
append that need not be synced returns once it is here, and the writer thread commits it with others some ms later. The
file begins anew whenever everything in it is committed; at the next start, what is not is taken into the database.
"""

import mmap
import os
import struct
import zlib
from pathlib import Path

SIZE = 1 << 20
"""Bytes of the file: what may wait for its commit. More is committed before its append returns."""

_HEAD = struct.Struct("<II")  # length and CRC-32 of what follows; a length of 0 ends the entries


class Journal:
    """Entries in the order they were added. An entry that was torn by the machine's end is the last one read."""

    def __init__(self, path: Path) -> None:
        """Opens or creates it. Errors: OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE)  # a full disk is found here, rather than by a signal at some write
            self._map = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        self._end = 0

    def entries(self) -> list[bytes]:
        """Gives what was there when it was opened. Entries of an earlier round may follow newer ones."""
        found, at = [], 0
        while at + _HEAD.size <= SIZE:
            length, check = _HEAD.unpack_from(self._map, at)
            entry = self._map[at + _HEAD.size : at + _HEAD.size + length]
            if not length or len(entry) < length or zlib.crc32(entry) != check:
                break
            found.append(entry)
            at += _HEAD.size + length
        return found

    def add(self, entry: bytes) -> bool:
        """Adds an entry; False when there is no room for it."""
        begin, end = self._end + _HEAD.size, self._end + _HEAD.size + len(entry)
        if end + _HEAD.size > SIZE:
            return False
        self._map[begin:end] = entry
        self._map[end : end + _HEAD.size] = bytes(_HEAD.size)
        _HEAD.pack_into(self._map, self._end, len(entry), zlib.crc32(entry))  # last: only now is it an entry
        self._end = end
        return True

    def clear(self) -> None:
        """Begins anew."""
        if self._end:
            self._end = 0
            self._map[: _HEAD.size] = bytes(_HEAD.size)

    def close(self) -> None:
        self._map.close()
