"""Moves between recorded states: whatever differs, and wherever they are cut short."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_server.changes.restore import CannotRestore, Changed, Move, Restoration, moves_of
from agent_server.changes.shadow import Shadow
from tests.workspaces import State, look, write

PATHS = [b"a", b"b", b"d", b"d/a", b"d/e", b"d/e/f", b"a/x", b"caf\xe9"]
FILES = st.dictionaries(
    st.sampled_from(PATHS),
    st.tuples(st.sampled_from(["file", "program", "link"]), st.sampled_from([b"1", b"2", b"d", b"../../outside"])),
    max_size=6,
)


def make(workspace: Path, files: State) -> None:
    """Makes the workspace hold these files alone, as far as no file is where a folder of another has to be."""
    for path in sorted(workspace.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, (kind, data) in sorted(files.items()):
        path = workspace / os.fsdecode(name)
        if any((workspace / os.fsdecode(above)).is_symlink() or (workspace / os.fsdecode(above)).is_file() for above in _above(name)):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link":
            path.symlink_to(os.fsdecode(data))
        else:
            write(path, data).chmod(0o755 if kind == "program" else 0o644)


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:length]) for length in range(1, len(parts))]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=FILES, second=FILES, cut=st.integers(0, 6), forwards=st.booleans())
def test_any_state_becomes_any_other_also_when_it_is_cut_short(first: State, second: State, cut: int, forwards: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder, "workspace")
        workspace.mkdir()
        shadow = Shadow(Path(folder, "shadow"), workspace)
        make(workspace, second)
        target, after = look(workspace), shadow.checkpoint("second")
        make(workspace, first)
        source, before = look(workspace), shadow.checkpoint("first")
        restoration = Restoration(workspace, moves_of(shadow.entries(before, after)), "mark")
        blocked = restoration.check()
        assert not blocked.changed
        assert not blocked.locked
        calls = 0

        def until_cut(object_id: bytes) -> bytes:
            nonlocal calls
            calls += 1
            if calls > cut:
                raise CannotRestore("cut")
            return shadow_contents(object_id)

        with shadow._git.start("cat-file", "--batch") as running:
            shadow_contents = running.contents
            try:
                restoration.apply(until_cut)
            except CannotRestore:
                direction = restoration if forwards else restoration.backwards()
                assert direction.apply_what_can_be(shadow_contents) == []
                assert look(workspace) == (target if forwards else source)
            else:
                assert look(workspace) == target
                assert restoration.backwards().apply_what_can_be(shadow_contents) == []
                assert look(workspace) == source
            running.feed(b"")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def test_a_file_that_changes_under_it_is_not_replaced(workspace: Path, tmp_path: Path) -> None:
    shadow = Shadow(tmp_path / "shadow", workspace)
    write(workspace / "a", "1")
    write(workspace / "b", "1")
    first = shadow.checkpoint("first")
    write(workspace / "a", "2")
    write(workspace / "b", "2")
    restoration = Restoration(workspace, moves_of(shadow.entries(shadow.checkpoint("second"), first)), "mark")

    def contents(object_id: bytes) -> bytes:
        write(workspace / "b", "mine")
        return b"1"

    with pytest.raises(Changed, match="b was changed"):
        restoration.apply(contents)
    assert (workspace / "b").read_text() == "mine"
    assert restoration.backwards().apply_what_can_be(lambda object_id: b"2") == [b"b"]
    assert look(workspace) == {b"a": ("file", b"2"), b"b": ("file", b"mine")}


@pytest.mark.parametrize("path", [b".git/config", b"deep/.git/config", b".GIT/config", b"deep/.Git"])
def test_a_repository_is_never_touched(path: bytes) -> None:
    assert moves_of({path: (None, (b"100644", b"0" * 40)), b"a": (None, None)}) == [Move(b"a", None, None)]


def test_a_draft_that_a_killed_server_left_is_removed(workspace: Path) -> None:
    write(workspace / "d" / ".rev_1.tmp", "half")
    write(workspace / "d" / ".rev_2.tmp", "another")
    Restoration(workspace, [Move(b"d/gone", (b"100644", b"0" * 40), None)], "rev_1").apply_what_can_be(lambda object_id: b"")
    assert [path.name for path in (workspace / "d").iterdir()] == [".rev_2.tmp"]
