"""Files must have been read before they are changed, and be as they were then."""

import json
from pathlib import Path

import pytest

from tools import Tool, ToolContext, ToolError, ToolResult
from tools._files import MAX_WHOLE
from tools.apply_patch import TOOL as APPLY_PATCH
from tools.edit import TOOL as EDIT
from tools.grep import TOOL as GREP
from tools.read import TOOL as READ
from tools.write import TOOL as WRITE

PATCH = "*** Begin Patch\n*** Update File: a\n@@\n-{}\n+{}\n*** End Patch"
CHANGES = [
    pytest.param(EDIT, {"filePath": "a", "oldString": "o", "newString": "x"}, id="edit"),
    pytest.param(WRITE, {"filePath": "a", "content": "x"}, id="write"),
]


async def call(tool: Tool, context: ToolContext, **arguments: object) -> ToolResult:
    return await tool.run(tool.parse(json.dumps(arguments)), context)


@pytest.mark.parametrize(("tool", "arguments"), CHANGES)
async def test_a_file_that_was_not_read_is_not_changed(
    context: ToolContext, workspace: Path, tool: Tool, arguments: dict[str, str]
) -> None:
    (workspace / "a").write_text("one\n")
    await call(GREP, context, pattern="one")
    with pytest.raises(ToolError, match=r"a has not been read in this session; nothing was changed\. Read it first"):
        await call(tool, context, **arguments)
    assert (workspace / "a").read_text() == "one\n"
    await call(READ, context, filePath="a", offset=1, limit=1)
    await call(tool, context, **arguments)
    assert (workspace / "a").read_text() != "one\n"


@pytest.mark.parametrize(("tool", "arguments"), CHANGES)
@pytest.mark.parametrize("now", ["two\n", "one \n", ""])
async def test_a_file_that_changed_since_is_not_changed_until_it_is_read_again(
    context: ToolContext, workspace: Path, tool: Tool, arguments: dict[str, str], now: str
) -> None:
    (workspace / "a").write_text("one\n")
    await call(READ, context, filePath="a")
    (workspace / "a").write_text(now)
    with pytest.raises(ToolError, match=r"a has changed on disk since it was last read; nothing was changed\. Read it again"):
        await call(tool, context, **arguments)
    assert (workspace / "a").read_text() == now


async def test_a_file_that_was_only_touched_is_as_it_was(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("one\n")
    await call(READ, context, filePath="a")
    (workspace / "a").write_text("two\n")
    (workspace / "a").write_text("one\n")
    await call(EDIT, context, filePath="a", oldString="one", newString="two")


async def test_what_was_written_needs_no_reading(context: ToolContext, workspace: Path) -> None:
    await call(WRITE, context, filePath="a", content="one\n")
    await call(EDIT, context, filePath="a", oldString="one", newString="two")
    await call(APPLY_PATCH, context, patchText=PATCH.format("two", "three"))
    await call(EDIT, context, filePath="a", oldString="three", newString="four")
    await call(WRITE, context, filePath="a", content="five\n")
    await call(EDIT, context, filePath="b", oldString="", newString="one\n")
    await call(EDIT, context, filePath="b", oldString="one", newString="two")
    assert [(workspace / name).read_text() for name in "ab"] == ["five\n", "two\n"]


async def test_a_patch_needs_no_reading_and_what_it_moved_or_added_is_known(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("one\n")
    patch = (
        "*** Begin Patch\n*** Update File: a\n*** Move to: b\n@@\n-one\n+two\n*** Add File: c\n+three\n"
        "*** Add File: d\n+d\n*** Delete File: d\n*** End Patch"
    )
    await call(APPLY_PATCH, context, patchText=patch)
    for name, old in (("b", "two"), ("c", "three")):
        await call(EDIT, context, filePath=name, oldString=old, newString="x")
    for name in "ad":
        (workspace / name).write_text("again")
        with pytest.raises(ToolError, match="has not been read"):
            await call(WRITE, context, filePath=name, content="")


async def test_a_file_is_known_by_each_of_its_names(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("one\n")
    (workspace / "link").symlink_to("a")
    await call(READ, context, filePath="link")
    await call(EDIT, context, filePath=str(workspace / "a"), oldString="one", newString="two")
    await call(EDIT, context, filePath="./link", oldString="two", newString="three")
    assert (workspace / "a").read_text() == "three\n"


async def test_what_cannot_be_shown_may_be_replaced_once_that_was_told(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_bytes(b"\0\1\2")
    with pytest.raises(ToolError, match="not a text file"):
        await call(READ, context, filePath="a")
    await call(WRITE, context, filePath="a", content="x")


async def test_a_huge_file_is_known_by_its_size_and_time(context: ToolContext, workspace: Path) -> None:
    with (workspace / "a").open("wb") as file:
        file.write(b"x\n")
        file.truncate(MAX_WHOLE + 1)
    with pytest.raises(ToolError, match="not a text file"):
        await call(READ, context, filePath="a")
    with (workspace / "a").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ToolError, match="changed on disk"):
        await call(WRITE, context, filePath="a", content="x")
    with pytest.raises(ToolError, match="not a text file"):
        await call(READ, context, filePath="a")
    await call(WRITE, context, filePath="a", content="x" * (MAX_WHOLE + 1))
    await call(WRITE, context, filePath="a", content="x")
