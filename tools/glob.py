"""The `glob` tool: files whose path matches a pattern, the newest first."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from tools import CommandResult, Tool, ToolContext, ToolError, ToolResult
from tools._files import name_of
from tools._pattern import Pattern, parse_pattern, split_folder
from tools._ripgrep import MAX_LISTED, MAX_RESULTS, check, folder_to_search, paths_of, ripgrep


class Arguments(msgspec.Struct, frozen=True):
    pattern: Annotated[str, msgspec.Meta(min_length=1, description="Such as *.py (in any folder), src/**/*.{ts,tsx} or docs/*.md.")]
    path: Annotated[str | None, msgspec.Meta(description="Folder to search (default: the workspace).")] = None


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    prefix, rest = split_folder(arguments.pattern)
    root = folder_to_search(str(Path(arguments.path or ".", prefix)), context)
    if not root.is_dir():
        raise ToolError(f"{name_of(root, context.workspace)} is not a folder.")
    pattern = parse_pattern(rest)
    # Sorted by ripgrep, the newest come first and are kept when the output is cut.
    result = await ripgrep(context, ["--files", "--null", "--sortr=modified", *pattern.ripgrep_options()], root, limit=MAX_LISTED)
    found = await asyncio.to_thread(_matching, result, pattern, root)
    notes = check(result, found=bool(found))
    if len(found) > MAX_RESULTS:
        notes.insert(0, f"(showing {MAX_RESULTS} of {len(found)} files, the newest; narrow the pattern to see others)")
    names = [name_of(root / path, context.workspace) for path in found[:MAX_RESULTS]]
    content = "\n".join([*(names or [f"No file matches {arguments.pattern}."]), *notes])
    return ToolResult(content, {"count": len(found), "truncated": len(found) > len(names) or bool(notes)})


def _matching(result: CommandResult, pattern: Pattern, root: Path) -> list[str]:
    return [path for path in paths_of(result, root) if pattern.matches(path)]


TOOL = Tool(
    name="glob",
    description=(
        "Finds files by their path, the newest first, at most 100. Sees hidden files, but not .git nor what .gitignore excludes, "
        "unless path or the pattern begins with an excluded folder."
    ),
    arguments=Arguments,
    run=run,
    read_only=True,
)
