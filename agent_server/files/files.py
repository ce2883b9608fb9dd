"""Files of the workspace: read, written and removed as a whole.

A file is written beside its place and renamed, so whoever reads it, before or after, has one whole version. A path that is a link is
written through, if it leads to a place inside the workspace: the link stays, and the file it leads to is replaced. What the workspace
says of a path is true when it is asked; the folders are then opened without following links, so that a link swapped in later is
refused or replaced, never gone through.

Left out on purpose: access lists and extended attributes of a file that is replaced, and its other hard links, which keep what it was.
"""

import asyncio
import contextlib
import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent_server.errors import Conflict, Forbidden, InvalidRequest, NotFound, TooManyRequests
from agent_server.files import folders
from agent_server.files.folders import telling
from agent_server.files.staging import Staging
from agent_server.workspace import Workspace

CHUNK_BYTES = 256 << 10
"""Bytes read or written at once, and so what each transfer takes of memory."""

MOST_TRANSFERS = 32
"""Contents and archives on their way at a time: 8 MiB of memory, and descriptors to spare."""

MOST_LISTINGS = 2
"""Trees and searches at work at a time; each takes a thread, of which the server has few, and more wait."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MADE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Info(msgspec.Struct, frozen=True):
    """What there is at a path. `error` is set where that cannot be told; `exists` is false then."""

    exists: bool
    error: str | None = None
    is_dir: bool = False
    is_file: bool = False
    is_symlink: bool = False
    link_target: str | None = None
    mode: int = 0
    size: int = 0


class Condition(msgspec.Struct, frozen=True):
    """What a client wants a file to be before it is changed: the headers If-Match and If-None-Match."""

    if_match: str | None = None
    if_none_match: str | None = None

    def check(self, etag: str | None) -> None:
        """Compares with the file as it is; None is no file. Errors: Conflict."""
        if self.if_match is not None and not (etag is not None and names(self.if_match, etag)):
            raise Conflict("The file is not the one If-Match names; read it again.", details={"etag": etag})
        if self.if_none_match is not None and etag is not None and names(self.if_none_match, etag):
            raise Conflict("The file is there already, and If-None-Match asks that it is not.", details={"etag": etag})


def names(header: str, etag: str) -> bool:
    """Whether the header names the version, or any (`*`)."""
    return header.strip() == "*" or etag in re.findall(r'"[^"]*"', header)


def etag_of(info: os.stat_result) -> str:
    """Gives what names one version of a file.

    Two writes in place within one tick of the disk's clock (4 ms) that keep the size share it.
    """
    return f'"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"'


class Files:
    """The files of one workspace. All methods but `transfer` block."""

    def __init__(self, workspace: Workspace, staging: Staging) -> None:
        self.workspace = workspace
        self.staging = staging
        # Protects the time between looking at a file's version and replacing it, against other uploads.
        self.replacing = threading.Lock()
        self.listings = asyncio.Semaphore(MOST_LISTINGS)
        self.unpackings = asyncio.Semaphore(1)
        self._transfers = 0

    @contextlib.contextmanager
    def transfer(self) -> Iterator[None]:
        """Holds one of the places for contents on their way. Errors: TooManyRequests."""
        if self._transfers >= MOST_TRANSFERS:
            raise TooManyRequests(f"{MOST_TRANSFERS} files and archives are on their way already; try again.")
        self._transfers += 1
        try:
            yield
        finally:
            self._transfers -= 1

    def stat(self, path: str, *, follow_links: bool) -> Info:
        """Tells what is at a path: of a link itself, or of what it leads to. Errors: Forbidden outside of the workspace."""
        try:
            real = self._followed(path) if follow_links else self.workspace.place(path)
            if real == self.workspace.root:
                return _info(os.lstat(real), None)
            with self.folder(real.parent) as fd:
                info = os.lstat(real.name, dir_fd=fd)
                return _info(info, os.readlink(real.name, dir_fd=fd) if stat.S_ISLNK(info.st_mode) else None)
        except (FileNotFoundError, NotADirectoryError):
            return Info(exists=False)
        except Forbidden:
            raise
        except OSError as error:
            return Info(exists=False, error=os.strerror(error.errno or errno.EIO))

    def _followed(self, path: str) -> Path:
        try:
            return self.workspace.resolve(path)
        except InvalidRequest as error:
            if isinstance(error.__cause__, OSError | RuntimeError):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
            raise

    def open(self, path: str) -> tuple[int, os.stat_result]:
        """Opens a file for reading; it stays the version it was, whatever replaces it. Errors: NotFound, InvalidRequest for no file."""
        real = self.workspace.resolve(path)
        with telling(path), self.folder(real.parent) as fd:
            info = os.stat(real.name or ".", dir_fd=fd, follow_symlinks=False)
            if stat.S_ISREG(info.st_mode):  # looked at before it is opened, which some devices would take amiss
                file = os.open(real.name, _READ, dir_fd=fd)
                info = os.fstat(file)
                if stat.S_ISREG(info.st_mode):
                    return file, info
                os.close(file)
        if stat.S_ISDIR(info.st_mode):
            raise InvalidRequest(f"{path} is a folder; GET /files/tree lists it, and GET /files/archive gives all of it.", path="path")
        raise InvalidRequest(f"{path} is no regular file; name one.", path="path")

    def upload(self, path: str, condition: Condition) -> "Upload":
        """Begins to write a file, and makes the folders it is in. Errors: Conflict where it may not be replaced."""
        real = self.workspace.resolve(path)
        if self.workspace.root.is_relative_to(real):
            raise Conflict(f"{path} is a folder; name a file.", details={"path": path})
        with telling(path):
            return Upload(self, path, real, condition)

    def remove(self, path: str, condition: Condition) -> None:
        """Removes a file, a link (not what it leads to), or a folder with all that is in it.

        Errors: NotFound; Conflict; Forbidden for the workspace itself.
        """
        real = self.workspace.place(path)
        if self.workspace.root.is_relative_to(real):
            raise Forbidden("The workspace itself cannot be removed; name what is in it.", details={"path": path})
        with telling(path), self.folder(real.parent) as fd:
            info = os.lstat(real.name, dir_fd=fd)
            condition.check(etag_of(info))
            folders.remove(real.name, fd)

    def folder(self, real: Path, *, make: bool = False) -> "contextlib.AbstractContextManager[int]":
        """Opens a folder that `Workspace.resolve` gave. Errors: OSError."""
        root = self.workspace.root if real.is_relative_to(self.workspace.root) else Path("/")
        return folders.opened(real, root=root, make=make)

    def existing_folder(self, path: str) -> Path:
        """Gives the real path of a folder. Errors: NotFound, InvalidRequest for what is none."""
        real = self.workspace.resolve(path)
        if real.is_dir():
            return real
        if not os.path.lexists(real):
            raise NotFound(f"There is nothing at {path}; GET /files/tree lists what there is.", details={"path": path})
        raise InvalidRequest(f"{path} is no folder; name one.", path="path")


class Upload:
    """A file on its way: hidden beside its place until `finish`, and gone after `close`."""

    def __init__(self, files: Files, path: str, real: Path, condition: Condition) -> None:
        self._files = files
        self._path = path
        self.real = real
        self._condition = condition
        # Protects the descriptors: a request that is cancelled closes them while a thread may be writing.
        self._lock = threading.Lock()
        self._is_closed = False
        # Its folder may not be there yet; then it waits in the nearest one that is, so that an upload given up has made none.
        waiting = next(folder for folder in real.parents if os.path.lexists(folder))
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(files.folder(waiting))
            before = self._look(self._folder if waiting == real.parent else None)
            self._staged = files.staging.name(waiting)
            stack.callback(files.staging.forget, self._staged)
            stack.callback(self._discard)
            # What is private stays private while it is on its way.
            self._file = os.open(self._staged, _MADE, 0o666 if before is None else 0o600, dir_fd=self._folder)
            stack.callback(os.close, self._file)
            self._open = stack.pop_all()

    def expect(self, size: int) -> None:
        """Says how much is to come. Errors: Unprocessable when the disk has no room for it."""
        with self._lock:
            if not self._is_closed:
                folders.require_room(size, self._file)

    def write(self, data: bytes | bytearray) -> None:
        """Adds to the file. Errors: Unprocessable when the disk is full."""
        with telling(self._path), self._lock:
            if self._is_closed:
                return
            folders.require_room(len(data), self._file)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def finish(self) -> tuple[int, str, bool]:
        """Puts the file in its place. Gives its size, its version, and whether there was none before. Errors: Conflict."""
        with telling(self._path), self._lock:
            if self._is_closed:
                raise Conflict("The upload was given up.")
            os.fsync(self._file)  # or a power loss leaves an empty file under the name
            with self._files.folder(self.real.parent, make=True) as folder, self._files.replacing:
                before = self._look(folder)
                if before is not None:
                    self._take_over(before)
                os.rename(self._staged, self.real.name, src_dir_fd=self._folder, dst_dir_fd=folder)
            info = os.fstat(self._file)
            return info.st_size, etag_of(info), before is None

    def close(self) -> None:
        """Lets go of everything; what is not finished leaves nothing behind."""
        with self._lock:
            self._is_closed = True
            self._open.close()

    def _look(self, folder: int | None) -> os.stat_result | None:
        """Tells what is to be replaced; without a folder there is nothing. Errors: Conflict where that must not be."""
        info = None
        if folder is not None:
            with contextlib.suppress(FileNotFoundError):
                info = os.lstat(self.real.name, dir_fd=folder)
        if info is not None and stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if info is not None and not stat.S_ISREG(info.st_mode) and not stat.S_ISLNK(info.st_mode):
            raise Conflict(f"{self._path} is no regular file; name one.", details={"path": self._path})
        self._condition.check(etag_of(info) if info is not None else None)
        return info

    def _take_over(self, before: os.stat_result) -> None:
        """Gives the file the owner and the mode of the one it replaces, but never the right to run as its owner."""
        if stat.S_ISLNK(before.st_mode):  # swapped in meanwhile: it is replaced, and has no mode of its own
            return
        with contextlib.suppress(PermissionError):  # only a server that is root may give files away
            os.fchown(self._file, before.st_uid, before.st_gid)
        os.fchmod(self._file, stat.S_IMODE(before.st_mode) & 0o777)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # it has been put in its place, or its folder is gone
            os.unlink(self._staged, dir_fd=self._folder)


def _info(info: os.stat_result, target: str | None) -> Info:
    mode = info.st_mode
    return Info(
        exists=True,
        is_dir=stat.S_ISDIR(mode),
        is_file=stat.S_ISREG(mode),
        is_symlink=stat.S_ISLNK(mode),
        link_target=target,
        mode=stat.S_IMODE(mode),
        size=info.st_size,
    )
