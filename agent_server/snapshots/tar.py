"""The tar format, as far as snapshots need it: written for every tar to read, read for nothing but what we write.

The standard library's reader takes what any archive asks for (headers of any size into memory, links, devices, sparse
files); here whatever is not a file, a folder or a symbolic link ends the reading. Source: POSIX.1-2001, pax.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import msgspec

from agent_server.errors import InvalidRequest

BLOCK = 512
CHUNK = 1 << 20
"""Bytes of a file's contents that are in memory at a time."""

PAX_BYTES = 64 << 10
"""The longest extended header that is read: a path and a link have 4 KiB each."""

TRAILER_BYTES = 1 << 20
"""Zeros that may follow the end: tar fills up to a record."""

_LARGEST_OCTAL = 0o77777777777
_KINDS = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFDIR: b"5"}


class BadArchive(InvalidRequest):
    """What was given is no snapshot, or a damaged one."""

    def __init__(self, what: str) -> None:
        super().__init__(f"This is no snapshot that can be used: {what}.", path="body")


class Entry(msgspec.Struct, frozen=True):
    """One file (`0`), symbolic link (`2`) or folder (`5`). `mtime` is in nanoseconds."""

    path: bytes
    kind: bytes
    mode: int = 0o600
    mtime: int = 0
    size: int = 0
    link: bytes = b""


def entry_of(path: bytes, info: os.stat_result, link: bytes = b"") -> Entry | None:
    """Gives the entry of a file as the disk has it; None for what cannot be in an archive, such as a socket."""
    kind = _KINDS.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        return None
    return Entry(path, kind, stat.S_IMODE(info.st_mode), info.st_mtime_ns, info.st_size if kind == b"0" else 0, link)


def header(entry: Entry) -> bytes:
    """Gives what stands before an entry's contents."""
    path = entry.path + b"/" if entry.kind == b"5" else entry.path
    records = {b"mtime": b"%d.%09d" % divmod(entry.mtime, 1_000_000_000)}
    if not _is_plain(path):
        records[b"path"] = path
    if not _is_plain(entry.link):
        records[b"linkpath"] = entry.link
    if entry.size > _LARGEST_OCTAL:
        records[b"size"] = b"%d" % entry.size
    text = (b"" if _is_utf8(path + entry.link) else _record(b"hdrcharset", b"BINARY")) + b"".join(
        _record(name, value) for name, value in records.items()
    )
    seconds = min(max(entry.mtime // 1_000_000_000, 0), _LARGEST_OCTAL)
    return b"".join(
        (
            _block(b"pax", b"x", 0o600, len(text), 0, b""),
            text,
            padding(len(text)),
            _block(path[:100], entry.kind, entry.mode, min(entry.size, _LARGEST_OCTAL), seconds, entry.link[:100]),
        )
    )


def padding(size: int) -> bytes:
    """Gives the zeros after contents of so many bytes."""
    return bytes(-size % BLOCK)


END = bytes(2 * BLOCK)


class Contents:
    """The contents of one entry: to be read whole before the next entry."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.left = size

    def __iter__(self) -> Iterator[bytes]:
        while self.left:
            chunk = _read(self._file, min(self.left, CHUNK))
            self.left -= len(chunk)
            yield chunk


def entries(file: BinaryIO) -> Iterator[tuple[Entry, Contents]]:
    """Gives the entries of an archive, each with its contents; what the caller leaves of them is passed over.

    Errors: BadArchive; OSError, EOFError and zlib.error, of `file`.
    """
    while (block := _read(file, BLOCK)) != bytes(BLOCK):
        records: Mapping[bytes, bytes] = {}
        kind, entry = _parse(block)
        if kind == b"x":
            if entry.size > PAX_BYTES:
                raise BadArchive("an extended header is too long")
            records = _records(_padded(file, entry.size))
            kind, entry = _parse(_read(file, BLOCK))
        if kind not in (b"0", b"2", b"5"):
            raise BadArchive(f"{_shown(entry.path)} is neither a file, a folder nor a symbolic link")
        entry = _amended(entry, records)
        contents = Contents(file, entry.size)
        yield entry, contents
        for _ in contents:
            pass
        _read(file, -entry.size % BLOCK)
    rest = file.read(TRAILER_BYTES + 1)
    if len(rest) > TRAILER_BYTES or rest.strip(b"\0"):
        raise BadArchive("something follows its end")


def _amended(entry: Entry, records: Mapping[bytes, bytes]) -> Entry:
    try:
        seconds, _, fraction = records.get(b"mtime", b"%d" % (entry.mtime // 1_000_000_000)).partition(b".")
        mtime = int(seconds) * 1_000_000_000 + int((fraction + b"000000000")[:9])
        size = int(records.get(b"size", entry.size))
    except ValueError as error:
        raise BadArchive("an extended header holds what is no number") from error
    if not 0 <= size < 1 << 62 or not abs(mtime) < 1 << 63 or (size and entry.kind != b"0"):
        raise BadArchive("a size or a time is out of range")
    path = records.get(b"path", entry.path)
    path = path[:-1] if entry.kind == b"5" and path.endswith(b"/") else path
    return Entry(path, entry.kind, entry.mode, mtime, size, records.get(b"linkpath", entry.link))


def _block(name: bytes, kind: bytes, mode: int, size: int, seconds: int, link: bytes) -> bytes:
    fields = (name.ljust(100, b"\0"), b"%07o\0" % mode, b"0000000\0" * 2, b"%011o\0" % size, b"%011o\0" % seconds)
    rest = kind + link.ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    start = b"".join(fields)
    check = sum(start) + sum(rest) + 8 * 32
    return start + b"%06o\0 " % check + rest


def _parse(block: bytes) -> tuple[bytes, Entry]:
    try:
        is_whole = int(block[148:156].strip(b"\0 "), 8) == sum(block) - sum(block[148:156]) + 8 * 32
        mode, size, seconds = (int(block[begin:end].strip(b"\0 ") or b"0", 8) for begin, end in ((100, 108), (124, 136), (136, 148)))
    except ValueError:
        is_whole, mode, size, seconds = False, 0, 0, 0
    if not is_whole or block[257:262] != b"ustar" or min(mode, size, seconds) < 0 or block[345:500].strip(b"\0"):
        raise BadArchive("it is no tar archive, or a damaged one")
    kind = block[156:157]
    name, link = block[:100].partition(b"\0")[0], block[157:257].partition(b"\0")[0]
    return kind, Entry(name, kind, mode, seconds * 1_000_000_000, size, link)


def _record(name: bytes, value: bytes) -> bytes:
    body = b" %b=%b\n" % (name, value)
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))  # its own digits count, and may be one more for that
    return b"%d%b" % (length, body)


def _records(text: bytes) -> Mapping[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while text:
        length, _, _ = text.partition(b" ")
        if (
            not length.isdigit()
            or len(length) > 6
            or not len(length) < int(length) <= len(text)
            or text[int(length) - 1 : int(length)] != b"\n"
        ):
            raise BadArchive("an extended header is damaged")
        name, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        found[name] = value
        text = text[int(length) :]
    return found


def _padded(file: BinaryIO, size: int) -> bytes:
    return _read(file, size + -size % BLOCK)[:size]


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise BadArchive("it ends in the middle")
    return data


def _is_plain(text: bytes) -> bool:
    return len(text) <= 100 and text.isascii() and b"\n" not in text


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _shown(path: bytes) -> str:
    return path[:200].decode("utf-8", "backslashreplace")
