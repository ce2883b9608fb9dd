"""The simple commands of a shell script, as far as they can be known without running it.

A splitter, not a shell. It follows quotes, separators, subshells, substitutions, here-documents, assignments before a command, and
programs that run another one (`sudo`, `env`, `xargs`, `bash -c`, `find -exec`). What a word becomes at run time is UNKNOWN, and
where a command cannot be told from its text, the whole of it is. What a program does once it runs is not looked at.
"""

import re
from collections.abc import Collection, Sequence

from agent_server.calling.programs import ASSIGNMENT, DECISIVE, MAX_DEPTH, ONE, UNKNOWN, Uncertain, Word, known

MAX_SCRIPT = 32 << 10
"""Characters of a script that is split, in 50 ms, or 300 ms where it is made for it; a longer one is UNKNOWN."""

MAX_COMMANDS = 500
"""Simple commands of one script; each is held against every rule."""

_KEYWORDS = frozenset({"!", "{", "}", "if", "then", "elif", "else", "fi", "while", "until", "do", "done", "time"})
_REFUSED = frozenset({"case", "esac", "select", "coproc"})  # whose forms end commands in other ways
_DESCRIPTOR = re.compile(r"[0-9]+|\{[A-Za-z_]\w*\}", re.ASCII)
_BLANK = " \t"
_CONTINUED = "\\\n"
_ENDS_WORD = " \t\n;&|<>()"


def commands(script: str) -> list[str]:
    """Gives the simple commands that a script may run, each as its words with one space between them, without quotes.

    A command that cannot be known is UNKNOWN; a script that cannot be split is just that, and one without commands is its own text. A
    program that runs another one is there with its own words, and the other one beside it.
    """
    if len(script) > MAX_SCRIPT or UNKNOWN in script:
        return [UNKNOWN]
    try:
        found = list(dict.fromkeys(_split(script, 0)))
    except (Uncertain, RecursionError):
        return [UNKNOWN]
    return (found or [script.strip()]) if len(found) <= MAX_COMMANDS else [UNKNOWN]


def _found_by(text: Sequence[str], patterns: Collection[int]) -> str:
    """Gives a word with what may stand for other texts in it: of its pieces those at `patterns`, and all between brackets."""
    signs = {"*": UNKNOWN, "?": ONE}
    shown = [signs.get(piece, piece) if place in patterns else piece for place, piece in enumerate(text)]
    opened = next((place for place in sorted(patterns) if text[place] == "["), len(text))
    closed = next((place for place in reversed(range(opened, len(text))) if "]" in text[place]), None)
    if closed is not None:
        shown[opened : closed + 1] = [UNKNOWN, text[closed].rpartition("]")[2]]
    return "".join(shown)


def _split(script: str, depth: int) -> list[str]:
    reader = _Reader(script, depth)
    reader.list_until("")
    return reader.found


