"""Where a text to be replaced stands in a file.

Models see files without their line endings and trailing spaces, write ASCII for typographic characters, and count
indentation badly; those differences are forgiven, one after the other, when they lead to a single place. Anything
fuzzier is left out on purpose: an edit at the wrong place costs more than an error that shows the right text.
"""

import difflib
import heapq
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from tools._text import ELLIPSIS, KINDS, NEWLINE, plain

MAX_LOOSE = 1 << 20
MAX_LOOSE_OLD = 16 << 10
"""Characters of a file that is searched loosely, and of the text looked for: nothing else runs while a regular
expression is compiled and searched."""

MAX_WORK = 20_000_000
"""Characters that are compared at most, for the same reason."""

MAX_PLACES = 100_000
"""Places looked for. Of a long text that overlaps with itself fewer are, by MAX_WORK."""

MAX_SEARCHED = 20_000
MAX_COMPARED = 100
"""Different lines that are looked at for one like the line that was not found, and that are compared with it."""

NEAREST = 8
MAX_SHOWN = 200
"""Lines of the file shown in that case, and characters of each."""

ALIKE = 0.4
"""How much of a line must be the same for it to be shown as similar, from 0 to 1."""

_NEWLINE = r"(?:\r\n|\r(?!\n)|(?<!\r)\n)"
_TRAILING = " \t\v\f" + KINDS[-1][1:]
_SPACES = f"[{_TRAILING}]*+"
_ALIKE = {character: f"[{re.escape(kind)}]" for kind in KINDS for character in kind}


class Place(msgspec.Struct, frozen=True):
    """What to replace, `[start, end)`, and by which text."""

    start: int
    end: int
    new: str


class Found(msgspec.Struct, frozen=True):
    """The places of the strictest way of looking that found any, and what that way ignored (empty: nothing); with `is_cut` there
    may be more places."""

    places: list[Place]
    ignored: str
    is_cut: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether every place may be replaced, not only a single one: line endings are not shown to the model."""
        return self.ignored in ("", "line endings")


def find(text: str, old: str, new: str) -> Found:
    """Looks for `old`; each place has `new` with the line endings, and the indentation, that stand there."""
    old_lines, new = NEWLINE.sub("\n", old), NEWLINE.sub("\n", new)
    ways: list[tuple[str, Callable[[], Iterator[Place]]]] = [
        ("", lambda: _exact(text, old, new)),
        ("line endings", lambda: _other_endings(text, old_lines, new)),
    ]
    if old.strip() and len(text) <= MAX_LOOSE and len(old) <= MAX_LOOSE_OLD and _may_be_loose(text, old_lines):
        ways += [
            ("trailing white space", lambda: _loose(text, old_lines, new, re.escape)),
            ("white space and typographic characters", lambda: _loose(text, old_lines, new, _alike)),
            ("indentation", lambda: _shifted(text, old_lines, new)),
        ]
    most = min(MAX_PLACES, MAX_WORK // (len(old) + 1) + 2)
    for ignored, way in ways:
        if places := list(islice(way(), most)):
            return Found(_with_endings(text, places), ignored, len(places) == most)
    return Found([], "")


def _exact(text: str, old: str, new: str) -> Iterator[Place]:
    start = text.find(old)
    while start >= 0:
        end = start + len(old)
        if not (_splits_ending(text, start) or _splits_ending(text, end)):
            yield Place(start, end, new)
        start = text.find(old, start + 1)


def _splits_ending(text: str, index: int) -> bool:
    return text[index - 1 : index + 1] == "\r\n"


def _other_endings(text: str, old: str, new: str) -> Iterator[Place]:
    pairs = [match.start() - number for number, match in enumerate(re.finditer("\r\n", text))]
    for place in _exact(NEWLINE.sub("\n", text), old, new):
        start, end = (at + bisect_left(pairs, at) for at in (place.start, place.end))
        yield Place(start, end, new)


def _may_be_loose(text: str, old: str) -> bool:
    """Whether `old` stands in the text when all is forgiven, and how often its beginning does lets it be searched in time."""
    form, wanted = (plain("\n".join(map(str.strip, NEWLINE.split(each)))) for each in (text, old))
    begin = "\n".join(wanted.split("\n")[:3])
    return wanted in form and form.count(begin) * len(old) <= MAX_WORK


def _loose(text: str, old: str, new: str, escape: Callable[[str], str]) -> Iterator[Place]:
    """Forgives white space at the ends of lines, and what `escape` makes of a line."""
    lines = old.split("\n")
    ends = [line.rstrip(_TRAILING) for line in lines]
    pattern = (_SPACES + _NEWLINE).join(map(escape, ends))
    if not ends[0]:
        pattern = pattern.removeprefix(_SPACES)
    if ends[-1] != lines[-1]:
        pattern += _SPACES + r"(?=[\r\n]|\Z)"
    for match in re.finditer(f"(?=({pattern}))", text):
        yield Place(match.start(1), match.end(1), new)


def _alike(line: str) -> str:
    """A pattern for the line with any quotes, dashes, spaces and ellipses."""
    pieces = line.replace(ELLIPSIS, "...").split("...")
    return r"(?:\.\.\.|\u2026)".join("".join(_ALIKE.get(c) or re.escape(c) for c in piece) for piece in pieces)


def _shifted(text: str, old: str, new: str) -> Iterator[Place]:
    """Forgives an indentation that all lines have more, less or otherwise."""
    lines = old.removesuffix("\n").split("\n")
    base = _common_indentation(lines)
    first = next(index for index, line in enumerate(lines) if line.strip())
    patterns = [_alike(line[len(base) :].rstrip(_TRAILING)) for line in lines]
    for index, line in enumerate(lines):
        if line.strip():
            patterns[index] = (r"(?P<base>[ \t]*)" if index == first else "(?P=base)") + patterns[index]
    end = _NEWLINE if old.endswith("\n") else r"(?=[\r\n]|\Z)"
    pattern = (_SPACES + _NEWLINE).join(patterns) + _SPACES + end
    for match in re.finditer(rf"(?:\A|(?<=\n)|(?<=\r)(?!\n))(?=({pattern}))", text):
        indentation = _indentation(lines[first])[len(base) :]
        yield Place(match.start(1), match.end(1), _shift(new, base, match["base"], match["base"] + indentation))


def _shift(new: str, base: str, wanted: str, first: str) -> str:
    """Moves the lines from indentation `base` to `wanted`, unless the first already stands where the file's `first` does."""
    lines = new.split("\n")
    if _indentation(next((line for line in lines if line.strip()), "")) == first:
        return new
    return "\n".join(_shift_line(line, base, wanted) if line.strip() else line for line in lines)


