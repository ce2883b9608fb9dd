"""Markdown, or plain text, of a page: what a reader sees of it, without scripts, styles and menus."""

import re
from collections import Counter
from urllib.parse import urljoin

from tools._html import Start, Text, tokens

_DROPPED = frozenset({*("script", "style", "template", "noscript", "iframe", "noframes", "noembed", "object", "embed"), *("svg", "canvas")})
_DROPPED |= {*("audio", "video", "select", "datalist", "textarea", "dialog")}
_MENUS = frozenset({"nav"})
_VOID = frozenset({*("area", "base", "br", "col", "embed", "hr", "img", "input"), *("link", "meta", "source", "track", "wbr")})
_BLOCKS = frozenset(
    {
        *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl", "dt"),
        *("fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hgroup", "html"),
        *("li", "main", "menu", "nav", "ol", "optgroup", "p", "pre", "search", "section", "summary", "table", "tbody", "tfoot"),
        *("thead", "tr", "ul"),
    }
)
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_MARKS = {
    **dict.fromkeys(("b", "strong"), "**"),
    **dict.fromkeys(("i", "em"), "*"),
    **dict.fromkeys(("s", "del", "strike"), "~~"),
    **dict.fromkeys(("code", "kbd", "samp", "tt"), "`"),
}

_CLOSED_BY = {
    **dict.fromkeys(("li",), (frozenset({"li"}), frozenset({"ul", "ol", "menu"}))),
    **dict.fromkeys(("dt", "dd"), (frozenset({"dt", "dd"}), frozenset({"dl"}))),
    **dict.fromkeys(("td", "th"), (frozenset({"td", "th"}), frozenset({"tr", "table"}))),
    **dict.fromkeys(("tr",), (frozenset({"tr"}), frozenset({"table"}))),
    **dict.fromkeys(("p",), (frozenset({"p"}), frozenset({"div", "td", "th", "li", "blockquote", "body"}))),
}
"""Which open elements a start tag ends, and within which others those are looked for: such end tags may be left out."""

LOOK_BACK = 20
"""Open elements that are looked through for one that a start tag ends: a page may nest them without end."""

MAX_INDENT = 8
"""Lists and quotes in each other that are indented: deeper ones would be more indentation than text."""

MAX_MARKS = 8
"""Links and emphases in each other that are marked."""

MAX_LINK = 2_000
"""Characters of a link's target; longer ones are left out, with the link's text kept."""

MAX_TOKENS = 500_000
"""Tags and texts of a page that are read: more than the largest pages have, in two seconds."""

MAX_OUT = 5 << 20
"""Characters that are written: indentation must not make a page larger than it came."""

CUT = "[the rest of the page is left out]"

_SPACE = re.compile(r"[ \t\n\r\f]+")
_BREAK = re.compile(r" *\n *")
_SPACES = re.compile(r" {2,}")
_LANGUAGE = re.compile(r"(?:language|lang|highlight-source)-([A-Za-z0-9+#.-]{1,20})")


def markdown(source: str, url: str, *, plain: bool = False) -> str:
    """Gives a page as Markdown, with links made absolute by the page's `url`; or, `plain`, as text without any marks.

    It takes a second for the largest page: for a thread.
    """
    text = _Writer(url, _DROPPED | _MENUS, plain=plain).written(source)
    # A menu that is never closed, or a page that is nothing else: better its links than nothing.
    return text or _Writer(url, _DROPPED, plain=plain).written(source)


class _Container:
    """A list's item or a quote that is open: what its first line and the others begin with."""

    def __init__(self, element: str, first: str, rest: str) -> None:
        self.element = element
        self.first: str | None = first
        self.rest = rest


class _Mark:
    """A link or an emphasis that is open: where its text begins in the line, and how it is written."""

    def __init__(self, element: str, at: int, before: str, after: str) -> None:
        self.element = element
        self.at = at
        self.before = before
        self.after = after


