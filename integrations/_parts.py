"""Cuts a long reply into messages: at a paragraph, line, sentence or word where one is near, never in a character that
people see as one, and with code fences closed and opened again."""

import re
import unicodedata
from collections.abc import Callable

SHORTEST = 0.5
"""The part of a message that is filled at the least before a better place to cut is preferred."""

LONGEST_CLUSTER = 64
"""Code points of one visible character; a longer one is cut."""

LONGEST_MARK = 16
LONGEST_FENCE = 60
"""Characters of a fence's mark, and of the line that opens it, that are repeated: they take room in every message."""

_FENCE = re.compile(rf"^ {{0,3}}(`{{3,{LONGEST_MARK}}}(?!`)|~{{3,{LONGEST_MARK}}}(?!~))([^\n`]*)$", re.M)
_PLACES = tuple(map(re.compile, (r"\n[ \t]*\n", r"\n", r"(?<=[.!?…。！？])\s", r"\s")))
_JOINER = "\u200d"


def split(text: str, limit: int, size: Callable[[str], int] = len) -> list[str]:
    """Gives the text as messages of at most `limit` (100 and more), as `size` measures them; none where there is nothing to see.

    What is left out between two messages is whitespace; what is added are the lines that close and open a fence.
    """
    parts: list[str] = []
    rest, fence = text.strip("\n").rstrip(), ""
    while is_visible(rest):
        opening = f"{fence}\n" if fence else ""
        room = limit - size(opening) - LONGEST_MARK - 1
        end, after = (len(rest), len(rest)) if size(rest) <= room else _place(rest, _fitting(rest, room, size))
        begun = _open_fence(opening + rest[:end])
        if begun is not None and begun.start() > len(opening) and begun.end() == len(opening + rest[:end].rstrip()):
            end = after = begun.start() - len(opening)  # nothing of what is fenced fits any more
            begun = _open_fence(opening + rest[:end])
        closing = f"\n{begun[1]}" if begun is not None else ""
        if is_visible(rest[:end]):
            parts.append(opening + rest[:end].rstrip() + closing)
        rest = rest[after:] if begun is not None else rest[after:].lstrip("\n")
        fence = "" if begun is None else begun[0] if len(begun[0]) <= LONGEST_FENCE else begun[1]
    return parts


def is_visible(text: str) -> bool:
    """Tells whether there is anything to see: platforms refuse a message of spaces, joiners and the like."""
    return any(unicodedata.category(c)[0] not in "ZC" for c in text)


def utf16(text: str) -> int:
    """Gives the number of UTF-16 code units, as JavaScript and Telegram count."""
    return len(text) + sum(c > "\uffff" for c in text)


def _fitting(text: str, limit: int, size: Callable[[str], int]) -> int:
    """Gives how many characters fit, not ending in the midst of a visible one."""
    end = min(len(text), limit)
    while (over := size(text[:end]) - limit) > 0:
        end -= max(1, over // 2)
    for place in range(end, max(0, end - LONGEST_CLUSTER), -1):
        if place == len(text) or not _is_joined(text, place):
            return place
    return end


def _place(text: str, end: int) -> tuple[int, int]:
    """Gives where to cut, at or before `end`, and where to go on."""
    for pattern in _PLACES:
        found = list(pattern.finditer(text, int(end * SHORTEST), end + 1))
        if found:
            return found[-1].span()
    return end, end


def _is_joined(text: str, at: int) -> bool:
    """Tells whether the characters before and after a place are seen as one. Source: UAX 29, its main rules."""
    before, after = text[at - 1], text[at]
    if _JOINER in (before, after) or (before, after) == ("\r", "\n"):
        return True
    if unicodedata.category(after)[0] == "M" or "\U0001f3fb" <= after <= "\U0001f3ff":  # marks, selectors, skin tones
        return True
    if not (_is_regional(before) and _is_regional(after)):
        return False
    begin = at
    while begin > 0 and _is_regional(text[begin - 1]):
        begin -= 1
    return (at - begin) % 2 == 1  # flags are pairs


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _open_fence(text: str) -> re.Match[str] | None:
    """Gives the line that opened the fence which is open at the end of a text."""
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opened is None:
            opened = match
        elif match[1][0] == opened[1][0] and len(match[1]) >= len(opened[1]) and not match[2].strip():
            opened = None
    return opened
