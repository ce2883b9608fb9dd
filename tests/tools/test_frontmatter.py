import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools._frontmatter import MOST_LINES, FrontMatterInvalid, parse


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("name: a", "a"),
        ("name:   a  b  ", "a b"),
        ("name: a # a comment", "a"),
        ("name: a#b", "a#b"),
        ("name: http://x.y/z", "http://x.y/z"),
        ("name: use it when: asked", "use it when: asked"),
        ('name: it\'s "so"', 'it\'s "so"'),
        ("name: 12", "12"),
        ("'name': a", "a"),
        ("name : a", "a"),
        ("name: 'it''s # not a comment'  # this is", "it's # not a comment"),
        (r'name: "a\tb \x41\u00e9\U0001F600 \"q\" \\"', 'a b Aé😀 "q" \\'),
        ("name: 'over\n  lines'", "over lines"),
        ('name: "over\n  lines \\\n  too"', "over lines too"),
        ("name: over\n  lines\n\n  too", "over lines too"),
        ("name:\n  below", "below"),
        ("name: >-\n  folded\n  text\n\n  # no comment", "folded text # no comment"),
        ("name: |\n  literal\n    text", "literal text"),
        ("name: |2-  # why not\n    literal", "literal"),
        ("name: >\n\n  late", "late"),
        ("# first\n\nname: a\nmetadata:\n  name: b\n  c: [1]\nlist:\n- x\n-  y: z\nflow: {a: b}", "a"),
    ],
)
def test_texts_are_read_as_yaml_has_them(written: str, meant: str) -> None:
    for ending in ("\n", "\r\n"):
        fields, rest = parse(ending.join(["\ufeff---", *written.split("\n"), "---", "", "Do *this*.", "", "---", ""]))
        assert fields["name"] == meant
        assert rest == "Do *this*.\n\n---"


@pytest.mark.parametrize(
    "written", ["name:", "name: ~", "name: null", "name: []", "name: {a: b}", "name:\n- a", "name:\n  a: b", "name: *x"]
)
def test_what_is_no_text_is_empty(written: str) -> None:
    assert parse(f"---\n{written}\n---\n")[0] == {"name": ""}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not begin"),
        ("# Skill\n---\nname: a\n---\n", "does not begin"),
        ("--- name: a\n---\n", "does not begin"),
        ("---\nname: a\n", "no end"),
        ("---\n" + "# x\n" * (MOST_LINES + 1) + "---\n", "no end"),
        ("---\nname a\n---\n", "no `key: value`"),
        ("---\n- name: a\n---\n", "no `key: value`"),
        ("---\n  name: a\n---\n", "no `key: value`"),
        ("---\nname: a\nname: b\n---\n", "twice"),
        ("---\nname: 'a\n---\n", "quotes have no end"),
        ('---\nname: "a" b\n---\n', "something after it"),
        ('---\nname: "\\q"\n---\n', "an escape"),
        ('---\nname: "\\U00110000"\n---\n', "an escape"),
    ],
)
def test_what_is_no_front_matter_is_refused_with_its_reason(text: str, why: str) -> None:
    with pytest.raises(FrontMatterInvalid, match=why):
        parse(text)


PIECES = st.sampled_from(
    ["name", ":", " ", "\n", "---", "\n---\n", "'", '"', "\\", "x", "\\x4", "\\u", "|", ">", "-", "#", "[", "\t", "\r", "\0", "é", "\u2028"]
)


@given(st.lists(PIECES).map("".join) | st.text())
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    for written in (text, f"---\n{text}\n---\n", f"---\nname: {text}\n---\n"):
        try:
            fields, rest = parse(written)
        except FrontMatterInvalid:
            continue
        assert all(value == " ".join(value.split()) for value in fields.values())
        assert rest in written.replace("\r\n", "\n")
