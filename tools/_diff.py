"""What a change did to a text, as a unified diff for the log: bounded in time and in size."""

import difflib
import io
from collections.abc import Iterator

MAX_DIFF = 50 * 1024
"""Characters of a diff: it is kept in the log, and shown."""

MAX_COMPARED = 4_000
"""Lines, of both sides together, that are compared line by line: the time grows with their square."""

CONTEXT = 3
"""Unchanged lines around a change."""


def unified_diff(old: str | None, new: str | None, name: str, new_name: str | None = None) -> str:
    """Gives the diff, the empty string when nothing changed.

    `old` is None for a file that was not there, `new` for one that is removed; `new_name` is where a file was moved.
    """
    if old == new and new_name in (None, name):
        return ""
    kept = [
        f"--- {'/dev/null' if old is None else f'a/{name}'}\n",
        f"+++ {'/dev/null' if new is None else f'b/{new_name or name}'}\n",
    ]
    size = sum(map(len, kept))
    for line in _hunks(_lines(old or ""), _lines(new or "")):
        size += len(line)
        if size > MAX_DIFF:
            kept.append("[the rest of the diff is left out]\n")
            break
        kept.append(line)
    return "".join(kept)


def _lines(text: str) -> list[str]:
    """The lines with their ends; unlike `splitlines`, only a line feed ends one."""
    return list(io.StringIO(text, newline="\n"))


def _hunks(old: list[str], new: list[str]) -> Iterator[str]:
    start = max(0, _common(old, new) - CONTEXT)
    rest = max(0, _common(old[start:][::-1], new[start:][::-1]) - CONTEXT)
    old, new = old[start : len(old) - rest], new[start : len(new) - rest]
    for group in _groups(old, new):
        yield f"@@ -{_range(group[0][1], group[-1][2], start)} +{_range(group[0][3], group[-1][4], start)} @@\n"
        for kind, a, b, c, d in group:
            if kind == "equal":
                yield from _marked(" ", old[a:b])
            else:
                yield from _marked("-", old[a:b])
                yield from _marked("+", new[c:d])


def _common(old: list[str], new: list[str]) -> int:
    """How many lines are the same at the beginning."""
    return next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def _groups(old: list[str], new: list[str]) -> Iterator[list[tuple[str, int, int, int, int]]]:
    if len(old) + len(new) > MAX_COMPARED:
        yield [("replace", 0, len(old), 0, len(new))]
    else:
        yield from difflib.SequenceMatcher(None, old, new).get_grouped_opcodes(CONTEXT)


def _range(first: int, end: int, offset: int) -> str:
    """The place of a hunk: an empty one is named by the line before it."""
    length = end - first
    return f"{offset + first + (length > 0)},{length}"


def _marked(mark: str, lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line if line.endswith("\n") else f"{mark}{line}\n\\ No newline at end of file\n"
