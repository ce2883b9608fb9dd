"""Keeps a git index equal to the files of the workspace, by a listing of our own.

A plain `git add -A` turns nested repositories into links, fails on an empty one and on an unreadable file, and takes files of any size.
Two processes side by side list what differs: diff-files what is known, ls-files what is not; a third, if need be, records just that.
"""

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from agent_server.changes.changes import LeftOut
from agent_server.changes.git import GIT_SECONDS, Git
from agent_server.errors import Forbidden, NotFound
from tools._files import HIDDEN

FILE_BYTES = 10 * 1024 * 1024  # Larger files are left out: they are data and build results, and fill the disk.
QUOTA_FILE_BYTES = 64 * 1024  # Over the quota only files up to this size are recorded: most source code, at a slow growth.
QUOTA_BYTES = 2 * 1024 * 1024 * 1024
MEASURE_BYTES = 64 * 1024 * 1024  # Contents recorded between two measurements of the disk use, and so the quota's error.
OBJECT_BYTES = 4096  # What each recorded file takes of the disk besides its contents, about.
BATCH_FILES = 10_000  # Files given to one git process; what it recorded stays when a later one fails.
NESTING_LIMIT = 16  # Repositories inside repositories; deeper ones are left out.
ARGUMENT_FOLDERS = 100  # Folder names on one command line, which has a limit of its own.
POINTER_BYTES = 4096  # A `.git` file and `commondir` hold one path.

IGNORED = ("--ignored", "--directory")
NESTED = "nested-index"
PLACEHOLDER = b".agent-server-placeholder"
HALF_WRITTEN = HIDDEN.encode()
EMPTY_BLOB = b"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
UNREADABLE_FOLDER = re.compile(rb"^warning: could not open directory '(.*)': ", re.MULTILINE)

# A path to record with its size, or to remove with None.
Found = tuple[bytes, int | None]


class Limits(msgspec.Struct, frozen=True):
    file_bytes: int = FILE_BYTES
    quota_bytes: int = QUOTA_BYTES
    quota_file_bytes: int = QUOTA_FILE_BYTES
    measure_bytes: int = MEASURE_BYTES
    git_seconds: float = GIT_SECONDS


class _Batch(msgspec.Struct):
    added: list[bytes] = msgspec.field(default_factory=list)
    removed: list[bytes] = msgspec.field(default_factory=list)
    size: int = 0


