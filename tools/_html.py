"""HTML taken apart into tags and text, in one pass whose time grows with the page alone, however broken that is.

The standard library's parser takes time by the square of some broken pages. This one knows no document types, frames or namespaces:
what is read is for a reader of text.
"""

import re
from collections.abc import Iterator, Mapping

import msgspec

RAW = frozenset({"script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"})
"""Elements in which there are no tags."""

MAX_ATTRIBUTES = 200
"""Attributes of a tag that are kept."""

_TAG = re.compile(r"<(?=[a-zA-Z/!?])")
_NAME = re.compile(r"[a-zA-Z][^\s/>]*+")
_ATTRIBUTE = re.compile(r"""[\s/]*+([^\s/>=][^\s/>=]*+|=[^\s/>=]*+)(?:\s*+=\s*+("[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|[^\s>]*+))?""")
_REST = re.compile(r"[\s/]*+>?")


class Start(msgspec.Struct, frozen=True):
    """A start tag. Names are in lower case; values have no character references left."""

    name: str
    attributes: Mapping[str, str]


class End(msgspec.Struct, frozen=True):
    name: str


class Text(msgspec.Struct, frozen=True):
    """Text between tags, without character references."""

    text: str


def tokens(source: str) -> Iterator[Start | End | Text]:
    """Gives the tags and texts of a page, in order; comments and declarations are left out. Source: the HTML Standard, 13.2.5."""
    # Imported at the first page: its table of names takes 5 ms and is of no use before.
    from html import unescape

    at = 0
    while at < len(source):
        mark = _TAG.search(source, at)
        if mark is None or mark.start() != at:
            end = len(source) if mark is None else mark.start()
            yield Text(unescape(source[at:end]))
            at = end
            continue
        following = source[at + 1 : at + 2]
        if following in ("!", "?"):
            at = _after_declaration(source, at)
        elif following == "/":
            name = _NAME.match(source, at + 2)
            at = _after(source, ">", at + 2)
            if name is not None:
                yield End(name[0].lower())
        else:
            name = _NAME.match(source, at + 1)
            assert name is not None  # noqa: S101  # it begins with a letter, or none of this were a tag
            attributes, at = _attributes(source, name.end())
            tag = name[0].lower()
            yield Start(tag, {key: unescape(value) for key, value in attributes.items()})
            if tag in RAW:
                end = _end_of_raw(source, tag, at)
                yield Text(unescape(source[at:end]) if tag in ("textarea", "title") else source[at:end])
                yield End(tag)
                at = _after(source, ">", end)


def _after(source: str, what: str, at: int) -> int:
    found = source.find(what, at)
    return len(source) if found < 0 else found + len(what)


def _after_declaration(source: str, at: int) -> int:
    if source.startswith("<!--", at):
        return at + 5 if source.startswith("<!-->", at) else _after(source, "-->", at + 2 if source.startswith("<!--->", at) else at + 4)
    if source.startswith("<![CDATA[", at):
        return at + 9  # what is in it is text for a reader; its end is two brackets more
    return _after(source, ">", at)


def _attributes(source: str, at: int) -> tuple[dict[str, str], int]:
    found: dict[str, str] = {}
    while (one := _ATTRIBUTE.match(source, at)) is not None:
        at = one.end()
        if len(found) < MAX_ATTRIBUTES:
            value = one[2] or ""
            found.setdefault(one[1].lower(), value[1:].removesuffix(value[0]) if value[:1] in ('"', "'") else value)
    rest = _REST.match(source, at)
    return found, rest.end() if rest is not None else at


def _end_of_raw(source: str, tag: str, at: int) -> int:
    """Where the end tag of such an element begins; the page's end where there is none."""
    found = re.compile(rf"</{tag}(?=[\s/>])", re.IGNORECASE).search(source, at)
    return len(source) if found is None else found.start()
