"""The `apply_patch` tool: changes of several files in one patch, of which all are made or none.

A patch brings its own context, so its files need not have been read before.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolError, ToolResult, refuse_mask
from tools._diff import MAX_DIFF, unified_diff
from tools._files import MAX_WHOLE, file_errors, locks_of, name_of, not_found, read_whole, regular_file, showable, size_of, stamp
from tools._patch import Change, apply_hunks, parse
from tools._text import decode, encode_kept, encode_replacing
from tools._together import NewFile, NotTakenBack, replace_together

MAX_TOTAL = 64 << 20
"""Bytes of all files of a patch, as they are: they are in memory together."""


class Arguments(msgspec.Struct, frozen=True, rename="camel"):
    patch_text: Annotated[str, msgspec.Meta(description="The whole patch, from *** Begin Patch to *** End Patch.")]


class _Step(msgspec.Struct, frozen=True):
    """A change with the real paths of its files. `place` is where its file is named: the link itself, where that is one."""

    change: Change
    path: Path
    place: Path
    target: Path | None


class _Seen(msgspec.Struct):
    """A file as it is, or as the steps so far leave it: `data` is None when nothing is there."""

    data: bytes | None
    state: os.stat_result | None


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    changes = parse(arguments.patch_text)
    for change in changes:
        refuse_mask("\n".join([*change.lines, *(line for hunk in change.hunks for mark, line in hunk.lines if mark == "+")]))
    return await asyncio.to_thread(_apply, [_resolved(change, context) for change in changes], context)


def _resolved(change: Change, context: ToolContext) -> _Step:
    path = context.resolve(change.path, write=True)
    target = context.resolve(change.target, write=True) if change.target is not None else None
    head, name = os.path.split(change.path)
    place = context.resolve(head or ".", write=True) / name if name not in ("", ".", "..") else path
    return _Step(change, path, place if place.is_symlink() else path, None if target == path else target)


def _apply(steps: Sequence[_Step], context: ToolContext) -> ToolResult:
    paths = {path for step in steps for path in (step.path, step.place, step.target) if path is not None}
    with locks_of(paths):
        work = _Work(context)
        for step in steps:
            work.take(step)
        names = [name_of(path, context.workspace) for path in work.files]
        try:
            replace_together(work.files, context.patch_notes)
        except NotTakenBack as error:
            text = f"Error: the patch was applied only in part, look at its files: {showable(str(error))}."
            return ToolResult(text, {"paths": names}, is_error=True)
        except OSError as error:
            raise ToolError(f"The patch cannot be applied; nothing was changed: {showable(str(error))}.") from error
        for path, new in work.files.items():
            context.saw(path, stamp(new.data, path) if new is not None else None)
    details = {"paths": names, "diff": _joined(work.diffs)}
    return ToolResult("\n".join(["Applied the patch:", *work.told]), details)


def _joined(diffs: Sequence[str]) -> str:
    whole = "".join(diffs)
    return whole if len(whole) <= MAX_DIFF else whole[: whole.rfind("\n", 0, MAX_DIFF) + 1] + "[the rest of the diff is left out]\n"


class _Work:
    """What a patch comes to: `files` as they are to be. Nothing is written."""

    def __init__(self, context: ToolContext) -> None:
        self.files: dict[Path, NewFile | None] = {}
        self.diffs: list[str] = []
        self.told: list[str] = []
        self._workspace = context.workspace
        self._size = 0

    def take(self, step: _Step) -> None:
        """Takes the next change in. Errors: ToolError when it cannot be made."""
        name = name_of(step.place if step.change.kind == "delete" else step.path, self._workspace)
        with file_errors("patch", name):
            if step.change.kind == "add":
                self._add(step, name)
            elif step.change.kind == "delete":
                self._delete(step, name)
            else:
                self._update(step, name)

    def _seen(self, path: Path, name: str) -> _Seen:
        if path in self.files:
            new = self.files[path]
            return _Seen(new.data if new else None, new.like if new else None)
        state = regular_file(path, name)
        data = read_whole(path, state) if state is not None else None
        if state is not None and data is None:
            raise ToolError(f"{name} has {size_of(state.st_size)}, more than {size_of(MAX_WHOLE)}; nothing was changed. Use bash.")
        self._size += len(data or b"")
        if self._size > MAX_TOTAL:
            raise ToolError(f"The patch's files have more than {size_of(MAX_TOTAL)}; nothing was changed. Apply it in parts.")
        return _Seen(data, state)

    def _add(self, step: _Step, name: str) -> None:
        seen = self._seen(step.path, name)
        text = "".join(f"{line}\n" for line in step.change.lines)
        data = text.encode() if seen.data is None else encode_replacing(decode(seen.data), text)
        self._put(step.path, data, seen.state)
        self._tell("A", seen.data, data, name)

    def _delete(self, step: _Step, name: str) -> None:
        if step.place.is_symlink() and step.place not in self.files:
            self.files[step.place] = None
            self.told.append(f"D {name}")
            return
        seen = self._seen(step.path, name)
        if seen.data is None:
            raise not_found(step.path, name)
        self.files[step.path] = None
        self._tell("D", seen.data, None, name)

    def _update(self, step: _Step, name: str) -> None:
        seen = self._seen(step.path, name)
        if seen.data is None:
            raise not_found(step.path, name)
        data = seen.data
        if step.change.hunks:
            text = decode(seen.data)
            data = encode_kept(text, apply_hunks(text, step.change.hunks, name), name)
        if step.target is None:
            self._put(step.path, data, seen.state)
            self._tell("M", seen.data, data, name)
            return
        new_name = name_of(step.target, self._workspace)
        self._seen(step.target, new_name)  # which refuses a folder
        self.files[step.place] = None
        self._put(step.target, data, seen.state)
        self._tell("M", seen.data, data, name, new_name)

    def _put(self, path: Path, data: bytes, like: os.stat_result | None) -> None:
        self.files[path] = NewFile(data, like)

    def _tell(self, mark: str, old: bytes | None, new: bytes | None, name: str, new_name: str | None = None) -> None:
        self.told.append(f"{mark} {new_name} (was {name})" if new_name else f"{mark} {name}")
        self.diffs.append(unified_diff(_shown(old), _shown(new), name, new_name))


def _shown(data: bytes | None) -> str | None:
    return None if data is None else showable(decode(data).body)


TOOL = Tool(
    name="apply_patch",
    description=(
        "Changes several files at once: all of the patch is applied, or nothing. Files need not be read before.\n"
        "*** Begin Patch\n*** Add File: new.py\n+each line with a plus\n*** Update File: old.py\n*** Move to: renamed.py\n"
        "@@ def f():\n kept line\n-removed\n+added\n*** Delete File: gone.py\n*** End Patch\n"
        "An update has hunks in the file's order: @@, optionally with a whole line that stands before it, then about 3 kept lines "
        "around each change. Move to is optional. `*** End of File` after a hunk ties it to the end. An added file replaces an old one."
    ),
    arguments=Arguments,
    run=run,
)
