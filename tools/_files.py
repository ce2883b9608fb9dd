"""What the tools that touch files share: how a file is named to the model, checked, locked and replaced."""

import difflib
import hashlib
import os
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from tools import ToolContext, ToolError

MAX_WHOLE = 8 << 20
"""Bytes of a file that is taken into memory as a whole: an edit needs several times as much for a moment."""

MAX_SIBLINGS = 10_000
"""Entries of a folder that are compared with a name that was not found."""

HIDDEN = ".agent-server-"
"""How the names of what is half-written begin: listings, searches, watches, archives and changes leave them out."""

_LOCKS = tuple(threading.Lock() for _ in range(64))


def name_of(path: Path, workspace: Path) -> str:
    """Gives the name the model knows a path by: relative to the workspace, or absolute outside; always valid Unicode."""
    inside = path.relative_to(workspace) if path.is_relative_to(workspace) else path
    return showable(str(inside))


def showable(text: str) -> str:
    """Gives the text with U+FFFD for each byte that could not be decoded."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def size_of(size: int) -> str:
    """Gives a size in words."""
    return f"{size} bytes" if size < 10_240 else f"{size / 1024:.0f} KB"


def lock_of(path: Path) -> threading.Lock:
    """Gives the lock that is held from reading a file until it is replaced, so that no change to it is lost.

    It is a lock of threads: a cancelled call gives up waiting for its thread, but the thread still finishes its write.
    Two files may share one, and then wait for each other.
    """
    return _LOCKS[_number(path)]


@contextmanager
def locks_of(paths: Iterable[Path]) -> Iterator[None]:
    """Holds the locks of several files: always taken in one order, so that two calls never wait for each other."""
    with ExitStack() as stack:
        for number in sorted(set(map(_number, paths))):
            stack.enter_context(_LOCKS[number])
        yield


def _number(path: Path) -> int:
    return hash(path) % len(_LOCKS)


def read_whole(path: Path, state: os.stat_result) -> bytes | None:
    """Gives the bytes of a file; None for one of more than MAX_WHOLE."""
    if state.st_size > MAX_WHOLE:
        return None
    with path.open("rb") as file:
        data = file.read(MAX_WHOLE + 1)
    return data if len(data) <= MAX_WHOLE else None


def stamp(data: bytes | None, path: Path) -> str:
    """Gives a text that tells this content of a file from every other; of a large file, whose `data` may be None, its present state."""
    if data is None or len(data) > MAX_WHOLE:
        state = path.stat()
        return f"{state.st_size}-{state.st_mtime_ns}-{state.st_ino}"
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def check_seen(context: ToolContext, path: Path, name: str, found: str) -> None:
    """Errors: ToolError for a file that this session has neither read nor written, or that is not as it was then."""
    known = context.stamp_of(path)
    if known is None:
        raise ToolError(f"{name} has not been read in this session; nothing was changed. Read it first, then change it.")
    if known != found:
        raise ToolError(f"{name} has changed on disk since it was last read; nothing was changed. Read it again, then change it.")


@contextmanager
def file_errors(verb: str, name: str) -> Iterator[None]:
    """Turns the errors of the file system into a ToolError."""
    try:
        yield
    except OSError as error:
        raise ToolError(f"Cannot {verb} {name}: {showable(str(error))}") from error


def regular_file(path: Path, name: str) -> os.stat_result | None:
    """Gives the state of a file, None when nothing is there.

    Errors: ToolError for a folder, and for a device, pipe or socket, which may have no end.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(state.st_mode):
        raise ToolError(f"{name} is a folder, not a file.")
    if not stat.S_ISREG(state.st_mode):
        raise ToolError(f"{name} is not a regular file.")
    return state


def not_found(path: Path, name: str) -> ToolError:
    """Gives the error for a missing path, with the names beside it that it may have meant."""
    meant = ", ".join(name_of(path.parent / sibling, path.parent) for sibling in _similar_names(path))
    hint = f" Did you mean, in the same folder: {meant}?" if meant else " Find it with glob or list."
    return ToolError(f"{name} does not exist.{hint}")


def _similar_names(path: Path) -> list[str]:
    try:
        with os.scandir(path.parent) as entries:
            names = {entry.name.lower(): entry.name for entry in islice(entries, MAX_SIBLINGS)}
    except OSError:
        return []
    wanted = path.name.lower()
    close = difflib.get_close_matches(wanted, names, n=3)
    containing = [name for name in sorted(names) if wanted in name]
    return [names[name] for name in dict.fromkeys([*close, *containing])][:3]


@contextmanager
def folders_of(path: Path) -> Iterator[None]:
    """Makes the folders that a file is to be in; those made are removed again when it then cannot be written."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # it was not made, or somebody has put something there
                folder.rmdir()
        raise


def write_draft(draft: Path, data: bytes, state: os.stat_result | None) -> None:
    """Writes what is to become a file under a name that nothing has, with the owner and mode of `state`; on an error nothing is left."""
    try:
        mode = 0o666 if state is None else 0o600  # until it has its owner, nobody else reads it
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
            if state is not None:
                with suppress(PermissionError):  # a file of somebody else, in a folder of ours: it becomes ours
                    os.fchown(file.fileno(), state.st_uid, state.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(state.st_mode))
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def beside(path: Path) -> Path:
    """Gives a name in the same folder that nothing has."""
    return path.parent / f"{HIDDEN}{uuid.uuid4().hex}"
