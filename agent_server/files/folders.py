"""Opens, makes and removes what is in folders, and goes through no link on the way.

A path is resolved first, links and all; then its folders are opened one in another, so that one that was swapped for a link in
between is refused. Whatever is done then is done relative to the open folder.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from agent_server.errors import AgentServerError, Conflict, Forbidden, InvalidRequest, NotFound, Unprocessable

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

KEPT_BYTES = 64 << 20
KEPT_SHARE = 0.05
"""What uploads leave free of a disk: 64 MiB, or 5 % of a small one. The event log and running commands need room, too."""


@contextlib.contextmanager
def opened(folder: Path, *, root: Path = Path("/"), make: bool = False) -> Iterator[int]:
    """Opens a folder below `root` as a place to work in. `make` makes those that are not there.

    Errors: OSError, ENOTDIR also for a link on the way.
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in folder.relative_to(root).parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
            inner = os.open(name, _PLACE, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def listed(name: str | bytes, dir_fd: int) -> int:
    """Opens a folder in another one for listing, and gives its descriptor."""
    return os.open(name, _LISTED, dir_fd=dir_fd)


def remove(name: str, dir_fd: int) -> None:
    """Removes a file, a link, or a folder with all that is in it; however deep that is, it takes two descriptors."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        _remove_folder(name, dir_fd)


def free_bytes(fd: int) -> int:
    """How much an upload may still write to the disk that an open file or folder is on."""
    disk = os.fstatvfs(fd)
    return int(disk.f_bavail * disk.f_frsize - min(KEPT_BYTES, KEPT_SHARE * disk.f_blocks * disk.f_frsize))


def require_room(size: int, fd: int) -> None:
    """Errors: Unprocessable where so many bytes more would leave too little of the disk."""
    if size > (free := free_bytes(fd)):
        raise Unprocessable(_FULL, details={"limit": "disk", "available": max(0, free), "needed": size})


_FULL = "The disk has no room for this; free some, and send it again."

_SAID = {
    errno.ENOTDIR: (Conflict, "A part of {path} is no folder; name another place."),
    errno.ELOOP: (Conflict, "A part of {path} became a link meanwhile; ask again."),
    errno.EISDIR: (Conflict, "{path} is a folder; name a file."),
    errno.ENOTEMPTY: (Conflict, "{path} changed meanwhile; ask again."),
    errno.ESTALE: (Conflict, "{path} changed meanwhile; ask again."),
    errno.EBUSY: (Conflict, "{path} is in use by the system; name another place."),
    errno.EACCES: (Forbidden, "The server's user may not do this to {path}."),
    errno.EPERM: (Forbidden, "The server's user may not do this to {path}."),
    errno.EROFS: (Forbidden, "{path} is on a disk that cannot be written."),
    errno.ENOSPC: (Unprocessable, _FULL),
    errno.EDQUOT: (Unprocessable, _FULL),
    errno.EFBIG: (Unprocessable, "{path} would be larger than its disk allows; send less."),
}


@contextlib.contextmanager
def telling(path: str) -> Iterator[None]:
    """Turns what the system says to a path into what a client is told. Anything else it says stays as it is."""
    try:
        yield
    except AgentServerError:
        raise  # some are OSErrors, too
    except FileNotFoundError as error:
        raise NotFound(f"There is nothing at {path}; GET /files/tree lists what there is.", details={"path": path}) from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
            raise InvalidRequest(f"{path} has a name that this disk does not take; choose another.", path="path") from error
        if error.errno not in _SAID:
            raise
        kind, message = _SAID[error.errno]
        raise kind(message.format(path=path), details={"path": path}) from error


def _remove_folder(name: str, dir_fd: int) -> None:
    names, parents = [name], [_identity(dir_fd)]
    here = listed(name, dir_fd)
    try:
        while names:
            if (inner := _clear(here)) is not None:
                names.append(inner)
                parents.append(_identity(here))
                here = _step(here, inner)
                continue
            here = _step(here, "..")
            if _identity(here) != parents.pop():  # the folder was moved elsewhere meanwhile: that is none of ours
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            os.rmdir(names.pop(), dir_fd=here)
    finally:
        os.close(here)


def _clear(folder: int) -> str | None:
    """Removes what is no folder, until the first folder comes, and gives that one's name."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                return entry.name
            os.unlink(entry.name, dir_fd=folder)
    return None


def _step(here: int, name: str) -> int:
    there = listed(name, here)
    os.close(here)
    return there


def _identity(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino
