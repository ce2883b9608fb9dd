"""The shadow repository heals from crashes and damage, and says what git cannot do."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from agent_server.changes.git import GitFailed, GitMissing, GitTimedOut
from agent_server.changes.index import Limits
from agent_server.changes.shadow import Shadow
from agent_server.errors import AgentServerError, InvalidRequest, NotFound
from tests.workspaces import told, write


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
