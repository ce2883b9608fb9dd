"""Folders as tar.gz, out and in: whole or not at all, and never outside of the folder."""

import gzip
import io
import itertools
import os
import random
import shutil
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_server.files.staging import PREFIX
from tests.rawhttp import AUTHORIZED, connect
from tests.serving import ServerProcess, serving
from tests.workspaces import fingerprint, look, write

numbers = itertools.count()


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[httpx.Client]:
    with shared.client() as client:
        yield client


@pytest.fixture
def place(shared: ServerProcess) -> Path:
    folder = shared.workspace / f"test{next(numbers)}"
    folder.mkdir()
    return folder


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


def archive(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz", form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as tar:  # type: ignore[call-overload]  # the mode is no literal
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def put(client: httpx.Client, place: Path, content: bytes, below: str = "") -> httpx.Response:
    return client.put("/files/archive", params={"path": place.name + below}, content=content)


def contents(place: Path) -> list[str]:
    """A digest of each thing in the folder; not of the folder, whose time may change."""
    return [fingerprint(path) for path in sorted(place.iterdir())]


def debris(server: ServerProcess) -> list[str]:
    return [*map(str, server.workspace.rglob(f"{PREFIX}*")), *os.listdir(server.data / "staging")]


# Out


def test_a_folder_comes_out_as_it_is_and_goes_in_as_it_was(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    write(place / "from/a/b/c.txt", "text").chmod(0o640)
    write(place / "from/run.sh", "#!/bin/sh").chmod(0o755)
    write(place / "from" / ("long" * 50) / ("name" * 50), os.urandom(300_000))
    write(place / "from/.git/config", "x")
    (place / "from/empty").mkdir(mode=0o700)
    (place / "from/link").symlink_to("a/b")
    (place / "from/out").symlink_to("/etc/passwd")
    os.mkfifo(place / "from/pipe")
    with open(os.fsencode(place) + b"/from/\xff\n", "w") as file:
        file.write("not UTF-8")
    os.utime(place / "from/run.sh", (1_600_000_000, 1_600_000_000))
    response = client.get("/files/archive", params={"path": f"{place.name}/from"})
    assert response.headers["content-type"] == "application/gzip"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''from.tar.gz"
    assert client.head("/files/archive", params={"path": f"{place.name}/from"}).content == b""
    # GNU tar reads it, too.
    (place / "gnu").mkdir()
    subprocess.run(["tar", "-xzf", "-", "-C", place / "gnu"], input=response.content, check=True)
    unpacked = put(client, place, response.content, "/to/deep")
    assert (unpacked.status_code, unpacked.json()["path"]) == (200, f"{place.name}/to/deep")
    (place / "from/pipe").unlink()
    expected = look(place / "from")
    assert len(expected) == 6
    assert look(place / "gnu") == look(place / "to/deep") == expected
    assert (place / "to/deep/.git/config").read_text() == "x"
    for name in ("a/b/c.txt", "run.sh", "empty", "a"):
        there = (place / "to/deep" / name).stat()
        assert stat.S_IMODE(there.st_mode) == stat.S_IMODE((place / "from" / name).stat().st_mode)
    assert (place / "to/deep/run.sh").stat().st_mtime == 1_600_000_000
    assert debris(shared) == []


def test_an_archive_is_whole_while_its_files_change(client: httpx.Client, place: Path) -> None:
    for number in range(20):
        write(place / f"f{number:02}", b"a" * 2_000_000)
    is_done = threading.Event()

    def change() -> None:
        for number in itertools.cycle(range(20)):
            if is_done.is_set():
                return
            os.truncate(place / f"f{number:02}", 1_000 if number % 2 else 3_000_000)
            with open(place / f"f{number:02}", "ab") as file:
                file.write(b"b" * 1_000)
            (place / f"new{number}").touch()
            (place / f"new{number}").unlink()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3):
            content = client.get("/files/archive", params={"path": place.name}).content
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                assert [name for name in tar.getnames() if not name.startswith("new")] == [f"f{number:02}" for number in range(20)]
            assert gzip.decompress(content)[-1024:] == bytes(1024)
    finally:
        is_done.set()
        thread.join()


def test_an_empty_folder_is_an_empty_archive(client: httpx.Client, place: Path) -> None:
    content = client.get("/files/archive", params={"path": place.name}).content
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == []
    assert put(client, place, content).json() == {"path": place.name, "entries": 0, "size": 0}


def test_a_reader_that_goes_away_leaves_nothing_open(shared: ServerProcess, client: httpx.Client, place: Path) -> None:
    write(place / "big", os.urandom(20_000_000))
    for route in ("/files/archive", "/files"):
        with client.stream("GET", route, params={"path": place.name + ("/big" if route == "/files" else "")}) as response:
            next(response.iter_raw(1000))
    assert shared.process is not None
    end = time.monotonic() + 20
    while b"big" in subprocess.run(["ls", "-l", f"/proc/{shared.process.pid}/fd"], capture_output=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.01)


# In


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_archives_of_all_usual_kinds_are_unpacked(client: httpx.Client, place: Path, mode: str, form: int) -> None:
    long = "d" * 90 + "/" + "f" * 90
    content = archive(
        member("./", type=tarfile.DIRTYPE, mode=0o777),
        member("./dir/", type=tarfile.DIRTYPE, mode=0o500),
        *[member("dir/file", b"one", mode=0o4755), member("dir/file", b"two", mode=0o604, uid=12345), member("implied/f", b"1")],
        *[link("link", "dir/file"), link("hard", "./dir/file", tarfile.LNKTYPE), member(long, b"long"), member("älter", b"x")],
        mode=mode,
        form=form,
    )
    response = put(client, place, content)
    assert (response.status_code, response.json()["entries"]) == (200, 9)
    assert (place / "dir/file").read_text() == "two"
    assert stat.S_IMODE((place / "dir/file").stat().st_mode) == 0o604
    assert (place / "dir/file").stat().st_uid == os.geteuid()
    assert (place / "hard").samefile(place / "dir/file")
    assert os.readlink(place / "link") == "dir/file"
    assert stat.S_IMODE((place / "dir").stat().st_mode) == 0o700  # or it could not be removed again
    assert (place / long).read_text() == "long"
    assert (place / "älter").is_file()


def test_what_is_there_is_merged_with_and_files_and_links_are_replaced(client: httpx.Client, place: Path) -> None:
    outside = write(place.parent.parent / "theirs", "theirs")
    write(place / "dir/kept", "kept")
    write(place / "dir/file", "old")
    (place / "dir").chmod(0o711)
    (place / "link").symlink_to(outside)
    response = put(
        client, place, archive(member("dir", type=tarfile.DIRTYPE), member("dir/file", b"new"), member("link", b"ours"), member("x", b""))
    )
    assert response.status_code == 200
    assert ((place / "dir/file").read_text(), (place / "dir/kept").read_text()) == ("new", "kept")
    assert stat.S_IMODE((place / "dir").stat().st_mode) == 0o711
    assert not (place / "link").is_symlink()
    assert outside.read_text() == "theirs"


HOSTILE = {
    "absolute": [member("/tmp/evil", b"x")],
    "above": [member("../evil", b"x")],
    "above, inside": [member("a/../../evil", b"x")],
    "dots that stay": [member("a/../b", b"x")],
    "device": [member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "block device": [member("disk", type=tarfile.BLKTYPE)],
    "pipe": [member("pipe", type=tarfile.FIFOTYPE)],
    "unknown": [member("what", type=b"Z")],
    "through an own link": [link("out", "/tmp"), member("out/evil", b"x")],
    "through an own link inside": [member("dir/f", b"x"), link("in", "dir"), member("in/evil", b"x")],
    "a folder through an own link": [link("out", ".."), member("out", type=tarfile.DIRTYPE), member("out/evil", b"x")],
    "through a link that is there": [member("there/evil", b"x")],
    "through a link that is there, deep": [member("dir/there/evil", b"x")],
    "hard link outside": [link("hard", "/etc/passwd", tarfile.LNKTYPE)],
    "hard link above": [link("hard", "../../secret", tarfile.LNKTYPE)],
    "hard link through a link": [link("out", "/etc"), link("hard", "out/passwd", tarfile.LNKTYPE)],
    "hard link to a link": [link("out", "/etc/passwd"), link("hard", "out", tarfile.LNKTYPE)],
    "hard link to nothing": [link("hard", "missing", tarfile.LNKTYPE)],
    "hard link to itself": [member("hard", b"x"), link("hard", "hard", tarfile.LNKTYPE)],
    "hard link to what is there": [link("hard", "old", tarfile.LNKTYPE)],
    "file for a folder": [member("f", b"x"), member("f/g", b"x")],
    "folder for a file": [member("f/g", b"x"), member("f", b"x")],
    "long part": [member("n" * 256, b"x")],
    "long path": [member("n/" * 2100 + "f", b"x")],
    "deep": [member("n/" * 300 + "f", b"x")],
    "sparse": [member("s", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.name": "s"})],
    "size that is no number": [member("s", b"x", pax_headers={"size": "-1"})],
    "huge header": [member("s", b"x", pax_headers={"comment": "x" * 100_000})],
    "absolute in a header": [member("s", b"x", pax_headers={"path": "/tmp/evil"})],
    "empty link": [link("l", "")],
}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_archive_with_one_bad_entry_writes_nothing(
    shared: ServerProcess, client: httpx.Client, place: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int
) -> None:
    if form == tarfile.GNU_FORMAT and any(info.pax_headers for info, _ in members):
        pytest.skip("it has no such headers")
    outside = shared.data.parent / "out"
    outside.mkdir(exist_ok=True)
    write(place / "old", "old")
    write(place / "dir/f", "old")
    (place / "there").symlink_to(outside)
    (place / "dir/there").symlink_to(outside)
    before = contents(place)
    response = put(client, place, archive(member("first", b"1"), member("dir/f", b"2"), *members, member("last", b"3"), form=form))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert contents(place) == before
    assert os.listdir(outside) == []
    assert not Path("/tmp/evil").exists()
    assert not (place.parent / "evil").exists()
    assert put(client, place, archive(*members, form=form), "/new/folder").status_code in (200, 400)
    assert debris(shared) == []


def test_a_file_is_not_put_in_the_place_of_a_folder_nor_a_folder_in_that_of_a_file(client: httpx.Client, place: Path) -> None:
    write(place / "folder/f", "x")
    write(place / "file", "x")
    before = contents(place)
    for content in (archive(member("a", b"1"), member("folder", b"1")), archive(member("a", b"1"), member("file/f", b"1"))):
        response = put(client, place, content)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
    assert put(client, place, archive(member("a")), "/file").status_code == 409
    assert put(client, place, archive(member("a")), "/file/deeper").status_code == 409
    assert put(client, place, archive(member("a")), "/../..").status_code == 403
    assert contents(place) == before


WHOLE = archive(member("a", b"x" * 100_000), member("b", random.Random(1).randbytes(100_000)))  # the same in each process


@pytest.mark.parametrize(
    "content",
    [
        *[b"", b"x", b"\x1f\x8b", b"x" * 512, b"\0" * 100, b"PK\3\4" + b"\0" * 1000, gzip.compress(b""), gzip.compress(b"x" * 10_000)],
        *[WHOLE[:-1], WHOLE[:-9], WHOLE[:50_000], WHOLE[:-200] + bytes(200), WHOLE[:-8] + b"\0" * 8],
        *[gzip.decompress(WHOLE)[:100_000], archive(member("a", b"x"), mode="w")[:1024], b"".join((gzip.compress(b""), b"junk"))],
        archive(member("a", b"x"), mode="w:xz"),
    ],
    ids=lambda content: f"{len(content)}-{content[:2].hex()}",
)
def test_what_is_no_whole_archive_writes_nothing(shared: ServerProcess, client: httpx.Client, place: Path, content: bytes) -> None:
    response = put(client, place, content)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert os.listdir(place) == []
    assert debris(shared) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2047), st.binary(min_size=1, max_size=20))
def test_a_damaged_archive_is_unpacked_or_refused_but_never_a_fault(client: httpx.Client, place: Path, at: int, damage: bytes) -> None:
    content = archive(member("a", b"x" * 600), link("l", "a"), mode="w")
    response = put(client, place, content[:at] + damage + content[at + len(damage) :])
    assert response.status_code in (200, 400, 409, 413, 422)
    assert not (place.parent / PREFIX).exists()
    if response.status_code == 200:
        shutil.rmtree(place)
        place.mkdir()


def repeated(parts: Callable[[], Iterator[bytes]]) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=9) as squeezed:
        for part in parts():
            squeezed.write(part)
    return file.getvalue()


def header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_bomb_takes_neither_the_disk_nor_the_memory(small_disk: Path, tmp_path: Path) -> None:
    info, _ = member("bomb")
    info.size = 100_000_000
    bomb = repeated(lambda: itertools.chain([header(info)], itertools.repeat(bytes(1_000_000), 100), [bytes(1024)]))
    extended, _ = member("x", type=tarfile.XHDTYPE)
    extended.size = 60_000
    many = repeated(
        lambda: itertools.chain.from_iterable((header(extended), b"59999 k%d=" % n + b"v" * 59_990 + bytes(450)) for n in range(1000))
    )
    huge, _ = member("x", type=tarfile.XHDTYPE)
    huge.size = 1 << 33
    with serving(tmp_path, WORKSPACE_DIR=str(small_disk)) as server, server.client() as client:
        assert len(bomb) < 200_000
        full = client.put("/files/archive", content=bomb)
        assert (full.status_code, full.json()["error"]["code"]) == (422, "RESOURCE_LIMIT_EXCEEDED")
        assert client.put("/files/archive", content=many).status_code == 400
        assert client.put("/files/archive", content=repeated(lambda: iter([header(huge), bytes(1 << 20)]))).status_code == 400
        too_large = client.put("/files/archive", content=iter([os.urandom(100_000)] * 50))
        assert too_large.status_code == 422
        assert os.listdir(small_disk) == []
        assert server.process is not None
        peak = int(Path(f"/proc/{server.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])
        assert peak < 150_000


def test_an_upload_that_breaks_off_changes_nothing(shared: ServerProcess, place: Path) -> None:
    write(place / "a", "old")
    before = contents(place)
    with connect(shared.url) as connection:
        head = f"PUT /files/archive?path={place.name} HTTP/1.1\r\n{AUTHORIZED}Content-Length: {len(WHOLE)}\r\n\r\n"
        connection.sendall(head.encode() + WHOLE[:-10])
    assert shared.process is not None
    end = time.monotonic() + 20
    while f"/{place.name}/" in subprocess.run(["ls", "-l", f"/proc/{shared.process.pid}/fd"], capture_output=True, text=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert contents(place) == before
    assert debris(shared) == []
