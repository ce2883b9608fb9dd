"""Watches folders for changes, live: nothing is kept for those who come later.

What is not told exactly: a file that takes the place of another by a rename is `added`. Of changes to one path within a moment the
outcome is told. .git and what uploads have half-written are left out. Folders are entered through no link.
"""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import msgspec

from agent_server.errors import TooManyRequests, Unprocessable
from agent_server.files import inotify
from agent_server.files.folders import listed
from agent_server.files.inotify import Inotify, Said
from agent_server.files.staging import PREFIX
from agent_server.files.tree import walk

MOST_WATCHES = 8
"""Watches at a time: each takes some MB for a large workspace, and the kernel's watches are the user's, shared by dev servers."""

MOST_FOLDERS = 50_000
"""Folders of one watch. Some Linux systems allow a user 8,192 in all (fs.inotify.max_user_watches)."""

MOST_FOUND = 10_000
"""Entries that are told of folders that appeared whole; of more an overflow is told."""

WINDOW = 0.05
"""Seconds in which changes to one path become one."""

_STAGED = PREFIX.encode()
_SELF = inotify.DELETE_SELF | inotify.MOVE_SELF

OpenFolder = Callable[[], AbstractContextManager[int]]
"""Opens the folder that is watched; it raises an OSError when that is gone."""

What = Literal["added", "modified", "deleted"]


class Change(msgspec.Struct, frozen=True):
    """A change of one path, relative to the watched folder. Without a path: some changes were dropped, and nobody knows which."""

    path: bytes | None
    change: What = "modified"


OVERFLOW = Change(None)


class Watches:
    """The watches of one server."""

    def __init__(self) -> None:
        self._open: set[Watch] = set()

    def watch(self, folder: OpenFolder) -> "Watch":
        """Makes a watch of a folder; it is to be begun. Errors: TooManyRequests, Unprocessable."""
        if len(self._open) >= MOST_WATCHES:
            raise TooManyRequests(f"{MOST_WATCHES} watches are open already; close one.")
        watch = Watch(self, folder)
        self._open.add(watch)
        return watch

    def end(self) -> None:
        """Lets the watches end, as for a stop."""
        for watch in self._open:
            watch.end()

    def forget(self, watch: "Watch") -> None:
        self._open.discard(watch)


