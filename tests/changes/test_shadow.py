"""The shadow repository: what it records, and what of the user's it leaves alone."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_server.changes.shadow import Shadow
from agent_server.errors import InvalidRequest, NotFound
from tests.workspaces import Recorder, fingerprint, git, told, write
from tools._files import HIDDEN


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


def test_what_is_half_written_is_left_out(shadow: Shadow, workspace: Path) -> None:
    base = shadow.checkpoint("start")
    for name in (f"{HIDDEN}0123", f"sub/{HIDDEN}4567", "sub/a"):
        write(workspace / name)
    assert told(shadow.changes_since(base).files) == {b"sub/a": "added"}


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
