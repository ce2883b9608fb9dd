"""Patterns for paths: `*`, `?`, `[...]`, `{a,b}` and `**` for any number of folders.

Ripgrep has such patterns too, but they override .gitignore: `*` would list every ignored file. So it only narrows the
search by the files' names, and here is decided what matches.
"""

import re
from fnmatch import fnmatchcase

import msgspec

from tools import ToolError

MAX_ALTERNATIVES = 100
"""Patterns that braces are spelled out to."""


class Pattern(msgspec.Struct, frozen=True):
    """The alternatives of a pattern, each as its parts between slashes."""

    alternatives: tuple[tuple[str, ...], ...]

    def matches(self, path: str) -> bool:
        """Whether a path, relative to the folder that is searched, matches."""
        parts = path.split("/")
        return any(_matches(parts, pattern) for pattern in self.alternatives)

    def ripgrep_options(self) -> list[str]:
        """Gives options by which ripgrep passes over most of the files that do not match, and none that does."""
        options = []
        if not any("**" in pattern for pattern in self.alternatives):
            options.append(f"--max-depth={max(map(len, self.alternatives))}")
        names = {re.sub(r"(?:\[.*\]|[^\w.-])+", "*", pattern[-1]) for pattern in self.alternatives}
        if "*" not in names:
            options += [f"--type-add=wanted:{name}" for name in sorted(names)] + ["--type=wanted"]
        return options


def parse_pattern(text: str) -> Pattern:
    """Gives the pattern; one without a slash matches names in every folder. Errors: ToolError."""
    return Pattern(tuple(_parts(alternative) for alternative in _spelled_out(text)))


def split_folder(text: str) -> tuple[str, str]:
    """Splits a pattern into the folder it begins with ("" for none) and the rest."""
    parts = text.split("/")
    special = next((index for index, part in enumerate(parts) if re.search(r"[*?\[{]", part)), len(parts) - 1)
    if special == 0:
        return "", text
    return "/".join(parts[:special]) or "/", "/" + "/".join(parts[special:])


def _parts(pattern: str) -> tuple[str, ...]:
    if "/" not in pattern:
        pattern = f"**/{pattern}"
    parts = [part for part in pattern.replace("[^", "[!").split("/") if part not in ("", ".")]
    if pattern.endswith("/") or parts[-1] == "**":
        parts += ["**", "*"]
    return tuple(part for index, part in enumerate(parts) if part != "**" or parts[index - 1] != "**" or index == 0)


def _spelled_out(pattern: str) -> list[str]:
    done, waiting = [], [pattern]
    while waiting:
        text = waiting.pop()
        braces = re.search(r"\{([^{}]*)\}", text)
        if braces is None:
            done.append(text)
        else:
            waiting += [text[: braces.start()] + option + text[braces.end() :] for option in reversed(braces[1].split(","))]
        if len(done) + len(waiting) > MAX_ALTERNATIVES:
            raise ToolError(f"The pattern {pattern} has too many alternatives (at most {MAX_ALTERNATIVES}).")
    return done


def _matches(parts: list[str], pattern: tuple[str, ...]) -> bool:
    """Takes each `**` as short as it can be: only the last one seen must ever be lengthened, so the time stays bounded."""
    at = wanted = resume_at = 0
    resume_wanted = -1
    while at < len(parts):
        if wanted < len(pattern) and pattern[wanted] == "**":
            resume_at, resume_wanted = at, wanted
            wanted += 1
        elif wanted < len(pattern) and _matches_name(parts[at], pattern[wanted]):
            at, wanted = at + 1, wanted + 1
        elif resume_wanted >= 0:
            resume_at += 1
            at, wanted = resume_at, resume_wanted + 1
        else:
            return False
    return wanted == len(pattern)


def _matches_name(name: str, pattern: str) -> bool:
    """A folder may be called `[id]`: a name always matches itself."""
    return name == pattern or fnmatchcase(name, pattern)
