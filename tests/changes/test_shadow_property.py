"""Whatever happens to a workspace, what is told is what a plain comparison finds."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent_server.changes.shadow import Shadow
from tests.workspaces import compared, fingerprint, git, look, told

PARTS = st.sampled_from([b"a", b"b", b"c d", b"-x", b"\xff\xfe", b"n\nl", "ü".encode(), b'q"\t\\'])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map(b"/".join)
# Of few sizes, so that many edits keep the size within one tick of a clock.
CONTENTS = st.sampled_from([b"", b"1", b"2", b"a\r\nb\r\n", b"a\nb\n\n", b"$Id$\n", b"\0\1\2", b"x" * 500, b"x" * 499 + b"y"])


class Workspace(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.root = self.base / "workspace"
        self.root.mkdir()
        self.shadow = Shadow(self.base / "shadow", self.root)
        self.before = look(self.root)
        self.tree = self.shadow.checkpoint("start")
        self.has_git = False

    def teardown(self) -> None:
        shutil.rmtree(self.base)

    def at(self, path: bytes) -> Path:
        return self.root / os.fsdecode(path)

    def make_room(self, path: bytes) -> Path:
        """Removes what stands at the path, and files and links that stand where it needs folders."""
        target = self.at(path)
        for parent in reversed(target.relative_to(self.root).parents):
            here = self.root / parent
            if here.is_symlink() or here.is_file():
                here.unlink()
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            with contextlib.suppress(OSError):
                target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @initialize(with_git=st.booleans())
    def begin(self, with_git: bool) -> None:
        if with_git:
            git(self.root, "init")
            self.has_git = True

    @rule(path=PATHS, contents=CONTENTS)
    def write_file(self, path: bytes, contents: bytes) -> None:
        target = self.at(path)
        # In place, where it can be: the same inode, often the same size.
        (target if target.is_file() and not target.is_symlink() else self.make_room(path)).write_bytes(contents)

    @rule(path=PATHS)
    def delete(self, path: bytes) -> None:
        self.make_room(path)

    @rule(path=PATHS, other=PATHS)
    def rename(self, path: bytes, other: bytes) -> None:
        source = self.at(path)
        if not os.path.lexists(source) or other.startswith(path) or path.startswith(other):
            return
        kept = self.base / "kept"
        source.rename(kept)
        kept.rename(self.make_room(other))

    @rule(path=PATHS, mode=st.sampled_from([0o644, 0o755]))
    def chmod(self, path: bytes, mode: int) -> None:
        if self.at(path).is_file() and not self.at(path).is_symlink():
            self.at(path).chmod(mode)

    @rule(path=PATHS, goal=PATHS)
    def link(self, path: bytes, goal: bytes) -> None:
        self.make_room(path).symlink_to(os.fsdecode(goal))

    @rule(path=PATHS, commit=st.booleans())
    def nest_repository(self, path: bytes, commit: bool) -> None:
        target = self.at(path)
        if target.is_symlink() or not target.is_dir():
            target = self.make_room(path)
            target.mkdir()
        git(target, "init")
        if commit:
            git(target, "commit", "--allow-empty", "-m", "x")

    @precondition(lambda self: self.has_git)
    @rule()
    def commit(self) -> None:
        # A user's git fails on nested repositories without commits; what it then did is still the user's doing.
        with contextlib.suppress(subprocess.CalledProcessError):
            git(self.root, "add", "-A")
        git(self.root, "commit", "--allow-empty", "-m", "x")

    @rule()
    def checkpoint(self) -> None:
        self.tree, self.before = self.shadow.checkpoint("next"), look(self.root)

    @rule()
    def restart(self) -> None:
        self.shadow = Shadow(self.base / "shadow", self.root)

    @rule()
    def collect(self) -> None:
        self.shadow.collect(self.shadow.names())

    @invariant()
    def tells_what_changed(self) -> None:
        untouched = fingerprint(self.root / ".git") if self.has_git else None
        changes = self.shadow.changes_since(self.tree, patch=True)
        after = look(self.root)
        assert told(changes.files) == compared(self.before, after)
        assert changes.left_out.count == 0
        for change in changes.files:
            assert change.is_binary or (change.diff or "").startswith("diff --git "), change
        if self.has_git:
            assert fingerprint(self.root / ".git") == untouched


TestWorkspace = Workspace.TestCase
TestWorkspace.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
