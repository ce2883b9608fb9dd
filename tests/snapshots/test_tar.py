"""The archive's format: read by any tar, and reading nothing else."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_server.snapshots.tar import CHUNK, END, BadArchive, Entry, entries, header, padding

NAMES = st.binary(min_size=1, max_size=130).filter(lambda name: not set(name) & set(b"/\0") and name not in (b".", b".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
TIMES = st.integers(0, 4_000_000_000 * 10**9)


@st.composite
def one(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from([b"0", b"2", b"5"]))
    content = draw(st.binary(max_size=2_000)) if kind == b"0" else b""
    target = draw(PATHS) if kind == b"2" else b""
    return Entry(draw(PATHS), kind, draw(st.integers(0, 0o7777)), draw(TIMES), len(content), target), content


def written(made: list[tuple[Entry, bytes]]) -> bytes:
    return b"".join(header(entry) + content + padding(len(content)) for entry, content in made) + END


@given(st.lists(one(), max_size=6))
def test_what_is_written_is_read(made: list[tuple[Entry, bytes]]) -> None:
    read = [(entry, b"".join(content)) for entry, content in entries(io.BytesIO(written(made)))]
    assert read == made


@given(one())
def test_any_tar_reads_it(made: tuple[Entry, bytes]) -> None:
    entry, content = made
    with tarfile.open(fileobj=io.BytesIO(written([made])), encoding="utf-8", errors="surrogateescape") as tar:
        (member,) = tar.getmembers()
        assert member.name.encode("utf-8", "surrogateescape") == entry.path.rstrip(b"/")
        assert member.linkname.encode("utf-8", "surrogateescape") == entry.link
        assert (member.type, member.mode) == (entry.kind, entry.mode)
        assert abs(member.mtime - entry.mtime / 1e9) < 1e-3
        file = tar.extractfile(member) if entry.kind == b"0" else None
        assert file is None or file.read() == content


def test_contents_that_nobody_reads_are_passed_over() -> None:
    made = [(Entry(b"large", b"0", size=3 * CHUNK), bytes(3 * CHUNK)), (Entry(b"next", b"0", size=1), b"x")]
    assert [entry.path for entry, _ in entries(io.BytesIO(written(made)))] == [b"large", b"next"]


def test_a_size_that_no_header_holds_is_said_beside_it() -> None:
    whole = Entry(b"huge", b"0", size=1 << 40)
    read = entries(io.BytesIO(header(whole)))
    assert next(read)[0] == whole
    with pytest.raises(BadArchive, match="middle"):
        next(read)


@given(st.binary(max_size=2_000), st.integers(0, 3_000), st.integers(0, 255))
def test_whatever_comes_is_read_or_refused(garbage: bytes, at: int, value: int) -> None:
    data = bytearray(written([(Entry(b"a" * 150, b"0", mtime=1, size=600), b"x" * 600), (Entry(b"l", b"2", link=b"a"), b"")]))
    data[at % len(data)] = value
    for hostile in (garbage, bytes(data), bytes(data[:at])):
        try:
            for _ in entries(io.BytesIO(hostile)):
                pass
        except BadArchive as error:
            assert error.status == 400  # noqa: PT017  # that it is no other error is what is tested


def test_the_standard_librarys_own_archives_with_links_and_devices_are_refused() -> None:
    for kind in (tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME):
        member = tarfile.TarInfo("x")
        member.type = kind
        with pytest.raises(BadArchive):
            list(entries(io.BytesIO(member.tobuf(tarfile.USTAR_FORMAT) + END)))


def test_a_header_that_asks_for_memory_is_refused() -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 32
    with pytest.raises(BadArchive, match="too long"):
        list(entries(io.BytesIO(member.tobuf(tarfile.USTAR_FORMAT) + END)))
