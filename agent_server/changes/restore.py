"""Brings files of the workspace from one recorded state to another: contents, permission to execute, links, deletions.

Each file is replaced whole, and only while it is still what it was found to be. No folder is entered through a link, so that nothing
outside the workspace is ever written. All of it can be done again, or backwards, after it was cut short at any point.

Left out: file times, and folders that were empty before; a folder that becomes empty is removed, as git does.

    Changed (Conflict)          a file is not what it was when the work began
    CannotRestore (Conflict)    the file system refuses
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from agent_server.changes.changes import Entry, shown
from agent_server.changes.index import FILE_BYTES
from agent_server.errors import Conflict

LINK = b"120000"
PROGRAM = b"100755"
PLAIN = b"100644"

FOLDER: Entry = (b"040000", b"")
OTHER: Entry = (b"000000", b"")
"""What no recording has for a file: a device, a file too large to be recorded, or one that cannot be read."""

LOOK_LIMIT = 100_000
"""Entries of a folder in the way of a file that are looked at; one that has more is not removed."""

Contents = Callable[[bytes], bytes]


class Changed(Conflict):
    """A file is not what it was when the work began."""


class CannotRestore(Conflict):
    """The file system refuses."""


class Move(msgspec.Struct, frozen=True):
    """What a path has before and after; None is no file."""

    path: bytes
    before: Entry | None
    after: Entry | None

    @property
    def backwards(self) -> "Move":
        return Move(self.path, self.after, self.before)


class Blocked(msgspec.Struct):
    """Paths that keep files from being restored: `changed` is not what was recorded, `locked` folders may not be written."""

    changed: set[bytes] = msgspec.field(default_factory=set)
    locked: set[bytes] = msgspec.field(default_factory=set)


def moves_of(differences: Mapping[bytes, tuple[Entry | None, Entry | None]]) -> list[Move]:
    return [Move(path, before, after) for path, (before, after) in differences.items() if b".git" not in path.lower().split(b"/")]


class Restoration:
    """Moves in one workspace. `mark` names the drafts of files, so that those a killed server left are found. All of it blocks."""

    def __init__(self, workspace: Path, moves: Iterable[Move], mark: str) -> None:
        self._workspace = workspace
        self._moves = sorted(moves, key=lambda move: move.path)
        self._leaving = {move.path for move in self._moves if move.after is None}
        self._draft = f".{mark}.tmp".encode()

    def backwards(self) -> "Restoration":
        return Restoration(self._workspace, [move.backwards for move in self._moves], os.fsdecode(self._draft[1:-4]))

    @property
    def paths(self) -> list[bytes]:
        return [move.path for move in self._moves]

    def check(self) -> Blocked:
        """Gives what is in the way, without changing anything."""
        blocked = Blocked()
        with self._root() as root:
            for folder in {os.path.dirname(move.path) for move in self._moves}:
                if not _is_writable(root, folder):
                    blocked.locked.add(folder or b".")
            for move in self._moves:
                if not _is(_state(root, move.path), move.before):
                    blocked.changed.add(move.path)
                elif move.after is not None:
                    blocked.changed.update(self._in_the_way(root, move.path))
        return blocked

    def apply(self, contents: Contents) -> None:
        """Makes all moves; those that are made already are left.

        Errors: Changed, CannotRestore, and those of `contents`: then some are made, and `backwards` unmakes them.
        """
        with self._root() as root:
            for path, step in self._steps(root, contents):
                try:
                    step()
                except OSError as error:
                    raise CannotRestore(f"{shown(path)} cannot be restored: {error.strerror or error}.") from error

    def apply_what_can_be(self, contents: Contents) -> list[bytes]:
        """Makes all moves that can be made, and gives the paths of the others. Errors: those of `contents`."""
        left = []
        with self._root() as root:
            self._sweep(root)
            for path, step in self._steps(root, contents):
                try:
                    step()
                except (Changed, OSError):
                    left.append(path)
        return left

    def _steps(self, root: int, contents: Contents) -> Iterator[tuple[bytes, Callable[[], None]]]:
        """Removals first, from the deepest: a folder may come where a file was, and a file where a folder was."""
        removals = [move for move in reversed(self._moves) if move.after is None]
        for move in removals:
            yield move.path, lambda move=move: _remove(root, move)  # type: ignore[misc]  # mypy infers no lambda with a default
        for move in self._moves:
            if move.after is not None:
                yield move.path, lambda move=move: self._put(root, move, contents)  # type: ignore[misc]  # as above
        for move in removals:
            _prune(root, move.path)

    def _put(self, root: int, move: Move, contents: Contents) -> None:
        assert move.after is not None  # noqa: S101  # the caller's choice
        found = _state(root, move.path)
        if found == move.after:
            return
        if not _is(found, move.before):
            raise _changed(move.path)
        folder, name = os.path.split(move.path)
        with _folder(root, folder, make=True) as parent:
            if parent is None:
                raise _changed(move.path)
            if found == FOLDER:
                _remove_empty(parent, name)
            _write(parent, name, self._draft, move.after[0], contents(move.after[1]))

    def _in_the_way(self, root: int, path: bytes) -> Iterator[bytes]:
        """Gives what is where the file, or a folder it is in, has to be, and is not going to leave."""
        above = _file_above(root, path)
        if above is not None and above not in self._leaving:
            yield above
        elif above is None and _state(root, path) == FOLDER:
            yield from (inner for inner in _files_below(root, path) if inner not in self._leaving)

    def _sweep(self, root: int) -> None:
        """Removes the draft that a killed server left: it has one at a time."""
        for folder in {os.path.dirname(move.path) for move in self._moves}:
            with _folder(root, folder) as parent, contextlib.suppress(OSError):
                if parent is not None:
                    os.unlink(self._draft, dir_fd=parent)

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        root = os.open(self._workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)


def _changed(path: bytes) -> Changed:
    return Changed(f"{shown(path)} was changed while files were restored.", details={"paths": [shown(path)]})


def _is(found: Entry | None, entry: Entry | None) -> bool:
    """Whether what was found is what a recording says; one has no folders, so there may be one where it has no file."""
    return found == entry or (entry is None and found == FOLDER)


@contextlib.contextmanager
def _folder(root: int, path: bytes, *, make: bool = False) -> Iterator[int | None]:
    """Opens a folder of the workspace, each one on the way without following a link; None where there is none."""
    current: int | None = os.dup(root)
    try:
        for name in path.split(b"/") if path else ():
            assert current is not None  # noqa: S101  # the loop ends with None
            following = _enter(current, name, make=make)
            os.close(current)
            current = following
            if current is None:
                break
        yield current
    finally:
        if current is not None:
            os.close(current)


def _enter(parent: int, name: bytes, *, make: bool) -> int | None:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            _give_to_owner_of(parent, name)
    try:
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):  # a link is no folder, either
        return None


def _state(root: int, path: bytes) -> Entry | None:
    """Gives what is there, as a recording would have it."""
    folder, name = os.path.split(path)
    try:
        with _folder(root, folder) as parent:
            return _entry(parent, name) if parent is not None else None
    except FileNotFoundError:
        return None
    except OSError:
        return OTHER


def _entry(parent: int, name: bytes) -> Entry:
    info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        return FOLDER
    if stat.S_ISLNK(info.st_mode):
        return LINK, _object_id(os.readlink(name, dir_fd=parent))
    if not stat.S_ISREG(info.st_mode) or info.st_size > FILE_BYTES:
        return OTHER
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent), "rb") as file:
        data = file.read(FILE_BYTES + 1)
    return PROGRAM if info.st_mode & stat.S_IXUSR else PLAIN, _object_id(data)


def _object_id(data: bytes) -> bytes:
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest().encode()


def _file_above(root: int, path: bytes) -> bytes | None:
    """Gives the first part of the way that is there and no folder."""
    parts = path.split(b"/")
    for length in range(1, len(parts)):
        above = b"/".join(parts[:length])
        found = _state(root, above)
        if found != FOLDER:
            return above if found is not None else None
    return None


def _files_below(root: int, path: bytes) -> Iterator[bytes]:
    """Gives all that is no folder, in a folder; the folder itself when it has too much."""
    count = 0
    for folder, folders, files, at in os.fwalk(path, dir_fd=root):
        links = [name for name in folders if stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)]
        count += len(folders) + len(files)
        if count > LOOK_LIMIT:
            yield path
            return
        yield from (os.path.join(folder, name) for name in (*files, *links))


def _is_writable(root: int, folder: bytes) -> bool:
    """Whether an entry of the folder, or of the first above it that is there, can be made and removed."""
    try:
        while True:
            with _folder(root, folder) as parent:
                if parent is not None:
                    return os.access(b".", os.W_OK | os.X_OK, dir_fd=parent, effective_ids=True)
            folder = os.path.dirname(folder)
    except OSError:
        return False


def _remove(root: int, move: Move) -> None:
    found = _state(root, move.path)
    if found is None or found == FOLDER:
        return
    if found != move.before:
        raise _changed(move.path)
    folder, name = os.path.split(move.path)
    with _folder(root, folder) as parent:
        os.unlink(name, dir_fd=parent)


def _prune(root: int, path: bytes) -> None:
    """Removes the folders that a file leaves empty."""
    folder = os.path.dirname(path)
    while folder:
        above, name = os.path.split(folder)
        try:
            with _folder(root, above) as parent:
                if parent is not None:
                    os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError:
            return  # it has something in it, or may not be removed: it does no harm
        folder = above


def _remove_empty(parent: int, name: bytes) -> None:
    """Removes a folder with nothing but folders in it. Errors: OSError when there is more."""
    for _, folders, _, at in os.fwalk(name, topdown=False, dir_fd=parent):
        for inner in folders:
            os.rmdir(inner, dir_fd=at)
    os.rmdir(name, dir_fd=parent)


def _write(parent: int, name: bytes, draft: bytes, mode: bytes, data: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=parent)
    try:
        if mode == LINK:
            os.symlink(data, draft, dir_fd=parent)
        else:
            _write_file(parent, name, draft, data, is_program=mode == PROGRAM)
        _give_to_owner_of(parent, draft, like=name)
        os.rename(draft, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=parent)
        raise


def _write_file(parent: int, name: bytes, draft: bytes, data: bytes, *, is_program: bool) -> None:
    descriptor = os.open(
        draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o777 if is_program else 0o666, dir_fd=parent
    )
    with open(descriptor, "wb") as file:
        file.write(data)
        old = _regular(parent, name)
        if old is not None:
            mode = stat.S_IMODE(old.st_mode) & ~0o111
            os.fchmod(file.fileno(), mode | (mode & 0o444) >> 2 if is_program else mode)


def _regular(parent: int, name: bytes) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return info if stat.S_ISREG(info.st_mode) else None
    return None


def _give_to_owner_of(parent: int, name: bytes, *, like: bytes = b".") -> None:
    """Where we may: what root restores belongs to whom it belonged to, or else to the folder's owner."""
    if os.geteuid() != 0:
        return
    try:
        owner = os.stat(like, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        owner = os.stat(b".", dir_fd=parent)
    info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if (info.st_uid, info.st_gid) != (owner.st_uid, owner.st_gid):
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISREG(info.st_mode):
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=parent)
