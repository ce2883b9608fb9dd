import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_server.gateway.sse import EVENT_LIMIT, EventParser, EventTooLong


def parse(*chunks: bytes) -> list[bytes]:
    parser = EventParser()
    return [data for chunk in chunks for data in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\ndata: two\n\n", [b"one", b"two"]),
        (b"data:one\r\n\r\ndata: two\r\n\r\n", [b"one", b"two"]),
        (b"data: one\r\rdata: two\r\r", [b"one", b"two"]),
        (b"data: {\ndata: }\n\n", [b"{\n}"]),
        (b": OPENROUTER PROCESSING\n\ndata: one\n\n", [b"one"]),
        (b"event: x\nid: 7\nretry: 5\ndata: one\n\n", [b"one"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data\n\n", [b""]),
        (b"\n\n\n", []),
        (b"data: no blank line\n", []),
    ],
)
def test_events_are_read_as_the_standard_says(stream: bytes, events: list[bytes]) -> None:
    assert parse(stream) == events


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 60)))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    stream = "data: ä☕\r\n\r\n: c\rdata: {\r\ndata: }\n\ndata: three\r\r".encode()
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert parse(*chunks) == parse(stream) == ["ä☕".encode(), b"{\n}", b"three"]


def test_an_event_that_never_ends_is_refused() -> None:
    parser = EventParser()
    piece = b"x" * 2**20
    for _ in range(EVENT_LIMIT // len(piece)):
        assert list(parser.feed(piece)) == []
    with pytest.raises(EventTooLong):
        list(parser.feed(piece))


def test_comments_do_not_add_up() -> None:
    parser = EventParser()
    comment = b": " + b"x" * 2**20 + b"\n"
    for _ in range(EVENT_LIMIT // len(comment) + 2):
        assert list(parser.feed(comment)) == []
    assert list(parser.feed(b"data: one\n\n")) == [b"one"]


def test_the_rest_is_the_event_without_its_blank_line() -> None:
    parser = EventParser()
    assert list(parser.feed(b"data: one\n\ndata: tw")) == [b"one"]
    assert parser.rest() == b"tw"
