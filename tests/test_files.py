"""Contents of files over HTTP: whole or in part, replaced atomically, never outside of the workspace."""

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_server.files import ranges
from agent_server.files.staging import PREFIX
from tests.rawhttp import AUTHORIZED, answer, connect
from tests.serving import ServerProcess, serving


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


@pytest.fixture
def place(shared: ServerProcess, request: pytest.FixtureRequest) -> Path:
    """A folder of the workspace for one test."""
    folder = shared.workspace / f"test{time.monotonic_ns()}"
    folder.mkdir()
    return folder


@pytest.fixture
def client(shared: ServerProcess, place: Path) -> Iterator[httpx.Client]:
    """Its paths are relative to the test's folder, where they are given by `at`."""
    with shared.client() as client:
        yield client


def at(place: Path, name: str = "", **more: str) -> dict[str, str]:
    return {"path": f"{place.name}/{name}", **more}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def debris(server: ServerProcess) -> list[str]:
    """What is half-written, and its notes."""
    return [*map(str, server.workspace.rglob(f"{PREFIX}*")), *os.listdir(server.data / "staging")]


# Reading


def test_a_file_is_read_as_it_is(client: httpx.Client, place: Path) -> None:
    data = os.urandom(700_000)
    (place / "data.bin").write_bytes(data)
    response = client.get("/files", params=at(place, "data.bin"))
    assert (response.status_code, response.content) == (200, data)
    assert response.headers["accept-ranges"] == "bytes"
    head = client.head("/files", params=at(place, "data.bin"))
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(data)))
    assert head.headers["etag"] == response.headers["etag"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("a.html", "text/html"), ("a.json", "application/json"), ("a.png", "image/png"), ("a.py", "text/x-python")],
        *[("none", "application/octet-stream"), ("a.tar.gz", "application/octet-stream"), ("a b\"'ä.svg", "image/svg+xml")],
    ],
)
def test_its_type_goes_by_its_name_and_no_browser_shows_it_as_our_page(client: httpx.Client, place: Path, name: str, kind: str) -> None:
    (place / name).write_text("<script>alert(1)</script>")
    headers = client.get("/files", params=at(place, name)).headers
    assert headers["content-type"] == kind
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert "sandbox" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        *[("bytes=0-3", 206, slice(0, 4)), ("bytes=4-", 206, slice(4, None)), ("bytes=-3", 206, slice(-3, None))],
        *[("bytes=-99", 206, slice(None)), ("bytes=8-99", 206, slice(8, None)), ("Bytes = 9-9", 206, slice(9, None))],
        *[("bytes=10-", 416, None), ("bytes=99-100", 416, None), ("bytes=-0", 416, None)],
        *[
            ("bytes=0-1,3-4", 200, slice(None)),
            ("bytes=5-2", 200, slice(None)),
            ("lines=1-2", 200, slice(None)),
            ("bytes=-", 200, slice(None)),
        ],
    ],
)
def test_a_range(client: httpx.Client, place: Path, header: str, status: int, part: slice | None) -> None:
    (place / "ten").write_bytes(b"0123456789")
    response = client.get("/files", params=at(place, "ten"), headers={"Range": header})
    assert response.status_code == status
    if part is None:
        assert response.headers["content-range"] == "bytes */10"
        assert response.json()["error"]["code"] == "INVALID_REQUEST"
        return
    assert response.content == b"0123456789"[part]
    if status == 206:
        begin, end, _ = part.indices(10)
        assert response.headers["content-range"] == f"bytes {begin}-{end - 1}/10"


@given(st.integers(0, 50), st.one_of(st.none(), st.integers(0, 60)), st.one_of(st.none(), st.integers(0, 60)))
def test_a_range_has_bytes_of_the_file_and_no_others(size: int, first: int | None, last: int | None) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    try:
        found = ranges.parse(header, size)
    except ranges.Unsatisfiable:
        assert (first is not None and first >= size) or (first is None and (size == 0 or last == 0))
        return
    if found is not None:
        begin, end = found
        assert 0 <= begin < end <= size


