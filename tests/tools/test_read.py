import base64
import json
import os
import re
from pathlib import Path

import pytest

from tools import MAX_BYTES, Picture, ToolContext, ToolError, ToolResult
from tools._files import HIDDEN, MAX_WHOLE
from tools.read import MAX_IMAGE, TOOL


async def read(context: ToolContext, path: str, **arguments: object) -> ToolResult:
    return await TOOL.run(TOOL.parse(json.dumps({"filePath": path, **arguments})), context)


async def test_lines_are_numbered_and_the_end_is_told(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_text("one\ntwo\n")
    result = await read(context, "a.txt")
    assert result.content == "1: one\n2: two\n\n(End of file: 2 lines.)"
    assert result.details == {"path": "a.txt"}


async def test_offset_and_limit_choose_lines_and_the_next_offset_is_told(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_text("".join(f"line {n}\n" for n in range(1, 11)))
    result = await read(context, "a.txt", offset=3, limit=2)
    assert result.content == "3: line 3\n4: line 4\n\n(Lines 3 to 4. There is more: go on with offset=5.)"
    assert (await read(context, "a.txt", offset=9)).content == "9: line 9\n10: line 10\n\n(End of file: 10 lines.)"


async def test_offsets_as_text_zero_and_null_are_understood(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_text("one\ntwo")
    assert (await read(context, "a.txt", offset="2", limit=None)).content.startswith("2: two")
    assert (await read(context, "a.txt", offset=0)).content.startswith("1: one")


async def test_an_offset_past_the_end_is_an_error_that_tells_the_length(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(ToolError, match=r"offset 3 is past the end: a\.txt has 2 lines"):
        await read(context, "a.txt", offset=3)


async def test_at_most_2000_lines_are_shown(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_text("x\n" * 2_001)
    result = await read(context, "a.txt", limit=5_000)
    assert result.content.endswith("2000: x\n\n(Lines 1 to 2000. There is more: go on with offset=2001.)")


async def test_at_most_50_kilobytes_are_shown(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_text(("ä" * 1_000 + "\n") * 100)
    result = await read(context, "a.txt")
    assert len(result.content.encode()) <= MAX_BYTES
    assert (following := re.search(r"go on with offset=(\d+)", result.content))
    assert (await read(context, "a.txt", offset=int(following[1]))).content.startswith(f"{following[1]}: ä")


@pytest.mark.parametrize("length", [2_001, 64 * 1024 - 1, 64 * 1024, 300_000])
async def test_a_long_line_is_cut_and_the_next_line_keeps_its_number(context: ToolContext, workspace: Path, length: int) -> None:
    (workspace / "a.txt").write_text("é" * length + "\nnext\n")
    lines = (await read(context, "a.txt")).content.split("\n")
    assert lines[0] == "1: " + "é" * 2_000 + "... (cut at 2000 characters)"
    assert lines[1] == "2: next"
    assert lines[-1] == "(End of file: 2 lines.)"


async def test_a_huge_file_is_not_taken_into_memory(context: ToolContext, workspace: Path) -> None:
    with (workspace / "huge.txt").open("wb") as file:
        file.write(b"first\n" * 2_000)
        file.truncate(1 << 33)
    assert "go on with offset=3" in (await read(context, "huge.txt", limit=2)).content


async def test_windows_line_endings_and_the_byte_order_mark_are_not_shown(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert (await read(context, "a.txt")).content == "1: one\n2: two\n\n(End of file: 2 lines.)"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        pytest.param(b"one\rtwo\r\rthree", "1: one\n2: two\n3: \n4: three\n\n(End of file: 4 lines.)", id="where nothing else ends one"),
        pytest.param("\ufeffé\rb\r".encode("utf-16-le"), "1: é\n2: b\n\n(End of file: 2 lines.)", id="in UTF-16"),
        pytest.param(b"10 %\r20 %\ndone\n", "1: 10 %\r20 %\n2: done\n\n(End of file: 2 lines.)", id="not where grep counts line feeds"),
    ],
)
async def test_a_bare_return_ends_a_line(context: ToolContext, workspace: Path, data: bytes, shown: str) -> None:
    (workspace / "a.txt").write_bytes(data)
    assert (await read(context, "a.txt")).content.removesuffix(" (The file is in utf-16-le, and stays so.)") == shown


async def test_bytes_that_are_not_utf8_are_replaced_and_told(context: ToolContext, workspace: Path) -> None:
    (workspace / "mixed.txt").write_bytes(b"caf\xe9 \xe2\x80\x9cquoted\xe2\x80\x9d\n")
    assert (await read(context, "mixed.txt")).content == (
        "1: caf\ufffd “quoted”\n\n(End of file: 1 lines.) (Bytes that are not UTF-8 are shown as \ufffd.)"
    )


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("café\n".encode("latin-1"), "latin-1"),
        ("\ufeffcafé\n".encode("utf-16-le"), "utf-16-le"),
        ("\ufeffcafé\n".encode("utf-16-be"), "utf-16-be"),
    ],
)
async def test_other_encodings_are_shown_and_told(context: ToolContext, workspace: Path, data: bytes, encoding: str) -> None:
    (workspace / "other.txt").write_bytes(data)
    content = (await read(context, "other.txt")).content
    assert content == f"1: café\n\n(End of file: 1 lines.) (The file is in {encoding}, and stays so.)"


async def test_a_replacement_character_in_the_file_is_not_called_invalid(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").write_text("\ufffd\n")
    assert (await read(context, "a.txt")).content == "1: \ufffd\n\n(End of file: 1 lines.)"


async def test_an_empty_file_is_called_empty(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.txt").touch()
    assert (await read(context, "a.txt")).content == "(a.txt is empty.)"


@pytest.mark.parametrize(
    "data",
    [
        *(b"\x7fELF\0\0", b"a" * 8_000 + b"\0", bytes(range(1, 32)), b"%PDF-1.7\n%text", b"\0" + b"a" * 9_000_000),
        *("text\n".encode("utf-32"), b"\xff\xfe\0\0\1\2" * 50),
    ],
)
async def test_binary_files_are_refused(context: ToolContext, workspace: Path, data: bytes) -> None:
    (workspace / "a.bin").write_bytes(data)
    with pytest.raises(ToolError, match="is a binary file"):
        await read(context, "a.bin")


async def test_colours_in_a_log_do_not_make_it_binary(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.log").write_bytes(b"\x1b[1m!\x1b[0m\n" * 10)
    assert "(End of file: 10 lines.)" in (await read(context, "a.log")).content


async def test_a_missing_file_is_an_error_that_names_similar_ones(context: ToolContext, workspace: Path) -> None:
    for name in ("config.ts", "Config.test.ts", "other.md"):
        (workspace / name).touch()
    with pytest.raises(ToolError, match=r"config\.js does not exist\. Did you mean, in the same folder: config\.ts, Config\.test\.ts\?"):
        await read(context, "config.js")
    with pytest.raises(ToolError, match=r"does not exist\. Find it with glob"):
        await read(context, "no/such/folder")


async def test_a_folder_lists_its_entries(context: ToolContext, workspace: Path) -> None:
    (workspace / "src" / "inner").mkdir(parents=True)
    (workspace / "src" / "a.py").touch()
    (workspace / "src" / ".hidden").touch()
    assert (await read(context, "src")).content == ".hidden\na.py\ninner/\n\n(End of folder: 3 entries.)"
    assert (await read(context, "src", limit=1)).content == ".hidden\n\n(Entries 1 to 1. There is more: go on with offset=2.)"
    assert (await read(context, "src/inner")).content == "(src/inner is an empty folder.)"


async def test_a_folder_with_links_that_lead_nowhere_is_listed(context: ToolContext, workspace: Path) -> None:
    (workspace / "inner").mkdir()
    for name, target in (("loop", "loop"), ("gone", "nothing"), ("link", "inner")):
        (workspace / name).symlink_to(target)
    assert (await read(context, ".")).content == "gone\ninner/\nlink/\nloop\n\n(End of folder: 4 entries.)"


async def test_what_is_half_written_is_not_listed(context: ToolContext, workspace: Path) -> None:
    (workspace / f"{HIDDEN}0123").touch()
    assert (await read(context, ".")).content == "(. is an empty folder.)"


async def test_a_named_pipe_is_refused(context: ToolContext, workspace: Path) -> None:
    os.mkfifo(workspace / "pipe")
    with pytest.raises(ToolError, match="not a regular file"):
        await read(context, "pipe")


async def test_outside_of_the_workspace_is_refused_but_spilled_output_is_shown(context: ToolContext) -> None:
    (context.spill_folder / "output.txt").write_text("long")
    assert (await read(context, str(context.spill_folder / "output.txt"))).content.startswith("1: long")
    with pytest.raises(ToolError, match="outside"):
        await read(context, "../other")


async def test_unseen_instructions_are_appended_and_named(context: ToolContext, workspace: Path, instructions: dict[str, str]) -> None:
    (workspace / "a.txt").write_text("one")
    instructions["sub/AGENTS.md"] = "Use tabs."
    result = await read(context, "a.txt")
    assert result.content.endswith('<instructions file="sub/AGENTS.md">\nUse tabs.\n</instructions>')
    assert result.details["instructions"] == ["sub/AGENTS.md"]


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 20, "image/jpeg"),
        (b"GIF87a" + b"\0" * 20, "image/gif"),
        (b"GIF89a" + b"\0" * 20, "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + b"\0" * 20, "image/webp"),
    ],
)
async def test_an_image_is_attached_whatever_its_name(context: ToolContext, workspace: Path, data: bytes, kind: str) -> None:
    (workspace / "picture.txt").write_bytes(data)
    result = await read(context, "picture.txt")
    assert result.pictures == (Picture(kind, base64.b64encode(data).decode()),)
    assert result.content == f"picture.txt is an image ({kind}, {len(data)} bytes); it is attached."


@pytest.mark.parametrize("size", [MAX_IMAGE + 1, MAX_WHOLE + 1])
async def test_an_image_that_is_too_large_is_refused(context: ToolContext, workspace: Path, size: int) -> None:
    (workspace / "a.png").write_bytes(PNG)
    os.truncate(workspace / "a.png", size)
    with pytest.raises(ToolError, match=rf"a\.png is an image \(image/png\) of {size} bytes; at most 5242880 can be shown"):
        await read(context, "a.png")


async def test_an_svg_is_text(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.svg").write_text("<svg/>\n")
    result = await read(context, "a.svg")
    assert (result.pictures, result.content[:9]) == ((), "1: <svg/>")
