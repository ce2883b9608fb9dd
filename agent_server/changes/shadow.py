"""Records the states of the workspace in a git repository of our own, so that changes can be told at any time.

The user's repository, if there is one, is never written to and need not exist; contents are stored byte for byte. Ignored files
(.gitignore files, the workspace's own info/exclude) are not recorded. Nested repositories are ordinary folders: their files are
recorded, their `.git` never is.

Left out on purpose: restoring a state (`restore.py`), file times and owners, empty folders, ignore rules of the user's
own git configuration.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from agent_server.changes.changes import Changes, Entry, LeftOut, compare, entries
from agent_server.changes.git import Git, GitFailed, Spawn, end_orphans
from agent_server.changes.index import Index, Limits
from agent_server.errors import InvalidRequest, NotFound

P = ParamSpec("P")
T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.|lock$|$)){0,127}")
TREE = re.compile(r"[0-9a-f]{40}")
GRAFTED = "grafted-index"
NO_OBJECT = b"0" * 40


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
    def left_out(self) -> LeftOut:
        """What the last recording does not hold."""
        return self._index.left_out

    @property
    def is_over_quota(self) -> bool:
        """Says whether only small files are recorded until `collect` has made room."""
        return self._index.is_over_quota

    @property
    def used(self) -> int:
        """Bytes of the disk that all of it takes, when that was last measured."""
        return self._index.used

    def checkpoint(self, name: str) -> str:
        """Records the workspace as it is, keeps that state under the name and returns its tree id."""
        self._ref(name)
        with self._lock:
            tree = self._healing(self._record)
            self._keep(name, tree)
            return tree

    def graft(self, name: str, tree: str, changed: Mapping[bytes, Entry | None]) -> str:
        """Makes a state of another, in which these paths are different, keeps it under the name and returns its tree id."""
        self._ref(name)
        gone = [b"0 %s\t%s\0" % (NO_OBJECT, path) for path in changed]
        there = [b"%s %s\t%s\0" % (*entry, path) for path, entry in changed.items() if entry is not None]
        with self._lock:
            (self._folder / GRAFTED).unlink(missing_ok=True)
            self._git.run("read-tree", _tree_id(tree), index=GRAFTED)
            self._git.run("update-index", "-z", "--index-info", feed=b"".join(gone + there), index=GRAFTED)
            grafted = self._git.run("write-tree", index=GRAFTED).decode().strip()
            self._keep(name, grafted)
            return grafted

    def drop(self, name: str) -> None:
        """Forgets a checkpoint; what only it held is freed when garbage is collected."""
        with self._lock:
            self._ref(name).unlink(missing_ok=True)

    def _keep(self, name: str, tree: str) -> None:
        path = self._ref(name)
        path.parent.mkdir(exist_ok=True)
        temporary = self._folder / "ref.lock"
        temporary.write_text(f"{tree}\n")
        temporary.replace(path)

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
            left_out = self._healing(lambda: self._update(tells_ignored=True))
            if base == self._index.known_tree:
                return Changes([], left_out=left_out)
            changes = self._compare("diff-index", "--cached", base, patch=patch)
            return Changes(changes.files, changes.is_truncated, left_out)

    def changes_since_other(self, base: str, objects: Path, *, patch: bool = False) -> Changes:
        """Compares the workspace as it is with a tree of another repository, whose objects are in that folder."""
        base = _tree_id(base)
        with self._lock:
            left_out = self._healing(lambda: self._update(tells_ignored=True))
            changes = compare(self._git, "diff-index", "--cached", base, patch=patch, objects=objects)
            if any(change.old_path is not None and self._index.is_there(change.old_path) for change in changes.files):
                # What is committed and not recorded here is no deletion, and nothing was renamed from it.
                changes = compare(self._git, "diff-index", "--cached", base, patch=patch, renames=False, objects=objects)
        files = []
        for change in changes.files:
            if change.status == "deleted" and self._index.is_there(change.path):
                left_out.add_once(change.path, "ignored")
            else:
                files.append(change)
        return Changes(files, changes.is_truncated, left_out)

    def entries(self, base: str, tree: str) -> dict[bytes, tuple[Entry | None, Entry | None]]:
        """Gives every path that differs between two recorded trees, with what is there in each. Errors: NotFound when one is lost."""
        base, tree = _tree_id(base), _tree_id(tree)
        with self._lock:
            return self._told_of_loss(lambda: entries(self._git, base, tree), (base, tree))

    def paths(self, tree: str, wanted: Callable[[bytes], bool]) -> dict[bytes, Entry]:
        """Gives the files of a recorded tree whose paths are wanted. Errors: NotFound when it is lost."""
        tree = _tree_id(tree)

        def read() -> dict[bytes, Entry]:
            found: dict[bytes, Entry] = {}
            with self._git.start("ls-tree", "-r", "-z", tree) as running:
                for token in running.tokens():
                    about, path = token.split(b"\t", 1)
                    if wanted(path):
                        mode, _, object_id = about.split(b" ")
                        found[path] = mode, object_id
            return found

        with self._lock:
            return self._told_of_loss(read, (tree,))

    def with_contents(self, use: Callable[[Callable[[bytes], bytes]], T]) -> T:
        """Calls `use` with a function that gives a recorded file's contents, or a link's target, by object id."""
        with self._lock, self._git.start("cat-file", "--batch") as running:
            result = use(running.contents)
            running.feed(b"")
            return result

    def diff(self, base: str, tree: str, *, patch: bool = False) -> Changes:
        """Compares two recorded trees. Errors: NotFound when one is lost."""
        with self._lock:
            return self._compare("diff-tree", _tree_id(base), _tree_id(tree), patch=patch)

    def collect(self, keep: Sequence[str]) -> None:
        """Drops all checkpoints but those named, and frees the disk of what only they held. Takes seconds: call it when idle."""
        with self._lock:
            self._free(set(self.names()).difference(keep))

    def free(self, dropped: Iterable[str]) -> None:
        """Drops these checkpoints, and frees the disk of what only they held. Takes seconds: call it when idle."""
        with self._lock:
            self._free(dropped)

    def _free(self, dropped: Iterable[str]) -> None:
        for name in dropped:
            self._ref(name).unlink(missing_ok=True)
        try:
            self._collect_garbage()
        except GitFailed:
            # git gc refuses as long as a ref or the index names a lost object, and the disk would then fill for ever.
            self._drop_damaged()
            self._collect_garbage()
        self._index.measure()

    def _update(self, *, tells_ignored: bool = False) -> LeftOut:
        if not self._is_checked:
            self._drop_hollow_objects()
            self._is_checked = True
        return self._index.update(tells_ignored=tells_ignored)

    def _record(self) -> str:
        self._update()
        return self._index.tree()

    def _compare(self, *sides: str, patch: bool) -> Changes:
        try:
            return compare(self._git, *sides, patch=patch)
        except GitFailed as error:
            self._raise_lost(filter(TREE.fullmatch, sides), error)
            self._heal(rebuild=True)
            self._update()
            return compare(self._git, *sides, patch=patch)

    def _told_of_loss(self, step: Callable[[], T], trees: Iterable[str]) -> T:
        try:
            return step()
        except GitFailed as error:
            self._raise_lost(trees, error)
            raise

    def _raise_lost(self, trees: Iterable[str], error: GitFailed) -> None:
        for tree in trees:
            if not self._is_whole(tree):
                raise NotFound(f"The state {tree} is lost or damaged, so nothing can be compared with it") from error

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
