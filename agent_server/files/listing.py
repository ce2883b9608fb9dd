"""Pages of the workspace's tree, without .git and, unless they are asked for, ignored files."""

import base64
import binascii
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from urllib.parse import quote

import msgspec

from agent_server.changes.changes import shown
from agent_server.errors import InvalidRequest
from agent_server.files.files import Files
from agent_server.files.folders import listed, telling
from agent_server.files.ignores import Filter, Ignores
from agent_server.files.tree import LEVELS, Entry, walk
from agent_server.wire import timestamp

LATEST_MS = 253_402_300_799_000
"""The last time that RFC 3339 can write, which a file's need not be."""


class TreeEntry(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    path: str
    type: str
    size: int
    mtime: str
    encoded_path: str | None = None


class Page(msgspec.Struct, frozen=True):
    entries: list[TreeEntry]
    next_cursor: str | None


def list_tree(files: Files, ignores: Ignores, folder: Path, *, depth: int | None, limit: int, ignored: bool, cursor: str | None) -> Page:
    """Gives the entries below a folder that `Workspace.resolve` gave; `next_cursor` where there are more. It blocks.

    Errors: InvalidRequest for a cursor that is none; Conflict when ignored files cannot be told.
    """
    root = files.workspace.root
    prefix = b"" if folder == root else os.fsencode(files.workspace.relative(folder)) + b"/"
    after = _decode(cursor) if cursor is not None else b""
    telling_ignored: AbstractContextManager[Filter | None] = nullcontext()
    if not ignored and folder.is_relative_to(root):
        telling_ignored = ignores.filter()
    with telling(files.workspace.relative(folder)), files.folder(folder) as place, telling_ignored as is_wanted:
        keep = _keep(prefix, is_wanted)
        entries = walk(listed(".", place), keep, after=after, depth=depth or LEVELS)
        try:
            found = [(entry.path, _shown(prefix, entry)) for entry in itertools.islice(entries, limit)]
            has_more = next(entries, None) is not None
        finally:
            entries.close()
    return Page([entry for _, entry in found], _encode(found[-1][0]) if has_more else None)


def encoded(path: bytes) -> str | None:
    """Gives what stands in a query for a path that is not UTF-8, which no text can name."""
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        return quote(path)
    return None


def _keep(prefix: bytes, is_wanted: Filter | None) -> Callable[[Sequence[bytes]], list[bytes]]:
    # A folder that is ignored itself and yet asked for is shown whole.
    if is_wanted is not None and prefix and not is_wanted([prefix[:-1]]):
        is_wanted = None

    def keep(paths: Sequence[bytes]) -> list[bytes]:
        own = [path for path in paths if path.rpartition(b"/")[2] != b".git"]
        return own if is_wanted is None else [path[len(prefix) :] for path in is_wanted([prefix + path for path in own])]

    return keep


def _shown(prefix: bytes, entry: Entry) -> TreeEntry:
    path = prefix + entry.path
    milliseconds = min(max(entry.info.st_mtime_ns // 1_000_000, 0), LATEST_MS)
    size = 0 if entry.is_folder else entry.info.st_size
    return TreeEntry(shown(path), entry.type, size, timestamp(milliseconds), encoded(path))


def _encode(path: bytes) -> str:
    return base64.urlsafe_b64encode(path).decode().rstrip("=")


def _decode(cursor: str) -> bytes:
    try:
        path = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest("cursor: it must be the nextCursor of the page before.", path="cursor") from error
    return path.strip(b"/")
