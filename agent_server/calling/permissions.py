"""The workspace's rules, held against a call: whether it runs, does not, or a client is asked about it.

Rules are held against what a call says it will do: a guard rail, and no sandbox. Without rules everything is allowed. How they
are written is `rules.py`, how a client is asked `asking.py`, how a command is taken apart `shell.py`.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import msgspec

from agent_server.calling.programs import ONE, UNKNOWN
from agent_server.calling.rules import EDITING, MAX_PATTERN, MAX_RULES, Rules, Verdict, permission_of
from agent_server.calling.shell import commands
from tools import ToolError
from tools._fetch import PORTS, parse_url
from tools._patch import parse
from tools._pattern import split_folder

STRICTNESS: Mapping[str, int] = {"allow": 0, "ask": 1, "deny": 2}

SHOWN = 20
"""Patterns that a request shows of one call at the most."""

OUTSIDE = "external_directory"
"""The key for paths outside the workspace."""

_FILE_COMMANDS = frozenset(
    "cat cd chgrp chmod chown cp head less ln ls mkdir more mv popd pushd rm rmdir tail tee touch".split()  # noqa: SIM905  # a list of names
)
"""Commands whose words are paths. OpenCode looks at these, but for the readers of files besides cat."""

_SUBJECTS: Mapping[str, str] = {
    "glob": "pattern",
    "grep": "pattern",
    "webfetch": "url",
    "websearch": "query",
    "skill": "name",
    "task": "subagent_type",
}
"""The argument that patterns are held against, of tools that name no file."""

_PATHS: Mapping[str, tuple[str, str | None]] = {
    "read": ("filePath", None),
    "edit": ("filePath", None),
    "write": ("filePath", None),
    "multiedit": ("filePath", None),
    "list": ("path", "."),
}
"""The argument that names a file, and what it is when it is left out."""


class Judgement(msgspec.Struct, frozen=True):
    """What the rules say of a call. `permission` is the key they go by; `patterns` what is asked about or refused, `always` the
    permissions and patterns that an answer `always` allows."""

    verdict: Verdict
    permission: str
    patterns: Sequence[str] = ()
    always: Sequence[tuple[str, str]] = ()


class _Subject(msgspec.Struct, frozen=True):
    """One thing that a call does: a text, under a permission's key and a tool's name. `names` are other names of the very same,
    `likely` what it most likely is: rules that allow are not held against those. The same goes for the tool."""

    permission: str
    tool: str
    text: str
    names: tuple[str, ...] = ()
    likely: tuple[str, ...] = ()
    tool_names: tuple[str, ...] = ()
    likely_tools: tuple[str, ...] = ()


class Called(msgspec.Struct, frozen=True):
    """A call: of which tool, with which arguments, and whether that tool is one of ours. `names` are other names of the tool, `likely`
    what others may mean by it: rules that allow are not held against those."""

    tool: str
    arguments: Mapping[str, Any]
    is_own: bool = True
    names: tuple[str, ...] = ()
    likely: tuple[str, ...] = ()


class Places(msgspec.Struct, frozen=True):
    """The real paths of the workspace, and of the folder of long outputs, which is nobody's outside."""

    root: str
    outputs: str


def judge(rules: Rules, allowed: Iterable[tuple[str, str]], call: Called, places: Places) -> Judgement:
    """Gives what the rules say of a call; `allowed` are the permissions and patterns that were allowed for good.

    The last rule that matches counts; of all that a call does, the strictest. Blocks for some ms; of 500 rules and as many commands, for
    seconds.
    """
    permission = permission_of(call.tool)
    found: dict[Verdict, list[tuple[_Subject, str | None]]] = {"allow": [], "ask": [], "deny": []}
    approved = list(allowed)
    for subject in _subjects(call, places, any(_matches(rule.tool, OUTSIDE) for rule in rules)) if rules else ():
        verdict, pattern = _judge(rules, subject)
        if verdict == "ask" and any(key == subject.permission and _matches(known, subject.text) for key, known in approved):
            verdict = "allow"
        found[verdict].append((subject, pattern))
    if denied := found["deny"]:
        return Judgement("deny", permission, _shown(denied))
    if not (asked := found["ask"]):
        return Judgement("allow", permission)
    wide = {(subject.permission, pattern): None for subject, said in asked if (pattern := _always(subject, said)) is not None}
    return Judgement("ask", permission, _shown(asked), list(wide))


def _shown(told: Sequence[tuple[_Subject, str | None]]) -> list[str]:
    return list(dict.fromkeys(subject.text.replace(UNKNOWN, "…").replace(ONE, "?")[:MAX_PATTERN] for subject, _ in told))[:SHOWN]


