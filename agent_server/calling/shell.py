"""The simple commands of a shell script, as far as they can be known without running it.

A splitter, not a shell. It follows quotes, separators, subshells, substitutions, here-documents, assignments before a command, and
programs that run another one (`sudo`, `env`, `xargs`, `bash -c`, `find -exec`). What a word becomes at run time is UNKNOWN, and
where a command cannot be told from its text, the whole of it is. What a program does once it runs is not looked at.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

UNKNOWN = "\0"
"""Stands for any text, also none. No command can hold it."""

MAX_SCRIPT = 32 << 10
"""Characters of a script that is split, in 50 ms, or 300 ms where it is made for it; a longer one is UNKNOWN."""

MAX_DEPTH = 10
"""How deep substitutions and programs that run others may be in one another."""

MAX_COMMANDS = 500
"""Simple commands of one script; each is held against every rule."""

_KEYWORDS = frozenset({"!", "{", "}", "if", "then", "elif", "else", "fi", "while", "until", "do", "done", "time"})
_REFUSED = frozenset({"case", "esac", "select", "coproc"})  # whose forms end commands in other ways
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\[[^\]]*\])?\+?=", re.ASCII)
_DESCRIPTOR = re.compile(r"[0-9]+|\{[A-Za-z_]\w*\}", re.ASCII)
_DECISIVE = re.compile(
    r"PATH|IFS|ENV|BASH_\w+|BASHOPTS|SHELLOPTS|PROMPT_COMMAND|PS4|LD_\w+|GIT_\w+|\w*PAGER|\w*EDITOR|VISUAL|PYTHON\w+|NODE_OPTIONS"
)
"""Variables that choose what a command runs: set before one, it is not what it looks like."""

_BLANK = " \t"
_CONTINUED = "\\\n"
_ENDS_WORD = " \t\n;&|<>()"
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "rbash"})
_SHELL_VALUES = frozenset({"-o", "+o", "-O", "+O", "--rcfile", "--init-file"})


class _Prefix(msgspec.Struct, frozen=True):
    """How a program that runs another one is called: `valued` are its options with a value of their own word, `words` what comes
    before the other program; `feeds` whether that gets more arguments from elsewhere."""

    valued: frozenset[str] = frozenset()
    words: int = 0
    feeds: bool = False


def _prefix(valued: str = "", words: int = 0, *, feeds: bool = False) -> _Prefix:
    return _Prefix(frozenset(valued.split()), words, feeds)


_SUDO = _prefix("-u -g -h -p -C -T -D -R -r -t -U --user --group --host --prompt --chdir --chroot --role --type --other-user")
_PREFIXES: Mapping[str, _Prefix] = {
    "sudo": _SUDO,
    "doas": _prefix("-u -C"),
    "env": _prefix("-u -C --unset --chdir"),
    "nohup": _prefix(),
    "setsid": _prefix(),
    "nice": _prefix("-n --adjustment"),
    "ionice": _prefix("-c -n -p --class --classdata"),
    "chrt": _prefix("-T -P -D", 1),
    "taskset": _prefix("", 1),
    "stdbuf": _prefix("-i -o -e --input --output --error"),
    "timeout": _prefix("-k -s --kill-after --signal", 1),
    "time": _prefix("-f -o --format --output"),
    "exec": _prefix("-a"),
    "command": _prefix(),
    "builtin": _prefix(),
    "busybox": _prefix(),
    "chroot": _prefix("", 1),
    "strace": _prefix("-e -o -p -s -u -E -a -b -I -O -P -S -X"),
    "unshare": _prefix("-S -G -R -w"),
    "xargs": _prefix("-I -n -P -L -d -E -s -a --replace --max-args --max-procs --max-lines --delimiter --arg-file --max-chars", feeds=True),
}
_OPAQUE = frozenset({"parallel", "watch", "script", "su", "runuser", "flock", "entr", "ssh-agent", "systemd-run", "at", "batch", "alias"})
"""Programs that take a command in forms of their own: what they run is UNKNOWN."""

_EVALUATING = frozenset({"[", "test", "let", "declare", "typeset", "local", "export", "readonly", "unset", "read", "printf", "wait"})
"""Builtins that may evaluate the subscript of an array: a substitution in a quoted text of theirs runs all the same."""


class _Uncertain(Exception):
    """The script cannot be split."""


class _Word(msgspec.Struct, frozen=True):
    """A word as the shell makes it, UNKNOWN where that depends; `raw` as it is written."""

    text: str
    raw: str

    @property
    def is_known(self) -> bool:
        return UNKNOWN not in self.text


def commands(script: str) -> list[str]:
    """Gives the simple commands that a script may run, each as its words with one space between them, without quotes.

    A command that cannot be known is UNKNOWN; a script that cannot be split is just that, and one without commands is its own text. A
    program that runs another one is there with its own words, and the other one beside it.
    """
    if len(script) > MAX_SCRIPT or UNKNOWN in script:
        return [UNKNOWN]
    try:
        found = list(dict.fromkeys(_split(script, 0)))
    except (_Uncertain, RecursionError):
        return [UNKNOWN]
    return (found or [script.strip()]) if len(found) <= MAX_COMMANDS else [UNKNOWN]


def _split(script: str, depth: int) -> list[str]:
    reader = _Reader(script, depth)
    reader.list_until("")
    return reader.found


class _Reader:
    """Reads one script, once, from its beginning."""

    def __init__(self, text: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _Uncertain
        self._text = text
        self._at = 0
        self._depth = depth
        self._documents: list[tuple[str, bool, bool]] = []  # whose bodies begin at the next line: end, is literal, has tabs to drop
        self.found: list[str] = []

    def _peek(self, count: int = 1) -> str:
        return self._text[self._at : self._at + count]

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise _Uncertain  # a quote or a parenthesis that has no end
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
                    raise _Uncertain
                return
            if sign == ")":
                if not end or self._documents:
                    raise _Uncertain
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
        words: list[_Word] = []
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
                raise _Uncertain
            word = self._word()
            if _DESCRIPTOR.fullmatch(word.raw) and self._peek() and self._peek() in "<>":
                continue
            if not words and (assigned := _ASSIGNMENT.match(word.raw)):
                is_tainted |= bool(_DECISIVE.fullmatch(assigned[0].rstrip("+=").partition("[")[0]))
                if word.raw == assigned[0] and self._peek() == "(":
                    self._array()
                continue
            if not words and word.raw in _REFUSED:
                raise _Uncertain
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
            self.found += _known(words, self._depth)

    def _after(self, keyword: str) -> None:
        if keyword == "time":
            self._skip_spaces()
            if self._peek(2) == "-p" and self._peek(3)[2:] in ("", *_BLANK):
                self._at += 2

    def _special(self, keyword: str) -> None:
        self._skip_spaces()
        if keyword == "function":
            self._word()
            self._skip_spaces()
            if self._peek() == "(" and not self._is_function():
                raise _Uncertain
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
                raise _Uncertain
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
                raise _Uncertain
            else:
                self._word()
        self._take()

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
                raise _Uncertain
            self._expansion() if sign and sign in "$`" else self._take()
        self._at += 2

    # Redirections

    def _redirection(self) -> None:
        sign = next(s for s in ("<<<", "<<-", "<<", "<&", "<>", ">>", ">&", ">|", "&>>", "&>", "<", ">") if self._peek(len(s)) == s)
        self._at += len(sign)
        if self._peek(2) == _CONTINUED:
            raise _Uncertain  # what follows may belong to the sign
        self._skip_spaces()
        begin = self._at
        word = self._word()
        if sign not in ("<<", "<<-"):
            return
        raw = self._text[begin : self._at]
        if not word.is_known or "$" in raw or "`" in raw or "\n" in raw:
            raise _Uncertain
        self._documents.append((word.text, any(quote in raw for quote in "'\"\\"), sign == "<<-"))

    def _read_documents(self) -> None:
        documents, self._documents = self._documents, []
        for end, is_literal, has_tabs in documents:
            begin = self._at
            while True:
                if self._at >= len(self._text):
                    raise _Uncertain
                stop = self._text.find("\n", self._at)
                stop = len(self._text) if stop < 0 else stop
                line = self._text[self._at : stop]
                after, self._at = self._at, stop + 1
                if (line.lstrip("\t") if has_tabs else line) == end:
                    break
            if not is_literal:
                body = self._text[begin:after]
                if _CONTINUED in body:
                    raise _Uncertain  # a line that goes on in the next one hides the end
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

    def _word(self) -> _Word:
        begin = self._at
        text: list[str] = []
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
                text.append(self._take())
        if self._at == begin:
            raise _Uncertain
        raw = self._text[begin : self._at].replace(_CONTINUED, "")
        made = "".join(text)
        return _Word(UNKNOWN if is_braced and ("," in made or ".." in made) else made, raw)

    def _until(self, end: str) -> str:
        stop = self._text.find(end, self._at)
        if stop < 0:
            raise _Uncertain
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
            raise _Uncertain  # the old form of arithmetic; or what follows is not what it looks like
        else:
            return "$"
        return UNKNOWN

    def _substitution(self) -> None:
        if self._documents:
            raise _Uncertain  # of two here-documents begun, shells differ on which comes first
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
                raise _Uncertain  # how quotes count there depends on where it stands
            if sign in "$`":
                self._at -= 1
                self._expansion()

    def _ansi(self) -> None:
        while (sign := self._take()) != "'":
            if sign == "\\":
                self._take()


def _known(words: Sequence[_Word], depth: int) -> Iterator[str]:
    """Gives a command, and those that it runs."""
    if depth > MAX_DEPTH:
        raise _Uncertain
    first = words[0].text
    is_pattern = any(sign in words[0].raw for sign in "*?[") and words[0].raw != "["
    if not words[0].is_known or is_pattern or not first or any(sign.isspace() for sign in first):
        yield UNKNOWN
        return
    yield " ".join(word.text or "''" for word in words)
    name = first.rpartition("/")[2]
    if name in _SHELLS:
        yield from _of_shell(words, depth)
    elif name in _OPAQUE:
        yield UNKNOWN
    elif name in _PREFIXES:
        yield from _of_prefix(name, words, depth)
    elif name in _EVALUATING and any("$(" in word.text or "`" in word.text for word in words):
        yield UNKNOWN
    elif (of_program := _PROGRAMS.get(name)) is not None:
        yield from of_program(words, depth)


def _of_prefix(name: str, words: Sequence[_Word], depth: int) -> Iterator[str]:
    how = _PREFIXES[name]
    rest = list(words[1:])
    while rest and (rest[0].text.startswith("-") or (name in ("env", "sudo") and _ASSIGNMENT.match(rest[0].text))):
        option = rest.pop(0)
        plain = option.text
        if not option.is_known or (name == "env" and ("S" in plain.split("=")[0] or plain.startswith("--split"))):
            yield UNKNOWN
        if name == "command" and plain in ("-v", "-V"):
            return  # it only tells what would run
        if _ASSIGNMENT.match(plain) and _DECISIVE.fullmatch(plain.partition("=")[0]):
            yield UNKNOWN
        if plain == "--":
            break
        if _takes_a_word(plain, how.valued):
            del rest[:1]
    rest = rest[how.words :]
    if rest:
        more = [_Word(UNKNOWN, "")] if how.feeds else []
        yield from _known([*rest, *more], depth + 1)


def _takes_a_word(option: str, valued: frozenset[str]) -> bool:
    """Whether the word after an option is its value. Of letters written together the first with a value ends the group."""
    if option.startswith("--") or option in valued:
        return option in valued
    place = next((at for at, letter in enumerate(option[1:], 1) if f"-{letter}" in valued), 0)
    return bool(place) and place == len(option) - 1


def _of_shell(words: Sequence[_Word], depth: int) -> Iterator[str]:
    rest = list(words[1:])
    is_given = False
    while rest and rest[0].text[:1] in ("-", "+"):
        option = rest.pop(0)
        if not option.is_known:
            yield UNKNOWN
        if option.text in ("-", "--"):
            break
        is_given |= "c" in option.text[1:] and not option.text.startswith("--")
        if option.text in _SHELL_VALUES or (len(option.text) > 2 and option.text[:2] != "--" and option.text[-1] in "oO"):
            del rest[:1]
    if not rest or not rest[0].is_known or rest[0].text.startswith(("/dev/", "/proc/")):
        yield UNKNOWN  # it runs what it reads
    elif is_given:
        yield from _split(rest[0].text, depth + 1)


def _of_eval(words: Sequence[_Word], depth: int) -> Iterator[str]:
    rest = words[1:]
    if not all(word.is_known for word in rest):
        yield UNKNOWN
    else:
        yield from _split(" ".join(word.text for word in rest), depth + 1)


def _of_trap(words: Sequence[_Word], depth: int) -> Iterator[str]:
    rest = [word for word in words[1:] if word.text not in ("--", "-p", "-l")]
    yield from _of_eval([words[0], *rest[:1]], depth)


def _of_source(words: Sequence[_Word], depth: int) -> Iterator[str]:
    if not all(word.is_known for word in words[1:2]) or any(word.text.startswith(("/dev/", "/proc/")) for word in words[1:2]):
        yield UNKNOWN


def _of_find(words: Sequence[_Word], depth: int) -> Iterator[str]:
    inner: list[_Word] | None = None
    for word in words[1:]:
        if inner is None:
            inner = [] if word.text in ("-exec", "-execdir", "-ok", "-okdir") else None
            if not word.is_known:
                yield UNKNOWN
        elif word.text in (";", "+"):
            yield from _known(inner, depth + 1) if inner else (UNKNOWN,)
            inner = None
        else:
            inner.append(_Word(UNKNOWN, "") if "{}" in word.text else word)
    if inner is not None:
        yield UNKNOWN


def _of_callback(words: Sequence[_Word], depth: int) -> Iterator[str]:
    if any(not word.is_known or (word.text.startswith("-") and "C" in word.text) for word in words[1:]):
        yield UNKNOWN


_PROGRAMS: Mapping[str, Callable[[Sequence[_Word], int], Iterator[str]]] = {
    "eval": _of_eval,
    "trap": _of_trap,
    "source": _of_source,
    ".": _of_source,
    "find": _of_find,
    "mapfile": _of_callback,
    "readarray": _of_callback,
    "compgen": _of_callback,
}