class _Writer:
    """Takes the tags and texts of a page in order. `_line` holds the pieces of the block that is open, `_out` the blocks before it."""

    def __init__(self, url: str, dropped: frozenset[str], *, plain: bool) -> None:
        self._url = url
        self._dropped = dropped
        self._plain = plain
        self._open: list[str] = []
        self._count: Counter[str] = Counter()
        self._skipping = 0  # the number of open elements when the one began that is left out; 0 for none
        self._out: list[str] = []
        self._line: list[str] = []
        self._marks: list[_Mark] = []
        self._containers: list[_Container] = []
        self._lists: list[int | None] = []
        self._unindented = 0
        self._left = MAX_OUT
        self._heading = ""
        self._has_h1 = False
        self._rows: list[list[str] | None] = []  # of each open table: the cells of its open row; None for one that only makes a layout
        self._headed: list[bool] = []
        self._language = ""
        self._title: list[str] = []
        self._was_tight = False

    def written(self, source: str) -> str:
        for number, token in enumerate(tokens(source)):
            if number == MAX_TOKENS or self._left <= 0:
                self._left = 0
                break
            if isinstance(token, Text):
                self._text(token.text)
            elif isinstance(token, Start):
                self._start(token)
            else:
                self._end(token.name)
        self._flush()
        if self._left <= 0:
            self._out += ["", CUT]
        title = _SPACE.sub(" ", "".join(self._title)).strip()
        if title and self._out and not self._has_h1:
            self._out.insert(0, title + "\n" if self._plain else f"# {title}\n")
        return "\n".join(self._out).strip("\n")

    # Tags

    def _start(self, tag: Start) -> None:
        name = tag.name
        if name in _CLOSED_BY and not self._skipping:
            self._close_left_open(name)
        if name not in _VOID:
            self._open.append(name)
            self._count[name] += 1
        if self._skipping:
            return
        if name in self._dropped or ("hidden" in tag.attributes and name not in _VOID and name != "body"):
            if name not in _VOID:
                self._skipping = len(self._open)
        elif self._count["pre"] and name != "pre":
            self._in_pre(tag)
        elif name in _BLOCKS:
            self._begin_block(name, tag)
        else:
            self._begin_inline(name, tag)

    def _close_left_open(self, name: str) -> None:
        ends, within = _CLOSED_BY[name]
        for back, other in enumerate(reversed(self._open[-LOOK_BACK:]), 1):
            if other in ends:
                for _ in range(back):
                    self._close()
                return
            if other in within:
                return

    def _end(self, name: str) -> None:
        if name in ("br", "p") and not self._count[name]:
            self._start(Start("br", {}))
            return
        if name in _VOID or not self._count[name]:
            return
        while self._close() != name:
            pass

    def _close(self) -> str:
        """Closes the innermost open element and gives its name."""
        name = self._open.pop()
        self._count[name] -= 1
        if self._skipping:
            if len(self._open) < self._skipping:
                self._skipping = 0
        elif self._count["pre"]:
            if name in _BLOCKS and self._line and not self._line[-1].endswith("\n"):
                self._line.append("\n")
        elif name in ("td", "th"):
            self._end_cell()
        elif name in _BLOCKS:
            self._end_block(name)
        elif self._marks and self._marks[-1].element == name:
            self._unmark(self._marks.pop())
        return name

    # Blocks

    def _begin_block(self, name: str, tag: Start) -> None:
        if name in _HEADINGS:
            self._flush()
            self._has_h1 = self._has_h1 or name == "h1"
            self._heading = "" if self._plain else _HEADINGS[name]
        elif name in ("ul", "ol", "menu"):
            self._flush()
            start = tag.attributes.get("start", "1")
            self._lists.append((int(start) if re.fullmatch("[0-9]{1,6}", start) else 1) if name == "ol" else None)
        elif name == "table":
            if self._rows:  # a table in a table: the outer one only makes a layout
                self._spill_row()
                self._rows[-1] = None
            self._flush()
            self._rows.append([])
            self._headed.append(False)
        elif name == "tr":
            self._flush()
        elif self._in_cell:
            self._line.append(" ")
        else:
            self._flush()
            self._begin_container(name, tag)

    def _begin_container(self, name: str, tag: Start) -> None:
        if name == "pre":
            self._language = _language(tag)
        elif name in ("blockquote", "li") and len(self._containers) >= MAX_INDENT:
            self._unindented += 1
        elif name == "blockquote":
            self._containers.append(_Container(name, "> ", "> "))
        elif name == "li":
            number = self._lists[-1] if self._lists else None
            marker = "- " if number is None else f"{number}. "
            if number is not None:
                self._lists[-1] = number + 1
            self._containers.append(_Container(name, marker, " " * len(marker)))

    def _end_block(self, name: str) -> None:
        if name == "pre" and not self._in_cell:
            self._fence()
        elif name == "tr":
            self._end_row()
        elif name == "table":
            self._end_row()
            if self._rows:
                self._rows.pop()
                self._headed.pop()
            self._was_tight = False
        elif self._in_cell:
            self._line.append(" ")
        else:
            self._flush()
            if name in ("ul", "ol", "menu") and self._lists:
                self._lists.pop()
            elif name in ("blockquote", "li") and self._unindented:
                self._unindented -= 1
            elif self._containers and self._containers[-1].element == name:
                self._containers.pop()
        if name in _HEADINGS:
            self._heading = ""

    def _flush(self) -> None:
        """Writes the open block. Marks that are open end with it: a link around a whole page would be on each of its lines."""
        for mark in reversed(self._marks):
            self._unmark(mark)
        text = _tidy(self._line)
        self._line.clear()
        for mark in self._marks:
            mark.at = 0
        if text:
            self._marks.clear()
            heading, self._heading = self._heading, ""
            self._write([heading + text.replace("\n", " ")] if heading else text.split("\n"))

    def _write(self, lines: list[str]) -> None:
        """Adds a block: items of lists stand close together, all else is parted by an empty line."""
        is_item = any(container.element == "li" and container.first is not None for container in self._containers)
        if self._out and not (is_item and self._was_tight):
            self._out.append("".join(c.rest for c in self._containers if c.first is None).rstrip())
        for number, line in enumerate(lines):
            start = "".join((c.first if not number and c.first is not None else c.rest) for c in self._containers)
            self._out.append((start + line).rstrip())
            self._left -= len(start) + len(line) + 1
            if self._left <= 0:
                break
            for container in self._containers:
                container.first = None
        self._was_tight = bool(self._containers) and any(c.element == "li" for c in self._containers)

    def _fence(self) -> None:
        code = "".join(self._line).expandtabs(8) if self._plain else "".join(self._line)
        self._line.clear()
        code = code.removeprefix("\n").rstrip()
        language, self._language = self._language, ""
        if not code:
            return
        if self._plain:
            self._write(code.split("\n"))
            return
        longest = max((len(run) for run in re.findall("`{3,}", code)), default=2)
        fence = "`" * (longest + 1)
        self._write([fence + language, *code.split("\n"), fence])

    # Tables

    @property
    def _in_cell(self) -> bool:
        return bool(self._rows) and self._rows[-1] is not None and bool(self._count["td"] or self._count["th"])

    def _end_cell(self) -> None:
        row = self._rows[-1] if self._rows else None
        if row is None:
            self._flush()
            return
        for mark in reversed(self._marks):
            self._unmark(mark)
        self._marks.clear()
        row.append(_tidy(self._line).replace("\n", " "))
        self._line.clear()

    def _end_row(self) -> None:
        row = self._rows[-1] if self._rows else None
        if not row:
            self._flush()
            return
        self._rows[-1] = []
        if self._plain:
            cells = [" | ".join(cell for cell in row if cell)]
        elif len(row) == 1 and not self._headed[-1]:
            cells = [row[0]]
        else:
            cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"]
            if not self._headed[-1]:
                cells.append("|" + " --- |" * len(row))
        if not any(row):
            return
        was_headed, self._headed[-1] = self._headed[-1], self._headed[-1] or len(row) > 1 or self._plain
        if was_headed:
            prefix = "".join(container.rest for container in self._containers)
            self._out += [(prefix + line).rstrip() for line in cells]
            self._left -= sum(map(len, cells)) + len(prefix)
        else:
            self._write(cells)

    def _spill_row(self) -> None:
        """Writes the cells of a row as paragraphs: its table turned out to be a layout."""
        for cell in self._rows[-1] or ():
            if cell:
                self._write([cell])

    # Text and what stands in a line

    def _text(self, text: str) -> None:
        if self._open and self._open[-1] == "title" and not self._count["svg"]:
            self._title.append(text)
        elif not self._skipping:
            self._line.append(text if self._count["pre"] else _SPACE.sub(" ", text))

    def _in_pre(self, tag: Start) -> None:
        if tag.name == "br":
            self._line.append("\n")
        elif tag.name == "code":
            self._language = self._language or _language(tag)

    def _begin_inline(self, name: str, tag: Start) -> None:
        if name == "br":
            self._line.append("\n")
        elif name == "hr":
            self._flush()
            if not self._plain:
                self._write(["---"])
        elif name == "img":
            self._image(tag)
        elif len(self._marks) < MAX_MARKS and not self._plain:
            if (
                name == "a"
                and not any(mark.element == "a" for mark in self._marks)
                and (link := self._link(tag.attributes.get("href", "")))
            ):
                self._marks.append(_Mark(name, len(self._line), "[", f"]({link})"))
            elif name in _MARKS and not any(mark.before in (_MARKS[name], "`") for mark in self._marks):
                self._marks.append(_Mark(name, len(self._line), _MARKS[name], _MARKS[name]))

    def _unmark(self, mark: _Mark) -> None:
        """Writes the marks around the text that has come since, if any; spaces stay outside."""
        text = "".join(self._line[mark.at :])
        inner = text.strip()
        if inner:
            start = text.index(inner)
            before, after = mark.before, mark.after
            if before == "`" and "`" in inner:
                before, after = "`` ", " ``"
            self._line[mark.at :] = [text[:start], before, inner, after, text[start + len(inner) :]]

    def _image(self, tag: Start) -> None:
        alt = _SPACE.sub(" ", tag.attributes.get("alt", "")).strip()
        place = self._link(tag.attributes.get("src", ""))
        if alt:
            self._line.append(f"![{alt}]({place})" if place and not self._plain else alt)

    def _link(self, href: str) -> str:
        """Gives where a link leads; empty for what leads nowhere else."""
        if not 0 < len(href.strip()) <= MAX_LINK or href.strip().startswith("#"):
            return ""
        try:
            whole = urljoin(self._url, href.strip())
        except ValueError:
            return ""
        whole = whole.replace(" ", "%20").replace(")", "%29").replace("(", "%28")
        return whole if len(whole) <= MAX_LINK and whole.startswith(("http://", "https://", "mailto:")) else ""


def _tidy(pieces: list[str]) -> str:
    return _SPACES.sub(" ", _BREAK.sub("\n", "".join(pieces))).strip()


def _language(tag: Start) -> str:
    found = _LANGUAGE.search(tag.attributes.get("class", ""))
    return found[1] if found else ""
