"""What a body from the web is: which kind of text, in which encoding, or none."""

import codecs
import re
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["html", "text", "binary"]

SNIFFED = 4096
"""Bytes at the beginning of a body that are looked at."""

_HTML = frozenset({"text/html", "application/xhtml+xml"})
_TEXT = re.compile(
    r"text/.*|.*\+(json|xml|yaml)|application/(json|json5|jsonl|ndjson|x-ndjson|xml|javascript|x-javascript|ecmascript|typescript|yaml|x-yaml"
    r"|toml|sql|graphql|x-sh|x-httpd-php|x-www-form-urlencoded|xml-dtd|rtf|x-tex|x-python|manifest\+json)"
)
_UNTOLD = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/unknown", "unknown/unknown"})
_LOOKS_HTML = re.compile(rb"\s*+(?:(?><!--.*?-->)\s*+)*+<(!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL)

_META = re.compile(rb"""<meta\s[^>]{0,500}?charset\s*=\s*["']?\s*([a-z0-9_.:-]{1,40})""", re.IGNORECASE)
_XML = re.compile(rb"""<\?xml\s[^>]{0,200}?encoding\s*=\s*["']([a-z0-9_.:-]{1,40})""", re.IGNORECASE)
_PARAMETER = re.compile(r""";\s*charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

_WEB = re.compile(
    r"utf-8|utf-16(-[lb]e)?|ascii|iso8859-\d+|cp(125\d|866|874|932|949)|koi8-[ru]|gbk|gb2312|gb18030|hz|big5(hkscs)?"
    r"|euc_(jp|kr)|shift_jis|iso2022_jp|mac-(roman|cyrillic)|tis-620"
)
"""The codecs of the web, by Python's names: others of Python's are no text, or slow. Source: the WHATWG Encoding Standard."""

_WIDER = {"ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932"}
"""What browsers take for an encoding that is often named wrongly. Source: the same."""


def media_type(content_type: str) -> str:
    """Gives the type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def kind_of(content_type: str, body: bytes) -> Kind:
    """Tells what a body is, by its type, and by how it begins where that says nothing."""
    said = media_type(content_type)
    if said in _HTML:
        return "html"
    is_text = _TEXT.fullmatch(said) is not None
    if not is_text and said not in _UNTOLD:
        return "binary"
    if not any(body.startswith(bom) for bom, _ in _BOMS) and _named(content_type, body)[:6] != "utf-16":
        if b"\0" in body[:SNIFFED]:
            return "binary"
        if not is_text and not _is_utf8(body[:SNIFFED]):
            return "binary"
    return "html" if not said and _LOOKS_HTML.match(body[:SNIFFED]) else "text"


def decode(content_type: str, body: bytes) -> str:
    """Gives the text: by its byte order mark, else as header or page name it, else as UTF-8 or what old pages have. Never fails."""
    for bom, name in _BOMS:
        if body.startswith(bom):
            return body.decode(name, "replace")
    named = _named(content_type, body)
    if named:
        return body.decode(named, "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        # A page that is UTF-8 but for a broken place stays readable; one that never was is an old one.
        return body.decode("utf-8" if error.start > 0 and _is_mostly_utf8(body) else "cp1252", "replace")


def _named(content_type: str, body: bytes) -> str:
    """The codec that header or page name; empty for none that is known."""
    if (found := _PARAMETER.search(content_type)) and (known := _codec(found[1])):
        return known
    head = body[:SNIFFED]
    if inside := _XML.match(head.lstrip()) or (_META.search(head) if media_type(content_type) in {*_HTML, ""} else None):
        known = _codec(inside[1].decode("ascii"))
        return "utf-8" if known.startswith("utf-16") else known  # it could not be read as ASCII if it were
    return ""


def _codec(label: str) -> str:
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return ""
    return _WIDER.get(name, name) if _WEB.fullmatch(name) else ""


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and len(head) == SNIFFED  # the cut is inside of a character
    return True


def _is_mostly_utf8(body: bytes) -> bool:
    replaced = body.decode("utf-8", "replace").count("\ufffd")
    others = sum(byte >= 0xC2 for byte in body)
    return replaced * 4 < others
