"""Disks: how much room there is, and that what was written is on them."""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

RESERVE = 64 << 20
"""Bytes that snapshots leave free on a disk: the event log and the agent need some."""


def free(path: Path) -> int:
    """Gives the bytes that may still be written where `path` is."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def sync(paths: Iterable[Path]) -> None:
    """Writes out the file systems these folders are on. Blocks. Source: syncfs(2), which Python has not."""
    syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
