"""What the shadow repository leaves out, and what it takes of the disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_server.changes.index import Limits
from agent_server.changes.shadow import Shadow
from agent_server.errors import Forbidden, NotFound
from tests.workspaces import told, write

KIB = 1024


def test_large_files_are_left_out_and_said_so(folder: Path, workspace: Path) -> None:
    shadow = Shadow(folder, workspace, limits=Limits(file_bytes=100))
    write(workspace / "grows", b"x" * 100)
    base = shadow.checkpoint("start")
    write(workspace / "grows", b"x" * 101)
    write(workspace / "new", b"x" * 101)
    write(workspace / "small", b"x")
    changes = shadow.changes_since(base)
    assert told(changes.files) == {b"small": "added"}
    assert changes.left_out.to_wire() == {
        "count": 2,
        "files": [{"path": "grows", "reason": "large"}, {"path": "new", "reason": "large"}],
    }
    write(workspace / "grows", b"y" * 100)
    assert told(shadow.changes_since(base).files) == {b"small": "added", b"grows": "modified"}


def test_the_names_of_left_out_files_are_bounded(folder: Path, workspace: Path) -> None:
    shadow = Shadow(folder, workspace, limits=Limits(file_bytes=0))
    for number in range(150):
        write(workspace / str(number), "x")
    left_out = shadow.changes_since(shadow.checkpoint("start")).left_out
    assert (len(left_out.names), left_out.count) == (100, 150)


def test_special_files_are_left_out(shadow: Shadow, workspace: Path) -> None:
    write(workspace / "pipe", "1")
    write(workspace / "gone", "1")
    base = shadow.checkpoint("start")
    (workspace / "pipe").unlink()
    os.mkfifo(workspace / "pipe")
    os.mkfifo(workspace / "another")
    write(workspace / ".GIT" / "a")
    changes = shadow.changes_since(base)
    assert told(changes.files) == {b"pipe": "deleted"}
    assert changes.left_out.names == [(b"pipe", "special"), (b".GIT/a", "special")]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder in which root, too, meets files it may not read."""
    base = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(base, 65534, 65534)
        os.seteuid(65534)
    try:
        yield base
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        else:
            for path in base.rglob("*"):
                path.chmod(0o700)
        shutil.rmtree(base)


def test_unreadable_files_are_left_out(unprivileged: Path) -> None:
    workspace = unprivileged / "workspace"
    write(workspace / "known", "1")
    write(workspace / "folder" / "known", "1")
    write(workspace / "locked" / "known", "1")
    shadow = Shadow(unprivileged / "shadow", workspace)
    base = shadow.checkpoint("start")
    write(workspace / "known", "22").chmod(0)
    write(workspace / "new").chmod(0)
    write(workspace / "unseen" / "a")
    (workspace / "locked").chmod(0)
    (workspace / "unseen").chmod(0)
    write(workspace / "seen")
    changes = shadow.changes_since(base)
    assert told(changes.files) == {b"seen": "added"}
    assert {b"known", b"new", b"unseen/"} <= {path for path, reason in changes.left_out.names if reason == "unreadable"}


def test_a_workspace_that_may_not_be_read_is_said_so(unprivileged: Path) -> None:
    workspace = unprivileged / "workspace"
    workspace.mkdir(mode=0)
    with pytest.raises(Forbidden, match="cannot be read"):
        Shadow(unprivileged / "shadow", workspace).checkpoint("start")


def test_a_workspace_that_does_not_exist_is_said_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="workspace"):
        Shadow(folder, tmp_path / "nowhere").checkpoint("start")
    with pytest.raises(NotFound, match="workspace"):
        Shadow(folder, write(tmp_path / "file")).checkpoint("start")


def test_over_the_quota_only_small_files_are_recorded(folder: Path, workspace: Path) -> None:
    limits = Limits(quota_bytes=300 * KIB, quota_file_bytes=10 * KIB, measure_bytes=50 * KIB)
    shadow = Shadow(folder, workspace, limits=limits)
    for number in range(10):
        write(workspace / f"f{number}", os.urandom(60 * KIB))
    base = shadow.checkpoint("start")
    was_over_quota = shadow.is_over_quota
    assert was_over_quota
    write(workspace / "large", os.urandom(60 * KIB))
    write(workspace / "small", "1")
    changes = shadow.changes_since(base)
    assert told(changes.files)[b"small"] == "added"
    assert (b"large", "quota") in changes.left_out.names
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert used < 500 * KIB
    for number in range(10):
        (workspace / f"f{number}").unlink()
    base = shadow.checkpoint("next")
    shadow.collect(["next"])
    assert not shadow.is_over_quota
    assert told(shadow.changes_since(base).files) == {b"large": "added"}


def test_collect_drops_what_is_not_kept(shadow: Shadow, folder: Path, workspace: Path) -> None:
    write(workspace / "a", os.urandom(200 * KIB))
    dropped = shadow.checkpoint("dropped")
    write(workspace / "a", "1")
    kept = shadow.checkpoint("kept")
    shadow.collect(["kept", "unknown"])
    assert shadow.names() == ["kept"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 50 * KIB
    with pytest.raises(NotFound, match="lost or damaged"):
        shadow.changes_since(dropped)
    with pytest.raises(NotFound, match="no checkpoint"):
        shadow.tree("dropped")
    write(workspace / "a", "2")
    assert told(shadow.changes_since(kept).files) == {b"a": "modified"}
    assert told(shadow.diff(kept, shadow.checkpoint("next")).files) == {b"a": "modified"}


def test_collect_may_drop_everything(shadow: Shadow, workspace: Path) -> None:
    write(workspace / "a", "1")
    tree = shadow.checkpoint("start")
    shadow.collect([])
    assert shadow.checkpoint("again") == tree
    write(workspace / "b", "1")
    assert told(shadow.changes_since(tree).files) == {b"b": "added"}
