"""Restores that a kill breaks off, and that of the first start. Longer runs: SNAPSHOT_KILLS=100."""

import contextlib
import http.server
import os
import random
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from agent_server.errors import Conflict
from agent_server.snapshots.swap import Plan, Swap
from tests.emulators.openai import OpenAIEmulator
from tests.serving import ServerProcess, serving
from tests.snapshots.archives import archive, made, tree
from tests.snapshots.test_snapshots import KEY, create, fetch, history, put, restore

KILLS = int(os.environ.get("SNAPSHOT_KILLS", "3"))
SEED = int(os.environ.get("SNAPSHOT_SEED", "7"))
TOP = 200
"""Entries of the workspace's own folder: moving them takes long enough to be killed in it."""

PLAN = Plan("rest_1", "snap_1", "one", 3, [])


# The swap, by itself


@pytest.fixture
def swap(tmp_path: Path) -> Swap:
    """A workspace of five old entries, with three new ones prepared; two of the names are the same."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    for name in "abc":
        (workspace / name).write_text(f"old {name}")
    (workspace / "folder").mkdir()
    (workspace / "folder" / "x").write_text("old x")
    (workspace / "folder").chmod(0o555)
    (workspace / "link").symlink_to("/etc/hostname")
    made = Swap(workspace, tmp_path / "restore.json")
    fill(made.prepare())
    return made


def fill(new: Path) -> None:
    (new / "a").write_text("new a")
    (new / "folder").symlink_to("/tmp")
    (new / "new").mkdir()


def shown(swap: Swap) -> dict[str, tuple[Any, ...]]:
    found = tree(swap.staging.parent)
    return {
        path: (what[0], what[1], what[-1] if what[0] == "file" else "")
        for path, what in found.items()
        if not path.startswith(".agent-server")
    }


def expected(tmp_path: Path) -> dict[str, tuple[Any, ...]]:
    workspace = tmp_path / "expected"
    workspace.mkdir()
    fill(workspace)
    return shown(Swap(workspace, tmp_path / "none"))


def test_a_swap_puts_the_new_in_the_place_of_the_old(swap: Swap, tmp_path: Path) -> None:
    swap.run(PLAN)
    assert shown(swap) == expected(tmp_path)
    assert swap.pending() == Plan("rest_1", "snap_1", "one", 3, [], "in")
    swap.done()
    swap.clean()
    assert swap.pending() is None
    assert not swap.staging.exists()


def test_a_swap_is_taken_back(swap: Swap) -> None:
    before = shown(swap)
    swap.run(PLAN)
    swap.revert(PLAN)
    assert shown(swap) == before
    assert swap.pending() is None


KILLED = """
import os, sys
from pathlib import Path
from agent_server.snapshots.swap import Plan, Swap

