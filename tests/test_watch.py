"""Following changes of the workspace, live."""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import ServerProcess, serving
from tests.workspaces import git, write
from tools._together import replace_file


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with serving(tmp_path) as running:
        yield running


class Watch:
    """An open watch."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def next(self) -> dict[str, Any]:
        for line in self._lines:
            assert not line.startswith(("id:", "event:"))
            if line.startswith("data: "):
                event: dict[str, Any] = json.loads(line[6:])
                return event
        raise StopIteration

    def until(self, path: str) -> list[tuple[str, str]]:
        """The changes up to the first of this path."""
        found: list[tuple[str, str]] = []
        while not found or found[-1][0] != path:
            event = self.next()
            found.append((event["path"], event["change"]))
        return found


@contextlib.contextmanager
def watching(server: ServerProcess, path: str = ".") -> Iterator[Watch]:
    with server.client() as client, client.stream("GET", "/files/watch", params={"path": path}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Watch(response)


def test_changes_are_told(server: ServerProcess) -> None:
    write(server.workspace / "old/deep/f", "x")
    with watching(server) as watch:
        write(server.workspace / "a", "1")
        event = watch.next()
        assert event == {"type": "file.changed", "path": "a", "change": "added", "timestamp": event["timestamp"]}
        write(server.workspace / "a", "2")
        assert watch.until("a") == [("a", "modified")]
        (server.workspace / "a").chmod(0o600)
        assert watch.until("a") == [("a", "modified")]
        (server.workspace / "a").unlink()
        assert watch.until("a") == [("a", "deleted")]
        (server.workspace / "old/deep/f").rename(server.workspace / "old/g")
        assert watch.until("old/g") == [("old/deep/f", "deleted"), ("old/g", "added")]


def test_folders_that_appear_are_watched_and_what_is_in_them_is_told(server: ServerProcess, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/x/y", "1")
    with watching(server) as watch:
        server.execute("mkdir -p a/b/c && touch a/b/c/f")
        assert sorted(watch.until("a/b/c/f")) == [("a", "added"), ("a/b", "added"), ("a/b/c", "added"), ("a/b/c/f", "added")]
        write(server.workspace / "a/b/c/g")
        assert watch.until("a/b/c/g") == [("a/b/c/g", "added")]
        (tmp_path / "elsewhere").rename(server.workspace / "moved")
        assert watch.until("moved/x/y") == [("moved", "added"), ("moved/x", "added"), ("moved/x/y", "added")]
        (server.workspace / "moved/x").rename(server.workspace / "x")
        assert watch.until("x/y") == [("moved/x", "deleted"), ("x", "added"), ("x/y", "added")]
        write(server.workspace / "x/y", "2")
        assert watch.until("x/y") == [("x/y", "modified")]
        (server.workspace / "x").rename(tmp_path / "gone")
        assert watch.until("x") == [("x", "deleted")]
        write(tmp_path / "gone/y", "3")  # no longer ours
        write(server.workspace / "end")
        assert watch.until("end") == [("end", "added")]


def test_only_the_folder_is_watched_and_links_are_not_followed(server: ServerProcess, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (server.workspace / "sub").mkdir()
    (server.workspace / "sub/link").symlink_to(outside)
    with watching(server, "sub") as watch:
        write(outside / "f")
        write(server.workspace / "f")
        write(server.workspace / "sub/f")
        assert watch.until("sub/f") == [("sub/f", "added")]


def test_git_and_uploads_on_their_way_are_left_out(server: ServerProcess) -> None:
    write(server.workspace / "f", "x")
    git(server.workspace, "init", "-q")
    with watching(server) as watch:
        git(server.workspace, "add", "f")
        git(server.workspace, "commit", "-q", "-m", "one")
        (server.workspace / "nested").mkdir()
        git(server.workspace / "nested", "init", "-q")
        with server.client() as client:
            client.put("/files?path=uploaded", content=b"1")
        assert watch.until("uploaded") == [("nested", "added"), ("uploaded", "added")]


def test_a_file_that_a_tool_replaces_is_told_alone(server: ServerProcess) -> None:
    write(server.workspace / "a", "1")
    with watching(server) as watch:
        replace_file(server.workspace / "a", b"2", (server.workspace / "a").stat(), server.data / "patches")
        write(server.workspace / "end", "")
        assert {path for path, _ in watch.until("end")} == {"a", "end"}


def test_names_that_are_not_utf8_are_told(server: ServerProcess) -> None:
    with watching(server) as watch:
        Path(os.fsdecode(os.fsencode(server.workspace) + b"/\xff")).touch()
        event = watch.next()
        assert (event["path"], event["encodedPath"]) == ("\\xff", "%FF")
        write(server.workspace / "after")
        assert watch.until("after") == [("after", "added")]


def test_it_is_told_when_the_kernel_dropped_some(server: ServerProcess) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 50_000:
        pytest.skip("the kernel's queue is too long to be filled here")
    assert server.process is not None
    with watching(server) as watch:
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            for number in range(most + 10):
                os.close(os.open(server.workspace / f"f{number}", os.O_CREAT | os.O_WRONLY))
            (server.workspace / "unseen").mkdir()
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        while (event := watch.next())["type"] != "overflow":
            assert event["change"] == "added"
        assert "path" not in event
        write(server.workspace / "unseen/f")  # made when nobody looked, and watched all the same
        assert watch.until("unseen/f")[-1] == ("unseen/f", "added")


def test_it_ends_when_the_server_stops(server: ServerProcess) -> None:
    with watching(server) as watch:
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with pytest.raises(StopIteration):
            watch.next()
        stopping.join(10)
        assert not stopping.is_alive()
    assert server.process is not None
    assert server.process.returncode == 0


def test_it_ends_with_its_folder(server: ServerProcess) -> None:
    (server.workspace / "sub").mkdir()
    with watching(server, "sub") as watch:
        (server.workspace / "sub").rmdir()
        with pytest.raises(StopIteration):
            watch.next()


def test_watches_are_bounded_and_let_go(server: ServerProcess) -> None:
    def inotify() -> int:
        assert server.process is not None
        listed = subprocess.run(["ls", "-l", f"/proc/{server.process.pid}/fd"], capture_output=True, text=True).stdout
        return listed.count("inotify")

    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(watching(server))
        refused = server.get("/files/watch")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "TOO_MANY_REQUESTS")
        assert inotify() == 8
    for _ in range(1000):
        if inotify() == 0:
            break
        server.get("/health")
    assert inotify() == 0
    with server.client() as client:
        head = client.head("/files/watch")
        assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream")
    with watching(server) as watch:
        write(server.workspace / "f")
        assert watch.until("f") == [("f", "added")]
    assert inotify() <= 1
