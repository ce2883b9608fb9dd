"""Reads the archive of a snapshot: checks that it is whole and harmless, and puts the workspace's part into a folder.

Names must come in the order in which `pack.py` writes them, each folder before what is in it: so an entry below a link, a second
entry of the same name and a way out of the folder cannot be said, and the memory needed is one path.
"""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, Protocol, cast

import msgspec

from agent_server import disk
from agent_server.errors import Unprocessable
from agent_server.snapshots import ID, NAME
from agent_server.snapshots.pack import CONVERSATIONS, DEEPEST, KEPT, LAST, MANIFEST, WORKSPACE, Stopped
from agent_server.snapshots.tar import CHUNK, BadArchive, Contents, Entry, entries

FORMAT = "agent-server-snapshot"
VERSION = 1

MANIFEST_BYTES = 4 << 20
"""The longest manifest that is read."""

MOST_ENTRIES = 5_000_000
"""Files, folders and links in a workspace: more take hours to make."""

LINE_BYTES = 64 << 20
"""The longest event of a conversation that is read: a prompt with pictures has some megabytes."""

MEASURE_BYTES = 16 << 20
"""Bytes written between two looks at the free disk."""

_ZEROS = bytes(CHUNK)


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """The first entry: what this is, and who made it."""

    format: str
    version: int
    snapshot_id: str
    name: str
    created_at: int
    server_version: str
    configuration: dict[str, Any]


class Sink(Protocol):
    """Takes the entries of the workspace in, in their order. `folder` is entered; `leave` ends the one entered last."""

    def folder(self, name: bytes) -> None: ...
    def leave(self, entry: Entry) -> None: ...
    def file(self, name: bytes, entry: Entry, contents: Contents) -> None: ...
    def link(self, name: bytes, entry: Entry) -> None: ...


class Checked(msgspec.Struct, frozen=True):
    """What an archive holds."""

    manifest: Manifest
    entries: int
    bytes: int


def unpack(archive: Path, sink: Sink, take_line: Callable[[bytes], None], stop: Event, *, room: int) -> Checked:
    """Reads an archive to its end, the workspace into `sink`, each line of the conversations into `take_line`. Blocks.

    Errors: BadArchive; Unprocessable when what is in it has more than `room` bytes; Stopped; OSError of the sink.
    """
    with archive.open("rb") as raw:
        try:
            with gzip.GzipFile("", "rb", fileobj=raw) as file:
                return _Reader(cast(BinaryIO, _Stoppable(file, stop)), sink, take_line, room).read()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadArchive("it is not compressed by gzip, or damaged") from error


class Nothing:
    """A sink that keeps nothing."""

    def folder(self, name: bytes) -> None:
        pass

    def leave(self, entry: Entry) -> None:
        pass

    def file(self, name: bytes, entry: Entry, contents: Contents) -> None:
        for _ in contents:
            pass

    def link(self, name: bytes, entry: Entry) -> None:
        pass