def watch(event, arguments):
    # Each change of the disk, one after another, is the last one.
    global left
    if event in ("os.rename", "open", "os.remove", "os.mkdir"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

def attempt(folder):
    global left
    swap, plan, left = Swap(folder / "workspace", folder / "restore.json"), Plan("rest_1", "snap_1", "one", 3, []), int(folder.name)
    sys.addaudithook(watch)
    exec(sys.argv[2])
    os._exit(0)

for point in range(int(sys.argv[3])):
    pid = os.fork()
    if not pid:
        attempt(Path(sys.argv[1]) / str(point))
    print(os.waitpid(pid, 0)[1])
"""

POINTS = 48


@pytest.mark.parametrize("what", ["swap.run(plan)", "swap.revert(plan)"])
def test_a_kill_at_any_point_leaves_one_of_the_two_whole(what: str, tmp_path: Path) -> None:
    new = expected(tmp_path)
    swaps = []
    for point in range(POINTS):
        (tmp_path / str(point)).mkdir()
        swaps.append(swap_in(tmp_path / str(point)))
    old = shown(swaps[0])
    if "revert" in what:
        for swap in swaps:
            swap.run(PLAN)
    command = [sys.executable, "-c", KILLED, str(tmp_path), what, str(POINTS)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seen = set()
    for point, swap in enumerate(swaps):
        plan = swap.pending()
        is_new = swap.recover(plan) if plan is not None else ended[point] == "0" and "run" in what
        assert shown(swap) == (new if is_new else old), f"killed at {point}"
        seen.add(is_new)
    assert seen == {True, False}
    assert ended.count("9") > 8
    assert ended[-1] == "0", "it never came to its end"


def swap_in(folder: Path) -> Swap:
    workspace = folder / "workspace"
    workspace.mkdir()
    for name in "ab":
        (workspace / name).write_text(f"old {name}")
    (workspace / "folder").mkdir()
    made = Swap(workspace, folder / "restore.json")
    fill(made.prepare())
    return made


def test_what_comes_meanwhile_is_not_in_the_way(swap: Swap, tmp_path: Path) -> None:
    swap._write(PLAN)
    swap._move_out()
    (swap.staging.parent / "a").mkdir()
    (swap.staging.parent / "a" / "late").touch()
    swap.move_in()
    assert shown(swap) == expected(tmp_path)


def test_a_folder_that_was_put_in_the_place_of_ours_is_not_written_through(swap: Swap, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "old").mkdir(parents=True)
    (outside / "new").mkdir()
    (outside / "new" / "evil").touch()
    before = shown(swap)
    swap.staging.rename(tmp_path / "away")
    swap.staging.symlink_to(outside)
    with pytest.raises(OSError):  # noqa: PT011  # NotADirectoryError or ELOOP, as the kernel likes
        swap.move_in()
    assert shown(swap) == before
    swap.clean()
    assert (outside / "new" / "evil").exists()


def test_an_entry_that_cannot_be_moved_leaves_all_as_it_was(swap: Swap) -> None:
    before = shown(swap)
    busy = swap.staging.parent / "b2"
    busy.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", busy], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(Conflict, match="mounted"):
            swap.run(PLAN)
    finally:
        subprocess.run(["umount", "--lazy", busy], check=True)
    busy.rmdir()
    assert shown(swap) == before


# A server that is killed


@pytest.fixture(scope="module")
def lasting(place: Path, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server with a snapshot `old`, whose workspace and conversation say old; now both say new."""
    with serving(place / "lasting", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        say(server, model, "old")
        create(server, "old")
        say(server, model, "new")
        create(server, "new")
        yield server


def say(server: ServerProcess, model: OpenAIEmulator, word: str) -> None:
    model.script({"text": f"The {word} answer."})
    server.finish(server.submit(f"the {word} question"))
    for number in range(TOP):
        (server.workspace / f"{number}.txt").write_text(word)
    (server.workspace / "large.bin").write_bytes(random.Random(word).randbytes(1 << 20) * 6)


def state(server: ServerProcess, model: OpenAIEmulator) -> str:
    """`old` or `new`, if all files say so, and so does what the model is told."""
    words = {(server.workspace / f"{number}.txt").read_text() for number in range(TOP)}
    assert len(words) == 1, "the workspace is of two states"
    (word,) = words
    assert (server.workspace / "large.bin").read_bytes()[: 1 << 20] == random.Random(word).randbytes(1 << 20)
    assert sorted(path.name for path in server.workspace.iterdir() if path.name != ".agent-server-restore") == sorted(
        [*(f"{number}.txt" for number in range(TOP)), "large.bin"]
    )
    model.script({"text": "Asked."})
    server.finish(server.submit("which?"))
    said = [message["content"] for message in history(model.requests()[-1])]
    newest = max(at for at, text in enumerate(said) if "answer" in str(text))
    assert f"The {word} answer." == said[newest], "the conversation does not agree with the workspace"
    return word


def wait_until(condition: Callable[[], bool], process: threading.Thread) -> bool:
    while process.is_alive():
        if condition():
            return True
        time.sleep(0.0005)
    return False


def asked(server: ServerProcess, path: str) -> threading.Thread:
    """Has something begun that a kill will break off."""

    def ask() -> None:
        with contextlib.suppress(httpx.TransportError):  # the connection breaks, in one of many ways
            server.post(path)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def journal_has(server: ServerProcess, word: bytes) -> Callable[[], bool]:
    def look() -> bool:
        try:
            return word in (server.data / "restore.json").read_bytes()
        except FileNotFoundError:
            return False

    return look


@pytest.mark.parametrize("moment", ["staging", "staged", "out", "in", "told"])
def test_a_kill_in_a_restore_leaves_one_of_the_two_states(moment: str, lasting: ServerProcess, model: OpenAIEmulator) -> None:
    before = state(lasting, model)
    wanted = "old" if before == "new" else "new"
    staging = lasting.workspace / ".agent-server-restore"
    condition: Callable[[], bool] = {
        "staging": lambda: (staging / "new" / "100.txt").exists(),
        "staged": lambda: (staging / "new" / "large.bin").exists(),
        "out": journal_has(lasting, b'"out"'),
        "in": journal_has(lasting, b'"in"'),
        "told": lambda: staging.exists() and (lasting.workspace / "large.bin").exists() and not any((staging / "new").glob("large*")),
    }[moment]
    restoring = asked(lasting, f"/snapshots/{wanted}/restore")
    wait_until(condition, restoring)
    lasting.kill()
    restoring.join()
    lasting.start()
    after = state(lasting, model)
    assert after in (before, wanted)
    if moment in ("staging", "staged"):
        assert after == before
    assert not (lasting.data / "restore.json").exists()


def test_kills_at_random_moments_in_restores_leave_one_of_the_two_states(lasting: ServerProcess, model: OpenAIEmulator) -> None:
    chance = random.Random(SEED)
    for _ in range(KILLS):
        before = state(lasting, model)
        restoring = asked(lasting, f"/snapshots/{'old' if before == 'new' else 'new'}/restore")
        restoring.join(chance.uniform(0.05, 0.6))
        lasting.kill()
        restoring.join()
        lasting.start()
        assert state(lasting, model) in ("old", "new")


def test_what_a_restore_left_in_the_workspace_is_removed(lasting: ServerProcess, model: OpenAIEmulator) -> None:
    if lasting.is_running:
        lasting.stop()
    staging = lasting.workspace / ".agent-server-restore"
    (staging / "new" / "a").mkdir(parents=True, exist_ok=True)
    lasting.start()
    until = time.monotonic() + 30
    while staging.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert state(lasting, model) in ("old", "new")


def test_kills_while_a_snapshot_is_made_leave_none_or_a_whole_one(lasting: ServerProcess, model: OpenAIEmulator) -> None:
    folder = lasting.data / "snapshots"
    known = {each["name"] for each in lasting.get("/snapshots").json()}
    chance = random.Random(SEED)
    for number in range(KILLS):
        making = asked(lasting, "/snapshot")
        size = chance.randrange(6 << 20)
        wait_until(lambda size=size: any(part.stat().st_size > size for part in folder.glob("*.part")), making)  # type: ignore[misc]  # mypy cannot infer a lambda's default
        if number % 3 == 2:
            making.join()
        lasting.kill()
        making.join()
        lasting.start()
        listed = lasting.get("/snapshots").json()
        kept = sorted(path.name for path in folder.iterdir())
        assert kept == sorted(f"{each['snapshotId']}{ending}" for each in listed for ending in (".json", ".tar.gz"))
        for each in listed:
            if each["name"] not in known:
                assert put(lasting, f"checked {number}", fetch(lasting, each["snapshotId"])).status_code == 201
        for each in listed:
            if each["name"] not in known:
                with lasting.client() as client:
                    client.delete(f"/snapshots/{each['snapshotId']}")
                    client.delete(f"/snapshots/checked {number}")
    assert state(lasting, model) in ("old", "new")


def test_a_stop_ends_a_snapshot_that_is_being_made(lasting: ServerProcess) -> None:
    (lasting.workspace / "huge").touch()
    os.truncate(lasting.workspace / "huge", 1 << 40)
    try:
        making = asked(lasting, "/snapshot")
        assert wait_until(lambda: any((lasting.data / "snapshots").glob("*.part")), making)
        assert lasting.stop() == 0
        making.join()
    finally:
        (lasting.workspace / "huge").unlink()
    lasting.start()
    assert not list((lasting.data / "snapshots").glob("*.part"))


# The first start


class Source(http.server.BaseHTTPRequestHandler):
    """Gives what it was told to, once each, and the last for ever."""

    answers: ClassVar[list[tuple[int, bytes]]] = []
    asked: ClassVar[int] = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        status, body = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def source() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Source) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=[0.01])
        thread.start()
        Source.asked = 0
        yield f"http://127.0.0.1:{listening.server_address[1]}/snapshot.tar.gz?signature=canary-0123456789"
        listening.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def kept(place: Path, model: OpenAIEmulator) -> bytes:
    """The archive of a small instance with one conversation."""
    with serving(place / "kept", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        (server.workspace / "kept.txt").write_text("kept\n")
        model.script({"text": "Noted."})
        server.finish(server.submit("my name is Ada"))
        create(server, "kept")
        return fetch(server, "kept")


def fails(server: ServerProcess, **environ: str) -> str:
    """Starts a server that cannot start, and gives what it says."""
    ended = subprocess.run(server.argv, env={**server.environ, **environ}, capture_output=True, timeout=60, text=True, cwd=server.workspace)
    assert ended.returncode == 2, ended.stderr
    return ended.stderr


def test_an_instance_begins_with_a_snapshot_once(tmp_path: Path, model: OpenAIEmulator, kept: bytes) -> None:
    (tmp_path / "kept.tar.gz").write_bytes(kept)
    server = ServerProcess(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY, SNAPSHOT_FILE=str(tmp_path / "kept.tar.gz"))
    (server.workspace / "of the image.txt").touch()
    server.start()
    try:
        assert [path.name for path in server.workspace.iterdir()] == ["kept.txt"]
        assert server.get("/changes").json()["files"] == []
        model.script({"text": "Ada."}, {"text": "Still Ada."})
        server.finish(server.submit("who am I?"))
        assert [m["content"] for m in history(model.requests()[0])[1:]] == ["my name is Ada", "Noted.", "who am I?"]
        (server.workspace / "kept.txt").write_text("changed\n")
        server.stop()
        server.start()
        assert (server.workspace / "kept.txt").read_text() == "changed\n"
        assert server.get("/changes").json()["files"] == ["kept.txt"]
        server.stop()
        (tmp_path / "kept.tar.gz").unlink()
        server.start()
        server.finish(server.submit("and now?"))
        assert len(history(model.requests()[1])[1:]) == 5
    finally:
        server.kill()


def test_a_snapshot_is_fetched(tmp_path: Path, source: str, kept: bytes) -> None:
    Source.answers = [(503, b"later"), (200, kept)]
    with serving(tmp_path, SNAPSHOT_URL=source) as server:
        assert (server.workspace / "kept.txt").read_text() == "kept\n"
        assert Source.asked == 2
        assert "canary-0123456789" not in server.get("/status").text + server.log() + server.execute("env")["output"]
        assert list((server.data / "snapshots").iterdir()) == []
        server.stop()
        server.start()
        assert Source.asked == 2


def test_what_fails_ends_the_start_and_is_tried_again(tmp_path: Path, source: str, kept: bytes) -> None:
    server = ServerProcess(tmp_path, SNAPSHOT_URL=source)
    (server.workspace / "mine.txt").touch()
    Source.answers = [(404, b"no")]
    said = fails(server)
    assert "SNAPSHOT_URL (127.0.0.1)" in said
    assert "404" in said
    Source.answers = [(200, kept[:-100])]
    assert "no snapshot that can be used" in fails(server)
    Source.answers = [(200, archive(made("workspace/../up")))]
    said = fails(server)
    assert "canary-0123456789" not in said
    assert [path.name for path in server.workspace.iterdir()] == ["mine.txt"]
    Source.answers = [(200, bytes(3 << 20))]
    assert "MAX_SNAPSHOT_BYTES" in fails(server, MAX_SNAPSHOT_BYTES="1048576")
    Source.answers = [(200, kept)]
    server.start()
    try:
        assert [path.name for path in server.workspace.iterdir()] == ["kept.txt"]
    finally:
        server.kill()


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_a_file_that_is_none_ends_the_start(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    server = ServerProcess(tmp_path, SNAPSHOT_FILE=str(tmp_path / "file"))
    assert "SNAPSHOT_FILE" in fails(server)


def test_two_snapshots_to_begin_with_are_one_too_many(tmp_path: Path) -> None:
    assert "name one of them" in fails(ServerProcess(tmp_path, SNAPSHOT_FILE="/a", SNAPSHOT_URL="https://a/b"))
    assert "https://" in fails(ServerProcess(tmp_path, SNAPSHOT_URL="ftp://a/b"))


def test_an_instance_that_has_begun_without_a_snapshot_stays_as_it_is(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "kept.tar.gz").write_bytes(kept)
    with serving(tmp_path) as server:
        (server.workspace / "mine.txt").touch()
        server.stop()
        server.start(SNAPSHOT_FILE=str(tmp_path / "kept.tar.gz"))
        assert [path.name for path in server.workspace.iterdir()] == ["mine.txt"]
        assert "for the first start alone" in server.log()


def test_a_kill_at_the_first_start_loses_nothing(tmp_path: Path) -> None:
    data = archive(*(made(f"workspace/{number:04}", os.urandom(2_000)) for number in range(1_000)))
    (tmp_path / "many.tar.gz").write_bytes(data)
    server = ServerProcess(tmp_path, SNAPSHOT_FILE=str(tmp_path / "many.tar.gz"))
    moments: list[Callable[[], bool]] = [lambda: (server.workspace / ".agent-server-restore").exists(), journal_has(server, b'"in"')]
    for moment in moments:
        process = subprocess.Popen(server.argv, env=server.environ, stderr=subprocess.DEVNULL, cwd=server.workspace)
        while not moment():
            assert process.poll() is None
        process.kill()
        process.wait()
    server.start()
    try:
        assert len([path for path in server.workspace.iterdir() if path.suffix == "" and path.name.isdigit()]) == 1_000
        restored = [line for line in server.get("/logs?lines=1000").json()["logs"] if line["type"] == "snapshot.restored"]
        assert len(restored) == 1
        restore_again(server)
    finally:
        server.kill()


def restore_again(server: ServerProcess) -> None:
    """Makes a snapshot of what is there and goes back to it, as on any day."""
    create(server, "again")
    (server.workspace / "0000").unlink()
    assert restore(server, "again")["entries"] == 1_000
    assert (server.workspace / "0000").exists()
