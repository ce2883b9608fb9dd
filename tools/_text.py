"""The text of a file: its encoding and byte order mark, which stay when the text is replaced, and its line endings.

Characters that look alike are here too: models write ASCII for typographic ones.
"""

import re

import msgspec

from tools import ToolError

NEWLINE = re.compile(r"\r\n|\r|\n")
"""What ends a line."""

KINDS = (
    "'\u2018\u2019\u201a\u201b\u2032",
    '"\u201c\u201d\u201e\u201f\u2033',
    "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    " \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
)
"""Characters that look alike, the ASCII one first."""

ELLIPSIS = "\u2026"

_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_PLAIN = str.maketrans({character: kind[0] for kind in KINDS for character in kind[1:]} | {ELLIPSIS: "..."})
_BEYOND_ASCII = re.compile("[^\x00-\x7f\udc80-\udcff]")


class FileText(msgspec.Struct, frozen=True):
    """A file's text without its byte order mark. Bytes that are no text in its encoding are surrogates."""

    body: str
    mark: bytes = b""
    encoding: str = "utf-8"

    def encode(self, body: str) -> bytes:
        """Gives the bytes of another text in the same encoding, and with the same mark.

        Errors: UnicodeEncodeError for characters that the encoding does not have.
        """
        return self.mark + body.encode(self.encoding, "surrogateescape" if self.encoding == "utf-8" else "surrogatepass")

    @property
    def newline(self) -> str:
        """The first line ending; a line feed where there is none."""
        found = NEWLINE.search(self.body)
        return found[0] if found else "\n"


def decode(data: bytes) -> FileText:
    """Gives a file's text: of UTF-8, of UTF-16 with a mark, else of Latin-1, unless a part of it can only be UTF-8."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            text = _decode_marked(data, mark, encoding)
            if text is not None:
                return text
    body = data.decode("utf-8", "surrogateescape")
    if body.isascii() or b"\0" in data or _BEYOND_ASCII.search(body):
        return FileText(body)
    return FileText(data.decode("latin-1"), encoding="latin-1")


def _decode_marked(data: bytes, mark: bytes, encoding: str) -> FileText | None:
    if encoding == "utf-8":
        return FileText(data[len(mark) :].decode("utf-8", "surrogateescape"), mark)
    try:
        body = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        return None
    return FileText(body, mark, encoding)


def encode_kept(text: FileText, body: str, name: str) -> bytes:
    """Gives the bytes of a changed text. Errors: ToolError that says which characters the file cannot have."""
    try:
        return text.encode(body)
    except UnicodeEncodeError as error:
        wrong = body[error.start : error.start + 1]
        raise ToolError(
            f"{name} is in {text.encoding}, which has no {wrong!r}; nothing was changed. Use other characters, or convert the file (iconv)."
        ) from error


def encode_replacing(text: FileText, body: str) -> bytes:
    """Gives the bytes of a text that takes a whole file's place: with its mark, its encoding where that has all characters, and
    with its CRLF unless the new text brings its own."""
    body = body.removeprefix("\ufeff") if text.mark else body
    if "\r" not in body and "\0" not in text.body and text.newline == "\r\n":
        body = body.replace("\n", "\r\n")
    try:
        return text.encode(body)
    except UnicodeEncodeError:
        return body.encode()


def plain(text: str) -> str:
    """Gives the text with ASCII for typographic characters."""
    return text.translate(_PLAIN)


def numbered_by(text: str) -> str:
    """Gives what ends a line where lines have numbers: as for `grep`, a bare carriage return only where there is no line feed."""
    return "\n" if "\n" in text else "\r"


def split_lines(text: str) -> list[tuple[str, str]]:
    """Gives the lines, each with what ends it: nothing at the end of a text whose last line has no ending."""
    lines, start = [], 0
    for ending in NEWLINE.finditer(text):
        lines.append((text[start : ending.start()], ending[0]))
        start = ending.end()
    return [*lines, (text[start:], "")] if start < len(text) else lines
