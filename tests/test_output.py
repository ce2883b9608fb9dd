"""What is kept of an output, what goes to a file, and what becomes events."""

import asyncio
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_server.commands.output import (
    COALESCE_BYTES,
    EVENT_BURST,
    EVENT_RATE,
    HOLD,
    OUTPUTS_MAX,
    SPOOL_MAX,
    Coalescer,
    Excerpt,
    MaskedText,
    OutputEvents,
    Spool,
    make_room,
)
from agent_server.redaction import Secrets
from tools import MASK

CHUNKS = st.lists(st.binary(max_size=40), max_size=20)


@given(CHUNKS, st.integers(1, 60))
def test_an_excerpt_is_the_whole_up_to_its_limit_and_head_and_tail_above(chunks: list[bytes], limit: int) -> None:
    excerpt = Excerpt(limit)
    for chunk in chunks:
        excerpt.add(chunk)
    whole = b"".join(chunks)
    assert excerpt.total == len(whole)
    if len(whole) <= limit:
        assert not excerpt.is_cut
        assert excerpt.whole() == whole
        assert excerpt.text() == whole.decode("utf-8", "replace")


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(2, 60))
def test_an_excerpt_says_how_much_it_leaves_out(sizes: list[int], limit: int) -> None:
    whole = b"".join(bytes([65 + i % 26]) * size for i, size in enumerate(sizes))
    excerpt = Excerpt(limit)
    at = 0
    for size in sizes:
        excerpt.add(whole[at : at + size])
        at += size
    if len(whole) > limit:
        head, rest = limit // 2, limit - limit // 2
        left_out = f"\n[... {len(whole) - limit} bytes left out ...]\n"
        assert excerpt.text() == whole[:head].decode() + left_out + whole[-rest:].decode()


@given(st.text("aé€\U0001f511", min_size=10, max_size=40), st.integers(8, 16), st.integers(1, 5))
def test_the_seams_of_an_excerpt_cut_no_character(text: str, limit: int, size: int) -> None:
    data = text.encode()
    excerpt = Excerpt(limit)
    for at in range(0, len(data), size):
        excerpt.add(data[at : at + size])
    if len(data) <= limit:
        return
    head, line, tail = excerpt.text().split("\n")
    assert "�" not in head + tail
    assert text.startswith(head)
    assert text.endswith(tail)
    assert int(line.split()[1]) == len(data) - len(head.encode()) - len(tail.encode())


def test_an_excerpt_holds_no_more_than_its_limit_of_a_long_output() -> None:
    excerpt = Excerpt(1000)
    for _ in range(10_000):
        excerpt.add(b"0123456789" * 10)
    assert len(excerpt.text()) < 1100


# Spool


async def test_a_spool_writes_the_whole_in_its_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "made when needed", "proc_1")
    told = 0

    def done() -> None:
        nonlocal told
        told += 1

    pieces = [os.urandom(50_000) for _ in range(40)]
    for piece in pieces:
        spool.write(piece, done)
        while spool.is_full:
            before = told
            await asyncio.sleep(0)
            if told > before:
                break
    await spool.close()
    assert spool.path.read_bytes() == b"".join(pieces)
    assert told
    assert not spool.is_full


@pytest.mark.skipif("AGENT_SERVER_STRESS" not in os.environ, reason="writes 256 MiB")
async def test_a_spool_ends_at_its_limit_and_says_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "proc_1")
    piece = bytes(1 << 20)
    room = asyncio.Event()
    for _ in range((SPOOL_MAX >> 20) + 10):
        spool.write(piece, room.set)
        while spool.is_full:
            await room.wait()
            room.clear()
    await spool.close()
    assert SPOOL_MAX < spool.path.stat().st_size < SPOOL_MAX + 200
    with spool.path.open("rb") as file:
        file.seek(-20, os.SEEK_END)
        assert file.read().endswith(b"256 MiB ...]\n")


