"""inotify: what the kernel says of changes in folders. Source: inotify(7).

Spoken by ourselves, since the usual library for it does not tell when the kernel dropped something: docs/decisions/0018.
"""

import ctypes
import os
import struct
from typing import NamedTuple

MODIFY = 0x2
ATTRIB = 0x4
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
ISDIR = 0x40000000
_ONLYDIR = 0x01000000
_EXCL_UNLINK = 0x04000000

_WANTED = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | _ONLYDIR | _EXCL_UNLINK

READ_BYTES = 64 << 10
"""Bytes of what the kernel says that are taken at once: some thousand changes."""

_HEAD = struct.Struct("iIII")


class Said(NamedTuple):
    """One thing the kernel said: of which watch, what (the bits above), and the name in the folder, if it is not the folder itself."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """An inotify descriptor, `fd`, which is readable when there is something to `read`."""

    def __init__(self) -> None:
        """Errors: OSError, EMFILE when the user has too many of them."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise _error()

    def add(self, folder: int) -> int:
        """Watches an open folder and gives the watch's number; the same one for a folder that is watched already.

        Errors: OSError, ENOSPC when the user has too many watches.
        """
        watch: int = self._libc.inotify_add_watch(self.fd, f"/proc/self/fd/{folder}".encode(), _WANTED)
        if watch < 0:
            raise _error()
        return watch

    def remove(self, watch: int) -> None:
        """Ends a watch. Errors: none; it may have ended by itself."""
        self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> list[Said]:
        """Gives the next of what there is. Does not block."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return []
        found: list[Said] = []
        at = 0
        while at < len(data):
            watch, mask, _, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size + size
            found.append(Said(watch, mask, data[at - size : at].rstrip(b"\0")))
        return found

    def close(self) -> None:
        os.close(self.fd)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
