"""The `write` tool: a whole file, new or replaced."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolError, ToolResult, refuse_mask
from tools._diff import unified_diff
from tools._files import (
    check_seen,
    file_errors,
    folders_of,
    lock_of,
    name_of,
    read_whole,
    regular_file,
    showable,
    size_of,
    stamp,
)
from tools._text import decode, encode_replacing
from tools._together import replace_file


class Arguments(msgspec.Struct, frozen=True, rename="camel"):
    file_path: Annotated[str, msgspec.Meta(description="File, absolute or relative to the workspace.")]
    content: Annotated[str, msgspec.Meta(description="The whole new text of the file.")]


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    refuse_mask(arguments.content)
    path = context.resolve(arguments.file_path, write=True)
    return await asyncio.to_thread(write, path, arguments.content, context)


def write(path: Path, content: str, context: ToolContext, *, must_be_new: bool = False) -> ToolResult:
    """Writes the file. It blocks: for a thread."""
    name = name_of(path, context.workspace)
    with lock_of(path), file_errors("write", name):
        state = regular_file(path, name)
        if must_be_new and state is not None:
            raise ToolError(f"{name} exists. To change a part of it, give that part as oldString; to replace it, use write.")
        old = read_whole(path, state) if state is not None else None
        if state is not None:
            check_seen(context, path, name, stamp(old, path))
        data = content.encode() if old is None else encode_replacing(decode(old), content)
        with folders_of(path):
            replace_file(path, data, state, context.patch_notes)
        context.saw(path, stamp(data, path))
    verb = "Created" if state is None else "Overwrote"
    return ToolResult(f"{verb} {name} ({size_of(len(data))}).", {"path": name, "diff": _diff(old, data, name, is_new=state is None)})


def _diff(old: bytes | None, data: bytes, name: str, *, is_new: bool) -> str:
    if old is None and not is_new:
        return ""  # it was too large to be compared
    return unified_diff(None if old is None else showable(decode(old).body), showable(decode(data).body), name)


TOOL = Tool(
    name="write",
    description=(
        "Writes a whole file, and the folders it needs; what was in it is gone. A file that exists must have been read before. "
        "To change a part of a file, use edit. Write new files only where the task needs them."
    ),
    arguments=Arguments,
    run=run,
)