def test_a_version_that_the_client_has_is_not_sent_again(client: httpx.Client, place: Path) -> None:
    (place / "f").write_text("one")
    etag = client.get("/files", params=at(place, "f")).headers["etag"]
    for header in (etag, f'"other", {etag}', "*", f"W/{etag}"):
        same = client.get("/files", params=at(place, "f"), headers={"If-None-Match": header})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert client.get("/files", params=at(place, "f"), headers={"Range": "bytes=0-0", "If-Range": etag}).status_code == 206
    (place / "f").write_text("two!")
    response = client.get("/files", params=at(place, "f"), headers={"If-None-Match": etag})
    assert (response.status_code, response.text) == (200, "two!")
    assert response.headers["etag"] != etag
    whole = client.get("/files", params=at(place, "f"), headers={"Range": "bytes=0-0", "If-Range": etag})
    assert (whole.status_code, whole.text) == (200, "two!")


def test_what_is_no_file_is_not_read(client: httpx.Client, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(place / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(place)  # its path would be too long
        listener.bind("socket")
    for name, status in {"": 400, "pipe": 400, "socket": 400, "missing": 404, "missing/f": 404}.items():
        response = client.get("/files", params=at(place, name))
        assert (name, response.status_code) == (name, status)
    (place / "f").touch()
    assert client.get("/files", params=at(place, "f/g")).status_code == 409
    assert client.get("/files", params={"path": ""}).status_code == 400
    assert client.get("/files", params={"path": "a\0b"}).status_code == 400
    assert client.get("/files", params={"path": "x" * 5000}).status_code == 400


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../out", "{place}/link/f", "{place}/link/../f", "/proc/self/environ"])
def test_nothing_outside_is_reached(shared: ServerProcess, client: httpx.Client, place: Path, method: str, path: str) -> None:
    outside = shared.data.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "f").write_text("secret")
    (place / "link").symlink_to(outside)
    response = client.request(method, "/files", params={"path": path.format(place=place.name)}, content=b"")
    assert (response.status_code, response.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert (outside / "f").read_text() == "secret"
    assert not (outside.parent / "out").exists()
    assert client.get("/files/stat", params={"path": path.format(place=place.name)}).status_code == 403


def test_a_file_that_is_replaced_while_it_is_read_is_served_as_it_was(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    size = 30_000_000
    (place / "f").write_bytes(b"a" * size)
    with shared.client() as reader, reader.stream("GET", "/files", params=at(place, "f")) as response:
        chunks = response.iter_bytes(1000)
        seen = [next(chunks)]
        assert client.put("/files", params=at(place, "f"), content=b"b" * size).status_code == 200
        seen += chunks
    assert b"".join(seen) == b"a" * size
    assert client.get("/files", params=at(place, "f")).content == b"b" * size


def test_a_file_that_is_cut_short_while_it_is_read_does_not_look_whole(shared: ServerProcess, place: Path) -> None:
    (place / "f").write_bytes(b"a" * 50_000_000)
    with shared.client() as reader, reader.stream("GET", "/files", params=at(place, "f")) as response:
        chunks = response.iter_bytes(1000)
        next(chunks)
        os.truncate(place / "f", 10)
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)
    assert shared.get("/health").status_code == 200


# Writing


def test_a_file_is_made_with_its_folders_and_replaced(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    made = client.put("/files", params=at(place, "a/b/f.txt"), content=b"one")
    assert made.status_code == 201
    assert made.json() == {"path": f"{place.name}/a/b/f.txt", "size": 3, "etag": made.headers["etag"]}
    assert client.get("/files", params=at(place, "a/b/f.txt")).headers["etag"] == made.headers["etag"]
    replaced = client.put("/files", params=at(place, "a/b/f.txt"), content=b"")
    assert (replaced.status_code, replaced.json()["size"]) == (200, 0)
    assert (place / "a/b/f.txt").read_bytes() == b""
    absolute = client.put("/files", params={"path": str(place / "abs")}, content=b"x")
    assert (absolute.status_code, (place / "abs").read_bytes()) == (201, b"x")
    assert debris(shared) == []


def test_an_upload_is_longer_than_what_is_held_in_memory_and_than_any_other_body(client: httpx.Client, place: Path) -> None:
    def parts() -> Iterator[bytes]:
        for number in range(400):
            yield bytes([number % 256]) * 100_000

    response = client.put("/files", params=at(place, "f"), content=parts())
    assert response.json()["size"] == 40_000_000  # over MAX_BODY_BYTES, and without a Content-Length
    assert (place / "f").read_bytes() == b"".join(parts())


def test_the_mode_stays_but_not_the_right_to_run_as_the_owner(client: httpx.Client, place: Path) -> None:
    for mode, expected in {0o600: 0o600, 0o755: 0o755, 0o4755: 0o755}.items():
        (place / "f").write_text("one")
        (place / "f").chmod(mode)
        client.put("/files", params=at(place, "f"), content=b"two")
        assert stat.S_IMODE((place / "f").stat().st_mode) == expected
    if os.geteuid() == 0:
        os.chown(place / "f", 1234, 1235)
        client.put("/files", params=at(place, "f"), content=b"three")
        assert ((place / "f").stat().st_uid, (place / "f").stat().st_gid) == (1234, 1235)


def test_a_write_that_expects_another_version_is_refused(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    def put(content: bytes, **headers: str) -> httpx.Response:
        return client.put(
            "/files", params=at(place, "f"), content=content, headers={name.replace("_", "-"): v for name, v in headers.items()}
        )

    assert put(b"0", If_Match='"any"').json()["error"]["code"] == "CONFLICT"
    assert put(b"0", If_Match="*").status_code == 409
    first = put(b"1", If_None_Match="*")
    assert first.status_code == 201
    again = put(b"0", If_None_Match="*")
    assert (again.status_code, again.json()["error"]["details"]["etag"]) == (409, first.headers["etag"])
    second = put(b"22", If_Match=f'"other", {first.headers["etag"]}')
    assert second.status_code == 200
    assert put(b"0", If_Match=first.headers["etag"]).status_code == 409
    assert put(b"333", If_Match="*").status_code == 200
    stale = client.delete("/files", params=at(place, "f"), headers={"If-Match": first.headers["etag"]})
    assert (stale.status_code, (place / "f").read_bytes()) == (409, b"333")
    assert debris(shared) == []


def test_of_writes_that_expect_the_same_version_one_is_done(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    etag = client.put("/files", params=at(place, "f"), content=b"0").headers["etag"]
    statuses: list[int] = []

    def put(number: int) -> None:
        with shared.client() as own:
            response = own.put("/files", params=at(place, "f"), content=b"x" * number, headers={"If-Match": etag})
            statuses.append(response.status_code)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(2, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, *[409] * 9]


def test_what_is_no_file_is_not_replaced(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    (place / "folder").mkdir()
    (place / "file").write_text("x")
    os.mkfifo(place / "pipe")
    for name in ("folder", "pipe", "file/inner", "file/deeper/inner", ""):
        response = client.put("/files", params=at(place, name), content=b"y")
        assert (name, response.status_code, response.json()["error"]["code"]) == (name, 409, "CONFLICT")
    assert client.put("/files", params={"path": "."}, content=b"y").status_code == 409
    assert client.put("/files", params=at(place, "n" * 256), content=b"y").status_code == 400
    assert stat.S_ISFIFO((place / "pipe").lstat().st_mode)
    assert debris(shared) == []


def test_a_link_is_written_through_within_the_workspace_and_stays(client: httpx.Client, place: Path) -> None:
    (place / "target").write_text("one")
    (place / "link").symlink_to("target")
    (place / "dangling").symlink_to("made/by/it")
    assert client.put("/files", params=at(place, "link"), content=b"two").json()["path"] == f"{place.name}/target"
    assert (place / "link").is_symlink()
    assert (place / "target").read_text() == "two"
    assert client.put("/files", params=at(place, "dangling"), content=b"three").status_code == 201
    assert (place / "dangling").is_symlink()
    assert (place / "made/by/it").read_text() == "three"


class Slow:
    """An upload whose second half comes when it is told to."""

    def __init__(self, server: ServerProcess, path: str, first: bytes = b"a" * 600_000, rest: bytes = b"b" * 600_000) -> None:
        self.rest = rest
        self.connection = connect(server.url)
        length = len(first) + len(rest)
        self.connection.sendall(f"PUT /files?path={path} HTTP/1.1\r\n{AUTHORIZED}Content-Length: {length}\r\n\r\n".encode() + first)
        until(lambda: any(file.stat().st_size >= 256 << 10 for file in server.workspace.rglob(f"{PREFIX}*")))

    def finish(self) -> int:
        self.connection.sendall(self.rest)
        with self.connection:
            return answer(self.connection, "PUT")[0].status


def test_an_upload_that_breaks_off_leaves_the_old_file_and_nothing_else(shared: ServerProcess, place: Path) -> None:
    (place / "f").write_text("old")
    for name in ("f", "not/there/yet"):
        upload = Slow(shared, f"{place.name}/{name}")
        assert (place / "f").read_text() == "old"
        assert "agent-server" not in shared.get("/files/tree").text
        upload.connection.close()
        until(lambda: debris(shared) == [])
    assert [path.name for path in place.iterdir()] == ["f"]
    assert (place / "f").read_text() == "old"


def test_a_link_that_is_swapped_in_during_an_upload_is_not_written_through(shared: ServerProcess, place: Path) -> None:
    outside = shared.data.parent / "elsewhere"
    outside.mkdir(exist_ok=True)
    (outside / "f").write_text("theirs")
    upload = Slow(shared, f"{place.name}/f")
    (place / "f").symlink_to(outside / "f")
    assert upload.finish() == 200
    assert not (place / "f").is_symlink()  # the link was replaced
    (place / "folder").mkdir()
    upload = Slow(shared, f"{place.name}/folder/f")
    (place / "folder").rename(place / "moved")
    (place / "folder").symlink_to(outside)
    assert upload.finish() == 409
    assert (outside / "f").read_text() == "theirs"
    assert os.listdir(outside) == ["f"]
    until(lambda: debris(shared) == [])


def test_what_a_killed_server_left_half_written_is_removed_at_the_next_start(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        (server.workspace / "f").write_text("old")
        upload = Slow(server, "f")
        server.kill()
        upload.connection.close()
        assert len(debris(server)) == 2
        server.start()
        until(lambda: debris(server) == [])
        assert os.listdir(server.workspace) == ["f"]
        assert (server.workspace / "f").read_text() == "old"


def test_a_disk_is_not_filled(small_disk: Path, tmp_path: Path) -> None:
    with serving(tmp_path, WORKSPACE_DIR=str(small_disk)) as server, server.client() as client:
        (small_disk / "f").write_text("old")
        with_length = client.put("/files?path=f", content=b"x" * 5_000_000)
        without = client.put("/files?path=f", content=iter([b"x" * 100_000] * 50))
        nearly = client.put("/files?path=f", content=b"x" * 4_100_000)  # it fits, but leaves too little
        for response in (with_length, without, nearly):
            assert (response.status_code, response.json()["error"]["code"]) == (422, "RESOURCE_LIMIT_EXCEEDED")
            assert response.json()["error"]["details"]["limit"] == "disk"
        assert (small_disk / "f").read_text() == "old"
        assert os.listdir(small_disk) == ["f"]
        assert client.put("/files?path=f", content=b"x" * 3_000_000).status_code == 200


def test_more_transfers_than_there_are_places_for_are_told_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        uploads = [connect(server.url) for _ in range(33)]
        for number, connection in enumerate(uploads):
            connection.sendall(f"PUT /files?path=f{number} HTTP/1.1\r\n{AUTHORIZED}Content-Length: 3\r\n\r\n".encode())
            if number < 32:
                until(lambda number=number: len(os.listdir(server.data / "staging")) == number + 1)  # type: ignore[misc]  # bound early
        response, body = answer(uploads[-1], "PUT")
        assert (response.status, body["error"]["code"], response.getheader("Retry-After")) == (429, "TOO_MANY_REQUESTS", "1")
        uploads[0].sendall(b"abc")
        assert answer(uploads[0], "PUT")[0].status == 201
        assert server.get("/files?path=f0").text == "abc"
        for connection in uploads:
            connection.close()


def test_a_stop_during_transfers_is_clean(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        upload = Slow(server, "f")
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        upload.connection.close()
        assert os.listdir(server.workspace) == []


# Removing


def test_files_links_and_folders_are_removed(client: httpx.Client, place: Path) -> None:
    (place / "deep/er").mkdir(parents=True)
    (place / "deep/er/f").write_text("x")
    (place / "keep").mkdir()
    (place / "keep/f").write_text("kept")
    (place / "deep/link").symlink_to(place / "keep")
    (place / "link").symlink_to("keep")
    (place / "broken").symlink_to("/etc")
    for name in ("link", "broken", "deep"):
        response = client.delete("/files", params=at(place, name))
        assert (response.status_code, response.json()) == (200, {"path": f"{place.name}/{name}"})
    assert os.listdir(place) == ["keep"]
    assert (place / "keep/f").read_text() == "kept"
    assert client.delete("/files", params=at(place, "deep")).status_code == 404
    assert client.delete("/files", params=at(place, "keep/f/g")).status_code == 409


def test_a_very_deep_folder_is_removed(client: httpx.Client, place: Path) -> None:
    here = os.open(place, os.O_RDONLY)
    for _ in range(3000):  # deeper than Python recurses, and than a path is long
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert client.delete("/files", params=at(place, "d")).status_code == 200
    assert os.listdir(place) == []


def test_the_workspace_itself_is_not_removed(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    for path in (".", "/", "./", f"{place.name}/..", str(shared.workspace), str(shared.workspace.parent)):
        assert client.delete("/files", params={"path": path}).status_code == 403
    assert place.is_dir()


# What there is


def test_stat_tells_what_there_is(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    (place / "f").write_text("four")
    (place / "f").chmod(0o640)
    (place / "link").symlink_to("f")
    (place / "out").symlink_to("/etc/passwd")
    (place / "broken").symlink_to("nothing")
    (place / "loop").symlink_to("loop")
    nothing = {
        "exists": False,
        "error": None,
        "is_dir": False,
        "is_file": False,
        "is_symlink": False,
        "link_target": None,
        "mode": 0,
        "size": 0,
    }

    def look(name: str, **more: str) -> dict[str, object]:
        found = {route: client.get(route, params=at(place, name, **more)).json() for route in ("/files/stat", "/stat")}
        assert found["/stat"] == found["/files/stat"]
        body: dict[str, object] = found["/stat"]
        return body

    file = {**nothing, "exists": True, "is_file": True, "mode": 0o640, "size": 4}
    assert look("f") == look("link", follow_links="true") == look("link", followLinks="true") == file
    link = look("link")
    assert (link["is_symlink"], link["is_file"], link["link_target"]) == (True, False, "f")
    assert (look("")["is_dir"], look("")["exists"]) == (True, True)
    assert look("missing") == look("f/inner") == look("a/b/c") == look("broken", follow_links="true") == nothing
    assert look("broken")["exists"] is True
    assert look("loop")["is_symlink"] is True
    loop = look("loop", follow_links="true")
    assert (loop["exists"], loop["error"]) == (False, "Too many levels of symbolic links")
    assert look("out")["link_target"] == "/etc/passwd"
    assert client.get("/files/stat", params=at(place, "out", follow_links="true")).status_code == 403
    assert client.get("/files/stat", params={"path": str(shared.workspace)}).json()["is_dir"] is True


def test_names_that_are_not_utf8_are_addressed_by_their_bytes(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    url = f"/files?path={place.name}/%FF%FEx"
    made = client.put(url, content=b"one")
    assert (made.status_code, made.json()["path"]) == (201, f"{place.name}/\\xff\\xfex")
    assert os.listdir(os.fsencode(place)) == [b"\xff\xfex"]
    response = client.get(url)
    assert response.text == "one"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''%FF%FEx"
    os.symlink(b"\xff\xfex", os.fsencode(place) + b"/link")
    assert client.get("/files/stat", params=at(place, "link")).json()["link_target"] == "\ufffd\ufffdx"
    assert client.get(f"/stat?path={place.name}/%FF%FEx").json()["exists"] is True
    assert client.get(f"/files?path={place.name}/%FF").status_code == 404
    assert client.get("/files?path=../%FF").status_code == 403
    assert client.delete(url).status_code == 200
    (place / "\ufffd").write_text("a real one")
    assert client.get("/files", params=at(place, "\ufffd")).text == "a real one"


def test_with_the_setting_files_outside_are_reached(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    with serving(tmp_path, ALLOW_OUTSIDE_WORKSPACE="1") as server, server.client() as client:
        assert client.get("/files", params={"path": "../outside"}).text == "x"
        assert client.put("/files", params={"path": str(tmp_path / "new/f")}, content=b"y").json()["path"] == str(tmp_path / "new/f")
        assert client.delete("/files", params={"path": str(tmp_path)}).status_code == 403
        assert client.get("/files", params={"path": "/proc/self/environ"}).status_code == 403
        assert "new/f" in client.get("/files/tree", params={"path": str(tmp_path / "new").rpartition("/")[0]}).text


def test_a_file_of_before_the_first_upload_is_in_the_changes(tmp_path: Path) -> None:
    with serving(tmp_path) as server, server.client() as client:
        client.put("/files?path=f", content=b"one\n")
        assert [(change["path"], change["status"]) for change in client.get("/changes").json()["changes"]] == [("f", "added")]
