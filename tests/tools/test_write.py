import contextlib
import json
import os
from pathlib import Path

import pytest

from tests.tools.conftest import LocalContext
from tools import MASK, ToolContext, ToolError, ToolResult
from tools._files import MAX_WHOLE
from tools.read import TOOL as READ
from tools.write import TOOL


async def write(context: ToolContext, path: str, content: str) -> ToolResult:
    """Writes a file, having read it."""
    with contextlib.suppress(ToolError):
        await READ.run(READ.parse(json.dumps({"filePath": path})), context)
    return await TOOL.run(TOOL.parse(json.dumps({"filePath": path, "content": content})), context)


async def test_a_new_file_and_its_folders_are_made(context: ToolContext, workspace: Path) -> None:
    result = await write(context, "a/b/c.txt", "one\r\ntwo")
    assert (workspace / "a/b/c.txt").read_bytes() == b"one\r\ntwo"
    assert result.content == "Created a/b/c.txt (8 bytes)."
    assert result.details == {
        "path": "a/b/c.txt",
        "diff": "--- /dev/null\n+++ b/a/b/c.txt\n@@ -0,0 +1,2 @@\n+one\r\n+two\n\\ No newline at end of file\n",
    }


async def test_a_file_is_overwritten_and_the_change_is_in_the_log(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_text("one\ntwo\n")
    result = await write(context, "a.txt", "one\n2\n")
    assert result.content == "Overwrote a.txt (6 bytes)."
    assert result.details["diff"] == "--- a/a.txt\n+++ b/a.txt\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n"


async def test_mode_bits_are_kept_and_new_files_follow_the_umask(context: ToolContext, workspace: Path) -> None:
    script = workspace / "run.sh"
    script.write_text("old")
    script.chmod(0o751)
    await write(context, "run.sh", "new")
    assert script.stat().st_mode & 0o7777 == 0o751
    await write(context, "new.txt", "new")
    (workspace / "reference").touch()
    assert (workspace / "new.txt").stat().st_mode == (workspace / "reference").stat().st_mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_the_owner_is_kept(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").touch()
    os.chown(workspace / "a.txt", 1234, 1234)
    await write(context, "a.txt", "new")
    assert (workspace / "a.txt").stat().st_uid == 1234


async def test_a_symlink_stays_and_its_target_is_written(context: ToolContext, workspace: Path) -> None:
    (workspace / "target.txt").write_text("old")
    (workspace / "link.txt").symlink_to("target.txt")
    await write(context, "link.txt", "new")
    assert (workspace / "link.txt").is_symlink()
    assert (workspace / "target.txt").read_text() == "new"


async def test_a_text_with_the_mask_is_refused(context: ToolContext, workspace: Path) -> None:
    with pytest.raises(ToolError, match="stands for a secret"):
        await write(context, ".env", f"KEY={MASK}\n")
    assert not (workspace / ".env").exists()


async def test_folders_pipes_and_spilled_outputs_are_refused(context: ToolContext, workspace: Path) -> None:
    (workspace / "folder").mkdir()
    os.mkfifo(workspace / "pipe")
    with pytest.raises(ToolError, match="folder is a folder"):
        await write(context, "folder", "text")
    with pytest.raises(ToolError, match="not a regular file"):
        await write(context, "pipe", "text")
    with pytest.raises(ToolError, match="outside"):
        await write(context, str(context.spill_folder / "a.txt"), "text")


async def test_a_failed_write_is_told_and_leaves_nothing_behind(context: ToolContext, workspace: Path) -> None:
    (workspace / "file").write_text("text")
    with pytest.raises(ToolError, match="Cannot write file/inside"):
        await write(context, "file/inside", "text")
    with pytest.raises(ToolError, match="File name too long"):
        await write(context, "x" * 300, "text")
    assert [entry.name for entry in workspace.iterdir()] == ["file"]


async def test_a_write_that_a_full_disk_refuses_leaves_nothing_behind(small_disk: Path, context: ToolContext) -> None:
    there = LocalContext(small_disk, context.spill_folder, {})
    (small_disk / "kept").mkdir()
    with pytest.raises(ToolError, match=r"Cannot write kept/a/b/c: .*No space left"):
        await write(there, "kept/a/b/c", "x" * 5_000_000)
    assert [str(path.relative_to(small_disk)) for path in small_disk.rglob("*")] == ["kept"]


async def test_bytes_that_were_not_text_do_not_break_the_log(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_bytes("“".encode() + b"caf\xe9\n")
    result = await write(context, "a.txt", "“café\n")
    json.dumps(result.details, ensure_ascii=False).encode()
    assert "-“caf\ufffd\n+“café\n" in result.details["diff"]


@pytest.mark.parametrize(
    ("before", "content", "after"),
    [
        pytest.param(b"\xef\xbb\xbfa\n", "b\n", b"\xef\xbb\xbfb\n", id="byte order mark"),
        pytest.param(b"\xef\xbb\xbfa\n", "\ufeffb\n", b"\xef\xbb\xbfb\n", id="byte order mark in the call"),
        pytest.param(b"a\r\nb\r\n", "c\nd\n", b"c\r\nd\r\n", id="CRLF"),
        pytest.param(b"a\r\nb\r\n", "c\r\nd\n", b"c\r\nd\n", id="line endings in the call"),
        pytest.param(b"a\n", "c\r\nd\r\n", b"c\r\nd\r\n", id="line endings in the call only"),
        pytest.param(b"10%\r20%\r\n", "a\nb\n", b"a\nb\n", id="bare returns are no ending to keep"),
        pytest.param(b"\0\r\n", "a\nb\n", b"a\nb\n", id="binary"),
        pytest.param("\ufeffa\r\n".encode("utf-16-le"), "é\n", "\ufeffé\r\n".encode("utf-16-le"), id="UTF-16"),
        pytest.param(b"caf\xe9\n", "thé\n", b"th\xe9\n", id="Latin-1"),
        pytest.param(b"caf\xe9\n", "“thé”\n", "“thé”\n".encode(), id="more than Latin-1 has"),
    ],
)
async def test_mark_encoding_and_line_endings_are_kept(
    context: ToolContext, workspace: Path, before: bytes, content: str, after: bytes
) -> None:
    (workspace / "a.txt").write_bytes(before)
    await write(context, "a.txt", content)
    assert (workspace / "a.txt").read_bytes() == after


async def test_a_huge_old_file_is_replaced_without_a_diff(context: ToolContext, workspace: Path) -> None:
    with (workspace / "a.txt").open("wb") as file:
        file.truncate(MAX_WHOLE + 1)
    assert (await write(context, "a.txt", "small")).details["diff"] == ""
    assert (workspace / "a.txt").read_text() == "small"
