"""Archives of snapshots for the tests: what is in one, and how to make a bad one."""

import gzip
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent_server.snapshots.tar import END, Entry, header, padding

MANIFEST = {
    "format": "agent-server-snapshot",
    "version": 1,
    "snapshotId": "snap_00000000000000000000000000",
    "name": "made by hand",
    "createdAt": 1_700_000_000_000,
    "serverVersion": "0",
    "configuration": {},
}

Made = tuple[Entry, bytes]


def made(path: str, content: bytes = b"", **more: Any) -> Made:
    """A file, or with `kind` something else."""
    return Entry(path.encode(), **{"kind": b"0", "size": len(content), **more}), content


def folder(path: str, mode: int = 0o755) -> Made:
    return made(path, kind=b"5", mode=mode)


def link(path: str, target: str) -> Made:
    return made(path, kind=b"2", link=target.encode())


def archive(
    *entries: Made, manifest: Any = None, lines: Iterable[Any] = (), count: int | None = None, after: Iterable[Made] = (), end: bytes = END
) -> bytes:
    """A whole archive with these in its workspace, and whatever else is said."""
    text = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    told = json.dumps({"entries": len(entries) if count is None else count, "bytes": 0, "leftOut": {}}).encode()
    whole = [
        made("manifest.json", json.dumps({**MANIFEST, **(manifest or {})}).encode()),
        made("conversations.jsonl", text),
        *entries,
        made("end.json", told),
        *after,
    ]
    return packed(whole, end)


def packed(entries: Iterable[Made], end: bytes = END) -> bytes:
    return gzip.compress(b"".join(header(entry) + content + padding(len(content)) for entry, content in entries) + end, 1)


def contents(data: bytes) -> dict[str, bytes]:
    """The files of an archive, as any tar reads them."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {
            member.name: file.read() if (file := tar.extractfile(member)) is not None and member.isfile() else b""
            for member in tar.getmembers()
        }


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """What is in a folder: kinds, modes, times, contents and targets by path."""
    found: dict[str, tuple[Any, ...]] = {}
    for place, folders, files in os.walk(os.fsencode(root)):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            info = os.lstat(path)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            if stat.S_ISLNK(info.st_mode):
                found[key] = ("link", os.readlink(path), info.st_mtime_ns)
            elif stat.S_ISDIR(info.st_mode):
                found[key] = ("folder", stat.S_IMODE(info.st_mode), info.st_mtime_ns)
            else:
                found[key] = ("file", stat.S_IMODE(info.st_mode), info.st_mtime_ns, Path(os.fsdecode(path)).read_bytes())
    return found
