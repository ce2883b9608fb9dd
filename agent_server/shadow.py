"""Records the states of the workspace in a git repository of our own, so that changes can be told at any time.

The user's repository, if there is one, is never written to and need not exist; contents are stored byte for byte. Ignored files
(.gitignore files, the workspace's own info/exclude) are not recorded. Nested repositories are ordinary folders: their files are
recorded, their `.git` never is.

Left out on purpose: restoring a state, file times and owners, empty folders, ignore rules of the user's own git configuration.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from agent_server.changes import Changes, LeftOut, compare
from agent_server.errors import InvalidRequest, NotFound
from agent_server.git import Git, GitFailed, Spawn, end_orphans
from agent_server.index import Index, Limits

P = ParamSpec("P")
T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.|lock$|$)){0,127}")
TREE = re.compile(r"[0-9a-f]{40}")


class Shadow:
    """The recorded states of one workspace, in `folder`, which nothing else may use.

    All methods but `in_thread` block. Errors: NotFound and Forbidden for a workspace that cannot be read; GitMissing, GitFailed and
    GitTimedOut.
    """

    def __init__(self, folder: Path, workspace: Path, spawn: Spawn = subprocess.Popen, *, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._folder = folder.absolute()
        self._git = Git(self._folder, workspace.absolute(), spawn=spawn, seconds=limits.git_seconds)
        self._index = Index(self._git, workspace.absolute(), limits)
        # Protects the index, the refs and the objects: git processes that write take turns, and none reads while objects are collected.
        self._lock = threading.Lock()
        # Lets one caller at a time have a thread, so that those who wait for `_lock` do not use up the threads of the whole server.
        self._turn = asyncio.Lock()
        self._is_checked = False
        end_orphans(self._folder)
        self._git.create()
        self._exclude_ourselves(workspace.resolve())
        self._heal(rebuild=False)

    async def in_thread(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a blocking method of this object off the event loop: `await shadow.in_thread(shadow.checkpoint, "start")`.

        Cancellation: the caller goes on, the method ends by itself.
        """
        async with self._turn:
            return await asyncio.to_thread(method, *args, **kwargs)

    @property
    def is_over_quota(self) -> bool:
        """Says whether only small files are recorded until `collect` has made room."""
        return self._index.is_over_quota

    def checkpoint(self, name: str) -> str:
        """Records the workspace as it is, keeps that state under the name and returns its tree id."""
        path = self._ref(name)
        with self._lock:
            tree = self._healing(self._record)
            path.parent.mkdir(exist_ok=True)
            temporary = self._folder / "ref.lock"
            temporary.write_text(f"{tree}\n")
            temporary.replace(path)
            return tree

    def tree(self, name: str) -> str:
        """Returns the tree id of the checkpoint. Errors: NotFound."""
        with contextlib.suppress(FileNotFoundError):
            tree = self._ref(name).read_text().strip()
            if TREE.fullmatch(tree):
                return tree
        raise NotFound(f"There is no checkpoint {name!r}: it was never made, or it was dropped to save disk space")

    def names(self) -> list[str]:
        """Lists the checkpoints that are kept."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(filter(NAME.fullmatch, os.listdir(self._folder / "refs" / "checkpoints")))
        return []

    def changes_since(self, base: str, *, patch: bool = False) -> Changes:
        """Compares the workspace as it is with a recorded tree. Errors: NotFound when that tree is lost."""
        base = _tree_id(base)
        with self._lock:
            left_out = self._healing(self._update)
            if base == self._index.known_tree:
                return Changes([], left_out=left_out)
            changes = self._compare("diff-index", "--cached", base, patch=patch)
            return Changes(changes.files, changes.is_truncated, left_out)

    def diff(self, base: str, tree: str, *, patch: bool = False) -> Changes:
        """Compares two recorded trees. Errors: NotFound when one is lost."""
        with self._lock:
            return self._compare("diff-tree", _tree_id(base), _tree_id(tree), patch=patch)

    def collect(self, keep: Sequence[str]) -> None:
        """Drops all checkpoints but those named, and frees the disk of what only they held. Takes seconds: call it when idle."""
        with self._lock:
            for name in set(self.names()).difference(keep):
                self._ref(name).unlink()
            try:
                self._collect_garbage()
            except GitFailed:
                # git gc refuses as long as a ref or the index names a lost object, and the disk would then fill for ever.
                self._drop_damaged()
                self._collect_garbage()
            self._index.measure()

    def _update(self) -> LeftOut:
        if not self._is_checked:
            self._drop_hollow_objects()
            self._is_checked = True
        return self._index.update()

    def _record(self) -> str:
        self._update()
        return self._index.tree()

    def _compare(self, *sides: str, patch: bool) -> Changes:
        try:
            return compare(self._git, *sides, patch=patch)
        except GitFailed as error:
            for tree in filter(TREE.fullmatch, sides):
                if not self._is_whole(tree):
                    raise NotFound(f"The state {tree} is lost or damaged, so nothing can be compared with it") from error
            self._heal(rebuild=True)
            self._update()
            return compare(self._git, *sides, patch=patch)

    def _is_whole(self, tree: str) -> bool:
        try:
            self._git.run("rev-list", "--quiet", "--objects", tree)
        except GitFailed:
            return False
        return True

    def _healing(self, step: Callable[[], T]) -> T:
        """Does the step; again if files changed under it or a lock was left; and then with an index made from nothing."""
        for rebuild in (False, True, True):
            try:
                return step()
            except GitFailed as error:
                # Hashing everything again does not make room.
                if error.is_disk_full:
                    raise
                self._heal(rebuild=rebuild)
        return step()

    def _heal(self, *, rebuild: bool) -> None:
        """Removes the locks that a killed git left behind and, to rebuild, the index."""
        for lock in self._folder.glob("*.lock"):
            lock.unlink(missing_ok=True)
        if rebuild:
            self._index.drop()
            self._is_checked = False

    def _drop_hollow_objects(self) -> None:
        """Removes object files without contents: a machine that loses its power leaves them, and git takes them for written."""
        hollow = [path for path, info in self._git.objects() if not info.st_size]
        if hollow:
            self._index.drop()
        for path in hollow:
            os.unlink(path)

    def _collect_garbage(self) -> None:
        self._git.run("gc", "--quiet", "--force", "--prune=now", is_urgent=False)

    def _drop_damaged(self) -> None:
        self._drop_hollow_objects()
        self._heal(rebuild=True)
        for name in self.names():
            try:
                is_whole = self._is_whole(self.tree(name))
            except NotFound:
                is_whole = False
            if not is_whole:
                self._ref(name).unlink()

    def _ref(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise InvalidRequest(f"A checkpoint's name is up to 128 letters, digits, '-', '_' and '.', not {name[:200]!r}", path="name")
        return self._folder / "refs" / "checkpoints" / name

    def _exclude_ourselves(self, workspace: Path) -> None:
        """Keeps the repository from recording itself when its folder is inside the workspace."""
        folder = self._folder.resolve()
        pattern = b""
        if folder.is_relative_to(workspace):
            pattern = b"/" + re.sub(rb"([\\*?\[ ])", rb"\\\1", os.fsencode(folder.relative_to(workspace))) + b"/\n"
        (self._folder / "info" / "exclude").write_bytes(pattern)


def _tree_id(tree: str) -> str:
    if not TREE.fullmatch(tree):
        raise InvalidRequest(f"A tree id is 40 hexadecimal digits, not {tree[:200]!r}", path="since")
    return tree
