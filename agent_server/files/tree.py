"""What is in a folder, all levels of it, in a fixed order and a page at a time.

The order is that of the names' bytes, a folder before what is in it; a page goes on after the last path of the one before, also when
that path is gone by then. Memory is bounded by the page: of a folder the next names in order are looked for, not all are kept.
"""

import heapq
import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence

import msgspec

from agent_server.files.folders import listed
from agent_server.files.staging import PREFIX

BATCH = 10_000
"""Names of one folder taken at once; a larger folder is read again for each further batch."""

LEVELS = 256
"""Folders in folders that are entered, each with a descriptor; what is deeper is left out."""

_STAGED = PREFIX.encode()

Keep = Callable[[Sequence[bytes]], list[bytes]]
"""Gives those of some paths (of one folder, relative to the listed one) that are wanted."""


class Entry(msgspec.Struct, frozen=True):
    """One file, link or folder. `path` is relative to the listed folder; `folder` is the open folder it is in, for as long as
    the walk has not gone on."""

    path: bytes
    folder: int
    info: os.stat_result

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.info.st_mode)

    @property
    def type(self) -> str:
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
        return kinds.get(stat.S_IFMT(self.info.st_mode), "other")


def walk(root: int, keep: Keep, *, after: bytes = b"", depth: int = LEVELS) -> Generator[Entry, None, None]:
    """Gives everything below an open folder but what uploads have half-written; closes that descriptor at the end.

    It follows no link, passes over what vanishes meanwhile, and enters no folder that it may not read.
    Errors: whatever `keep` raises.
    """
    levels = [_Level(root, b"", after.split(b"/") if after else [], keep)]
    try:
        while levels:
            level = levels[-1]
            path = next(level.paths, None)
            if path is None:
                os.close(levels.pop().fd)
                continue
            try:
                info = os.lstat(path.rpartition(b"/")[2], dir_fd=level.fd)
            except OSError:
                continue
            passed = level.passed(path)
            entry = Entry(path, level.fd, info)
            if passed is None:
                yield entry
            if entry.is_folder and len(levels) < min(depth, LEVELS):
                try:
                    levels.append(_Level(listed(entry.name, level.fd), path + b"/", passed or [], keep))
                except OSError:
                    continue
    finally:
        for level in levels:
            os.close(level.fd)


class _Level:
    """One folder on the way. `after` are the parts of the path that came last, from here on."""

    def __init__(self, fd: int, prefix: bytes, after: list[bytes], keep: Keep) -> None:
        self.fd = fd
        self._after = after
        self._prefix = prefix
        self._keep = keep
        self.paths = self._paths()

    def passed(self, path: bytes) -> list[bytes] | None:
        """Where the path was given before: the parts of the last one that are below it."""
        return self._after[1:] if self._after and path == self._prefix + self._after[0] else None

    def _paths(self) -> Iterator[bytes]:
        first, is_first = (self._after[0] if self._after else b""), True
        while True:
            with os.scandir(self.fd) as entries:
                names = (os.fsencode(entry.name) for entry in entries)
                wanted = (name for name in names if (name >= first if is_first else name > first) and not name.startswith(_STAGED))
                batch = heapq.nsmallest(BATCH, wanted)
            yield from self._keep([self._prefix + name for name in batch])
            if len(batch) < BATCH:
                return
            first, is_first = batch[-1], False
