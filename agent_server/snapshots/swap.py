"""Puts one set of files into the workspace's folder in the place of another, so that a kill at any point leaves one of the two whole.

The workspace may be a mounted file system, so it is its entries that are moved, one by one, within it: out into `old`, then in
from `new`, both in the folder STAGING. A journal outside of it says which of the two is under way: what was moved out goes
back after a kill, what was being moved in goes on. All of this blocks.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent_server.datadir import write_private
from agent_server.errors import Conflict
from agent_server.snapshots.pack import KEPT, STAGING

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Begun(msgspec.Struct, frozen=True, rename="camel"):
    """A session whose conversation a restore brings back, and what lists of sessions show of it."""

    session_id: str
    title: str | None = None
    agent: str | None = None
    parent_session_id: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """What the journal says: a restore that is under way, and which conversations begin anew when it is done."""

    restore_id: str
    snapshot_id: str
    name: str
    entries: int
    sessions: list[Begun]
    phase: Literal["out", "in", "back"] = "out"


class Swap:
    """One workspace, and the journal of what is being done to it."""

    def __init__(self, workspace: Path, journal: Path) -> None:
        self._workspace = workspace
        self._journal = journal

    @property
    def staging(self) -> Path:
        return self._workspace / os.fsdecode(STAGING)

    def prepare(self) -> Path:
        """Gives the empty folder in which what is to come is made. Errors: OSError."""
        self.clean()
        self.staging.mkdir(mode=0o700)
        (self.staging / ".gitignore").write_text("*\n")
        (self.staging / "old").mkdir()
        new = self.staging / "new"
        new.mkdir()
        return new

    def pending(self) -> Plan | None:
        """Gives the restore that a killed server left under way."""
        try:
            return msgspec.json.decode(self._journal.read_bytes(), type=Plan)
        except FileNotFoundError:
            return None

    def run(self, plan: Plan) -> None:
        """Swaps. Errors: Conflict, OSError, and then everything is as before."""
        self._write(plan)
        try:
            self._move_out()
        except OSError as error:
            self.undo()
            raise Conflict(
                f"The workspace cannot be replaced: {error.strerror} ({os.fsdecode(error.filename or b'')!r}). "
                "Nothing was changed; a folder that is mounted inside it must be unmounted first."
            ) from error
        self._write(msgspec.structs.replace(plan, phase="in"))
        self.move_in()

    def revert(self, plan: Plan) -> None:
        """Puts what was replaced back, after all was moved in."""
        self._write(msgspec.structs.replace(plan, phase="back"))
        self._empty_into_new()
        self._write(msgspec.structs.replace(plan, phase="out"))
        self.undo()

    def recover(self, plan: Plan) -> bool:
        """Ends what a killed server left under way, and tells whether the new files are there; then all is still to be told."""
        if plan.phase == "in":
            self.move_in()
            return True
        if plan.phase == "back":
            self.revert(plan)
        else:
            self.undo()
        return False

    def undo(self) -> None:
        """Puts back what was moved out."""
        with contextlib.suppress(FileNotFoundError), _Fds(self._workspace, self.staging) as (outer, old, new):
            for name in os.listdir(old):
                _set_aside(name, outer, new)
                _move(name, old, outer)
        self.done()

    def move_in(self) -> None:
        """Moves in what is new. May be called again after a kill."""
        with _Fds(self._workspace, self.staging) as (outer, old, new):
            for name in os.listdir(new):
                _set_aside(name, outer, old)
                _move(name, new, outer)

    def done(self) -> None:
        """Forgets the restore: all of it is told."""
        self._journal.unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes what was left of an earlier swap. Takes a while for a large workspace. Errors: OSError."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(self.staging.lstat().st_mode):
                shutil.rmtree(self.staging, onerror=_make_writable)
            else:
                self.staging.unlink()

    def _empty_into_new(self) -> None:
        with _Fds(self._workspace, self.staging) as (outer, _, new):
            for name in os.listdir(outer):
                if os.fsencode(name) not in KEPT:
                    _set_aside(name, outer, new)

    def _move_out(self) -> None:
        with _Fds(self._workspace, self.staging) as (outer, old, _):
            for name in os.listdir(outer):
                if os.fsencode(name) not in KEPT:
                    with contextlib.suppress(FileNotFoundError):  # it was there a moment ago
                        _move(name, outer, old)

    def _write(self, plan: Plan) -> None:
        write_private(self._journal, msgspec.json.encode(plan))


class _Fds:
    """The workspace, `old` and `new`, open: whatever becomes of their names, nothing is moved elsewhere."""

    def __init__(self, workspace: Path, staging: Path) -> None:
        self._paths = (workspace, staging)

    def __enter__(self) -> tuple[int, int, int]:
        workspace, staging = self._paths
        with contextlib.ExitStack() as stack:

            def enter(name: str | Path, outer: int | None = None) -> int:
                fd = os.open(name, _FOLDER, dir_fd=outer)
                stack.callback(os.close, fd)
                return fd

            inner = enter(staging.name, outer := enter(workspace))
            fds = outer, enter("old", inner), enter("new", inner)
            self._stack = stack.pop_all()
        return fds

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _set_aside(name: str, outer: int, place: int) -> None:
    """Makes room for a name that something else has taken meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=outer, follow_symlinks=False)
        os.rename(name, f"{name[:200]}.{os.urandom(8).hex()}", src_dir_fd=outer, dst_dir_fd=place)


def _move(name: str, source: int, target: int) -> None:
    try:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError:
        # A folder that nobody may write to cannot be moved either: its `..` changes.
        mode = stat.S_IMODE(os.stat(name, dir_fd=source, follow_symlinks=False).st_mode)
        os.chmod(name, mode | stat.S_IWUSR, dir_fd=source, follow_symlinks=True)
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        os.chmod(name, mode, dir_fd=target)


def _make_writable(function: Callable[..., Any], path: str, failure: object) -> None:
    with contextlib.suppress(OSError):  # what cannot be removed stays; the next restore tries again
        for folder in (os.path.dirname(path), path):
            if not os.path.islink(folder):
                os.chmod(folder, 0o700)
        function(path)
