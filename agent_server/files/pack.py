"""Makes a tar.gz of a folder, piece by piece, as it is.

Links are stored as links, modes are kept, owners are not. A file's length is the one it has when its turn comes: what changes meanwhile
is padded or cut, so that the archive is whole. Sockets, pipes and devices are left out. A folder that cannot be read breaks it off:
an archive that silently lacks something would be worse.
"""

import contextlib
import os
import stat
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

from agent_server.errors import Unprocessable
from agent_server.files.files import CHUNK_BYTES, Files
from agent_server.files.folders import listed, telling
from agent_server.files.tree import LEVELS, Entry, walk

LEVEL = 3
"""zlib's: most of what can be saved, at a third of the usual time."""

BLOCK = 512

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def pack(files: Files, path: str, real: Path) -> Generator[bytes, None, None]:
    """Gives the archive of a folder that `Workspace.resolve` gave. It blocks. Errors: OSError; Unprocessable where it is too deep."""
    with telling(path), files.folder(real) as place:
        folder = listed(".", place)
    squeezed = zlib.compressobj(LEVEL, wbits=31)
    waiting = bytearray()
    for piece in _tar(walk(folder, list)):
        waiting += squeezed.compress(piece)
        if len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting) + squeezed.compress(bytes(2 * BLOCK)) + squeezed.flush()


def _tar(entries: Iterator[Entry]) -> Iterator[bytes]:
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # it is gone since it was listed
            yield from _entry(entry)


def _entry(entry: Entry) -> Iterator[bytes]:
    if entry.is_folder:
        if entry.path.count(b"/") + 1 >= LEVELS:
            raise Unprocessable(f"Folders are nested over {LEVELS} deep; archive a part of them.")
        os.close(listed(entry.name, entry.folder))  # the walk would pass over one that it may not read
        yield _head(entry, entry.info, b"5")
    elif stat.S_ISLNK(entry.info.st_mode):
        yield _head(entry, entry.info, b"2", os.readlink(entry.name, dir_fd=entry.folder))
    elif stat.S_ISREG(entry.info.st_mode):
        yield from _file(entry)


def _file(entry: Entry) -> Iterator[bytes]:
    fd = os.open(entry.name, _READ, dir_fd=entry.folder)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return
        yield _head(entry, info, b"0")
        left = info.st_size
        while left:
            data = os.read(fd, min(CHUNK_BYTES, left)) or bytes(min(CHUNK_BYTES, left))
            left -= len(data)
            yield data
        yield bytes(-info.st_size % BLOCK)
    finally:
        os.close(fd)


def _head(entry: Entry, info: os.stat_result, kind: bytes, target: bytes = b"") -> bytes:
    # Imported at the first archive: it takes 10 ms.
    from tarfile import GNU_FORMAT, TarInfo

    head = TarInfo(os.fsdecode(entry.path))
    head.type, head.linkname = kind, os.fsdecode(target)
    head.mode, head.mtime = stat.S_IMODE(info.st_mode), int(info.st_mtime)
    head.size = info.st_size if kind == b"0" else 0
    return head.tobuf(GNU_FORMAT, "utf-8", "surrogateescape")