class Watch:
    """One watch of one folder and all below it."""

    def __init__(self, watches: Watches, folder: OpenFolder) -> None:
        self._stirred = asyncio.Event()
        self._is_ended = False
        self._watches = watches
        self._open_root = folder  # for a moment only: the kernel does not tell of the end of a folder that is held open
        self._paths: dict[int, bytes] = {}  # the folder of each kernel watch
        # Protects the descriptors: a stream that is cancelled closes them while a thread may be reading.
        self._lock = threading.Lock()
        self._is_closed = False
        try:
            self._inotify = Inotify()
        except OSError as error:
            raise _limit(error) from error

    async def follow(self) -> AsyncIterator[Change]:
        """Gives the changes from `begin` on. Ends with the folder itself, or when the server stops."""
        while await self._stirs():
            await asyncio.sleep(WINDOW)
            for change in await asyncio.to_thread(self.read):
                yield change

    async def _stirs(self) -> bool:
        """Returns when there is something to read; False at the end."""
        self._stirred.clear()
        loop = asyncio.get_running_loop()
        # Only while it is waited: who does not read what there is would be told so again and again.
        loop.add_reader(self._inotify.fd, self._stirred.set)
        try:
            if not self._is_ended:
                await self._stirred.wait()
        finally:
            loop.remove_reader(self._inotify.fd)
        return not self._is_ended

    def end(self) -> None:
        """Lets `follow` end."""
        self._is_ended = True
        self._stirred.set()

    def begin(self) -> None:
        """Watches the folder and all below it. It blocks. Errors: Unprocessable when these are too many."""
        with self._lock:
            if not self._is_closed:
                try:
                    for _ in self._enter(b""):
                        pass
                except OSError as error:
                    raise _limit(error) from error

    def read(self) -> list[Change]:
        """Gives what has changed since. It blocks, but waits for nothing."""
        with self._lock:
            found: dict[bytes | None, Change] = {}
            for said in [] if self._is_closed else self._inotify.read():
                for change in self._changes(said):
                    before = found.pop(change.path, None)
                    found[change.path] = change if before is None else _together(before, change)
            return list(found.values())

    def close(self) -> None:
        """Ends it. May be called twice."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._inotify.close()
                self._watches.forget(self)

    def _changes(self, said: Said) -> Iterator[Change]:
        if said.mask & inotify.Q_OVERFLOW:
            yield OVERFLOW
            yield from self._begin_again()
            return
        folder = self._paths.get(said.watch)
        if folder is None:
            return
        if said.mask & inotify.IGNORED:
            del self._paths[said.watch]
        if not said.name:
            if said.mask & _SELF and not folder:
                self._is_ended = True
            return
        if said.name == b".git" or said.name.startswith(_STAGED):
            return
        yield from self._of(said, folder + said.name)

    def _of(self, said: Said, path: bytes) -> Iterator[Change]:
        is_folder = bool(said.mask & inotify.ISDIR)
        if said.mask & (inotify.CREATE | inotify.MOVED_TO):
            yield Change(path, "added")
            if is_folder:
                yield from self._appeared(path)
        elif said.mask & (inotify.DELETE | inotify.MOVED_FROM):
            yield Change(path, "deleted")
            if is_folder:
                self._leave(path + b"/")
        elif said.mask & (inotify.MODIFY | inotify.ATTRIB):
            yield Change(path, "modified")

    def _appeared(self, path: bytes) -> Iterator[Change]:
        try:
            for number, found in enumerate(self._enter(path + b"/")):
                if number >= MOST_FOUND:
                    yield OVERFLOW
                if number < MOST_FOUND:
                    yield Change(found, "added")
        except OSError:
            yield OVERFLOW  # the kernel takes no more watches: what happens in there is not seen

    def _begin_again(self) -> Iterator[Change]:
        """Finds the folders that were made unseen."""
        try:
            for _ in self._enter(b""):
                pass
        except OSError:
            yield OVERFLOW

    def _enter(self, prefix: bytes) -> Iterator[bytes]:
        """Watches a folder and all below it, and gives what is in them. Errors: OSError where these are too many."""
        folder = self._descend(prefix)
        if folder is None:
            return
        try:
            self._add(folder, prefix)
        except BaseException:
            os.close(folder)
            raise
        for entry in walk(folder, _without_git):
            if entry.is_folder:
                self._add_folder(entry.name, entry.folder, prefix + entry.path + b"/")
            yield prefix + entry.path

    def _add_folder(self, name: bytes, folder: int, prefix: bytes) -> None:
        try:
            inner = listed(name, folder)
        except OSError:  # it is gone, or closed to us
            return
        try:
            self._add(inner, prefix)
        finally:
            os.close(inner)

    def _add(self, folder: int, prefix: bytes) -> None:
        if len(self._paths) >= MOST_FOLDERS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._paths[self._inotify.add(folder)] = prefix

    def _leave(self, prefix: bytes) -> None:
        for watch in [watch for watch, path in self._paths.items() if path.startswith(prefix)]:
            del self._paths[watch]
            self._inotify.remove(watch)

    def _descend(self, prefix: bytes) -> int | None:
        with self._open_root() as root:
            here = listed(".", root)
        for name in prefix.split(b"/")[:-1]:
            try:
                there = listed(name, here)
            except OSError:
                return None
            finally:
                os.close(here)
            here = there
        return here


def _together(before: Change, change: Change) -> Change:
    if before.change == "added" and change.change == "modified":
        return before
    if before.change == "deleted" and change.change == "added":
        return Change(change.path, "modified")
    return change


def _without_git(paths: Sequence[bytes]) -> list[bytes]:
    return [path for path in paths if path.rpartition(b"/")[2] != b".git"]


def _limit(error: OSError) -> Exception:
    if error.errno not in (errno.ENOSPC, errno.EMFILE):
        return error
    return Unprocessable(
        "There are more folders than can be watched; watch a smaller one, or raise fs.inotify.max_user_watches and max_user_instances.",
        details={"limit": "watches", "most": MOST_FOLDERS},
    )
