"""The `edit` tool: replaces a text of a file by another, and leaves every other byte as it is."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolError, ToolResult, refuse_mask
from tools._diff import unified_diff
from tools._files import (
    check_seen,
    file_errors,
    lock_of,
    name_of,
    not_found,
    read_whole,
    regular_file,
    showable,
    size_of,
    stamp,
)
from tools._match import Found, Place, find, nearest
from tools._text import decode, encode_kept, numbered_by
from tools._together import replace_file
from tools.write import write

BOM = "\ufeff"

MAX_NAMED = 100
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
    if not arguments.old_string:
        return await asyncio.to_thread(write, path, arguments.new_string, context, must_be_new=True)
    return await asyncio.to_thread(_edit, path, arguments, context)


def _edit(path: Path, arguments: Arguments, context: ToolContext) -> ToolResult:
    name = name_of(path, context.workspace)
    with lock_of(path), file_errors("edit", name):
        state = regular_file(path, name)
        if state is None:
            raise not_found(path, name)
        data = read_whole(path, state)
        check_seen(context, path, name, stamp(data, path))
        if data is None:
            raise ToolError(f"{name} has {size_of(state.st_size)}, too much for edit. Use bash (sed, python).")
        text = decode(data)
        found = find(text.body, arguments.old_string.removeprefix(BOM), arguments.new_string.removeprefix(BOM))
        places = _chosen(text.body, found, name, arguments)
        body = _replaced(text.body, places)
        if body == text.body:
            raise ToolError(f"{name} would not change: it has this text with its own line endings and indentation already.")
        changed = encode_kept(text, body, name)
        replace_file(path, changed, state, context.patch_notes)
        context.saw(path, stamp(changed, path))
    lines = _line_numbers(text.body, places)
    note = f" The text was found by ignoring differences in {found.ignored}." if found.ignored else ""
    where = f"1 place, line {lines}" if len(places) == 1 else f"{len(places)} places, lines {lines}"
    details = {"path": name, "diff": unified_diff(showable(text.body), showable(body), name)}
    return ToolResult(f"Edited {name}: {where}.{note}", details)


def _chosen(text: str, found: Found, name: str, arguments: Arguments) -> list[Place]:
    """The places to replace. Errors: ToolError when none or too many match."""
    places = found.places
    if not places:
        similar = showable(nearest(text, arguments.old_string))
        hint = f"The most similar lines are:\n{similar}" if similar else "No line is similar: read the file."
        raise ToolError(f"oldString is not in {name}; nothing was changed. {hint}")
    if len(places) > 1 and not (arguments.replace_all and found.is_exact):
        how = "" if found.is_exact else f" (ignoring differences in {found.ignored})"
        advice = "Add lines around it to oldString" + (", or set replaceAll." if found.is_exact else ", exactly as they are in the file.")
        count = f"at least {len(places)}" if found.is_cut else f"{len(places)}"
        raise ToolError(f"oldString is {count} times in {name}{how}, at lines {_line_numbers(text, places)}; nothing was changed. {advice}")
    if found.is_cut:
        raise ToolError(f"oldString is in {name} too often; nothing was changed. Use bash (sed).")
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
    end = numbered_by(text)
    numbers = [str(text.count(end, 0, place.start) + 1) for place in places[:MAX_NAMED]]
    return ", ".join(numbers) + (", ..." if len(places) > MAX_NAMED else "")


TOOL = Tool(
    name="edit",
    description=(
        "Replaces oldString by newString in a file that was read before. oldString must be in it exactly once (or set replaceAll): "
        "copy it from read without the line numbers, with its indentation, and with enough lines around it to be unique. "
        "Where nothing matches the file stays as it is."
    ),
    arguments=Arguments,
    run=run,
)
