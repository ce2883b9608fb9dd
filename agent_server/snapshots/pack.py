"""Makes the archive of a snapshot: manifest, conversations, workspace, end; in this order, as one compressed stream.

The workspace is walked by folder descriptors and never through a link, so that nothing that changes meanwhile leads out of it.
"""

import gzip
import os
import stat
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from threading import Event
from typing import BinaryIO

import msgspec

from agent_server.changes.changes import LeftOut
from agent_server.snapshots.tar import CHUNK, END, Entry, entry_of, header, padding

MANIFEST, CONVERSATIONS, WORKSPACE, LAST = b"manifest.json", b"conversations.jsonl", b"workspace", b"end.json"

STAGING = b".agent-server-restore"
"""The folder in the workspace in which a restore prepares what it will put there."""

KEPT = frozenset({STAGING, b"lost+found"})
"""What of the workspace's own folder is never taken nor replaced; the second is the file system's."""

LEVEL = 1
"""Of gzip: a third larger than the usual level, at a third of the CPU."""

DEEPEST = 200
"""Folders in folders: each holds a descriptor open. What is deeper is left out, and refused."""


class Stopped(Exception):
    """The server stops, and the work on an archive with it."""


class Packed(msgspec.Struct, frozen=True):
    """What an archive holds: how many files, folders and links, their bytes, and what was left out."""

    entries: int
    bytes: int
    left_out: LeftOut


def pack(out: BinaryIO, manifest: bytes, conversations: Path, workspace: Path, stop: Event) -> Packed:
    """Writes the archive. Blocks. A file that changes meanwhile is in it with the size it had at first.

    Errors: OSError; Stopped; whatever `out` raises.
    """
    with gzip.GzipFile("", "wb", LEVEL, out, mtime=0) as compressed:
        writer = _Writer(compressed, stop)
        writer.text(MANIFEST, manifest)
        writer.file(CONVERSATIONS, conversations)
        packed = writer.tree(workspace)
        writer.text(LAST, msgspec.json.encode({"entries": packed.entries, "bytes": packed.bytes, "leftOut": packed.left_out.to_wire()}))
        compressed.write(END)
    return packed


class _Writer:
    def __init__(self, out: BufferedIOBase, stop: Event) -> None:
        self._out = out
        self._stop = stop

    def text(self, path: bytes, text: bytes) -> None:
        self._out.write(header(Entry(path, b"0", size=len(text))) + text + padding(len(text)))

    def file(self, path: bytes, source: Path) -> None:
        with source.open("rb", buffering=0) as file:
            entry = entry_of(path, os.fstat(file.fileno()))
            assert entry is not None  # noqa: S101  # it is a file of our own
            self._fill(entry, file.fileno())

    def tree(self, workspace: Path) -> Packed:
        left_out = LeftOut()
        entries = size = 0
        for found in _walk(workspace, left_out):
            if self._stop.is_set():
                raise Stopped
            try:
                written = self._add(found, left_out)
            except FileNotFoundError:
                continue  # it was there a moment ago
            except PermissionError:
                left_out.add(found.path, "unreadable")
                continue
            entries, size = entries + written, size + found.info.st_size
        return Packed(entries, size, left_out)

    def _add(self, found: "_Found", left_out: LeftOut) -> bool:
        path = WORKSPACE + b"/" + found.path
        mode = found.info.st_mode
        if stat.S_ISREG(mode):
            # Without blocking: a pipe may have taken its place.
            fd = os.open(found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=found.folder)
            try:
                entry = entry_of(path, os.fstat(fd))
                if entry is not None and entry.kind == b"0":
                    self._fill(entry, fd)
                    return True
            finally:
                os.close(fd)
        else:
            link = os.readlink(found.name, dir_fd=found.folder) if stat.S_ISLNK(mode) else b""
            entry = entry_of(path, found.info, link)
            if entry is not None:
                self._out.write(header(entry))
                return True
        left_out.add(found.path, "special")
        return False

    def _fill(self, entry: Entry, fd: int) -> None:
        self._out.write(header(entry))
        left = entry.size
        while left:
            if self._stop.is_set():
                raise Stopped
            # What a file that was cut short has no more of is zeros: its size is written already.
            chunk = os.read(fd, min(left, CHUNK)) or bytes(min(left, CHUNK))
            self._out.write(chunk)
            left -= len(chunk)
        self._out.write(padding(entry.size))


class _Found(msgspec.Struct, frozen=True):
    path: bytes
    name: bytes
    folder: int
    info: os.stat_result


def _walk(root: Path, left_out: LeftOut) -> Iterator[_Found]:
    """Gives everything below a folder, each folder before what is in it, names in the order of their bytes."""
    stack: list[tuple[int, bytes, Iterator[bytes]]] = []
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.append((fd, b"", iter([name for name in _names(fd) if name not in KEPT])))
        while stack:
            fd, prefix, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            try:
                found = _Found(prefix + name, name, fd, os.stat(name, dir_fd=fd, follow_symlinks=False))
                if not stat.S_ISDIR(found.info.st_mode):
                    yield found
                    continue
                if len(stack) >= DEEPEST:
                    left_out.add(found.path, "special")
                    continue
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except PermissionError:
                left_out.add(prefix + name, "unreadable")
                continue
            except OSError:
                continue  # gone, or something else by now
            stack.append((inner, found.path + b"/", iter(())))
            yield found
            stack[-1] = (inner, found.path + b"/", iter(_names(inner)))
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _names(fd: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(fd))
