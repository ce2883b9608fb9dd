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


class _Place(msgspec.Struct, frozen=True):
    """Where a patch names a file: the `real` path, and as it is `named`: the link itself, where that is one."""

    real: Path
    named: Path


class _Step(msgspec.Struct, frozen=True):
    """A change with the places of its files."""

    change: Change
    place: _Place
    target: _Place | None


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
    return _Step(change, _place(change.path, context), _place(change.target, context) if change.target is not None else None)


def _place(path: str, context: ToolContext) -> _Place:
    real = context.resolve(path, write=True)
    head, name = os.path.split(path)
    named = context.resolve(head or ".", write=True) / name if name not in ("", ".", "..") else real
    return _Place(real, named if named.is_symlink() else real)


def _apply(steps: Sequence[_Step], context: ToolContext) -> ToolResult:
    places = [place for step in steps for place in (step.place, step.target) if place is not None]
    with locks_of({path for place in places for path in (place.real, place.named)}):
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
        path = self._path(step.place)
        takes_away = step.change.kind == "delete" or step.target is not None
        name = name_of(step.place.named if takes_away else path, self._workspace)
        with file_errors("patch", name):
            if step.change.kind == "add":
                self._add(step.change, path, name)
            elif step.change.kind == "delete":
                self._delete(step.place, path, name)
            else:
                self._update(step, path, name)

    def _path(self, place: _Place) -> Path:
        """The file that is written at a place. Where the steps so far removed a link, nothing leads to its target any more."""
        return place.named if place.named in self.files else place.real

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

    def _existing(self, path: Path, name: str) -> tuple[bytes, os.stat_result | None]:
        seen = self._seen(path, name)
        if seen.data is None and path in self.files:
            raise ToolError(f"{name} is removed or moved earlier in the patch; nothing was changed.")
        if seen.data is None:
            raise not_found(path, name)
        return seen.data, seen.state

    def _add(self, change: Change, path: Path, name: str) -> None:
        seen = self._seen(path, name)
        text = "".join(f"{line}\n" for line in change.lines)
        data = text.encode() if seen.data is None else encode_replacing(decode(seen.data), text)
        self._put(path, data, seen.state)
        self._tell("A", seen.data, data, name)

    def _delete(self, place: _Place, path: Path, name: str) -> None:
        if place.named.is_symlink() and place.named not in self.files:
            self.files[place.named] = None
            self.told.append(f"D {name}")
            return
        old, _ = self._existing(path, name)
        self.files[path] = None
        self._tell("D", old, None, name)

    def _update(self, step: _Step, path: Path, name: str) -> None:
        old, state = self._existing(path, name)
        data = old
        if step.change.hunks:
            text = decode(old)
            data = encode_kept(text, apply_hunks(text, step.change.hunks, name), name)
        target = self._path(step.target) if step.target is not None else path
        if target == path:
            self._put(path, data, state)
            self._tell("M", old, data, name)
            return
        new_name = name_of(target, self._workspace)
        self._seen(target, new_name)  # which refuses a folder
        self.files[step.place.named] = None
        self._put(target, data, state)
        self._tell("M", old, data, name, new_name)

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
