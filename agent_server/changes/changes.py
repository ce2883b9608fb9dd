"""What differs between two recorded states: the answer of `GET /changes`, read from git's own comparison.

Paths are bytes inside, because that is what file names are; `shown` makes text of them for the wire.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent_server.changes.git import CHUNK_BYTES, Git

Status = Literal["added", "modified", "deleted", "renamed"]
Reason = Literal["large", "unreadable", "special", "quota", "ignored"]

CHANGE_LIMIT = 10_000  # Changes in one answer; more are counted out by `is_truncated`.
NAME_LIMIT = 100  # Names of left-out files; more are only counted.
FILE_DIFF_BYTES = 256 * 1024
ALL_DIFFS_BYTES = 4 * 1024 * 1024
RENAME_LIMIT = 400  # Files on each side compared for similarity: the work grows with the square. Exact renames are always found.

STATUSES: dict[bytes, Status] = {b"A": "added", b"D": "deleted", b"R": "renamed"}
OPTIONS = ("-r", "-z", f"-l{RENAME_LIMIT}", "--no-ext-diff", "--no-textconv")

# A mode and an object id, as git writes them; None where there is no file.
Entry = tuple[bytes, bytes]


def shown(path: bytes) -> str:
    """Gives the path as text, bytes that are not UTF-8 as `\\xNN`."""
    return path.decode("utf-8", "backslashreplace")


class Change(msgspec.Struct, frozen=True):
    """One file that differs. A binary file counts no lines and has no diff."""

    path: bytes
    status: Status
    additions: int = 0
    deletions: int = 0
    old_path: bytes | None = None
    is_binary: bool = False
    diff: str | None = None
    is_truncated: bool = False
    # A file that became a link, or a link a file, is shown by git as two patches.
    patches: int = 1

    def to_wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = {
            "path": shown(self.path),
            "status": self.status,
            "additions": self.additions,
            "deletions": self.deletions,
        }
        if self.old_path is not None:
            wire["oldPath"] = shown(self.old_path)
        if self.is_binary:
            wire["binary"] = True
        if self.diff is not None:
            wire["diff"] = self.diff
        if self.is_truncated:
            wire["truncated"] = True
        return wire


class LeftOut(msgspec.Struct):
    """Files that a recording does not hold, with the reason: the first names, and how many there are."""

    names: list[tuple[bytes, Reason]] = msgspec.field(default_factory=list)
    count: int = 0

    def add(self, path: bytes, reason: Reason) -> None:
        self.count += 1
        if len(self.names) < NAME_LIMIT:
            self.names.append((path, reason))

    def add_once(self, path: bytes, reason: Reason) -> None:
        if all(path != name for name, _ in self.names):
            self.add(path, reason)

    def to_wire(self, limit: int = NAME_LIMIT) -> dict[str, Any]:
        return {"count": self.count, "files": [{"path": shown(path), "reason": reason} for path, reason in self.names[:limit]]}


class Changes(msgspec.Struct, frozen=True):
    """All changes, sorted by path as git does, and what they cannot speak of."""

    files: list[Change]
    is_truncated: bool = False
    left_out: LeftOut = msgspec.field(default_factory=LeftOut)


def compare(git: Git, *sides: str, patch: bool = False, renames: bool = True, objects: Path | None = None) -> Changes:
    """Compares two sides, given as a git command: ("diff-tree", base, tree) or ("diff-index", "--cached", base).

    `objects` is the folder of another repository's objects, which one of the sides is of. Errors: GitFailed when an object is missing.
    """
    command, *arguments = sides
    options = (*OPTIONS, "-M" if renames else "--no-renames")
    with git.start(command, *options, "--raw", "--numstat", *arguments, objects=objects) as running:
        files, is_truncated = _read_changes(running.tokens())
    if patch and files:
        with git.start(command, *options, "-p", *arguments, objects=objects) as running:
            files = list(_add_diffs(files, _Patches(running.lines(CHUNK_BYTES))))
            running.stop()
    return Changes(files, is_truncated)


def entries(git: Git, base: str, tree: str) -> dict[bytes, tuple[Entry | None, Entry | None]]:
    """Gives every path that differs between two trees, with what is there in each. Errors: GitFailed when an object is missing."""
    found: dict[bytes, tuple[Entry | None, Entry | None]] = {}
    with git.start("diff-tree", "-r", "-z", "--raw", "--no-renames", base, tree) as running:
        tokens = running.tokens()
        for token in tokens:
            old_mode, mode, old_id, object_id, _ = token[1:].split(b" ")
            found[next(tokens)] = _entry(old_mode, old_id), _entry(mode, object_id)
    return found


def _entry(mode: bytes, object_id: bytes) -> Entry | None:
    return (mode, object_id) if mode.strip(b"0") else None


def _read_changes(tokens: Iterator[bytes]) -> tuple[list[Change], bool]:
    """Reads `--raw --numstat -z`: first a line `:modes ids status` and its path or paths for every file, then all the counts."""
    changes: dict[bytes, Change] = {}
    is_truncated = False
    for token in tokens:
        if token.startswith(b":"):
            change = _raw(token, tokens)
            if len(changes) < CHANGE_LIMIT:
                changes[change.path] = change
            else:
                is_truncated = True
        else:
            _count(changes, token, tokens)
    return list(changes.values()), is_truncated


def _raw(token: bytes, tokens: Iterator[bytes]) -> Change:
    old_mode, mode, _, _, letter = token[1:].split(b" ")
    status = STATUSES.get(letter[:1], "modified")
    path = next(tokens)
    old_path = None
    if status == "renamed":
        old_path, path = path, next(tokens)
    return Change(path, status, old_path=old_path, patches=2 if letter == b"T" and old_mode[:3] != mode[:3] else 1)


def _count(changes: dict[bytes, Change], token: bytes, tokens: Iterator[bytes]) -> None:
    additions, deletions, path = token.split(b"\t", 2)
    if not path:
        next(tokens)
        path = next(tokens)
    if path not in changes:
        return
    if additions == b"-":
        changes[path] = msgspec.structs.replace(changes[path], is_binary=True)
    else:
        changes[path] = msgspec.structs.replace(changes[path], additions=int(additions), deletions=int(deletions))


class _Patches:
    """Cuts git's one long patch at its headers; a line of contents never begins like one, because it has a sign before it."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._header = next(lines, b"")

    def take(self, limit: int) -> tuple[bytes, bool]:
        """Returns the next patch, at most `limit` bytes of it in whole lines, and whether that was all."""
        kept, length, is_whole = [], 0, True
        line, self._header = self._header, b""
        while line:
            is_whole = is_whole and length + len(line) <= limit
            if is_whole:
                kept.append(line)
                length += len(line)
            is_start = line.endswith(b"\n")
            line = next(self._lines, b"")
            if is_start and line.startswith(b"diff --git "):
                self._header = line
                break
        return b"".join(kept), is_whole


def _add_diffs(files: list[Change], patches: _Patches) -> Iterator[Change]:
    left = ALL_DIFFS_BYTES
    for change in files:
        if left <= 0:
            yield msgspec.structs.replace(change, is_truncated=True)
            continue
        texts, is_whole = [], True
        for _ in range(change.patches):
            text, is_all = patches.take(min(FILE_DIFF_BYTES, left))
            texts.append(text)
            # A cut diff counts in full, so that the sum ends and git can be stopped.
            left -= len(text) if is_all else FILE_DIFF_BYTES
            is_whole = is_whole and is_all
        diff = None if change.is_binary else b"".join(texts).decode("utf-8", "replace")
        yield msgspec.structs.replace(change, diff=diff, is_truncated=not is_whole)
