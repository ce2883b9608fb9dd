"""Pseudo-terminals: what makes a program believe that somebody sits in front of it."""

import fcntl
import os
import shutil
import struct
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

LARGEST = 10_000
"""Columns and rows of a terminal at the most; programs take memory for each cell."""

TYPE = "xterm-256color"

END_OF_FILE = b"\x04"
"""Ctrl-D, which ends the input of a program that reads lines from a terminal."""

Length = Annotated[int, Meta(ge=1, le=LARGEST)]


class TerminalSize(msgspec.Struct, frozen=True):
    cols: Length = 80
    rows: Length = 24


def open_terminal(size: TerminalSize) -> tuple[int, int]:
    """Gives a new terminal of this size as two descriptors: our end, and the programs'.

    Errors: OSError when there is none left.
    """
    ours, theirs = os.openpty()
    set_size(ours, size)
    return ours, theirs


def set_size(fd: int, size: TerminalSize) -> None:
    """Gives a terminal another size, and tells its programs by SIGWINCH.

    Errors: OSError.
    """
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.cols, 0, 0))


def program(name: str, cwd: Path, env: Mapping[str, str]) -> str:
    """Gives the absolute path of a program.

    Errors: FileNotFoundError, PermissionError, as of the attempt to run it.
    """
    if "/" in name:
        path = os.path.join(cwd, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
        if os.path.exists(path):
            raise PermissionError(13, os.strerror(13), name)
    elif found := shutil.which(name, path=env.get("PATH", os.defpath)):
        return os.path.join(cwd, found)
    raise FileNotFoundError(2, os.strerror(2), name)
