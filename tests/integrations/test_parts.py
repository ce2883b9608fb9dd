"""A long reply as messages: every one fits, none is empty, nothing is lost, and nothing people see as one is cut."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrations._parts import is_visible, split, utf16

LIMIT = 120

pieces = st.lists(
    st.one_of(
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60),
        st.sampled_from(["\n", "\n\n", " ", ". ", "word ", "😀", "👩‍👩‍👧‍👦", "🇫🇷🇩🇪", "e\u0301", "👍🏽", "\u200b"]),
        st.sampled_from(["\n```\n", "\n```python\n", "\n~~~\n", "\n````\n", "\n```" + "x" * 70 + "\n"]),
        st.text(alphabet="abc", min_size=200, max_size=300),
    ),
    max_size=30,
).map("".join)


def bare(text: str) -> str:
    """The text without whitespace and fences."""
    return re.sub(r"\s", "", re.sub(r"^ {0,3}(```+|~~~+).*$", "", text, flags=re.M))


@settings(max_examples=300, deadline=None)
@given(pieces)
def test_every_message_fits_and_has_something_to_see(text: str) -> None:
    parts = split(text, LIMIT, utf16)
    assert all(utf16(part) <= LIMIT for part in parts)
    assert all(is_visible(part) for part in parts)
    assert parts == split(text, LIMIT, utf16)
    if not is_visible(text):
        assert parts == []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", "bc", " ", "\n", "\n\n", ". ", "😀", "é", "d" * 130]), max_size=200).map("".join))
def test_nothing_but_whitespace_is_left_out(text: str) -> None:
    assert "".join("".join(split(text, LIMIT, utf16)).split()) == "".join(text.split())


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(alphabet="abcdef (){}=\n", max_size=400), min_size=1, max_size=6), st.sampled_from(["```python", "```", "~~~", "````"])
)
def test_every_message_closes_the_fences_it_opens(blocks: list[str], fence: str) -> None:
    mark = re.match("[`~]+", fence)
    assert mark
    text = "\n".join(f"words\n{fence}\n{block}\n{mark[0]}" for block in blocks)
    parts = split(text, LIMIT)
    assert bare("".join(f"{part}\n" for part in parts)) == bare(text)
    for part in parts:
        assert len(re.findall(f"^{mark[0]}", part, re.M)) % 2 == 0, part


@pytest.mark.parametrize("seen", ["👩‍👩‍👧‍👦", "🇫🇷", "e\u0301", "👍🏽", "❤️", "😀"])
def test_what_is_seen_as_one_is_not_cut(seen: str) -> None:
    for shift in range(len(seen) + 2):
        parts = split("x" * shift + seen * 100, LIMIT, utf16)
        assert len(parts) > 1
        assert all(part.lstrip("x") == seen * (len(part.lstrip("x")) // len(seen)) for part in parts)


def test_a_character_without_end_is_cut() -> None:
    parts = split("a" + "\u0301" * 1000, LIMIT, utf16)
    assert "".join(parts) == "a" + "\u0301" * 1000


def test_paragraphs_lines_sentences_and_words_are_preferred_in_this_order() -> None:
    assert split("p" * 70 + "\n\n" + "q\n" * 10 + "r" * 90, LIMIT)[0] == "p" * 70
    assert split("p" * 70 + "\n" + "q. " * 10 + "r" * 90, LIMIT)[0] == "p" * 70
    assert split("p" * 70 + ". " + "q " * 10 + "r" * 90, LIMIT)[0] == "p" * 70 + "."
    assert split("p" * 70 + " " + "r" * 90, LIMIT)[0] == "p" * 70


def test_a_fence_that_is_cut_is_closed_and_opened_again_with_its_language() -> None:
    parts = split("look:\n```python\n" + "print(1)\n" * 30 + "```\nthat is it", LIMIT)
    assert parts[0].startswith("look:\n```python\nprint(1)\n")
    assert parts[1].startswith("```python\nprint(1)\n")
    assert parts[-1].endswith("print(1)\n```\nthat is it")


def test_no_message_ends_in_the_line_that_opens_a_fence() -> None:
    parts = split("w" * 85 + "\n```python\n" + "y" * 200 + "\n```", LIMIT)
    assert parts[0] == "w" * 85
    assert parts[1].startswith("```python\nyyy")


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\u200d", "\n\n"])
def test_of_nothing_to_see_there_is_no_message(text: str) -> None:
    assert split(text, LIMIT) == []
