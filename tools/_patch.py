"""The grammar of patches, as models know it from codex, and what a hunk makes of a file's lines.

    *** Begin Patch
    *** Add File: PATH          then its lines, each after a +
    *** Delete File: PATH
    *** Update File: PATH       then *** Move to: PATH, if it is to be moved, and its hunks
    @@ LINE                     begins a hunk; LINE, if any, is one that stands somewhere before it (several: one after the other)
     kept                       then lines to keep, to remove and to add
    -removed
    +added
    *** End of File             the hunk's last line is the file's last
    *** End Patch

Nothing here touches a file.
"""

import posixpath
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

import msgspec

from tools import ToolError
from tools._files import showable
from tools._match import nearest
from tools._text import FileText, plain, split_lines

MAX_FILES = 500
"""Files in one patch: all of them are in memory until it is known that the whole of it can be applied."""

MAX_LINE = 200
"""Characters of a line shown in an error."""

MAX_BLANK = 10
"""Empty lines at a hunk's end that need not be in the file."""

_BEGIN, _END, _EOF = "*** Begin Patch", "*** End Patch", "*** End of File"
_HEADERS = {"*** Add File:": "add", "*** Delete File:": "delete", "*** Update File:": "update"}
_MOVE = "*** Move to:"

_HEREDOC = re.compile(
    r"(?:cd\s+(?P<folder>'[^'\n]+'|\"[^\"\n]+\"|[^\s'\"&;|]+)\s*&&\s*)?(?:(?:apply_patch|applypatch|cat)\s+)?"
    r"<<-?\s*(?P<quote>['\"]?)(?P<word>\w{1,64})(?P=quote)(?:\s*\|\s*(?:apply_patch|applypatch))?[^\S\n]*\n"
    r"(?P<patch>.*?)(?P=word)",
    re.DOTALL,
)

WAYS: Sequence[Callable[[str], str]] = (str, str.rstrip, str.strip, lambda line: plain(line).strip())
"""How lines are compared, the strictest first."""


class Hunk(msgspec.Struct):
    """`lines` are (mark, text), the mark being a space, - or +. `number` is the line of the patch where it begins."""

    number: int
    contexts: list[str] = []
    lines: list[tuple[str, str]] = []
    is_end: bool = False

    @property
    def old(self) -> list[str]:
        return [text for mark, text in self.lines if mark != "+"]


class Change(msgspec.Struct):
    """What a patch does to one file. `lines` are those of an added one; `target` is where an updated one is moved."""

    kind: Literal["add", "delete", "update"]
    path: str
    number: int
    target: str | None = None
    lines: list[str] = []
    hunks: list[Hunk] = []


def parse(text: str) -> list[Change]:
    """Gives what a patch does, file by file. Errors: ToolError that names the line of the patch that is wrong."""
    folder, lines = _unwrapped(text)
    if not lines or lines[0].strip() != _BEGIN:
        raise ToolError(f"The patch must begin with the line {_BEGIN!r}; nothing was changed.")
    if len(lines) < 2 or lines[-1].strip() != _END:
        raise ToolError(f"The patch must end with the line {_END!r}; nothing was changed.")
    changes: list[Change] = []
    for number, line in enumerate(lines[1:-1], 2):
        header = _header(line, number, is_inside=bool(changes) and changes[-1].kind == "update")
        if header is not None:
            changes.append(header)
        elif not changes:
            raise _wrong(number, line, f"A file begins with {', '.join(_HEADERS)}, each with a path")
        else:
            _take(changes[-1], number, line)
    _check(changes)
    for change in changes:
        change.path = posixpath.join(folder, change.path)
        change.target = change.target and posixpath.join(folder, change.target)
    return changes


