import json
from pathlib import Path

import pytest

from tools import ToolContext, ToolError, ToolResult
from tools.list import TOOL


async def list_(context: ToolContext, **arguments: object) -> ToolResult:
    return await TOOL.run(TOOL.parse(json.dumps(arguments)), context)


def make(workspace: Path, *names: str) -> None:
    for name in names:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).touch()


async def test_files_are_shown_as_a_tree_folders_first(context: ToolContext, workspace: Path) -> None:
    make(workspace, "b.txt", "a.txt", "src/main.py", "src/inner/x\ny.py", ".hidden")
    result = await list_(context)
    assert result.content == "./\n  src/\n    inner/\n      x\ny.py\n    main.py\n  .hidden\n  a.txt\n  b.txt"
    assert result.details == {"count": 5, "truncated": False}
    assert (await list_(context, path="src/inner")).content == "src/inner/\n  x\ny.py"


async def test_ignored_files_are_left_out(context: ToolContext, workspace: Path) -> None:
    make(workspace, "a.py", ".git/config", "node_modules/x.js", "sub/node_modules/x.js", "out/a.o", "a.svg", "-n")
    (workspace / ".gitignore").write_text("out/\n")
    assert (await list_(context, ignore=["*.svg", "!.gitignore", "-n"])).content == "./\n  a.py"


async def test_a_folder_without_files_is_called_so(context: ToolContext) -> None:
    assert (await list_(context)).content == ". has no files (or only ignored ones)."


async def test_what_does_not_fit_is_counted_the_deepest_first(context: ToolContext, workspace: Path) -> None:
    make(workspace, *(f"big/{n:03}" for n in range(190)), *(f"small/deep/{n}" for n in range(9)), "small/file", "top")
    lines = (await list_(context)).content.split("\n")
    assert lines[0:2] == ["./", "  big/"]
    assert lines[-5:] == [
        "  small/",
        "    deep/ (9 files)",
        "    file",
        "  top",
        "(201 files in all. Folders with a number of files are not opened: list them.)",
    ]


async def test_a_folder_with_too_many_entries_is_cut(context: ToolContext, workspace: Path) -> None:
    make(workspace, *(f"{n:03}" for n in range(250)), "sub/file")
    result = await list_(context)
    assert result.content.split("\n")[1:3] == ["  sub/ (1 file)", "  000"]
    assert result.content.endswith(
        "  198\n  ... (51 more entries)\n(251 files in all. Folders with a number of files are not opened: list them.)"
    )
    assert result.details == {"count": 251, "truncated": True}


async def test_files_missing_folders_and_bad_patterns_are_errors(context: ToolContext, workspace: Path) -> None:
    make(workspace, "src/a.py")
    with pytest.raises(ToolError, match=r"src/a\.py is not a folder"):
        await list_(context, path="src/a.py")
    with pytest.raises(ToolError, match=r"scr does not exist\. Did you mean, in the same folder: src\?"):
        await list_(context, path="scr")
    with pytest.raises(ToolError, match="unclosed"):
        await list_(context, ignore=["{a"])
