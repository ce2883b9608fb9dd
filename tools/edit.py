"""The `edit` tool: replaces a text of a file by another, and leaves every other byte as it is."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolError, ToolResult, refuse_mask
from tools._diff import unified_diff
from tools._files import MAX_WHOLE, file_errors, lock_of, name_of, not_found, regular_file, replace_file, showable, size_of
from tools._match import MAX_PLACES, Found, Place, find, nearest
from tools.write import write

BOM = "\ufeff"

MAX_NAMED = 10
"""Line numbers named when several places match."""


class Arguments(msgspec.Struct, frozen=True, rename="camel"):
    file_path: Annotated[str, msgspec.Meta(description="File, absolute or relative to the workspace.")]
    old_string: Annotated[str, msgspec.Meta(description="Text to replace, as it stands in the file. Empty: create the file.")]
    new_string: Annotated[str, msgspec.Meta(description="Text to put in its place.")]
    replace_all: Annotated[bool | None, msgspec.Meta(description="Replace every occurrence (default false).")] = None


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    refuse_mask(arguments.new_string)
    if arguments.old_string == arguments.new_string:
        raise ToolError("oldString and newString are the same: there is nothing to change.")
    path = context.resolve(arguments.file_path, write=True)
    name = name_of(path, context.workspace)
    if not arguments.old_string:
        return await asyncio.to_thread(write, path, name, arguments.new_string, must_be_new=True)
    return await asyncio.to_thread(_edit, path, name, arguments)


def _edit(path: Path, name: str, arguments: Arguments) -> ToolResult:
    with lock_of(path), file_errors("edit", name):
        state = regular_file(path, name)
        if state is None:
            raise not_found(path, name)
        if state.st_size > MAX_WHOLE:
            raise ToolError(f"{name} has {size_of(state.st_size)}, too much for edit. Use bash (sed, python).")
        data = path.read_bytes()
        # Bytes that are not UTF-8 become surrogates here and the same bytes again when written.
        text = data.decode("utf-8", "surrogateescape")
        mark = BOM if text.startswith(BOM) else ""
        body = text[len(mark) :]
        found = find(body, arguments.old_string.removeprefix(BOM), arguments.new_string.removeprefix(BOM))
        places = _chosen(body, found, name, arguments)
        changed = mark + _replaced(body, places)
        if changed == text:
            raise ToolError(f"{name} would not change: it has this text with its own line endings and indentation already.")
        replace_file(path, changed.encode("utf-8", "surrogateescape"), state)
    lines = _line_numbers(body, places)
    note = f" The text was found by ignoring differences in {found.ignored}." if found.ignored else ""
    where = f"1 place, line {lines}" if len(places) == 1 else f"{len(places)} places, lines {lines}"
    details = {"path": name, "diff": unified_diff(showable(text), showable(changed), name)}
    return ToolResult(f"Edited {name}: {where}.{note}", details)


def _chosen(text: str, found: Found, name: str, arguments: Arguments) -> list[Place]:
    """The places to replace. Errors: ToolError when none or too many match."""
    places = found.places
    if not places:
        similar = showable(nearest(text, arguments.old_string))
        hint = f"The most similar lines are:\n{similar}" if similar else "No line is similar: read the file."
        raise ToolError(f"oldString is not in {name}; nothing was changed. {hint}")
    if len(places) == MAX_PLACES:
        raise ToolError(f"oldString is in {name} too often; nothing was changed. Use bash (sed).")
    if len(places) > 1 and not (arguments.replace_all and found.is_exact):
        how = "" if found.is_exact else f" (ignoring differences in {found.ignored})"
        advice = "Add lines around it to oldString" + (", or set replaceAll." if found.is_exact else ", exactly as they are in the file.")
        raise ToolError(
            f"oldString is {len(places)} times in {name}{how}, at lines {_line_numbers(text, places)}; nothing was changed. {advice}"
        )
    return places


def _replaced(text: str, places: list[Place]) -> str:
    """The text with the places replaced; of two that overlap, only the first."""
    pieces, end = [], 0
    for place in places:
        if place.start >= end:
            pieces += [text[end : place.start], place.new]
            end = place.end
    return "".join([*pieces, text[end:]])


def _line_numbers(text: str, places: list[Place]) -> str:
    numbers = [str(text.count("\n", 0, place.start) + 1) for place in places[:MAX_NAMED]]
    return ", ".join(numbers) + (", ..." if len(places) > MAX_NAMED else "")


TOOL = Tool(
    name="edit",
    description=(
        "Replaces oldString by newString in a file. oldString must be in the file exactly once (or set replaceAll): "
        "copy it from read without the line numbers, with its indentation, and with enough lines around it to be unique. "
        "Where nothing matches the file stays as it is."
    ),
    arguments=Arguments,
    run=run,
)
