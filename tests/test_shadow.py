import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent_server.changes.git import GitFailed, GitMissing, GitTimedOut
from agent_server.changes.index import Limits
from agent_server.changes.shadow import Shadow
from agent_server.errors import AgentServerError, Forbidden, InvalidRequest, NotFound
from tests.workspaces import compared, fingerprint, git, look, told, write

KIB = 1024


class Recorder:
    """A Spawn that notes the commands it started."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __call__(self, argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        self.commands.append(argv[1])
        return subprocess.Popen(argv, **options)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "shadow"


@pytest.fixture
def shadow(folder: Path, workspace: Path) -> Shadow:
    return Shadow(folder, workspace)


# Checkpoints


def test_checkpoints_are_kept_by_name(shadow: Shadow, workspace: Path) -> None:
    write(workspace / "a", "1")
    first = shadow.checkpoint("start")
    write(workspace / "a", "2")
    second = shadow.checkpoint("task_1.before")
    assert first != second
    assert shadow.names() == ["start", "task_1.before"]
    assert (shadow.tree("start"), shadow.tree("task_1.before")) == (first, second)
    assert told(shadow.diff(first, second).files) == {b"a": "modified"}


def test_checkpoints_survive_a_restart(shadow: Shadow, folder: Path, workspace: Path) -> None:
    write(workspace / "a", "1")
    tree = shadow.checkpoint("start")
    assert Shadow(folder, workspace).checkpoint("again") == tree == Shadow(folder, workspace).tree("start")


def test_an_empty_workspace_has_a_state(shadow: Shadow, workspace: Path) -> None:
    base = shadow.checkpoint("start")
    write(workspace / "a")
    assert told(shadow.changes_since(base).files) == {b"a": "added"}


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "../a", "a..b", "a.lock", "a.", "a b", "a\n", "ä", "a" * 129])
def test_a_name_that_is_no_ref_is_refused(shadow: Shadow, name: str) -> None:
    with pytest.raises(InvalidRequest):
        shadow.checkpoint(name)
    with pytest.raises(InvalidRequest):
        shadow.tree(name)


def test_an_unknown_checkpoint_is_not_found(shadow: Shadow) -> None:
    with pytest.raises(NotFound, match="no checkpoint 'x'"):
        shadow.tree("x")


def test_what_did_not_change_costs_two_processes(folder: Path, workspace: Path) -> None:
    spawn = Recorder()
    shadow = Shadow(folder, workspace, spawn)
    write(workspace / "a", "1")
    base = shadow.checkpoint("start")
    spawn.commands.clear()
    assert shadow.checkpoint("next") == base
    assert spawn.commands == ["diff-files", "ls-files"]
    spawn.commands.clear()
    assert shadow.changes_since(base).files == []
    assert spawn.commands == ["diff-files", "ls-files", "ls-files"]  # the other one is of what is ignored
    write(workspace / "a", "22")
    spawn.commands.clear()
    shadow.changes_since(base)
    assert spawn.commands == ["diff-files", "ls-files", "ls-files", "update-index", "diff-index"]


def test_a_touched_file_is_read_once(folder: Path, workspace: Path) -> None:
    spawn = Recorder()
    shadow = Shadow(folder, workspace, spawn)
    write(workspace / "a", "1")
    base = shadow.checkpoint("start")
    os.utime(workspace / "a", (1, 1))
    assert shadow.changes_since(base).files == []
    spawn.commands.clear()
    assert shadow.checkpoint("next") == base
    assert "update-index" not in spawn.commands


def test_what_lies_beyond_a_link_is_gone_at_the_first_attempt(folder: Path, workspace: Path) -> None:
    spawn = Recorder()
    shadow = Shadow(folder, workspace, spawn)
    write(workspace / "folder" / "a", "1")
    base = shadow.checkpoint("start")
    (workspace / "folder").rename(workspace / "moved")
    (workspace / "folder").symlink_to("moved")
    write(workspace / "moved" / "a", "22")
    spawn.commands.clear()
    assert told(shadow.changes_since(base).files) == {b"folder": "added", b"folder/a": "deleted", b"moved/a": "added"}
    assert spawn.commands == ["diff-files", "ls-files", "ls-files", "update-index", "update-index", "diff-index"]


def test_a_commit_of_the_user_changes_nothing(shadow: Shadow, workspace: Path) -> None:
    git(workspace, "init")
    write(workspace / "a", "1")
    base = shadow.checkpoint("start")
    write(workspace / "a", "2")
    git(workspace, "add", "-A")
    git(workspace, "commit", "-m", "x")
    assert told(shadow.changes_since(base).files) == {b"a": "modified"}


async def test_async_callers_take_turns(shadow: Shadow, workspace: Path) -> None:
    write(workspace / "a", "1")
    trees = await asyncio.gather(*(shadow.in_thread(shadow.checkpoint, f"c{n}") for n in range(8)))
    assert len(set(trees)) == 1
    assert len(shadow.names()) == 8


# The user's repository


def _checkpoint(shadow: Shadow) -> None:
    shadow.checkpoint("x")


def _changes(shadow: Shadow) -> None:
    shadow.changes_since(shadow.tree("start"), patch=True)


def _diff(shadow: Shadow) -> None:
    shadow.diff(shadow.tree("start"), shadow.checkpoint("x"), patch=True)


def _collect(shadow: Shadow) -> None:
    shadow.collect([])


@pytest.mark.parametrize("operation", [_checkpoint, _changes, _diff, _collect])
def test_the_users_repository_is_left_alone(
    shadow: Shadow, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: Callable[[Shadow], None]
) -> None:
    git(workspace, "init")
    write(workspace / ".git" / "hooks" / "post-index-change", f"#!/bin/sh\ntouch {tmp_path}/hooked\n").chmod(0o755)
    git(workspace, "config", "filter.evil.clean", f"touch {tmp_path}/filtered; cat")
    git(workspace, "config", "diff.evil.textconv", f"touch {tmp_path}/converted; cat")
    write(workspace / ".gitattributes", "* filter=evil diff=evil text eol=crlf ident\n")
    write(workspace / "a", "1\n")
    git(workspace, "-c", "filter.evil.clean=cat", "add", "-A")
    git(workspace, "commit", "-m", "x")
    write(workspace / "a", "2\n")
    git(workspace, "stash")
    write(workspace / "staged", "s")
    git(workspace, "add", "staged")
    (tmp_path / "filtered").unlink(missing_ok=True)
    (tmp_path / "hooked").unlink(missing_ok=True)
    monkeypatch.setenv("GIT_DIR", str(workspace / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(workspace / ".git" / "index"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {tmp_path}/external")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.hooksPath")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(workspace / ".git" / "hooks"))
    shadow.checkpoint("start")
    before = fingerprint(workspace / ".git")
    write(workspace / "a", "3\n")
    write(workspace / "b", "4\n")
    (workspace / "staged").unlink()
    operation(shadow)
    assert fingerprint(workspace / ".git") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "workspace"]


def test_ignored_files_are_left_out(shadow: Shadow, workspace: Path) -> None:
    git(workspace, "init")
    write(workspace / ".gitignore", "*.log\n/build/\n")
    write(workspace / ".git" / "info" / "exclude", "private\n")
    base = shadow.checkpoint("start")
    for name in ["a.log", "build/x", "private", "sub/b.log", "sub/build/seen"]:
        write(workspace / name)
    assert told(shadow.changes_since(base).files) == {b"sub/build/seen": "added"}


def test_the_exclude_file_of_a_worktree_holds(tmp_path: Path, folder: Path) -> None:
    repository, tree = tmp_path / "repository", tmp_path / "tree"
    repository.mkdir()
    git(repository, "init")
    git(repository, "commit", "--allow-empty", "-m", "x")
    git(repository, "worktree", "add", str(tree))
    write(repository / ".git" / "info" / "exclude", "private\n")
    shadow = Shadow(folder, tree)
    base = shadow.checkpoint("start")
    write(tree / "private")
    write(tree / "public")
    assert told(shadow.changes_since(base).files) == {b"public": "added"}


def test_a_shadow_inside_the_workspace_does_not_record_itself(workspace: Path) -> None:
    shadow = Shadow(workspace / "data [1]" / "shadow", workspace)
    write(workspace / "data [1]" / "other")
    base = shadow.checkpoint("start")
    write(workspace / "a")
    shadow.checkpoint("next")
    assert told(shadow.changes_since(base).files) == {b"a": "added"}


# Nested repositories


def _empty(folder: Path) -> None:
    git(folder, "init")


def _committed(folder: Path) -> None:
    git(folder, "init")
    git(folder, "commit", "--allow-empty", "-m", "x")


def _worktree(folder: Path) -> None:
    main = folder.parent.parent / "main-repository"
    main.mkdir(exist_ok=True)
    _committed(main)
    folder.rmdir()
    git(main, "worktree", "add", str(folder))


def _broken_file(folder: Path) -> None:
    write(folder / ".git", "gitdir: /nowhere\n")


def _broken_folder(folder: Path) -> None:
    write(folder / ".git" / "HEAD", "nonsense")


def _without_object_folder(folder: Path) -> None:
    git(folder, "init")
    shutil.rmtree(folder / ".git" / "objects")


@pytest.mark.parametrize("make", [_empty, _committed, _worktree, _broken_file, _broken_folder, _without_object_folder])
def test_a_nested_repository_is_a_folder(shadow: Shadow, workspace: Path, make: Callable[[Path], None]) -> None:
    nested = workspace / "outer"
    nested.mkdir()
    make(nested)
    inner = nested / "deep" / "inner"
    inner.mkdir(parents=True)
    make(inner) if make is not _worktree else _empty(inner)
    before = fingerprint(inner / ".git")
    base = shadow.checkpoint("start")
    write(nested / "a", "1")
    write(inner / "b", "2")
    git_files = {b"outer/a": "added", b"outer/deep/inner/b": "added"}
    assert told(shadow.changes_since(base).files) == git_files
    middle = shadow.checkpoint("middle")
    write(inner / "b", "3")
    write(inner / "c", "4")
    (nested / "a").unlink()
    after = {b"outer/a": "deleted", b"outer/deep/inner/b": "modified", b"outer/deep/inner/c": "added"}
    assert told(shadow.changes_since(middle).files) == after
    assert fingerprint(inner / ".git") == before


def test_ignore_rules_hold_the_same_before_and_after_a_nested_repository_is_known(shadow: Shadow, workspace: Path) -> None:
    write(workspace / ".gitignore", "*.log\n")
    nested = workspace / "nested"
    nested.mkdir()
    _empty(nested)
    write(nested / ".git" / "info" / "exclude", "private\n")
    write(nested / ".gitignore", "*.tmp\n")
    write(nested / "private")
    write(nested / "a.log")
    write(nested / "a.tmp")
    base = shadow.checkpoint("start")
    write(nested / "b.log")
    write(nested / "b.tmp")
    write(nested / "b")
    assert told(shadow.changes_since(base).files) == {b"nested/b": "added"}


def test_a_hollow_nested_repository_costs_nothing(folder: Path, workspace: Path) -> None:
    spawn = Recorder()
    shadow = Shadow(folder, workspace, spawn)
    (workspace / "nested").mkdir()
    _empty(workspace / "nested")
    shadow.checkpoint("start")
    spawn.commands.clear()
    shadow.checkpoint("next")
    assert spawn.commands == ["diff-files", "ls-files"]


def test_many_nested_repositories_are_listed(shadow: Shadow, workspace: Path) -> None:
    for number in range(130):
        write(workspace / f"n{number}" / ".git", "gitdir: /nowhere\n")
        write(workspace / f"n{number}" / "a", str(number))
    base = shadow.checkpoint("start")
    for number in range(130):
        write(workspace / f"n{number}" / "a", "changed")
    assert len(shadow.changes_since(base).files) == 130


def test_a_bare_repository_is_a_folder_of_files(shadow: Shadow, workspace: Path) -> None:
    base = shadow.checkpoint("start")
    git(workspace, "init", "--bare", "bare.git")
    assert told(shadow.changes_since(base).files) == compared({}, look(workspace))


def test_a_submodule_is_a_folder(shadow: Shadow, workspace: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    write(library / "code", "1")
    git(library, "init")
    git(library, "add", "-A")
    git(library, "commit", "-m", "x")
    git(workspace, "init")
    base = shadow.checkpoint("start")
    git(workspace, "submodule", "add", str(library), "lib")
    assert told(shadow.changes_since(base).files) == {b".gitmodules": "added", b"lib/code": "added"}


# What is left out


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


# The disk


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


# Crashes


@pytest.mark.parametrize("after_restart", [True, False])
@pytest.mark.parametrize("damage", ["lock", "garbage", "cut", "empty", "gone", "folders"])
def test_a_damaged_index_heals(shadow: Shadow, folder: Path, workspace: Path, damage: str, after_restart: bool) -> None:
    for number in range(50):
        write(workspace / f"f{number}", str(number))
    base = shadow.checkpoint("start")
    index = folder / "index"
    if damage == "lock":
        write(folder / "index.lock", "half an index")
    elif damage == "garbage":
        index.write_bytes(os.urandom(1000))
    elif damage == "cut":
        index.write_bytes(index.read_bytes()[:700])
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "gone":
        index.unlink()
    else:
        shutil.rmtree(folder / "info")
        (folder / "config").unlink()
        (folder / "HEAD").unlink()
        after_restart = True
    shadow = Shadow(folder, workspace) if after_restart else shadow
    write(workspace / "f1", "changed")
    assert told(shadow.changes_since(base).files) == {b"f1": "modified"}
    shadow.checkpoint("next")


def _objects(folder: Path) -> list[Path]:
    return [path for path in (folder / "objects").glob("??/*") if path.is_file()]


def test_objects_without_contents_are_written_again(shadow: Shadow, folder: Path, workspace: Path) -> None:
    write(workspace / "a", "1")
    write(workspace / "b" / "c", "2")
    base = shadow.checkpoint("start")
    for path in _objects(folder):
        path.chmod(0o600)
        path.write_bytes(b"")
    shadow = Shadow(folder, workspace)
    write(workspace / "a", "3")
    with pytest.raises(NotFound, match="lost or damaged"):
        shadow.changes_since(base, patch=True)
    again = shadow.checkpoint("again")
    write(workspace / "a", "1")
    assert told(shadow.changes_since(again, patch=True).files) == {b"a": "modified"}


def test_collect_drops_a_checkpoint_that_is_damaged(shadow: Shadow, folder: Path, workspace: Path) -> None:
    write(workspace / "a", "1")
    shadow.checkpoint("damaged")
    for path in _objects(folder):
        path.unlink()
    write(workspace / "a", "2")
    tree = shadow.checkpoint("whole")
    (folder / "refs" / "checkpoints" / "torn").write_text("")
    shadow.collect(["damaged", "torn", "whole"])
    assert "damaged" not in shadow.names()
    assert shadow.changes_since(tree).files == []
    with pytest.raises(NotFound):
        shadow.tree("torn")


def test_a_git_killed_at_work_heals_at_once(folder: Path, workspace: Path) -> None:
    killed: list[str] = []

    def spawn(argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(argv, **options)
        if argv[1] in {"update-index", "write-tree", "diff-index"} and argv[1] not in killed:
            killed.append(argv[1])
            # update-index holds its lock while it reads our list.
            while argv[1] == "update-index" and not (folder / "index.lock").exists():
                time.sleep(0.001)
            process.kill()
        return process

    shadow = Shadow(folder, workspace, spawn)
    for number in range(200):
        write(workspace / f"f{number}", str(number))
    base = shadow.checkpoint("start")
    write(workspace / "f7", "changed")
    assert told(shadow.changes_since(base).files) == {b"f7": "modified"}
    assert killed == ["update-index", "write-tree", "diff-index"]


@pytest.mark.parametrize("moment", range(4))
def test_a_killed_server_leaves_a_repository_that_heals(folder: Path, workspace: Path, moment: int) -> None:
    for number in range(300):
        write(workspace / f"f{number}", os.urandom(2000))
    code = (
        "import sys; from pathlib import Path; from agent_server.changes.shadow import Shadow\n"
        "s = Shadow(Path(sys.argv[1]), Path(sys.argv[2])); print(flush=True); s.checkpoint('start'); s.collect(['start'])"
    )
    server = subprocess.Popen(["python", "-c", code, str(folder), str(workspace)], stdout=subprocess.PIPE, start_new_session=True)
    with server:
        assert server.stdout is not None
        server.stdout.readline()
        # The one place that waits for a time: the kill is to fall anywhere.
        time.sleep(moment * 0.018)
        os.kill(server.pid, signal.SIGKILL)
    shadow = Shadow(folder, workspace)
    base = shadow.checkpoint("again")
    write(workspace / "f1", "changed")
    assert told(shadow.changes_since(base).files) == {b"f1": "modified"}
    shadow.collect(["again"])


def test_a_git_left_by_a_killed_server_is_ended(folder: Path, workspace: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "GIT_DIR": str(folder)}
    with subprocess.Popen(["sleep", "60"], env=environment) as orphan:
        Shadow(folder, workspace)
        assert orphan.wait() == -signal.SIGKILL


# git itself


def test_a_machine_without_git_is_said_so(folder: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitMissing, match="install git") as raised:
        Shadow(folder, workspace).checkpoint("start")
    assert isinstance(raised.value, AgentServerError)
    assert (raised.value.code, raised.value.status) == ("INTERNAL", 500)


def test_a_git_that_hangs_is_killed(folder: Path, workspace: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def spawn(argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], **options))
        return started[-1]

    with pytest.raises(GitTimedOut):
        Shadow(folder, workspace, spawn, limits=Limits(git_seconds=0.1)).checkpoint("start")
    assert all(process.returncode == -signal.SIGKILL for process in started)


def test_a_git_that_always_fails_ends_with_its_words(folder: Path, workspace: Path) -> None:
    def spawn(argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sh", "-c", "echo fatal: no luck >&2; exit 128"], **options)

    with pytest.raises(GitFailed, match="ended with 128: fatal: no luck"):
        Shadow(folder, workspace, spawn).checkpoint("start")


def test_a_full_disk_is_said_at_once(folder: Path, workspace: Path) -> None:
    commands = []

    def spawn(argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        commands.append(argv[1])
        return subprocess.Popen(["sh", "-c", "echo 'fatal: cannot write: No space left on device' >&2; exit 128"], **options)

    with pytest.raises(GitFailed, match="No space left"):
        Shadow(folder, workspace, spawn).checkpoint("start")
    assert commands == ["diff-files", "ls-files"]


@pytest.mark.parametrize("tree", ["HEAD", "--output=x", "0" * 39, "start"])
def test_only_tree_ids_are_compared(shadow: Shadow, tree: str) -> None:
    with pytest.raises(InvalidRequest):
        shadow.changes_since(tree)


def test_a_tree_that_is_not_there_is_not_found(shadow: Shadow, workspace: Path) -> None:
    write(workspace / "a")
    with pytest.raises(NotFound, match="lost or damaged"):
        shadow.changes_since("0" * 40)
    with pytest.raises(NotFound, match="lost or damaged"):
        shadow.diff(shadow.checkpoint("x"), "1" * 40)


def test_files_that_change_all_the_time_do_not_fail_a_recording(shadow: Shadow, workspace: Path) -> None:
    code = (
        "import os, sys\nos.chdir(sys.argv[1])\nprint(flush=True)\nwhile True:\n"
        "  for n in range(40):\n"
        "    name = f'f{n}'\n"
        "    open(name, 'w').write('x' * n)\n"
        "    os.remove(name); os.mkdir(name); os.rmdir(name); os.symlink('a', name); os.remove(name)\n"
    )
    with subprocess.Popen(["python", "-c", code, str(workspace)], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        try:
            for number in range(10):
                shadow.checkpoint(f"c{number}")
        finally:
            busy.kill()


# The property: what is told is what a plain comparison finds.

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