class _Reader:
    """Reads one script, once, from its beginning."""

    def __init__(self, text: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Uncertain
        self._text = text
        self._at = 0
        self._depth = depth
        self._documents: list[tuple[str, bool, bool]] = []  # whose bodies begin at the next line: end, is literal, has tabs to drop
        self.found: list[str] = []

    def _peek(self, count: int = 1) -> str:
        return self._text[self._at : self._at + count]

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise Uncertain  # a quote or a parenthesis that has no end
        self._at += 1
        return self._text[self._at - 1]

    # Lists of commands

    def list_until(self, end: str) -> None:
        """Reads commands up to `end`: a closing parenthesis, or "" for the end of the script."""
        while True:
            self._skip_blanks()
            sign = self._peek()
            if not sign:
                if end or self._documents:
                    raise Uncertain
                return
            if sign == ")":
                if not end or self._documents:
                    raise Uncertain
                self._at += 1
                return
            if sign == "\n":
                self._at += 1
                self._read_documents()
            elif sign in ";&|" and self._peek(2) not in ("&>",):
                self._at += 1
            elif self._peek(2) == "((":
                self._arithmetic(2)
            elif sign == "(":
                self._at += 1
                self.list_until(")")
            else:
                self._command()

    def _skip_spaces(self) -> None:
        while self._peek() and (self._peek() in _BLANK or self._peek(2) == _CONTINUED):
            self._at += 2 if self._peek() == "\\" else 1

    def _skip_blanks(self) -> None:
        self._skip_spaces()
        if self._peek() == "#":
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end

    def _command(self) -> None:
        """Reads one simple command, or what is before one: keywords."""
        words: list[Word] = []
        is_tainted = False
        while True:
            self._skip_blanks() if not words else self._skip_spaces()
            sign = self._peek()
            if sign == "#" and words:
                self._skip_blanks()
                continue
            if not sign or sign in "\n;|)" or (sign == "&" and self._peek(2) != "&>"):
                break
            if sign in "<>&" and self._peek(2) not in ("<(", ">("):
                self._redirection()
                continue
            if sign == "(":
                if len(words) == 1 and self._is_function():
                    return
                raise Uncertain
            word = self._word()
            if _DESCRIPTOR.fullmatch(word.raw) and self._peek() and self._peek() in "<>":
                continue
            if not words and (assigned := ASSIGNMENT.match(word.raw)):
                is_tainted |= bool(DECISIVE.fullmatch(assigned[0].rstrip("+=").partition("[")[0]))
                if word.raw == assigned[0] and self._peek() == "(":
                    self._array()
                continue
            if not words and word.raw in _REFUSED:
                raise Uncertain
            if not words and word.raw in _KEYWORDS:
                self._after(word.raw)
                return
            if not words and word.raw in ("for", "function", "[["):
                self._special(word.raw)
                return
            words.append(word)
        if is_tainted:
            self.found.append(UNKNOWN)
        if words:
            self.found += known(words, self._depth, _split)

    def _after(self, keyword: str) -> None:
        for option in ("-p", "--") if keyword == "time" else ():
            self._skip_spaces()
            begin = self._at
            if self._peek() != "-" or self._word().raw != option:
                self._at = begin

    def _special(self, keyword: str) -> None:
        self._skip_spaces()
        if keyword == "function":
            self._word()
            self._skip_spaces()
            if self._peek() == "(" and not self._is_function():
                raise Uncertain
        elif keyword == "[[":
            self._condition()
        elif self._peek(2) == "((":
            self._arithmetic(2)
        else:
            while (sign := self._peek()) and sign not in ";\n":
                self._word()  # which no other sign begins
                self._skip_blanks()

    def _is_function(self) -> bool:
        found = re.compile(r"\([ \t]*\)").match(self._text, self._at)
        self._at = found.end() if found else self._at
        return bool(found)

    def _condition(self) -> None:
        while True:
            if self._peek() and self._peek() in _BLANK + "\n;&|<>()" and self._peek(2) not in ("<(", ">("):
                self._at += 1
            elif self._peek() in ("", "#"):
                raise Uncertain
            elif (word := self._word()).raw == "]]":
                return
            elif "$(" in word.text or "`" in word.text:
                self.found.append(UNKNOWN)  # some of its operators evaluate a text

    def _array(self) -> None:
        self._take()
        while self._peek() != ")":
            if self._peek() and self._peek() in _BLANK + "\n":
                self._at += 1
            elif self._peek() and self._peek() in _ENDS_WORD + "#":
                raise Uncertain
            else:
                self._word()
        self._take()
        if self._peek() and self._peek() not in _ENDS_WORD:
            raise Uncertain  # the word goes on

    def _arithmetic(self, opened: int) -> None:
        """Reads what stands between double parentheses; where they are no such pair, it may be a subshell in one."""
        self._at += opened
        depth = 0
        while depth or self._peek(2) != "))":
            sign = self._peek()
            if sign == "(":
                depth += 1
            elif sign == ")":
                depth -= 1
            if depth < 0 or (sign and sign in "'\"\\\n#;"):
                raise Uncertain
            self._expansion() if sign and sign in "$`" else self._take()
        self._at += 2

    # Redirections

    def _redirection(self) -> None:
        sign = next(s for s in ("<<<", "<<-", "<<", "<&", "<>", ">>", ">&", ">|", "&>>", "&>", "<", ">") if self._peek(len(s)) == s)
        self._at += len(sign)
        if self._peek(2) == _CONTINUED:
            raise Uncertain  # what follows may belong to the sign
        self._skip_spaces()
        begin = self._at
        word = self._word()
        if sign not in ("<<", "<<-"):
            return
        raw = self._text[begin : self._at]
        if not word.is_known or "$" in raw or "`" in raw or "\n" in raw:
            raise Uncertain
        self._documents.append((word.text, any(quote in raw for quote in "'\"\\"), sign == "<<-"))

    def _read_documents(self) -> None:
        documents, self._documents = self._documents, []
        for end, is_literal, has_tabs in documents:
            begin = self._at
            while True:
                if self._at >= len(self._text):
                    raise Uncertain
                stop = self._text.find("\n", self._at)
                stop = len(self._text) if stop < 0 else stop
                line = self._text[self._at : stop]
                after, self._at = self._at, stop + 1
                if (line.lstrip("\t") if has_tabs else line) == end:
                    break
            if not is_literal:
                body = self._text[begin:after]
                if _CONTINUED in body:
                    raise Uncertain  # a line that goes on in the next one hides the end
                self._inside(body)
            self._at = min(self._at, len(self._text))

    def _inside(self, text: str) -> None:
        """Finds the substitutions of a text that is expanded and is no script."""
        reader = _Reader("", self._depth)
        reader._text = text
        while reader._peek():
            if reader._peek() == "\\":
                reader._at += 2
            elif reader._peek() in "$`":
                reader._expansion()
            else:
                reader._at += 1
        self.found += reader.found

    # Words

    def _word(self) -> Word:
        begin = self._at
        text: list[str] = []
        patterns: set[int] = set()  # where in it are signs that find names of files
        is_braced = False
        while ((sign := self._peek()) and sign not in _ENDS_WORD) or self._peek(2) in ("<(", ">("):
            if sign in "<>":
                self._at += 2
                self._substitution()
                text.append(UNKNOWN)
            elif sign == "'":
                self._at += 1
                text.append(self._until("'"))
            elif sign == '"':
                self._at += 1
                text.append(self._double())
            elif sign == "\\":
                self._at += 1
                escaped = self._take()
                text.append(escaped if escaped != "\n" else "")
            elif sign in "$`":
                text.append(self._expansion())
            else:
                is_braced |= sign == "{"
                if sign in "*?[":
                    patterns.add(len(text))
                text.append(self._take())
        if self._at == begin:
            raise Uncertain
        raw = self._text[begin : self._at].replace(_CONTINUED, "")
        made = "".join(text)
        if is_braced and ("," in made or ".." in made):
            return Word(UNKNOWN, raw, UNKNOWN)
        return Word(made, raw, _found_by(text, patterns))

    def _until(self, end: str) -> str:
        stop = self._text.find(end, self._at)
        if stop < 0:
            raise Uncertain
        found, self._at = self._text[self._at : stop], stop + len(end)
        return found

    def _double(self) -> str:
        text: list[str] = []
        while (sign := self._take()) != '"':
            if sign == "\\":
                escaped = self._take()
                text.append(escaped if escaped in '$`"\\' else "" if escaped == "\n" else f"\\{escaped}")
            elif sign in "$`":
                self._at -= 1
                text.append(self._expansion(is_quoted=True))
            else:
                text.append(sign)
        return "".join(text)

    def _expansion(self, *, is_quoted: bool = False) -> str:
        """Reads what begins with a dollar or a backquote."""
        if self._take() == "`":
            self._backquoted(is_quoted=is_quoted)
            return UNKNOWN
        sign = self._peek()
        if self._peek(2) == "((":
            self._arithmetic(2)
        elif sign == "(":
            self._at += 1
            self._substitution()
        elif sign == "{":
            self._at += 1
            self._parameter()
        elif sign == "'" and not is_quoted:
            self._at += 1
            self._ansi()
        elif sign == '"' and not is_quoted:
            self._at += 1
            return self._double()
        elif sign and (sign.isalnum() or sign in "_@*#?$!-"):
            self._at = re.compile(r"[A-Za-z_]\w*|.", re.ASCII).match(self._text, self._at).end()  # type: ignore[union-attr]  # something is there
        elif sign == "[" or self._peek(2) == _CONTINUED:
            raise Uncertain  # the old form of arithmetic; or what follows is not what it looks like
        else:
            return "$"
        return UNKNOWN

    def _substitution(self) -> None:
        if self._documents:
            raise Uncertain  # of two here-documents begun, shells differ on which comes first
        reader = _Reader("", self._depth + 1)
        reader._text, reader._at = self._text, self._at
        reader.list_until(")")
        self._at = reader._at
        self.found += reader.found

    def _backquoted(self, *, is_quoted: bool) -> None:
        text: list[str] = []
        while (sign := self._take()) != "`":
            if sign == "\\":
                escaped = self._take()
                text.append(escaped if escaped in "$`\\" or (is_quoted and escaped == '"') else f"\\{escaped}")
            else:
                text.append(sign)
        self.found += _split("".join(text), self._depth + 1)

    def _parameter(self) -> None:
        while (sign := self._take()) != "}":
            if sign in "'\"\\{\n" or (sign == "@" and self._peek() == "P"):
                raise Uncertain  # how quotes count there depends on where it stands
            if sign in "$`":
                self._at -= 1
                self._expansion()

    def _ansi(self) -> None:
        while (sign := self._take()) != "'":
            if sign == "\\":
                self._take()