def _shift_line(line: str, base: str, wanted: str) -> str:
    if line.startswith(base):
        return wanted + line[len(base) :]
    if base.startswith(wanted):
        surplus = len(base) - len(wanted)
        return line[min(surplus, len(_indentation(line))) :]
    if wanted.startswith(base):
        return wanted[len(base) :] + line
    return line


def _common_indentation(lines: list[str]) -> str:
    indentations = [_indentation(line) for line in lines if line.strip()]
    shortest = min(indentations, key=len)
    while not all(indentation.startswith(shortest) for indentation in indentations):
        shortest = shortest[:-1]
    return shortest


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _with_endings(text: str, places: list[Place]) -> list[Place]:
    """The places with the line ending that stands in them, else with that of most of the file."""
    if all("\n" not in place.new for place in places):
        return places
    endings = Counter(NEWLINE.findall(text))
    usual = max(endings, key=lambda ending: (endings[ending], ending == "\n"), default="\n")
    adapted = []
    for place in places:
        found = NEWLINE.search(text, place.start, place.end)
        adapted.append(msgspec.structs.replace(place, new=place.new.replace("\n", found[0] if found else usual)))
    return adapted


def nearest(text: str, old: str) -> str:
    """Gives the lines of the text that are most like `old`, numbered; empty when none is."""
    lines = [line[:MAX_SHOWN] for line in NEWLINE.split(text)]
    wanted = [line.strip()[:MAX_SHOWN] for line in NEWLINE.split(old.strip("\r\n"))]
    anchor = max(range(len(wanted)), key=lambda index: len(wanted[index]))
    places: dict[str, int] = {}
    for index, line in enumerate(lines):
        places.setdefault(line.strip(), index)
        if len(places) > MAX_SEARCHED:
            break
    pieces = _pieces(wanted[anchor])
    promising = heapq.nlargest(MAX_COMPARED, places, key=lambda line: len(pieces & _pieces(line)))
    close = difflib.get_close_matches(wanted[anchor], promising, n=1, cutoff=ALIKE)
    if not close:
        return ""
    start = max(0, places[close[0]] - min(anchor, NEAREST // 2))
    return "\n".join(f"{start + n}: {line}" for n, line in enumerate(lines[start : start + min(NEAREST, len(wanted))], 1))


def _pieces(line: str) -> set[str]:
    return {line[index : index + 3] for index in range(len(line) - 2)}
