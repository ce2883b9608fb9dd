"""Puts what is in a tar archive (gzipped or not) into a folder: all of it, or nothing.

The archive is spooled and unpacked into a hidden folder beside its place, every entry checked; then what is there already is compared
with it; and only then it is moved in, entry by entry. The headers are walked by ourselves, since the tarfile module takes as much
memory as an archive asks for. Owners are ignored, the set-id bits are dropped, and folders stay writable for their owner.

Left out on purpose: sparse files and other compressions.
"""

import contextlib
import gzip
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from agent_server.errors import AgentServerError, Conflict, InvalidRequest, PayloadTooLarge
from agent_server.files import folders
from agent_server.files.files import Files
from agent_server.files.folders import listed, telling
from agent_server.files.tree import LEVELS
from agent_server.workspace import PATH_MAX

BLOCK = 512
CHUNK_BYTES = 64 << 10

MOST_ENTRIES = 1_000_000
MOST_BYTES = 16 << 30
"""What one archive may hold; it is also bounded by what the disk has free."""

HEADER_BYTES = 64 << 10
"""Bytes of an extended header: a name and some attributes."""

_USED, _SPARSE = (b"path", b"linkpath", b"size"), b"GNU.sparse"
_MADE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacked(msgspec.Struct, frozen=True):
    entries: int
    size: int


class _Entry(msgspec.Struct, frozen=True):
    parts: list[str]
    kind: bytes
    mode: int
    mtime: int
    size: int
    target: str

    @property
    def path(self) -> str:
        return "/".join(self.parts)


def unpack(archive: IO[bytes], files: Files, path: str, real: Path) -> Unpacked:
    """Unpacks a spooled archive into the folder `real`, which `Workspace.resolve` gave and need not exist. It blocks.

    Errors: InvalidRequest for an archive that is none, or that leads out of the folder or through a link; Conflict where a
    file is in the place of a folder or the other way round; PayloadTooLarge, Unprocessable. Nothing is written then.
    """
    waiting = next(folder for folder in (real, *real.parents) if os.path.lexists(folder))
    with telling(path), files.folder(waiting) as place:
        name = files.staging.name(waiting)
        try:
            os.mkdir(name, 0o700, dir_fd=place)
            with _listing(name, place) as staged:
                unpacked = _extract(archive, staged)
                if waiting == real:
                    _compare(staged, place, "")
                with files.folder(real, make=True) as target:
                    _move(staged, target)
            return unpacked
        finally:
            with contextlib.suppress(FileNotFoundError):
                folders.remove(name, place)
            files.staging.forget(name)


def spool(files: Files, real: Path) -> IO[bytes]:
    """Opens a file without a name on the disk that an archive is to be unpacked to. Errors: those of `telling`."""
    waiting = next(folder for folder in (real, *real.parents) if os.path.lexists(folder))
    with telling(files.workspace.relative(real)):
        return tempfile.TemporaryFile(dir=waiting)


def add(data: bytes, spooled: IO[bytes]) -> None:
    """Adds to such a file. Errors: Unprocessable when the disk is full."""
    with telling("the archive"):
        folders.require_room(len(data), spooled.fileno())
        spooled.write(data)
        spooled.flush()


# Reading


class _Reader:
    """The archive's bytes, uncompressed and counted."""

    def __init__(self, archive: IO[bytes]) -> None:
        is_gzip = archive.read(2) == b"\x1f\x8b"
        archive.seek(0)
        self._source: Any = gzip.GzipFile(fileobj=archive, mode="rb") if is_gzip else archive
        self._taken = 0

    def take(self, size: int) -> bytes:
        """Gives exactly so many bytes; size is at most a chunk. Errors: InvalidRequest at the end."""
        data = self.up_to(size)
        if len(data) < size:
            raise _bad("it ends in the middle; send it again")
        return data

    def up_to(self, size: int) -> bytes:
        try:
            data: bytes = self._source.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _bad("its compression is damaged; send it again") from error
        self._taken += len(data)
        if self._taken > MOST_BYTES:
            raise PayloadTooLarge(f"The archive holds over {MOST_BYTES} bytes; send it in parts.", details={"limit": MOST_BYTES})
        return data

    def skip(self, size: int) -> None:
        while size:
            size -= len(self.take(min(size, CHUNK_BYTES)))

    def end(self) -> None:
        """Reads the rest, for the checksum at its end."""
        while self.up_to(CHUNK_BYTES):
            pass


