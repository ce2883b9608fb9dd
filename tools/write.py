"""The `write` tool: a whole file, new or replaced."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolError, ToolResult, refuse_mask
from tools._diff import unified_diff
from tools._files import MAX_WHOLE, file_errors, lock_of, name_of, regular_file, replace_file, size_of


class Arguments(msgspec.Struct, frozen=True, rename="camel"):
    file_path: Annotated[str, msgspec.Meta(description="File, absolute or relative to the workspace.")]
    content: Annotated[str, msgspec.Meta(description="The whole new text of the file.")]


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    refuse_mask(arguments.content)
    path = context.resolve(arguments.file_path, write=True)
    return await asyncio.to_thread(write, path, name_of(path, context.workspace), arguments.content)


def write(path: Path, name: str, content: str, *, must_be_new: bool = False) -> ToolResult:
    """Writes the file. It blocks: for a thread."""
    data = content.encode()
    with lock_of(path), file_errors("write", name):
        state = regular_file(path, name)
        if must_be_new and state is not None:
            raise ToolError(f"{name} exists. To change a part of it, give that part as oldString; to replace it, use write.")
        has_diff = state is None or state.st_size <= MAX_WHOLE
        old = path.read_bytes().decode("utf-8", "replace") if state is not None and has_diff else None
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, state)
    verb = "Created" if state is None else "Overwrote"
    diff = unified_diff(old, content, name) if has_diff else ""
    return ToolResult(f"{verb} {name} ({size_of(len(data))}).", {"path": name, "diff": diff})


TOOL = Tool(
    name="write",
    description=(
        "Writes a whole file, and the folders it needs; what was in it is gone. To change a part of a file, use edit. "
        "Write new files only where the task needs them."
    ),
    arguments=Arguments,
    run=run,
)
