"""The `list` tool: the files of a folder as a tree. Symbolic links and empty folders are left out: `read` shows them."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolError, ToolResult
from tools._files import name_of
from tools._ripgrep import MAX_LISTED, check, folder_to_search, paths_of, ripgrep

MAX_ENTRIES = 200
"""Files and folders shown. What is deeper is only counted."""


class Arguments(msgspec.Struct, frozen=True):
    path: Annotated[str | None, msgspec.Meta(description="Folder to list (default: the workspace).")] = None
    ignore: Annotated[Sequence[str] | None, msgspec.Meta(description="Patterns of files and folders to leave out, such as *.svg.")] = None


class _Folder(msgspec.Struct):
    """A folder of the tree; `count` is the number of files below it. Only an open one shows what is in it."""

    folders: dict[str, "_Folder"] = msgspec.field(default_factory=dict)
    files: list[str] = msgspec.field(default_factory=list)
    count: int = 0
    is_open: bool = False


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    root = folder_to_search(arguments.path, context)
    name = name_of(root, context.workspace)
    if not root.is_dir():
        raise ToolError(f"{name} is not a folder.")
    ignored = ["node_modules", *(arguments.ignore or [])]
    options = ["--files", "--null", "--sort=path", *(f"--glob=!{pattern.removeprefix('!')}" for pattern in ignored)]
    result = await ripgrep(context, options, root, limit=MAX_LISTED)
    paths = await asyncio.to_thread(paths_of, result, root)
    notes = check(result, found=bool(paths))
    if not paths:
        return ToolResult("\n".join([f"{name} has no files (or only ignored ones).", *notes]), {"count": 0, "truncated": bool(notes)})
    tree, is_cut = await asyncio.to_thread(_tree, paths)
    if is_cut:
        notes.insert(0, f"({len(paths)} files in all. Folders with a number of files are not opened: list them.)")
    return ToolResult("\n".join([f"{name}/", *tree, *notes]), {"count": len(paths), "truncated": is_cut or bool(notes)})


def _tree(paths: Iterable[str]) -> tuple[list[str], bool]:
    """The indented lines, and whether they leave something out."""
    root = _Folder()
    for path in paths:
        _add(root, path)
    is_cut = not _open(root)
    lines = list(_lines(root, "  "))
    if len(lines) > MAX_ENTRIES:
        lines = [*lines[:MAX_ENTRIES], f"  ... ({len(lines) - MAX_ENTRIES} more entries)"]
    return lines, is_cut


def _add(folder: _Folder, path: str) -> None:
    *parents, name = path.split("/")
    folder.count += 1
    for parent in parents:
        folder = folder.folders.setdefault(parent, _Folder())
        folder.count += 1
    folder.files.append(name)


def _open(root: _Folder) -> bool:
    """Opens folders, the shallowest first, while what is in them fits; gives whether all did."""
    root.is_open = is_whole = True
    room = MAX_ENTRIES - len(root.folders) - len(root.files)
    waiting = deque(root.folders.values())
    while waiting:
        folder = waiting.popleft()
        size = len(folder.folders) + len(folder.files)
        if size <= room:
            room -= size
            folder.is_open = True
            waiting.extend(folder.folders.values())
        else:
            is_whole = False
    return is_whole and room >= 0


def _lines(folder: _Folder, indent: str) -> Iterator[str]:
    for name, child in sorted(folder.folders.items()):
        yield f"{indent}{name}/" + ("" if child.is_open else f" ({child.count} file{'s' * (child.count != 1)})")
        if child.is_open:
            yield from _lines(child, indent + "  ")
    for name in sorted(folder.files):
        yield indent + name


TOOL = Tool(
    name="list",
    description=(
        "Shows the files below a folder as a tree, about 200 entries; deeper folders are shown with their number of files. "
        "Leaves out .git, node_modules and what .gitignore excludes."
    ),
    arguments=Arguments,
    run=run,
    read_only=True,
)
