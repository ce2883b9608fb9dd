"""The front matter of a Markdown file: as much of YAML as describes a skill.

Texts are plain, in single or double quotes, or blocks (`|`, `>`), over as many lines as they like. Lists and mappings, which other
keys may have, are passed over. No YAML library: this needs a hundredth of one, and none of what else it would do.
"""

import re
from collections.abc import Mapping, Sequence

# Patterns are compiled where they are first used: a start has no use for them.
_KEY = r"""(["']?)([A-Za-z0-9_.-]+)\1[ \t]*:(?:[ \t]+(.*)|)$"""
_BLOCK = r"[|>](?:[+-]?[1-9]?|[1-9][+-])[ \t]*(?:#.*)?$"
_COMMENT = r"(?:^|[ \t])#.*$"
_DOUBLE = r'(?s)"((?:[^"\\]|\\.)*)"[ \t]*(?:#.*)?$'
_SINGLE = r"(?s)'((?:[^']|'')*)'[ \t]*(?:#.*)?$"
_ESCAPE = r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)"
_NESTED = r"[ \t]*(- |-$|[^\s#]+:(\s|$))"

_ESCAPES: Mapping[str, str] = dict(zip('0abt\tnvfre "/\\N_LP', '\0\a\b\t\t\n\v\f\r\x1b "/\\\x85\xa0\u2028\u2029', strict=True))
_NO_TEXT = ("[", "{", "&", "*", "!", "%", "@", "`", ",", "]", "}", "|", ">", "- ", "? ")
"""What no plain text begins with."""

_NULLS = ("~", "null", "Null", "NULL")

MOST_LINES = 500
"""Lines of front matter."""


class FrontMatterInvalid(ValueError):
    """A file whose front matter cannot be read; the message says why."""


def parse(text: str) -> tuple[dict[str, str], str]:
    """Gives the texts of the front matter by key, each on one line, and what follows it.

    A colon within a plain text is taken as it is, as most readers of such files do. Errors: FrontMatterInvalid when there is no front
    matter, it has no end, or something in it is no YAML.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---":
        raise FrontMatterInvalid("it does not begin with a line of ---, its front matter")
    end = next((at for at, line in enumerate(lines[1 : MOST_LINES + 2], 1) if line.rstrip() in ("---", "...")), None)
    if end is None:
        raise FrontMatterInvalid(f"its front matter has no end, a line of --- within {MOST_LINES} lines")
    return _fields(lines[1:end]), "\n".join(lines[end + 1 :]).strip("\n")


def _fields(lines: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    at = 0
    while at < len(lines):
        line = lines[at].rstrip()
        at += 1
        if not line or line.startswith("#"):
            continue
        found = re.match(_KEY, line)
        if found is None:
            raise FrontMatterInvalid(f"its front matter has a line that is no `key: value`: {line[:80]!r}")
        begin, key = at, found[2]
        while at < len(lines) and (not lines[at].strip() or lines[at][0] in " \t" or lines[at].startswith("- ")):
            at += 1
        if key in fields:
            raise FrontMatterInvalid(f"its front matter has {key} twice")
        fields[key] = " ".join(_value(key, (found[3] or "").strip(), lines[begin:at]).split())
    return fields


def _value(key: str, first: str, rest: Sequence[str]) -> str:
    """Gives a value as text; "" for a list or a mapping."""
    if re.match(_BLOCK, first):
        return "\n".join(rest)
    if first.startswith(("'", '"')):
        return _quoted(key, "\n".join([first, *(line.strip() for line in rest)]).rstrip())
    plain = re.sub(_COMMENT, "", first).strip()
    if plain.startswith(_NO_TEXT) or plain in _NULLS or (not plain and any(re.match(_NESTED, line) for line in rest)):
        return ""
    return "\n".join([plain, *(re.sub(_COMMENT, "", line) for line in rest)])


def _quoted(key: str, text: str) -> str:
    found = re.match(_DOUBLE if text[0] == '"' else _SINGLE, text)
    if found is None:
        raise FrontMatterInvalid(f"its front matter has a {key} whose quotes have no end, or something after it")
    if text[0] == "'":
        return found[1].replace("''", "'")
    try:
        return re.sub(_ESCAPE, _unescaped, found[1].replace("\\\n", ""))
    except (LookupError, ValueError) as error:
        raise FrontMatterInvalid(f"its front matter has a {key} with an escape that is none") from error


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES[code]