class Index:
    """The index of a repository whose work tree is the workspace. Every method may raise GitFailed; `drop` then gives a fresh start."""

    def __init__(self, git: Git, workspace: Path, limits: Limits) -> None:
        self._git = git
        self._workspace = os.fsencode(workspace)
        self._limits = limits
        self.left_out = LeftOut()
        self._unmeasured = limits.measure_bytes
        self.known_tree: str | None = None
        self.is_over_quota = False
        self.used = 0  # bytes of the disk, when they were last measured

    def update(self, *, tells_ignored: bool = False) -> LeftOut:
        """Brings the index to the present state of the workspace. Errors: NotFound, Forbidden for a workspace that cannot be read.

        Ignored files are left out; `tells_ignored` also names them, a folder of nothing else as one, which takes another listing.
        """
        self._require_workspace()
        self.left_out = LeftOut()
        nested: list[bytes] = []
        # diff-files also names files whose times alone differ, so that recording them saves the next listing from reading them again.
        with (
            self._git.start("diff-files", "-z", "--name-status") as tracked,
            self._git.start(*self._list_others()) as others,
            self._git.start(*self._list_others(), *IGNORED) if tells_ignored else contextlib.nullcontext() as ignored,
        ):
            self._apply(self._look_at_tracked(tracked.tokens()))
            self._apply(self._look_at_others(others.tokens(), nested))
            others.wait()
            for folder in UNREADABLE_FOLDER.findall(others.complaints()):
                self.left_out.add(folder, "unreadable")
            for path in ignored.tokens() if ignored is not None else ():
                self.left_out.add(path, "ignored")
        self._update_nested(nested)
        return self.left_out

    def tree(self) -> str:
        """Writes what the index holds as a tree and returns its id."""
        if self.known_tree is None:
            self.known_tree = self._git.run("write-tree").decode().strip()
        return self.known_tree

    def is_there(self, path: bytes) -> bool:
        """Says whether a file, a link or something else that is no folder has this path, not through a link."""
        parents = path.split(b"/")[:-1]
        full = self._workspace
        with contextlib.suppress(OSError):
            for parent in parents:
                full = os.path.join(full, parent)
                if not stat.S_ISDIR(os.lstat(full).st_mode):
                    return False
            return not stat.S_ISDIR(os.lstat(os.path.join(self._workspace, path)).st_mode)
        return False

    def drop(self) -> None:
        """Forgets everything; the next update hashes every file."""
        self.known_tree = None
        (self._git.folder / "index").unlink(missing_ok=True)

    def measure(self) -> None:
        self.used = sum(info.st_blocks * 512 for _, info in self._git.objects())
        self.is_over_quota = self.used > self._limits.quota_bytes
        self._unmeasured = 0

    def _update_nested(self, nested: list[bytes]) -> None:
        """Records the files of repositories inside the workspace, which git names but does not enter.

        It does enter one that has a file in the index: so it gets an index with nothing but a placeholder in each.
        """
        for _ in range(NESTING_LIMIT):
            nested = [folder for folder in nested if not self._is_hollow(folder)]
            if not nested:
                return
            (self._git.folder / NESTED).unlink(missing_ok=True)
            entries = (b"100644 %s 0\t%s%s\0" % (EMPTY_BLOB, folder, PLACEHOLDER) for folder in nested)
            self._git.run("update-index", "-z", "--index-info", feed=b"".join(entries), index=NESTED)
            deeper: list[bytes] = []
            for start in range(0, len(nested), ARGUMENT_FOLDERS):
                folders = map(os.fsdecode, nested[start : start + ARGUMENT_FOLDERS])
                with self._git.start(*self._list_others(), "--", *folders, index=NESTED) as others:
                    self._apply(self._look_at_others(others.tokens(), deeper))
            nested = deeper
        for folder in nested:
            self.left_out.add(folder, "special")

    def _list_others(self) -> list[str]:
        command = ["ls-files", "-z", "--others", "--exclude-standard"]
        exclude = find_exclude(Path(os.fsdecode(self._workspace)))
        return [*command, f"--exclude-from={exclude}"] if exclude else command

    def _look_at_tracked(self, tokens: Iterator[bytes]) -> Iterator[Found]:
        for letter in tokens:
            path = next(tokens)
            if letter == b"D":
                yield path, None
            else:
                yield from self._look(path, is_tracked=True)

    def _look_at_others(self, tokens: Iterator[bytes], nested: list[bytes]) -> Iterator[Found]:
        for path in tokens:
            if path.endswith(b"/"):
                nested.append(path)
            elif path.rpartition(b"/")[2].startswith(HALF_WRITTEN):
                continue
            elif b".git" in path.lower().split(b"/"):
                # git refuses `.GIT` and the like as a part of any path.
                self.left_out.add(path, "special")
            else:
                yield from self._look(path, is_tracked=False)

    def _look(self, path: bytes, *, is_tracked: bool) -> Iterator[Found]:
        """Yields what to do about the path; nothing, to leave it as it is.

        A tracked file that grew too large or cannot be read stays as it was last recorded: it is not deleted.
        """
        full = os.path.join(self._workspace, path)
        try:
            info = os.lstat(full)
            if stat.S_ISREG(info.st_mode):
                if info.st_size <= self._file_limit():
                    _require_readable(full)
                    yield path, info.st_size
                else:
                    self.left_out.add(path, "large" if info.st_size > self._limits.file_bytes else "quota")
            elif stat.S_ISLNK(info.st_mode):
                yield path, info.st_size
            else:
                if not stat.S_ISDIR(info.st_mode):
                    self.left_out.add(path, "special")
                if is_tracked:
                    yield path, None
        except (FileNotFoundError, NotADirectoryError):
            if is_tracked:
                yield path, None
        except OSError:
            self.left_out.add(path, "unreadable")

    def _apply(self, found: Iterable[Found]) -> None:
        """Records what was found, in batches that bound the memory and the overshoot of the quota."""
        batch = _Batch()
        for path, size in found:
            if size is None:
                batch.removed.append(path)
            else:
                batch.added.append(path)
                batch.size += size + OBJECT_BYTES
            if len(batch.added) + len(batch.removed) >= BATCH_FILES or batch.size >= self._limits.measure_bytes:
                self._write(batch)
                batch = _Batch()
        self._write(batch)

    def _write(self, batch: _Batch) -> None:
        if not (batch.added or batch.removed):
            return
        self.known_tree = None
        # Removals first: a folder may stand where a file stood, and a file where a folder did.
        if batch.removed:
            self._git.run("update-index", "-z", "--force-remove", "--stdin", feed=_joined(batch.removed))
        if batch.added:
            self._git.run("update-index", "-z", "--add", "--remove", "--replace", "--stdin", feed=_joined(batch.added))
        self._unmeasured += batch.size
        if self._unmeasured >= self._limits.measure_bytes:
            self.measure()

    def _file_limit(self) -> int:
        limits = self._limits
        return min(limits.quota_file_bytes, limits.file_bytes) if self.is_over_quota else limits.file_bytes

    def _require_workspace(self) -> None:
        shown = os.fsdecode(self._workspace)
        try:
            os.scandir(self._workspace).close()
        except PermissionError as error:
            raise Forbidden(f"The workspace {shown} cannot be read by the server's user") from error
        except OSError as error:
            raise NotFound(f"The workspace {shown} is not a folder that can be read: {error.strerror}") from error

    def _is_hollow(self, folder: bytes) -> bool:
        """Says whether a nested repository has nothing but its `.git`: git would name it at every listing."""
        try:
            with os.scandir(os.path.join(self._workspace, folder)) as entries:
                return all(entry.name == b".git" for entry in itertools.islice(entries, 2))
        except OSError:
            return True


def find_exclude(workspace: Path) -> Path | None:
    """Finds the info/exclude file of the user's repository, also when its .git is a file, as in a worktree or submodule."""
    folder = workspace / ".git"
    with contextlib.suppress(OSError, ValueError):
        if folder.is_file():
            folder = workspace / _read_pointer(folder).removeprefix("gitdir:").strip()
            with contextlib.suppress(FileNotFoundError):
                folder /= _read_pointer(folder / "commondir").strip()
    exclude = folder / "info" / "exclude"
    return exclude if exclude.is_file() and os.access(exclude, os.R_OK) else None


def _read_pointer(path: Path) -> str:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        return file.read(POINTER_BYTES)


def _require_readable(path: bytes) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))


def _joined(paths: list[bytes]) -> bytes:
    return b"".join(path + b"\0" for path in paths)