async def test_a_spool_that_cannot_write_says_so_and_blocks_nobody(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file is in the way")
    spool = Spool(tmp_path / "outputs", "proc_1")
    resumed = asyncio.Event()
    spool.write(b"x" * (2 << 20), resumed.set)
    assert spool.is_full
    await resumed.wait()
    assert isinstance(spool.error, OSError)
    assert spool.path.parent.is_file()
    spool.write(b"more", resumed.set)
    await spool.close()


async def test_a_spool_is_whole_also_when_its_end_is_not_waited_for(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "proc_1")
    spool.write(b"x" * (8 << 20), lambda: None)
    closing = asyncio.create_task(spool.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await spool.close()
    assert spool.path.stat().st_size == 8 << 20


async def test_a_spool_on_a_full_disk_has_an_error(small_disk: Path) -> None:
    spool = Spool(small_disk, "proc_1")
    for _ in range(100):
        spool.write(b"x" * 50_000, lambda: None)
    await spool.close()
    assert isinstance(spool.error, OSError)


# Events


async def test_text_is_gathered_for_a_moment_or_4_kb() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    gathered = Coalescer(told.put_nowait)
    gathered.add("a")
    gathered.add("b")
    assert told.empty()
    gathered.add("c" * COALESCE_BYTES)
    assert told.get_nowait() == "ab" + "c" * COALESCE_BYTES
    gathered.add("d")
    assert told.empty()
    assert await told.get() == "d"
    gathered.flush()
    assert told.empty()


async def test_what_a_model_says_is_masked_across_its_pieces() -> None:
    told: list[str] = []
    text = MaskedText(Secrets(["0123456789é"]), told.append)
    for piece in ("my ", "0123", "4567", "89é", " and 0123", "x"):
        text.add(piece)
    text.end()
    assert "".join(told) == f"my {MASK} and 0123x"


async def test_the_beginning_of_a_secret_is_held_back_for_200_ms_at_the_most() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    text = MaskedText(Secrets(["0123456789"]), told.put_nowait)
    loop = asyncio.get_running_loop()
    began = loop.time()
    text.add("x0123")
    assert await told.get() == "x"
    assert await told.get() == "0123"
    assert HOLD * 0.9 <= loop.time() - began < HOLD + 0.5
    text.add("456789")
    text.end()
    assert told.get_nowait() == MASK
    assert told.empty()


Told = list[tuple[str, str, int, int]]


def output_events() -> tuple[OutputEvents, Told]:
    told: Told = []
    return OutputEvents(lambda *event: told.append(event)), told


async def test_output_events_tell_every_byte_of_both_streams_in_order() -> None:
    output, told = output_events()
    output.add("stdout", b"one ")
    output.add("stdout", b"two ")
    output.add("stderr", b"three ")
    output.add("stdout", b"four")
    output.end()
    assert told == [("stdout", "one two ", 0, 0), ("stderr", "three ", 8, 0), ("stdout", "four", 14, 0)]


async def test_output_over_the_rate_is_skipped_and_counted() -> None:
    output, told = output_events()
    piece = b"0123456789abcdef" * 256
    for number in range(3 * EVENT_BURST // len(piece)):
        output.add("stdout" if number % 3 else "stderr", piece)
    output.end()
    total = 3 * EVENT_BURST // len(piece) * len(piece)
    assert sum(len(chunk) + skipped for _, chunk, _, skipped in told) == total
    assert EVENT_BURST - len(piece) < sum(len(chunk) for _, chunk, _, _ in told) < EVENT_BURST + EVENT_RATE
    at = 0
    for _, chunk, offset, skipped in told:
        at += skipped
        if chunk:
            assert offset == at
        at += len(chunk)


async def test_output_after_what_was_skipped_is_told_once_there_is_room() -> None:
    output, told = output_events()
    output.add("stdout", b"a" * EVENT_BURST)
    output.add("stdout", b"b" * 100_000)
    await asyncio.sleep(0.05)  # the rate is a matter of time
    output.add("stdout", b"c" * 10)
    output.end()
    assert [(chunk[:1], len(chunk), offset, skipped) for _, chunk, offset, skipped in told] == [
        ("a", EVENT_BURST, 0, 0),
        ("c", 10, EVENT_BURST + 100_000, 100_000),
    ]


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=6)), max_size=12))
def test_output_events_are_the_streams_whatever_bytes_come(pieces: list[tuple[str, bytes]]) -> None:
    async def tell() -> Told:
        output, told = output_events()
        for stream, data in pieces:
            output.add(stream, data)
        output.end()
        return told

    told = asyncio.run(tell())
    for name in ("stdout", "stderr"):
        whole = b"".join(data for stream, data in pieces if stream == name)
        assert "".join(chunk for stream, chunk, _, _ in told if stream == name) == whole.decode("utf-8", "replace")


def test_the_oldest_outputs_go_when_all_together_are_too_large(tmp_path: Path) -> None:
    for number in range(4):
        file = tmp_path / f"{number}.txt"
        with file.open("wb") as opened:
            opened.truncate(OUTPUTS_MAX // 3)
        os.utime(file, (number, number))
    make_room(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.txt", "2.txt", "3.txt"]


@given(st.lists(st.binary(max_size=9_000), max_size=40), st.integers(2, 20_000))
def test_what_an_excerpt_keeps_can_be_read_from_any_offset(pieces: list[bytes], limit: int) -> None:
    excerpt = Excerpt(limit)
    for piece in pieces:
        excerpt.add(piece)
    whole = b"".join(pieces)
    assert excerpt.total - excerpt.floor >= min(len(whole), limit - limit // 2)
    for offset in {excerpt.floor, (excerpt.floor + len(whole)) // 2, max(excerpt.floor, len(whole) - 1), len(whole)}:
        assert excerpt.since(offset) == whole[offset:]


def test_an_excerpt_of_small_pieces_takes_little_more_than_its_content() -> None:
    excerpt = Excerpt(1 << 18)
    tracemalloc.start()
    for _ in range(1 << 17):
        excerpt.add(b"ab")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1 << 19