def _judge(rules: Rules, subject: _Subject) -> tuple[Verdict, str | None]:
    """Gives a verdict on one thing, and the pattern that said it. A rule that may match counts as one that does, unless it allows."""
    verdict: Verdict = "allow"
    said: str | None = None
    for rule in reversed(rules):
        is_named = any(_matches(rule.tool, name) for name in (subject.permission, subject.tool, *subject.tool_names))
        if not is_named and not any(_matches(rule.tool, name) for name in subject.likely_tools):
            continue
        is_certain = is_named and any(_matches(rule.pattern, text) for text in (subject.text, *subject.names))
        is_possible = is_certain or any(_may_match(rule.pattern, text) for text in (subject.text, *subject.names, *subject.likely))
        if is_possible and (rule.verdict != "allow" or is_certain) and STRICTNESS[rule.verdict] >= STRICTNESS[verdict]:
            verdict, said = rule.verdict, (rule.pattern if said is None or rule.verdict != verdict else said)
        if is_certain:
            break
    return verdict, said


def _always(subject: _Subject, pattern: str | None) -> str | None:
    """Gives the pattern that `always` allows: the rule's own, and for one that is about every command, that program's."""
    if pattern is None or subject.permission != "bash":
        return pattern
    if (UNKNOWN in subject.text or ONE in subject.text) and not _matches(pattern, subject.text):
        return None
    if pattern.strip("*? "):
        return pattern
    words = subject.text.split(" ")
    if UNKNOWN in words[0]:
        return None
    count = 2 if words[0] in _WITH_VERBS and len(words) > 1 and words[1][:1].isalpha() else 1
    return " ".join(words[:count]) + " *"


_WITH_VERBS = frozenset(
    {
        *("git", "gh", "glab", "npm", "pnpm", "yarn", "bun", "deno", "cargo", "go", "pip", "pip3", "uv", "poetry", "make"),
        *("docker", "podman", "kubectl", "helm", "terraform", "systemctl", "apt", "apt-get", "brew"),
    }
)
"""Programs whose second word says what they do."""


# What a call does


def _subjects(call: Called, places: Places, is_outside_ruled: bool) -> list[_Subject]:
    tool, given, permission = call.tool, call.arguments, permission_of(call.tool)
    if not call.is_own:  # somebody else's: its arguments are what they are
        is_like_ours = tool in _PATHS or tool in _SUBJECTS or tool in EDITING or tool == "bash"
        text = UNKNOWN if is_like_ours else msgspec.json.encode(given, order="sorted").decode()
        return [_Subject(permission, tool, text, tool_names=call.names, likely_tools=call.likely)]
    if tool in _PATHS:
        name, default = _PATHS[tool]
        return _files(tool, str(given.get(name) or default), places)
    if tool in EDITING:
        return _patched(tool, str(given.get("patchText")), places)
    around = given.get("workdir") if tool == "bash" else given.get("path")
    if tool == "glob":  # whose pattern may begin with a folder
        around = os.path.join(str(around or "."), split_folder(str(given.get("pattern")))[0])
    outside = [subject for subject in _files(tool, str(around or "."), places) if subject.permission == OUTSIDE]
    if tool == "bash":
        found = commands(str(given.get("command")))
        paths = _named(found, os.path.join(places.root, str(around or "."))) if is_outside_ruled else []
        outside += [subject for path in paths for subject in _outside(path, places)]
        return [*(_Subject(tool, tool, text, likely=_spellings(text)) for text in found), *outside]
    if tool in _SUBJECTS:
        text = str(given.get(_SUBJECTS[tool]) or "")
        return [_Subject(tool, tool, text, likely=_plain_url(text) if tool == "webfetch" else ()), *outside]
    return [_Subject(permission, tool, msgspec.json.encode(given, order="sorted").decode()), *outside]


def _spellings(command: str) -> tuple[str, ...]:
    """Gives a command by its program's bare name, and with the home folder as it is and as it is mostly written."""
    first, space, rest = command.partition(" ")
    plain = f"{first.rpartition('/')[2]}{space}{rest}"
    home = os.path.expanduser("~")
    found = [plain, _TILDE.sub(lambda _: f" {home}", plain), plain.replace(f" {home}/", " ~/")]
    return tuple(text for text in dict.fromkeys(found) if text != command)


_TILDE = re.compile(r" ~(?=/| |$)")


def _named(found: Sequence[str], folder: str) -> list[str]:
    """Gives the paths that commands for files name, as they are in a folder; UNKNOWN where one may lead anywhere."""
    paths: dict[str, None] = {}
    for command in found:
        first, *words = command.split(" ")
        for word in words if first.rpartition("/")[2] in _FILE_COMMANDS else ():
            known, _, rest = os.path.expanduser(word.replace(ONE, UNKNOWN)).partition(UNKNOWN)
            if ".." in rest.split("/"):
                paths[UNKNOWN] = None
            elif known and not known.startswith("-"):
                paths[os.path.join(folder, known)] = None
    return [*paths]


