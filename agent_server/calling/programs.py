"""Programs that run others: which ones, and what.

They are known by name; one that is not here is seen as itself alone.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import msgspec

UNKNOWN = "\0"
"""Stands for any text, also none. No command can hold it."""

ONE = "\1"
"""Stands for any one character."""

MAX_DEPTH = 10
"""How deep substitutions and programs that run others may be in one another."""

ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\[[^\]]*\])?\+?=", re.ASCII)
DECISIVE = re.compile(
    r"PATH|IFS|ENV|BASH_\w+|BASHOPTS|SHELLOPTS|PROMPT_COMMAND|PS4|LD_\w+|GIT_\w+|\w*PAGER|\w*EDITOR|VISUAL|PYTHON\w+|NODE_OPTIONS"
)
"""Variables that choose what a command runs: set before one, it is not what it looks like."""

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
_OPAQUE = frozenset(
    {
        *("parallel", "watch", "script", "su", "runuser", "flock", "entr", "ssh-agent", "systemd-run", "at", "batch", "alias"),
        *("setpriv", "prlimit", "nsenter", "runcon", "numactl", "fakeroot", "pkexec", "gosu", "su-exec", "dumb-init", "tini"),
        *("unbuffer", "rlwrap", "chronic", "xvfb-run", "ltrace", "valgrind", "toybox", "setarch", "linux32", "linux64", "sg", "perf"),
        *("screen", "tmux", "expect", "hyperfine", "direnv", "eatmydata", "bwrap", "firejail", "enable"),
    }
)
"""Programs that take a command in forms of their own: what they run is UNKNOWN."""

_LOADERS = ("ld-linux", "ld-musl")

_EVALUATING = frozenset({"[", "test", "let", "declare", "typeset", "local", "export", "readonly", "unset", "read", "printf", "wait"})
"""Builtins that may evaluate the subscript of an array: a substitution in a quoted text of theirs runs all the same."""


class Uncertain(Exception):
    """The script cannot be split."""


class Word(msgspec.Struct, frozen=True):
    """A word as the shell makes it, UNKNOWN where that depends; `raw` as it is written. In `shown` what names of files are found by is
    UNKNOWN or ONE too."""

    text: str
    raw: str
    shown: str

    @classmethod
    def unknown(cls) -> "Word":
        return cls(UNKNOWN, "", UNKNOWN)

    @property
    def is_known(self) -> bool:
        return UNKNOWN not in self.text


Split: TypeAlias = Callable[[str, int], list[str]]
"""Gives the commands of a script that is so deep in others."""


def known(words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
    """Gives a command, and those that it runs; `split` takes a script apart. Errors: Uncertain."""
    if depth > MAX_DEPTH:
        raise Uncertain
    first = words[0].text
    if UNKNOWN in words[0].shown or ONE in words[0].shown or not first or any(sign.isspace() for sign in first):
        yield UNKNOWN
        return
    yield " ".join(word.shown or "''" for word in words)
    name = first.rpartition("/")[2]
    if name in _SHELLS:
        yield from _of_shell(words, depth, split)
    elif name in _OPAQUE or name.startswith(_LOADERS):
        yield UNKNOWN
    elif name in _PREFIXES:
        yield from _of_prefix(name, words, depth, split)
    elif name in _EVALUATING and any("$(" in word.text or "`" in word.text for word in words):
        yield UNKNOWN
    elif (of_program := _PROGRAMS.get(name)) is not None:
        yield from of_program(words, depth, split)


def _of_prefix(name: str, words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
    how = _PREFIXES[name]
    rest = list(words[1:])
    while rest and (rest[0].text.startswith("-") or (name in ("env", "sudo") and ASSIGNMENT.match(rest[0].text))):
        option = rest.pop(0)
        plain = option.text
        if not option.is_known or (name == "env" and ("S" in plain.split("=")[0] or plain.startswith("--split"))):
            yield UNKNOWN
        if name == "command" and plain in ("-v", "-V"):
            return  # it only tells what would run
        if ASSIGNMENT.match(plain) and DECISIVE.fullmatch(plain.partition("=")[0]):
            yield UNKNOWN
        if plain == "--":
            break
        if _takes_a_word(plain, how.valued):
            del rest[:1]
    rest = rest[how.words :]
    if rest and how.feeds:
        place = _replaced(words)
        rest = [*(Word.unknown() if place in word.text else word for word in rest), Word.unknown()]
    if rest:
        yield from known(rest, depth + 1, split)


def _replaced(words: Sequence[Word]) -> str:
    """Gives what xargs puts its arguments in place of, at the most; where none is named, what it would be."""
    found = [after.text if word.text == "-I" else word.text[2:] for word, after in pairwise(words) if word.text.startswith("-I")]
    found += [word.text.partition("=")[2] for word in words if word.text.startswith("--replace=")]
    return next((place for place in found if place), "{}")


def _takes_a_word(option: str, valued: frozenset[str]) -> bool:
    """Whether the word after an option is its value. Of letters written together the first with a value ends the group."""
    if option.startswith("--") or option in valued:
        return option in valued
    place = next((at for at, letter in enumerate(option[1:], 1) if f"-{letter}" in valued), 0)
    return bool(place) and place == len(option) - 1


def _of_shell(words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
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
        yield from split(rest[0].text, depth + 1)


def _of_eval(words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
    rest = words[1:]
    if not all(word.is_known for word in rest):
        yield UNKNOWN
    else:
        yield from split(" ".join(word.text for word in rest), depth + 1)


def _of_trap(words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
    rest = [word for word in words[1:] if word.text not in ("--", "-p", "-l")]
    yield from _of_eval([words[0], *rest[:1]], depth, split)


def _of_source(words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
    if not all(word.is_known for word in words[1:2]) or any(word.text.startswith(("/dev/", "/proc/")) for word in words[1:2]):
        yield UNKNOWN


def _of_find(words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
    inner: list[Word] | None = None
    for word in words[1:]:
        if inner is None:
            inner = [] if word.text in ("-exec", "-execdir", "-ok", "-okdir") else None
            if not word.is_known:
                yield UNKNOWN
        elif word.text in (";", "+"):
            yield from known(inner, depth + 1, split) if inner else (UNKNOWN,)
            inner = None
        else:
            inner.append(Word.unknown() if "{}" in word.text else word)
    if inner is not None:
        yield UNKNOWN


def _of_callback(words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
    if any(not word.is_known or (word.text.startswith("-") and "C" in word.text) for word in words[1:]):
        yield UNKNOWN


def _of_hash(words: Sequence[Word], depth: int, split: Split) -> Iterator[str]:
    if any(not word.is_known or (word.text.startswith("-") and "p" in word.text) for word in words[1:]):
        yield UNKNOWN  # it gives a program another name


_PROGRAMS: Mapping[str, Callable[[Sequence[Word], int, Split], Iterator[str]]] = {
    "eval": _of_eval,
    "trap": _of_trap,
    "source": _of_source,
    ".": _of_source,
    "find": _of_find,
    "hash": _of_hash,
    "mapfile": _of_callback,
    "readarray": _of_callback,
    "compgen": _of_callback,
}
