"""Repositories inside the workspace are folders to the shadow repository."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_server.changes.shadow import Shadow
from tests.workspaces import Recorder, compared, fingerprint, git, look, told, write


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