def _unwrapped(text: str) -> tuple[str, list[str]]:
    """The folder that paths are relative to, and the lines of the patch itself, without a heredoc around them."""
    text = text.strip().replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    folder = ""
    if (wrapped := _HEREDOC.fullmatch(text)) is not None:
        text, folder = wrapped["patch"].strip(), (wrapped["folder"] or "").strip("'\"")
    return folder, [line.removesuffix("\r") for line in text.split("\n")]


def _header(line: str, number: int, *, is_inside: bool) -> Change | None:
    """The change that a line begins. Among hunks, a line that begins with a space is one to keep, whatever it says."""
    marked = line.rstrip() if is_inside and line.startswith(" ") else line.strip()
    for header, kind in _HEADERS.items():
        if marked.startswith(header):
            path = marked.removeprefix(header).strip()
            if not path:
                raise _wrong(number, line, "A path is missing")
            return msgspec.convert({"kind": kind, "path": path, "number": number}, Change)
    return None


def _take(change: Change, number: int, line: str) -> None:
    """Takes a line that belongs to a change."""
    if change.kind == "add" and line.startswith("+"):
        change.lines.append(line[1:])
    elif change.kind == "update":
        _take_update(change, number, line)
    elif line.strip():
        raise _wrong(number, line, "Each line of an added file begins with +" if change.kind == "add" else "Nothing follows a removed file")


def _take_update(change: Change, number: int, line: str) -> None:
    hunks = change.hunks
    if line.strip().startswith(_MOVE) and not hunks and change.target is None:
        change.target = line.strip().removeprefix(_MOVE).strip()
        if not change.target:
            raise _wrong(number, line, "A path is missing")
    elif line.rstrip() == "@@" or line.startswith("@@ "):
        if not hunks or hunks[-1].lines:
            hunks.append(Hunk(number, [], []))
        hunks[-1].contexts += [line[3:].rstrip()] if line[3:].strip() else []
    elif line.rstrip() == _EOF and hunks and hunks[-1].lines:
        hunks[-1].is_end = True
    elif hunks and hunks[-1].is_end:
        if line.strip():
            raise _wrong(number, line, f"After {_EOF!r} comes @@ or another file")
    elif not hunks and not line.strip():
        return
    elif line[:1] in ("", " ", "-", "+"):
        if not hunks:
            hunks.append(Hunk(number, [], []))
        mark, rest = line[:1] or " ", line[1:]
        # A bare return ends a line of a file, also where a line of the patch holds several.
        hunks[-1].lines += [(mark, part) for part in rest.split("\r")]
    else:
        raise _wrong(number, line, "Each line of a hunk begins with a space, - or +")


def _check(changes: Sequence[Change]) -> None:
    if not changes:
        raise ToolError("The patch changes no file.")
    if len(changes) > MAX_FILES:
        raise ToolError(f"The patch changes {len(changes)} files, more than {MAX_FILES}; nothing was changed. Apply it in parts.")
    for change in changes:
        if change.kind == "update" and not change.hunks and change.target is None:
            raise ToolError(f"Line {change.number} of the patch: the update of {change.path} has no hunk; nothing was changed.")
        for hunk in change.hunks:
            if not any(text or mark != " " for mark, text in hunk.lines):
                raise ToolError(f"Line {hunk.number} of the patch: the hunk has no lines; nothing was changed.")


def _wrong(number: int, line: str, what: str) -> ToolError:
    return ToolError(f"Line {number} of the patch, {line[:MAX_LINE]!r}: {what}; nothing was changed.")


def apply_hunks(text: FileText, hunks: Sequence[Hunk], name: str) -> str:
    """Gives a file's text as it is after the hunks, each found after the one before; it ends with a line ending.

    Errors: ToolError for lines that are not there, with the nearest ones.
    """
    lines = split_lines(text.body)
    seeker = _Seeker([line for line, _ in lines])
    placed = sorted((_place(seeker, hunk, name, text) for hunk in hunks), key=lambda place: place[0])
    out: list[tuple[str, str]] = []
    at = 0
    for start, changes in placed:
        out += lines[at:start]
        at = max(at, start)
        for mark, line in changes:
            if mark == "+":
                out.append((line, text.newline))
                continue
            out += lines[at : at + 1] if mark == " " else []
            at += 1
    return "".join(line + (ending or text.newline) for line, ending in (*out, *lines[at:]))


