"""The `grep` tool: lines that match a regular expression, by file, the newest files first."""

import asyncio
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated

import msgspec

from tools import MAX_BYTES, CommandResult, Tool, ToolContext, ToolResult
from tools._files import name_of
from tools._pattern import Pattern, parse_pattern
from tools._ripgrep import MAX_RESULTS, check, folder_to_search, ripgrep

MAX_OUTPUT = 1 << 20
"""Bytes of matches taken from ripgrep."""

MAX_SHOWN = MAX_BYTES - 1024
"""Bytes of matches shown: what is told of them has room in the result, too."""

MAX_OF_FILE = 1_000
"""Matches taken of one file: a log must not hide all others."""

_OPTIONS = (
    "--null",  # after each path: a path may have colons and line feeds
    "--line-number",
    "--with-filename",
    "--no-heading",
    "--threads=8",  # not for the processors: a cold disk gives many files as fast as one
    "--crlf",
    "--max-columns=2000",
    "--max-columns-preview",
    f"--max-count={MAX_OF_FILE}",
)

_BINARY = re.compile(
    r"\A.*: (?:WARNING: stopped searching binary file after match|binary file matches) \(found [^\n]*\)\n",
    re.DOTALL,
)
"""What ripgrep prints after the matches of a binary file, before the next path."""


class Arguments(msgspec.Struct, frozen=True):
    pattern: Annotated[str, msgspec.Meta(min_length=1, description="Regular expression (Rust syntax), matched line by line.")]
    path: Annotated[str | None, msgspec.Meta(description="File or folder to search (default: the workspace).")] = None
    include: Annotated[str | None, msgspec.Meta(description="Only files that match, such as *.py or src/**/*.{ts,tsx}.")] = None


class _Match(msgspec.Struct, frozen=True):
    path: str
    number: str
    text: str


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    root = folder_to_search(arguments.path, context)
    include = parse_pattern(arguments.include) if arguments.include and root.is_dir() else None
    options = [*_OPTIONS, *(include.ripgrep_options() if include else []), f"--regexp={arguments.pattern}"]
    result = await ripgrep(context, options, root, limit=MAX_OUTPUT)
    folder = root if root.is_dir() else root.parent
    matches = await asyncio.to_thread(_wanted, result, include, folder)
    notes = check(result, found=bool(matches))
    shown = _fitting(matches)
    if len(shown) < len(matches):
        total = f"{len(matches)}{' or more' if len(matches) >= MAX_OF_FILE else ''}"
        notes.insert(0, f"(showing {len(shown)} of {total} matches, in the newest files; narrow the search to see others)")
    if not matches:
        notes.insert(0, "Only binary files match." if _BINARY.match(result.output) else f"No match for {arguments.pattern}.")
    groups = groupby(shown, key=lambda match: match.path)
    blocks = [f"{name_of(folder / path, context.workspace)}:\n{_lines(list(group))}\n" for path, group in groups]
    return ToolResult("\n".join([*blocks, *notes]).removesuffix("\n"), {"count": len(matches), "truncated": len(shown) < len(matches)})


def _wanted(result: CommandResult, include: Pattern | None, folder: Path) -> list[_Match]:
    """The matches in files that are wanted, those of the newest file first."""
    matches = [match for match in _parsed(result.output) if include is None or include.matches(match.path)]
    modified = {path: _modified(folder / path) for path in {match.path for match in matches}}
    # Where the output is cut, two halves make a match in a file that does not exist.
    existing = [match for match in matches if modified[match.path] or not result.truncated]
    return sorted(existing, key=lambda match: (-modified[match.path], match.path))


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _parsed(output: str) -> Iterator[_Match]:
    path, *rest = output.split("\0")
    for piece in rest:
        line, _, next_path = piece.partition("\n")
        number, _, text = line.partition(":")
        if number.isdigit():
            yield _Match(_BINARY.sub("", path).removeprefix("./"), number, text.removesuffix("\r"))
        path = next_path


def _fitting(matches: list[_Match]) -> list[_Match]:
    size = 0
    for index, match in enumerate(matches[:MAX_RESULTS]):
        size += len(match.path.encode()) + len(match.text.encode())
        if size > MAX_SHOWN:
            return matches[:index]
    return matches[:MAX_RESULTS]


def _lines(matches: list[_Match]) -> str:
    return "\n".join(f"  {match.number}: {match.text}" for match in matches)


TOOL = Tool(
    name="grep",
    description=(
        "Searches the contents of files, and gives matching lines with their numbers by file, the newest files first, at most 100 lines. "
        "Sees hidden files, but not .git nor what .gitignore excludes, unless path is an excluded folder."
    ),
    arguments=Arguments,
    run=run,
    read_only=True,
)
