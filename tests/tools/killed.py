"""Applies one change of files again and again, each time to a new copy, and is killed before each of its steps in turn.

`python -m tests.tools.killed CHANGE FOLDER` leaves the copies in FOLDER/1, FOLDER/2, …, each a folder `workspace` and a folder
`patches`; the last one was not killed. Each try is a process of its own: nothing is left of it but what is on the disk.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from tools._together import NewFile, replace_file, replace_together

STEPS = ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.chmod", "os.chown")
"""What is told of before it is done, of all that changes files."""


def prepare(workspace: Path) -> None:
    """Makes what is changed."""
    (workspace / "d").mkdir(parents=True)
    for name in ("a", "d/b", "gone", "same"):
        (workspace / name).write_text(f"old {name}\n")
    (workspace / "a").chmod(0o751)
    (workspace / "link").symlink_to("a")


def replace_several(workspace: Path, notes: Path) -> None:
    """Makes a change of several files."""
    kept = (workspace / "a").stat()
    replace_together(
        {
            workspace / "a": NewFile(b"new a\n", kept),
            workspace / "gone": None,
            workspace / "made/deep/c": NewFile(b"new c\n"),
            workspace / "link": None,
            workspace / "same": NewFile(b"old same\n"),
            workspace / "d/b": NewFile(b"new b\n"),
        },
        notes,
    )


def replace_one(workspace: Path, notes: Path) -> None:
    """Makes a change of one file."""
    replace_file(workspace / "a", b"new a\n", (workspace / "a").stat(), notes)


CHANGES = {"several": replace_several, "one": replace_one}


def is_killed_at(number: int, change: str, folder: Path) -> bool:
    """Makes the change, in a process that is killed before its step of this number; gives whether it has so many."""
    (folder / "patches").mkdir(parents=True)
    prepare(folder / "workspace")
    child = os.fork()
    if child == 0:
        _kill_at(number, str(folder))
        CHANGES[change](folder / "workspace", folder / "patches")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def _kill_at(number: int, folder: str) -> None:
    steps = count(1)

    def follow(event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0] if event in STEPS else 0
        if isinstance(path, str | bytes | Path) and folder in os.fsdecode(path) and next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(follow)


if __name__ == "__main__":
    tried = next(number for number in count(1) if not is_killed_at(number, sys.argv[1], Path(sys.argv[2], str(number))))
    print(tried)