def _entries(reader: _Reader) -> Iterator[_Entry]:
    # Imported at the first archive: it takes 10 ms.
    from tarfile import HeaderError, TarInfo

    extended: dict[bytes, bytes] = {}
    while (block := reader.take(BLOCK)).count(0) != BLOCK:
        try:
            head = TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except HeaderError as error:
            raise _bad("it is no tar archive, or a damaged one") from error
        if head.size < 0:
            raise _bad("an entry has a negative size")
        if head.type in (b"x", b"L", b"K"):
            extended |= _extension(head.type, _padded(reader, head.size))
        elif head.type == b"g":
            _padded(reader, head.size)  # what it says of all entries is a comment, as a rule
        else:
            yield _entry(head, extended)
            extended = {}
    reader.end()


def _padded(reader: _Reader, size: int) -> bytes:
    if size > HEADER_BYTES:
        raise _bad(f"an extended header is over {HEADER_BYTES} bytes")
    data = reader.take(size)
    reader.take(-size % BLOCK)
    return data


def _extension(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    if kind != b"x":
        return {b"path" if kind == b"L" else b"linkpath": data.rstrip(b"\0")}
    found: dict[bytes, bytes] = {}
    while data.strip(b"\0"):
        length, _, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 6 else 0
        name, equals, value = data[len(length) + 1 : size].partition(b"=")
        if not equals or not value.endswith(b"\n") or size > len(data):
            raise _bad("an extended header is damaged")
        if name in _USED or name.startswith(_SPARSE):
            found[_SPARSE if name.startswith(_SPARSE) else name] = value[:-1]
        data = data[size:]
    return found


def _entry(head: Any, extended: dict[bytes, bytes]) -> _Entry:
    if head.type not in (b"0", b"\0", b"7", b"1", b"2", b"5") or _SPARSE in extended:
        raise _bad(f"{head.name[:200]} is a device, a pipe, a sparse file or something else that cannot be unpacked")
    name = os.fsdecode(extended.get(b"path", os.fsencode(head.name)))
    size = extended.get(b"size", b"%d" % head.size)
    if not size.isdigit() or len(size) > 18:
        raise _bad("an entry's size is no number")
    has_data = head.type in (b"0", b"\0", b"7")
    return _Entry(
        parts=_parts(name),
        kind=b"0" if has_data else head.type,
        mode=head.mode & 0o777,
        mtime=head.mtime,
        size=int(size) if has_data else 0,
        target=os.fsdecode(extended.get(b"linkpath", os.fsencode(head.linkname))),
    )


def _parts(name: str) -> list[str]:
    """The parts of a path that stays in the folder. Errors: InvalidRequest for one that does not."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise _bad(f"{name[:200]} would leave the folder")
    if len(os.fsencode(name)) >= PATH_MAX or len(parts) > LEVELS:
        raise _bad(f"{name[:40]}… is too long to be a path")
    return parts


def _bad(what: str) -> InvalidRequest:
    return InvalidRequest(f"The archive cannot be used: {what}.", path="body")


# Extracting into the staged folder


def _extract(archive: IO[bytes], staged: int) -> Unpacked:
    reader = _Reader(archive)
    number = size = 0
    for entry in _entries(reader):
        number += 1
        if number > MOST_ENTRIES:
            raise PayloadTooLarge(f"The archive has over {MOST_ENTRIES} entries; send it in parts.", details={"limit": MOST_ENTRIES})
        if entry.parts:
            _make(entry, reader, staged)
        else:
            reader.skip(entry.size + -entry.size % BLOCK)
        size += entry.size
    return Unpacked(number, size)


def _make(entry: _Entry, reader: _Reader, staged: int) -> None:
    try:
        with _inside(staged, entry.parts[:-1]) as folder:
            name = entry.parts[-1]
            if entry.kind == b"5":
                _make_folder(name, entry.mode | 0o700, folder)
                return
            with contextlib.suppress(FileNotFoundError):  # of one that comes twice the last counts
                os.unlink(name, dir_fd=folder)
            if entry.kind == b"0":
                _make_file(name, entry, reader, folder)
            elif entry.kind == b"2":
                os.symlink(entry.target, name, dir_fd=folder)
            else:
                _make_link(name, entry, staged, folder)
    except AgentServerError:
        raise
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise _bad(f"{entry.path[:200]} would be written through a link, or a file is in the place of a folder") from error
    except (ValueError, FileNotFoundError) as error:
        raise _bad(f"{entry.path[:200]} has a name or a target that no file can have") from error


def _make_folder(name: str, mode: int, folder: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    fd = listed(name, folder)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _make_file(name: str, entry: _Entry, reader: _Reader, folder: int) -> None:
    fd = os.open(name, _MADE, 0o600, dir_fd=folder)
    try:
        folders.require_room(entry.size, fd)
        left = entry.size
        while left:
            rest = memoryview(reader.take(min(left, CHUNK_BYTES)))
            left -= len(rest)
            folders.require_room(len(rest), fd)
            while rest:
                rest = rest[os.write(fd, rest) :]
        reader.take(-entry.size % BLOCK)
        os.fchmod(fd, entry.mode)
        with contextlib.suppress(OverflowError, OSError):  # a time that the disk cannot hold
            os.utime(fd, (entry.mtime, entry.mtime))
    finally:
        os.close(fd)


def _make_link(name: str, entry: _Entry, staged: int, folder: int) -> None:
    """Makes a second name for a file that came before, and for nothing else."""
    target = _parts(entry.target)
    try:
        with _inside(staged, target[:-1], make=False) as source:
            if not target or not stat.S_ISREG(os.lstat(target[-1], dir_fd=source).st_mode):
                raise _bad(f"{entry.path[:200]} is a hard link to what is no file")
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _bad(f"{entry.path[:200]} is a hard link to a file that did not come before it") from error


@contextlib.contextmanager
def _inside(staged: int, parts: list[str], *, make: bool = True) -> Iterator[int]:
    """Opens a folder of the staged ones. Errors: NotADirectoryError for a link on the way."""
    here = os.dup(staged)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
            there = listed(part, here)
            os.close(here)
            here = there
        yield here
    finally:
        os.close(here)


# Moving in


def _compare(staged: int, target: int, path: str) -> None:
    """Errors: InvalidRequest where an entry would go through a link of the target; Conflict for a file in the place of a folder."""
    for name, is_folder in _listed(staged):
        try:
            mode = os.lstat(name, dir_fd=target).st_mode
        except FileNotFoundError:
            continue
        here = f"{path}{name}"
        if is_folder and stat.S_ISLNK(mode):
            raise _bad(f"{here} is a link in the folder, and nothing is written through links")
        if is_folder != stat.S_ISDIR(mode):
            raise Conflict(f"{here} is a {'file' if is_folder else 'folder'} in the folder; remove it first.", details={"path": here})
        if is_folder:
            with _listing(name, staged) as inner, _listing(name, target) as inner_target:
                _compare(inner, inner_target, f"{here}/")


def _move(staged: int, target: int) -> None:
    for name, is_folder in _listed(staged):
        if is_folder and _is_folder(name, target):
            with _listing(name, staged) as inner, _listing(name, target) as inner_target:
                _move(inner, inner_target)
        else:
            os.rename(name, name, src_dir_fd=staged, dst_dir_fd=target)


def _listed(folder: int) -> list[tuple[str, bool]]:
    with _listing(".", folder) as fd, os.scandir(fd) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _is_folder(name: str, folder: int) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _listing(name: str, dir_fd: int) -> Iterator[int]:
    fd = listed(name, dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)
