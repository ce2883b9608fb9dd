import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_server.changes.changes import ALL_DIFFS_BYTES, CHANGE_LIMIT, FILE_DIFF_BYTES, Change, LeftOut, shown
from agent_server.changes.shadow import Shadow
from tests.workspaces import compared, git, look, told, write

LINES = "".join(f"line {number}\n" for number in range(20))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Files of every kind that the edits below begin with."""
    folder = tmp_path / "workspace"
    write(folder / "text", LINES)
    write(folder / "program", "#!/bin/sh\n").chmod(0o755)
    write(folder / "binary", b"\0\1\2" * 100)
    write(folder / "crlf", "a\r\nb\r\n")
    write(folder / "id", "$Id$\n")
    write(folder / "latin1", b"caf\xe9\n")
    write(folder / "folder" / "a", "1")
    write(folder / "folder" / "b", "2")
    (folder / "link").symlink_to("text")
    (folder / "link-to-folder").symlink_to("folder")
    return folder


@pytest.fixture
def shadow(tmp_path: Path, workspace: Path) -> Shadow:
    return Shadow(tmp_path / "shadow", workspace)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink()
    make(path)


def _hide(folder: Path, moved: Path) -> Path:
    folder.rename(moved)
    folder.symlink_to(moved.name)
    return folder


def _wire(path: str, status: str, additions: int = 0, deletions: int = 0, **more: Any) -> dict[str, Any]:
    return {"path": path, "status": status, "additions": additions, "deletions": deletions, **more}


Edit = Callable[[Path], object]
EDITS: dict[str, tuple[Edit, list[dict[str, Any]]]] = {
    "nothing": (lambda at: None, []),
    "a file added": (lambda at: write(at / "new" / "x", "1\n2\n"), [_wire("new/x", "added", 2)]),
    "an empty file added": (lambda at: write(at / "new"), [_wire("new", "added")]),
    "a line changed": (lambda at: write(at / "text", LINES.replace("line 5", "LINE 5")), [_wire("text", "modified", 1, 1)]),
    "the same length, at once": (lambda at: write(at / "folder" / "a", "2"), [_wire("folder/a", "modified", 1, 1)]),
    "a file deleted": (lambda at: (at / "text").unlink(), [_wire("text", "deleted", 0, 20)]),
    "a file renamed": (lambda at: (at / "text").rename(at / "moved"), [_wire("moved", "renamed", oldPath="text")]),
    "a file renamed and changed": (
        lambda at: write((at / "text").rename(at / "moved"), LINES + "more\n"),
        [_wire("moved", "renamed", 1, 0, oldPath="text")],
    ),
    "a folder renamed": (
        lambda at: (at / "folder").rename(at / "moved"),
        [_wire("moved/a", "renamed", oldPath="folder/a"), _wire("moved/b", "renamed", oldPath="folder/b")],
    ),
    "made a program": (lambda at: (at / "text").chmod(0o755), [_wire("text", "modified")]),
    "made no program": (lambda at: (at / "program").chmod(0o644), [_wire("program", "modified")]),
    "other permissions": (lambda at: (at / "text").chmod(0o640), []),
    "binary": (lambda at: write(at / "binary", b"\0\1\3"), [_wire("binary", "modified", binary=True)]),
    "not UTF-8": (lambda at: write(at / "latin1", b"th\xe9\n"), [_wire("latin1", "modified", 1, 1)]),
    "line ends alone": (lambda at: write(at / "crlf", "a\nb\r\n"), [_wire("crlf", "modified", 1, 1)]),
    "attributes": (lambda at: write(at / ".gitattributes", "* text eol=lf -diff\n"), [_wire(".gitattributes", "added", 1)]),
    "line ends under attributes": (
        lambda at: (write(at / ".gitattributes", "* text=auto eol=crlf ident -diff\n"), write(at / "crlf", "a\nb\n$Id$\n")),
        [_wire(".gitattributes", "added", 1), _wire("crlf", "modified", 3, 2)],
    ),
    "a keyword that attributes make no difference": (
        lambda at: (write(at / ".gitattributes", "* ident\n"), write(at / "id", "$Id: 1 $\n")),
        [_wire(".gitattributes", "added", 1), _wire("id", "modified", 1, 1)],
    ),
    "line ends alone under attributes": (
        lambda at: (write(at / ".gitattributes", "* text\n"), write(at / "id", "$Id$\r\n")),
        [_wire(".gitattributes", "added", 1), _wire("id", "modified", 1, 1)],
    ),
    "another encoding": (
        lambda at: (write(at / ".gitattributes", "* working-tree-encoding=UTF-16\n"), write(at / "text", "x")),
        [_wire(".gitattributes", "added", 1), _wire("text", "modified", 1, 20)],
    ),
    "a link turned": (lambda at: _replace(at / "link", lambda path: path.symlink_to("nowhere")), [_wire("link", "modified", 1, 1)]),
    "a link to itself": (lambda at: (at / "loop").symlink_to("loop"), [_wire("loop", "added", 1)]),
    "a link out of the workspace": (lambda at: (at / "out").symlink_to("/etc"), [_wire("out", "added", 1)]),
    "a file to a link": (lambda at: _replace(at / "text", lambda path: path.symlink_to("crlf")), [_wire("text", "modified", 1, 20)]),
    "a link to a file": (lambda at: _replace(at / "link", lambda path: write(path, "1\n")), [_wire("link", "modified", 1, 1)]),
    "a file to an empty folder": (lambda at: _replace(at / "crlf", Path.mkdir), [_wire("crlf", "deleted", 0, 2)]),
    "a file to a folder": (
        lambda at: _replace(at / "crlf", lambda path: write(path / "x", "1")),
        [_wire("crlf", "deleted", 0, 2), _wire("crlf/x", "added", 1)],
    ),
    "a folder to a file": (
        lambda at: _replace(at / "folder", lambda path: write(path, "file\n")),
        [_wire("folder", "added", 1), _wire("folder/a", "deleted", 0, 1), _wire("folder/b", "deleted", 0, 1)],
    ),
    "a folder to a link to one with the same files": (
        lambda at: (write(at / ".gitignore", "/folder\n"), _hide(at / "folder", at / "moved")),
        [
            _wire(".gitignore", "added", 1),
            _wire("moved/a", "renamed", oldPath="folder/a"),
            _wire("moved/b", "renamed", oldPath="folder/b"),
        ],
    ),
    "a link to a folder": (
        lambda at: _replace(at / "link-to-folder", lambda path: write(path / "a", "1\n")),
        [_wire("link-to-folder", "deleted", 0, 1), _wire("link-to-folder/a", "added", 1)],
    ),
    "a link to a folder deleted": (lambda at: (at / "link-to-folder").unlink(), [_wire("link-to-folder", "deleted", 0, 1)]),
    "an empty folder": (lambda at: (at / "empty").mkdir(), []),
    "a pipe": (lambda at: os.mkfifo(at / "pipe"), []),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_told(shadow: Shadow, workspace: Path, edit: str) -> None:
    base, before = shadow.checkpoint("start"), look(workspace)
    make, expected = EDITS[edit]
    make(workspace)
    changes = shadow.changes_since(base)
    assert [change.to_wire() for change in changes.files] == expected
    assert not changes.is_truncated
    after = look(workspace)
    if edit != "a folder to a link to one with the same files":
        assert told(changes.files) == compared(before, after)
    # Both ways of comparing, and both directions, agree.
    tree = shadow.checkpoint("now")
    assert shadow.diff(base, tree).files == changes.files
    if "ignore" not in str(expected):
        assert told(shadow.diff(tree, base).files) == compared(after, before)


NAMES = [
    b"line\nfeed",
    b"quote\"and'",
    b"tab\tbed",
    b"back\\slash",
    b"-n",
    b"--help",
    b"..x",
    b" spaces ",
    b"*?[a]",
    b":(glob)x",
    b"!x",
    b"#x",
    b"caf\xe9",
    b"\xff",
    "日本語".encode(),
    "e\u0301".encode(),
    b"git~1",
    b".gitx",
    b"con",
    b"\x01\x7f",
    b"R100",
    b"diff --git a",
    b"x" * 255,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_of_any_bytes_is_told_exactly(shadow: Shadow, workspace: Path, name: bytes) -> None:
    base = shadow.checkpoint("start")
    write(workspace / os.fsdecode(name), "1\n2\n3\n")
    write(workspace / os.fsdecode(name + b"".join([b"d"]) if len(name) < 255 else b"d") / os.fsdecode(name), "4\n")
    (workspace / os.fsdecode(name)).chmod(0o755)
    tree = shadow.checkpoint("next")
    added = shadow.changes_since(base, patch=True).files
    assert sorted(change.path.split(b"/")[-1] for change in added) == [name, name]
    assert all((change.diff or "").startswith("diff --git ") for change in added)
    (workspace / os.fsdecode(name)).rename(workspace / "plain")
    (renamed,) = shadow.changes_since(tree).files
    assert (renamed.status, renamed.old_path, renamed.path) == ("renamed", name, b"plain")


@pytest.mark.parametrize(
    ("path", "text"),
    [(b"a/b", "a/b"), ("ü".encode(), "ü"), (b"a\xffb", "a\\xffb"), (b"\xed\xa0\x80", "\\xed\\xa0\\x80"), (b"a\nb", "a\nb")],
)
def test_a_path_on_the_wire_is_text(path: bytes, text: str) -> None:
    assert shown(path) == text
    assert Change(b"x", "renamed", old_path=path).to_wire()["oldPath"] == text
    left_out = LeftOut()
    left_out.add(path, "large")
    assert left_out.to_wire() == {"count": 1, "files": [{"path": text, "reason": "large"}]}


def test_a_diff_is_the_patch_of_its_file(shadow: Shadow, workspace: Path) -> None:
    base = shadow.checkpoint("start")
    write(workspace / "text", LINES.replace("line 5", "diff --git a/x b/x"))
    write(workspace / "crlf", "a\r\nc\r\n")
    write(workspace / "latin1", b"caf\xe9\n\xff\n")
    write(workspace / "binary", b"\0")
    (workspace / "program").chmod(0o644)
    (workspace / "folder" / "a").rename(workspace / "z")
    _replace(workspace / "link", lambda path: write(path, "1\n"))
    changes = {change.path: change for change in shadow.changes_since(base, patch=True).files}
    text = changes[b"text"].diff or ""
    assert text.startswith("diff --git a/text b/text\n")
    assert "\n-line 5\n+diff --git a/x b/x\n" in text
    assert (changes[b"crlf"].diff or "").endswith("@@ -1,2 +1,2 @@\n a\r\n-b\r\n+c\r\n")
    assert (changes[b"latin1"].diff or "").endswith(" caf\ufffd\n+\ufffd\n")
    assert changes[b"binary"].to_wire() == _wire("binary", "modified", binary=True)
    assert changes[b"program"].diff == "diff --git a/program b/program\nold mode 100755\nnew mode 100644\n"
    assert (changes[b"z"].diff or "").endswith("rename from folder/a\nrename to z\n")
    assert (changes[b"link"].diff or "").count("diff --git a/link b/link\n") == 2
    assert not any(change.is_truncated for change in changes.values())


def test_a_patch_that_git_takes(shadow: Shadow, workspace: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    subprocess.run(["cp", "-a", workspace, old], check=True)
    base = shadow.checkpoint("start")
    write(workspace / "text", LINES.replace("line 5\n", "") + "no newline at the end")
    write(workspace / "new\tname", "x")
    (workspace / "folder" / "a").rename(workspace / "z")
    _replace(workspace / "crlf", lambda path: path.symlink_to("text"))
    (workspace / "latin1").unlink()
    patch = "".join(change.diff or "" for change in shadow.changes_since(base, patch=True).files)
    assert "�" in patch
    patch = patch.replace("caf�", "caf\udce9")
    subprocess.run(["git", "apply"], cwd=old, input=patch.encode("utf-8", "surrogateescape"), check=True, env={"PATH": os.environ["PATH"]})
    assert look(old) == look(workspace)


def test_a_long_diff_is_cut_and_said_so(shadow: Shadow, workspace: Path) -> None:
    base = shadow.checkpoint("start")
    write(workspace / "a-long", "0123456789abcde\n" * (FILE_DIFF_BYTES // 16))
    write(workspace / "a-one-line", "x" * 3_000_000)
    write(workspace / "b", "1\n")
    long, one_line, short = shadow.changes_since(base, patch=True).files
    assert long.is_truncated
    assert FILE_DIFF_BYTES - 100 < len(long.diff or "") <= FILE_DIFF_BYTES
    assert (long.diff or "").endswith("+0123456789abcde\n")
    assert long.to_wire()["truncated"] is True
    assert one_line.is_truncated
    assert short.diff is not None
    assert short.diff.endswith("+1\n")
    assert not short.is_truncated


def test_many_diffs_are_cut_and_said_so(shadow: Shadow, workspace: Path) -> None:
    base = shadow.checkpoint("start")
    for number in range(24):
        write(workspace / f"f{number:02}", f"{number}\n" * 80_000)
    files = shadow.changes_since(base, patch=True).files
    assert len(files) == 24
    assert sum(len(change.diff or "") for change in files) <= ALL_DIFFS_BYTES
    assert [change.is_truncated for change in files] == sorted(change.is_truncated for change in files)
    assert files[0].diff
    assert files[-1].diff is None
    assert files[-1].additions == 80_000


def test_many_changes_are_cut_and_said_so(shadow: Shadow, workspace: Path, tmp_path: Path) -> None:
    base = shadow.checkpoint("start")
    environment = {"PATH": os.environ["PATH"], "GIT_DIR": str(tmp_path / "shadow")}
    blob = shadow_git(environment, "hash-object", "-w", "--stdin", feed=b"x")
    entries = b"".join(b"100644 blob %s\tf%05d\n" % (blob, number) for number in range(CHANGE_LIMIT + 10))
    tree = shadow_git(environment, "mktree", feed=entries).decode()
    changes = shadow.diff(base, tree)
    assert len(changes.files) == CHANGE_LIMIT
    assert changes.is_truncated


def shadow_git(environment: dict[str, str], *arguments: str, feed: bytes) -> bytes:
    return subprocess.run(["git", *arguments], env=environment, input=feed, check=True, capture_output=True).stdout.strip()


def test_more_renames_than_compared_are_still_told(shadow: Shadow, workspace: Path) -> None:
    for number in range(450):
        write(workspace / "many" / f"f{number}", f"{number}\n" * 3)
    base, before = shadow.checkpoint("start"), look(workspace)
    for number in range(450):
        (workspace / "many" / f"f{number}").unlink()
        write(workspace / "more" / f"g{number}", f"{number}\n" * 3 + "changed\n")
    assert told(shadow.changes_since(base).files) == compared(before, look(workspace))


def test_many_files_are_compared_in_the_time_of_a_git_status(shadow: Shadow, workspace: Path) -> None:
    for number in range(3_000):
        write(workspace / f"d{number // 100}" / f"f{number}", f"{number}\n")
    git(workspace, "init")
    git(workspace, "add", "-A")
    git(workspace, "commit", "-m", "all")
    base = shadow.checkpoint("start")
    write(workspace / "d0" / "f0", "edited")
    ours, status = [], []
    for _ in range(7):
        begin = time.perf_counter()
        git(workspace, "status", "--porcelain")
        middle = time.perf_counter()
        assert len(shadow.changes_since(base).files) == 1
        ours.append(time.perf_counter() - middle)
        status.append(middle - begin)
    # The best of each, as noise only adds; more processes are started here, which for so few files is most of the time.
    assert min(ours) < 2 * min(status) + 0.05
