"""Files that are read without being asked for by name: nothing of what they are may hold up whoever looks."""

import os
import stat
from pathlib import Path


def first_bytes(path: Path, limit: int) -> bytes:
    """Gives the first bytes of a regular file. A pipe of its name is not waited for.

    Errors: OSError; ValueError for what is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)