def _place(seeker: "_Seeker", hunk: Hunk, name: str, text: FileText) -> tuple[int, list[tuple[str, str]]]:
    """Where a hunk begins, and its lines as they are applied there."""
    for context in hunk.contexts:
        at = seeker.find([context])
        if at is None:
            raise _missing(name, text, hunk, "the line after @@ is not", context)
        seeker.at = at + 1
    old, changes = hunk.old, hunk.lines
    if not old:
        return seeker.end if hunk.is_end or not hunk.contexts else seeker.at, changes
    at = seeker.find(old, is_end=hunk.is_end)
    for _ in range(MAX_BLANK):
        if at is not None or len(old) < 2 or old[-1].strip():
            break
        # Often an empty line only stands for the end of the one before.
        old, changes = old[:-1], _without_last(changes)
        at = seeker.find(old, is_end=hunk.is_end)
    if at is None:
        what = "its lines are not at the end of" if hunk.is_end else "its lines are not"
        raise _missing(name, text, hunk, what, "\n".join(hunk.old))
    seeker.at = at + len(old)
    return at, changes


def _without_last(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lines of a hunk without its last old one, and without an empty one that is last among the new."""
    at = max(at for at, (mark, _) in enumerate(lines) if mark != "+")
    rest = [*lines[:at], *lines[at + 1 :]]
    return rest[:-1] if lines[at][0] == "-" and rest[-1] == ("+", "") else rest


def _missing(name: str, text: FileText, hunk: Hunk, what: str, wanted: str) -> ToolError:
    similar = showable(nearest(text.body, wanted))
    hint = f"The most similar lines are:\n{similar}" if similar else "No line is similar: read the file."
    where = "the file" if what.endswith("of") else "in the file"
    return ToolError(
        f"{name}: the hunk at line {hunk.number} of the patch does not fit: {what} {where}, or not after the hunk before it; "
        f"nothing was changed. {hint}"
    )


class _Seeker:
    """Looks for lines in a file, from `at` on. It does so in whole texts, whose search takes no more than their length."""

    def __init__(self, lines: list[str]) -> None:
        self.at = 0
        self._lines = lines
        self._forms: dict[int, tuple[str, list[int]]] = {}

    @property
    def end(self) -> int:
        """Where lines are added that have no place: at the end, before an empty line that is last."""
        return len(self._lines) - (1 if len(self._lines) > self.at and self._lines[-1] == "" else 0)

    def find(self, wanted: Sequence[str], *, is_end: bool = False) -> int | None:
        """Gives where the lines stand, found by the strictest way that finds them; with `is_end`, only at the end of the file."""
        for number, way in enumerate(WAYS):
            text, starts = self._form(number)
            old = "\n".join(["", *map(way, wanted), ""])
            at = self._last(text, old) if is_end else text.find(old, starts[self.at])
            if at >= starts[self.at]:
                return bisect_left(starts, at)
        return None

    @staticmethod
    def _last(text: str, old: str) -> int:
        """The last place, when only empty lines follow it; -1 when there is none. Backwards, as rfind may take very long."""
        at = text[::-1].find(old[::-1])
        return len(text) - at - len(old) if at >= 0 and not text[len(text) - at :].strip() else -1

    def _form(self, number: int) -> tuple[str, list[int]]:
        """The file's lines as one way has them, each between line feeds, and where the line feed before each is."""
        if number not in self._forms:
            lines = list(map(WAYS[number], self._lines))
            starts = [0, *accumulate(len(line) + 1 for line in lines)]
            self._forms[number] = "\n".join(["", *lines, ""]), starts
        return self._forms[number]