def _outside(path: str, places: Places) -> list[_Subject]:
    real = path if path == UNKNOWN else os.path.realpath(path)
    is_inside = _is_in(real, places.root) or _is_in(real, places.outputs)
    return [] if is_inside else [_Subject(OUTSIDE, OUTSIDE, real, _from_home(real))]


def _plain_url(url: str) -> tuple[str, ...]:
    """Gives the URL as it is fetched: without capitals in its host, a fragment, an escape that needs none, the usual port."""
    try:
        target = parse_url(url)
    except ToolError:
        return (UNKNOWN,)
    host = f"[{target.host}]" if ":" in target.host else target.host
    place = host if target.port == PORTS[target.scheme] else f"{host}:{target.port}"
    path, mark, query = target.path.partition("?")
    plain = os.path.normpath(f"/{unquote(path).lstrip('/')}")
    return (f"{target.scheme}://{place}{plain}{'/' if path[1:].endswith('/') else ''}{mark}{query}",)


def _patched(tool: str, patch: str, places: Places) -> list[_Subject]:
    try:
        changes = parse(patch)
    except ToolError:
        return [_Subject("edit", tool, UNKNOWN)]
    named = [path for change in changes for path in (change.path, change.target) if path is not None]
    return [subject for path in dict.fromkeys(named) for subject in _files(tool, path, places)]


def _files(tool: str, path: str, places: Places) -> list[_Subject]:
    """Gives the file as it really is and, where a link leads there, as it is named; and that it is outside, if it is."""
    if "\0" in path:
        return [_Subject(permission_of(tool), tool, UNKNOWN)]
    joined = os.path.join(places.root, path)
    named, real = os.path.normpath(joined), os.path.realpath(joined)
    found = [_file(tool, real, places.root)]
    if named != real and _is_in(named, places.root):
        found.append(_file(tool, named, places.root))
    return [*found, *_outside(joined, places)]


def _file(tool: str, path: str, root: str) -> _Subject:
    shown = os.path.relpath(path, root) if _is_in(path, root) else path
    return _Subject(permission_of(tool), tool, shown, (path, *_from_home(path)))


def _from_home(path: str) -> tuple[str, ...]:
    home = os.path.expanduser("~")
    return (f"~{path[len(home) :]}", f"$HOME{path[len(home) :]}") if _is_in(path, home) else ()


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


# Patterns


def _matches(pattern: str, text: str) -> bool:
    """Whether a pattern matches, whatever the UNKNOWN parts of the text, and ONEs, are. `*` is any text, `?` one character; ` *` at the
    end may be left out."""
    return _fits(pattern, text) or (pattern.endswith(" *") and _fits(pattern[:-2], text))


def _may_match(pattern: str, text: str) -> bool:
    """Whether it could match for some text in place of the UNKNOWN parts, and ONEs; in doubt it could."""
    if UNKNOWN not in text:
        return _fits(pattern, text, ONE) or (pattern.endswith(" *") and _fits(pattern[:-2], text, ONE))
    return _overlaps(pattern, text) or (pattern.endswith(" *") and _overlaps(pattern[:-2], text))


def _fits(pattern: str, text: str, joker: str = "") -> bool:
    # Piece by piece, the leftmost each: one expression with many stars can take for ever.
    first, *rest = _pieces(pattern, joker)
    if not rest:
        return first.fullmatch(text) is not None
    found = first.match(text)
    for piece in rest[:-1]:
        found = found and piece.search(text, found.end())
    begin = len(text) - (len(pattern) - pattern.rindex("*") - 1)
    return found is not None and begin >= found.end() and rest[-1].fullmatch(text, begin) is not None


@lru_cache(maxsize=4 * MAX_RULES)
def _pieces(pattern: str, joker: str) -> Sequence[re.Pattern[str]]:
    """Gives the expressions of what is between the stars. A `joker` is a sign of the text that stands for each other one."""
    one = f"[^{UNKNOWN}]"
    signs = {sign: f"[{re.escape(sign)}{joker}]" if joker else re.escape(sign) for sign in pattern} | {"?": one}
    pieces = ["".join(signs[sign] for sign in piece) for piece in pattern.split("*")]
    return tuple(re.compile(piece, re.DOTALL) for piece in pieces)


def _overlaps(pattern: str, text: str) -> bool:
    if "*" not in pattern and len(text.replace(UNKNOWN, "")) > len(pattern):
        return False
    begins = zip(pattern.partition("*")[0], text.partition(UNKNOWN)[0], strict=False)
    ends = zip(reversed(pattern.rpartition("*")[2]), reversed(text.rpartition(UNKNOWN)[2]), strict=False)
    return all(sign in ("?", there) or there == ONE for sign, there in (*begins, *ends))