class Folder:
    """A sink that makes the files in a folder, which must be empty. Nothing is ever opened through a link."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fds = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)]
        self._unmeasured = 0

    def folder(self, name: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=self._fds[-1])
        self._fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fds[-1]))

    def leave(self, entry: Entry) -> None:
        fd = self._fds.pop()
        try:
            os.utime(fd, ns=(entry.mtime, entry.mtime))
            os.fchmod(fd, _mode(entry))
        finally:
            os.close(fd)

    def file(self, name: bytes, entry: Entry, contents: Contents) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._fds[-1])
        try:
            for chunk in contents:
                self._write(fd, chunk)
            os.ftruncate(fd, entry.size)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
            os.fchmod(fd, _mode(entry))
        finally:
            os.close(fd)

    def _write(self, fd: int, chunk: bytes) -> None:
        self._unmeasured += len(chunk)
        if self._unmeasured >= MEASURE_BYTES:
            self._unmeasured = 0
            if disk.free(self._root) < disk.RESERVE:
                raise Unprocessable("The disk of the workspace has no room for this snapshot; free some and try again.")
        if chunk == _ZEROS[: len(chunk)]:
            os.lseek(fd, len(chunk), os.SEEK_CUR)  # a hole, as it may have been
        else:
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]

    def link(self, name: bytes, entry: Entry) -> None:
        os.symlink(entry.link, name, dir_fd=self._fds[-1])
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=self._fds[-1], follow_symlinks=False)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def _mode(entry: Entry) -> int:
    # Not set-user-id and its like: what runs as another user must not come out of an archive.
    return entry.mode & 0o1777


class _Stoppable:
    def __init__(self, file: gzip.GzipFile, stop: Event) -> None:
        self._file = file
        self._stop = stop

    def read(self, size: int) -> bytes:
        if self._stop.is_set():
            raise Stopped
        return self._file.read(size)


class _Reader:
    def __init__(self, file: BinaryIO, sink: Sink, take_line: Callable[[bytes], None], room: int) -> None:
        self._entries = entries(file)
        self._take_line = take_line
        self._room = room
        self._tree = _Tree(sink)
        self._count = self._bytes = 0

    def read(self) -> Checked:
        manifest = self._manifest()
        _, contents = self._next(CONVERSATIONS)
        for line in _lines(contents):
            self._take_line(line)
        for entry, contents in self._entries:
            if entry.path == LAST:
                self._end(entry, contents)
                break
            self._add(entry, contents)
        else:
            raise BadArchive("its end is missing")
        if next(self._entries, None) is not None:
            raise BadArchive("something follows its end")
        return Checked(manifest, self._count, self._bytes)

    def _add(self, entry: Entry, contents: Contents) -> None:
        self._count += 1
        self._bytes += entry.size
        if self._count > MOST_ENTRIES or self._bytes > self._room:
            raise Unprocessable(
                "What is in this snapshot has no room here; free some disk space, or make a smaller snapshot.",
                details={"reason": "disk", "room": self._room},
            )
        top, _, path = entry.path.partition(b"/")
        if top != WORKSPACE or not path:
            raise BadArchive(f"{_shown(entry.path)} does not belong in it")
        self._tree.add(path.split(b"/"), entry, contents)

    def _end(self, entry: Entry, contents: Contents) -> None:
        self._tree.end()
        try:
            told = msgspec.json.decode(_small(entry, contents))
            is_right = (told["entries"], entry.kind) == (self._count, b"0")
        except (msgspec.DecodeError, KeyError, TypeError):
            is_right = False
        if not is_right:
            raise BadArchive("it does not hold what its end says")

    def _manifest(self) -> Manifest:
        entry, contents = self._next(MANIFEST)
        try:
            manifest = msgspec.json.decode(_small(entry, contents), type=Manifest)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise BadArchive("its manifest is damaged") from error
        if not NAME.fullmatch(manifest.name) and not ID.fullmatch(manifest.name):
            raise BadArchive("its name cannot be one")
        if manifest.format != FORMAT or manifest.version != VERSION:
            raise BadArchive(f"its format is {manifest.format[:40]!r} {manifest.version}, and {FORMAT!r} {VERSION} is read here")
        return manifest

    def _next(self, path: bytes) -> tuple[Entry, Contents]:
        found = next(self._entries, None)
        if found is None or found[0].path != path or found[0].kind != b"0":
            raise BadArchive(f"{path.decode()} is not where it should be")
        return found


class _Tree:
    """Holds the order of the entries, and tells the sink of the folders that end between them."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._open: list[tuple[bytes, Entry]] = []
        self._last = [b""]  # the latest name in each open folder, and in the workspace's own

    def add(self, parts: list[bytes], entry: Entry, contents: Contents) -> None:
        *folders, name = parts
        depth = len(folders)
        if depth >= DEEPEST or not all(map(_is_name, parts)) or (not folders and name in KEPT):
            raise BadArchive(f"{_shown(entry.path)} is no name that a file in the workspace can have")
        if [folder for folder, _ in self._open[:depth]] != folders or name <= self._last[depth]:
            raise BadArchive(f"{_shown(entry.path)} is not in its place")
        self._leave(depth)
        self._last[depth] = name
        if entry.kind == b"5":
            self._sink.folder(name)
            self._open.append((name, entry))
            self._last.append(b"")
        elif entry.kind == b"2":
            if not 0 < len(entry.link) < 4096 or b"\0" in entry.link:
                raise BadArchive(f"{_shown(entry.path)} is a link to nothing")
            self._sink.link(name, entry)
        else:
            self._sink.file(name, entry, contents)

    def end(self) -> None:
        self._leave(0)

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            self._sink.leave(self._open.pop()[1])
            self._last.pop()


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= 255 and name not in (b".", b"..") and b"\0" not in name


def _small(entry: Entry, contents: Contents) -> bytes:
    if entry.size > MANIFEST_BYTES:
        raise BadArchive(f"{_shown(entry.path)} is too long")
    return b"".join(contents)


def _lines(contents: Contents) -> Iterator[bytes]:
    held = b""
    for chunk in contents:
        *lines, held = (held + chunk).split(b"\n")
        yield from lines
        if len(held) > LINE_BYTES:
            raise BadArchive("an event of a conversation is too long")
    if held:
        raise BadArchive("its conversations end in the middle")


def _shown(path: bytes) -> str:
    return path[:200].decode("utf-8", "backslashreplace")
