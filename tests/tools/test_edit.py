import asyncio
import contextlib
import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools import MASK, ToolContext, ToolError, ToolResult
from tools._files import MAX_WHOLE
from tools.edit import TOOL
from tools.read import TOOL as READ


async def edit(context: ToolContext, path: str, old: str, new: str, **arguments: object) -> ToolResult:
    """Edits a file, having read it."""
    with contextlib.suppress(ToolError):
        await READ.run(READ.parse(json.dumps({"filePath": path})), context)
    return await TOOL.run(TOOL.parse(json.dumps({"filePath": path, "oldString": old, "newString": new, **arguments})), context)


async def test_the_one_place_is_replaced_and_the_change_is_in_the_log(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.py").write_text("a = 1\nb = 2\n")
    result = await edit(context, "a.py", "b = 2", "b = 3")
    assert (workspace / "a.py").read_text() == "a = 1\nb = 3\n"
    assert result.content == "Edited a.py: 1 place, line 2."
    assert result.details == {"path": "a.py", "diff": "--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n a = 1\n-b = 2\n+b = 3\n"}


async def test_several_places_are_an_error_with_their_lines(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.py").write_text("x\ny\nx\n")
    with pytest.raises(ToolError, match=r"2 times in a\.py, at lines 1, 3; nothing was changed.*replaceAll"):
        await edit(context, "a.py", "x", "z")
    result = await edit(context, "a.py", "x", "z", replaceAll=True)
    assert result.content == "Edited a.py: 2 places, lines 1, 3."
    assert (workspace / "a.py").read_text() == "z\ny\nz\n"


@pytest.mark.parametrize(("data", "lines"), [(b"x\ry\rx\r", "1, 3"), (b"x\ry\nx\n", "1, 2")])
async def test_lines_are_numbered_as_read_numbers_them(context: ToolContext, workspace: Path, data: bytes, lines: str) -> None:
    (workspace / "a").write_bytes(data)
    with pytest.raises(ToolError, match=f"at lines {lines};"):
        await edit(context, "a", "x", "z")


async def test_places_that_overlap_are_several(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("aaa")
    with pytest.raises(ToolError, match="2 times"):
        await edit(context, "a", "aa", "b")
    await edit(context, "a", "aa", "b", replaceAll=True)
    assert (workspace / "a").read_text() == "ba"


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        pytest.param(b"a\r\nb\r\nc\r\n", "a\nb", "a\nx\nb", b"a\r\nx\r\nb\r\nc\r\n", id="line endings"),
        pytest.param(b"a\r\nb\r\n", "\nb", "\n\nb", b"a\r\n\r\nb\r\n", id="line ending at the beginning"),
        pytest.param(b"a\r\nb\r\n", "a", "a\nx", b"a\r\nx\r\nb\r\n", id="new lines take the file's ending"),
        pytest.param(b"a\nb\nc\r\nd\r\n", "c\nd", "c\nx\nd", b"a\nb\nc\r\nx\r\nd\r\n", id="mixed endings"),
        pytest.param(b"a\nb\n", "a\r\nb", "a\r\nx\r\nb", b"a\nx\nb\n", id="returns in the call only"),
        pytest.param(b"a  \nb\t\nc\n", "a\nb\nc", "x\ny", b"x\ny\n", id="trailing space in the file"),
        pytest.param(b"a\nb\nab\n", "a  \nb  ", "x\ny", b"x\ny\nab\n", id="trailing space in the call"),
        pytest.param("say(“hi”)\n".encode(), 'say("hi")', "shout()", b"shout()\n", id="quotes"),
        pytest.param("a\u00a0— b…\n".encode(), "a - b...", "c", b"c\n", id="spaces, dashes and ellipses"),
        pytest.param(
            b"def f():\n        a\n\n        b\n",
            "    a\n\n    b",
            "    c\n\n      d",
            b"def f():\n        c\n\n          d\n",
            id="more indentation",
        ),
        pytest.param(b"if x:\n  a\n  b\n", "      a\n      b\n", "      c\n", b"if x:\n  c\n", id="less indentation"),
        pytest.param(b"if x:\n\ta\n\t\tb\n", "    a\n    \tb", "    c\n    \td", b"if x:\n\tc\n\t\td\n", id="tabs for spaces"),
        pytest.param(b"  if x:\n    a\n", "if x:\n  a", "  if y:\n    b", b"  if y:\n    b\n", id="new text has the file's indentation"),
        pytest.param(
            b"  if x:\n    a\n", "      if x:\n        a", "      if x:\n    b", b"  if x:\nb\n", id="shallower lines stop at the margin"
        ),
        pytest.param(b"\xef\xbb\xbfa\nb\n", "a\nb", "c", b"\xef\xbb\xbfc\n", id="byte order mark"),
        pytest.param(b"\xef\xbb\xbfa\n", "\ufeffa", "c", b"\xef\xbb\xbfc\n", id="byte order mark in the call"),
        pytest.param(b"caf\xe9\na = 1\n\xff\xfe", "a = 1", "é = 2", b"caf\xe9\n\xe9 = 2\n\xff\xfe", id="Latin-1"),
        pytest.param(b"caf\xe9\na = \xc3\xa9", "a =", "é =", b"caf\xe9\n\xc3\xa9 = \xc3\xa9", id="bytes that are not UTF-8"),
        pytest.param("\ufeffa\r\né\r\n".encode("utf-16-le"), "a\né", "é\n", "\ufeffé\r\n\r\n".encode("utf-16-le"), id="UTF-16"),
        pytest.param(b"a\rb\rc\r", "a\nb", "x\ny\nz", b"x\ry\rz\rc\r", id="bare returns"),
        pytest.param(b"a\r\nb\nc\rd", "a\nb\nc\nd", "x", b"x", id="several endings in one place"),
        pytest.param(b"x\r  a\r    b\r", "a\n  b", "c\n  d", b"x\r  c\r    d\r", id="indentation after bare returns"),
        pytest.param("a\u3000\u2003\nb\n".encode(), "a\nb", "c", b"c\n", id="trailing typographic spaces"),
        pytest.param("‘a’ ‹ ―\n".encode(), "'a' ‹ -", "c", b"c\n", id="single quotes and bars"),
        pytest.param("\tsay(“a”)  \r\n\tb\r\n".encode(), 'say("a")\nb', "c\nd", b"\tc\r\n\td\r\n", id="all of these together"),
        pytest.param(b"a\0b\nc", "b\nc", "d", b"a\0d", id="NUL bytes and no final line ending"),
    ],
)
async def test_harmless_differences_are_forgiven(
    context: ToolContext, workspace: Path, before: bytes, old: str, new: str, after: bytes
) -> None:
    (workspace / "a").write_bytes(before)
    await edit(context, "a", old, new)
    assert (workspace / "a").read_bytes() == after


async def test_what_was_forgiven_is_told(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("\tone\n\ttwo\n")
    result = await edit(context, "a", "one\ntwo", "1\n2")
    assert result.content == "Edited a: 1 place, line 1. The text was found by ignoring differences in indentation."


@pytest.mark.parametrize(
    ("before", "old"),
    [
        pytest.param("a \nb\na  \nb\n", "a\nb", id="trailing space"),
        pytest.param("“a”\n”a“\n", '"a"', id="quotes"),
        pytest.param("  a\n  b\n\ta\n\tb\n", "a\nb\n", id="indentation"),
    ],
)
async def test_forgiving_never_chooses_among_several_places(context: ToolContext, workspace: Path, before: str, old: str) -> None:
    (workspace / "a").write_text(before)
    for replace_all in (False, True):
        with pytest.raises(ToolError, match=r"2 times in a \(ignoring differences in"):
            await edit(context, "a", old, "new", replaceAll=replace_all)
    assert (workspace / "a").read_text() == before


async def test_an_exact_place_is_taken_before_similar_ones(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("“a”\n\"a\"\n  'a'\n")
    await edit(context, "a", '"a"', "b")
    assert (workspace / "a").read_text() == "“a”\nb\n  'a'\n"


async def test_all_places_with_windows_line_endings_can_be_replaced(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_bytes(b"a\r\nb\r\n" * 2)
    await edit(context, "a", "a\nb\n", "c\nd\n", replaceAll=True)
    assert (workspace / "a").read_bytes() == b"c\r\nd\r\n" * 2


@pytest.mark.parametrize(
    ("before", "old"),
    [
        pytest.param("  a\n    b\n", "a\nb\n", id="relative indentation"),
        pytest.param("a b", "a  b", id="space inside of a line"),
        pytest.param("returned", "return ", id="space at the end of a part of a line"),
        pytest.param("colour = 1\n", "color = 1\n", id="spelling"),
        pytest.param("a\n", "a\n\n", id="more lines than there are"),
        pytest.param("a\n\n\nb", " \n ", id="only white space"),
    ],
)
async def test_anything_else_leaves_the_file_as_it_is(context: ToolContext, workspace: Path, before: str, old: str) -> None:
    (workspace / "a").write_text(before)
    with pytest.raises(ToolError, match="oldString is not in a; nothing was changed"):
        await edit(context, "a", old, "new")
    assert (workspace / "a").read_text() == before


async def test_the_most_similar_lines_are_shown(context: ToolContext, workspace: Path) -> None:
    (workspace / "a.py").write_bytes(b"import os\r\n\r\ndef compute(first, second):\r\n    return first + second  # caf\xe9\r\n")
    with pytest.raises(ToolError) as error:
        await edit(context, "a.py", "def compute(a, second):\n    return a + second", "")
    assert str(error.value).endswith("similar lines are:\n3: def compute(first, second):\n4:     return first + second  # café")
    with pytest.raises(ToolError, match="No line is similar: read the file"):
        await edit(context, "a.py", "????????", "")


async def test_an_empty_old_string_creates_a_file_but_never_replaces_one(context: ToolContext, workspace: Path) -> None:
    result = await edit(context, "new/a.txt", "", "text")
    assert (workspace / "new/a.txt").read_text() == "text"
    assert result.content == "Created new/a.txt (4 bytes)."
    (workspace / "empty").touch()
    for path in ("new/a.txt", "empty"):
        with pytest.raises(ToolError, match="exists"):
            await edit(context, path, "", "other")


async def test_an_edit_without_a_change_is_an_error(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_bytes(b"a\r\n")
    with pytest.raises(ToolError, match="the same"):
        await edit(context, "a", "a", "a")
    with pytest.raises(ToolError, match="would not change"):
        await edit(context, "a", "a\r\n", "a\n")


async def test_missing_files_folders_and_huge_files_are_refused(context: ToolContext, workspace: Path) -> None:
    (workspace / "main.py").touch()
    with (workspace / "huge").open("wb") as file:
        file.truncate(MAX_WHOLE + 1)
    with pytest.raises(ToolError, match=r"mian\.py does not exist\. Did you mean, in the same folder: main\.py\?"):
        await edit(context, "mian.py", "a", "b")
    with pytest.raises(ToolError, match="is a folder"):
        await edit(context, ".", "a", "b")
    with pytest.raises(ToolError, match="too much for edit"):
        await edit(context, "huge", "a", "b")


async def test_characters_that_the_encoding_does_not_have_are_refused(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_bytes(b"caf\xe9\n")
    with pytest.raises(ToolError, match="a is in latin-1, which has no '“'; nothing was changed"):
        await edit(context, "a", "café", "“café”")
    assert (workspace / "a").read_bytes() == b"caf\xe9\n"


async def test_a_new_text_with_the_mask_is_refused(context: ToolContext, workspace: Path) -> None:
    (workspace / ".env").write_text("KEY=value\n")
    with pytest.raises(ToolError, match="stands for a secret"):
        await edit(context, ".env", "KEY=", f"KEY={MASK}")


async def test_mode_bits_and_symlinks_are_kept(context: ToolContext, workspace: Path) -> None:
    (workspace / "run.sh").write_text("old")
    (workspace / "run.sh").chmod(0o755)
    (workspace / "link").symlink_to("run.sh")
    await edit(context, "link", "old", "new")
    assert (workspace / "link").is_symlink()
    assert (workspace / "run.sh").read_text() == "new"
    assert (workspace / "run.sh").stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(workspace)) == ["link", "run.sh"]


async def test_edits_of_one_file_at_the_same_time_are_all_kept(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("".join(f"<{n}>\n" for n in range(40)))
    await asyncio.gather(*(edit(context, "a", f"<{n}>", f"[{n}]") for n in range(40)))
    assert (workspace / "a").read_text() == "".join(f"[{n}]\n" for n in range(40))


BYTES = st.lists(st.sampled_from([b"a", b"b", b" ", b"\n", b"\r\n", b"\xe9", b"\x80", "é".encode(), "“".encode(), b"\t"]), max_size=40).map(
    b"".join
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(before=BYTES, after=BYTES, mark=st.sampled_from([b"", b"\xef\xbb\xbf"]), new=st.sampled_from(["", "é", "1\n2", "1\r\n2"]))
async def test_an_edit_changes_nothing_but_what_was_asked(
    context: ToolContext, workspace: Path, before: bytes, after: bytes, mark: bytes, new: str
) -> None:
    before = mark + before
    (workspace / "a").write_bytes(before + b"OLD" + after)
    await edit(context, "a", "OLD", new)
    written = (workspace / "a").read_bytes()
    assert written.startswith(before)
    assert written.endswith(after)
    whole = before + after
    is_latin = not re.search("[^\0-\x7f\udc80-\udcff]", whole.decode("utf-8", "surrogateescape")) and not whole.isascii()
    text = written[len(before) : len(written) - len(after)].decode("latin-1" if is_latin else "utf-8")
    mostly_returns = (before + after).count(b"\r\n") * 2 > (before + after).count(b"\n")
    assert text == new.replace("\r\n", "\n").replace("\n", "\r\n" if mostly_returns else "\n")


LINE = st.sampled_from(["one", "  two", "\tthree", "“four” — 4", "", "    five", "café"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    block=st.lists(LINE, min_size=1, max_size=5).filter(any),
    indentation=st.sampled_from(["", "  ", "\t"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    trailing=st.sampled_from(["", "  "]),
)
async def test_a_block_that_the_model_saw_otherwise_is_replaced_alone(
    context: ToolContext, workspace: Path, block: list[str], indentation: str, newline: str, trailing: str
) -> None:
    head, tail = b"HEAD\xe9\r\n" * 2, b"TAIL\xff\n"
    lines = [indentation + line + trailing if line else "" for line in block]
    (workspace / "a").write_bytes(head + newline.join(["<<", *lines, ">>", ""]).encode() + tail)
    seen = "\n".join(
        ["<<", *(indentation + line.replace("“", '"').replace("”", '"').replace("—", "-") if line else "" for line in block), ">>"]
    )
    await edit(context, "a", seen, "new")
    assert (workspace / "a").read_bytes() == head + b"new" + newline.encode() + tail


@pytest.mark.parametrize("number", ["1", "{n}"])
async def test_a_search_in_a_large_file_does_not_take_long(context: ToolContext, workspace: Path, number: str) -> None:
    (workspace / "a").write_text("".join(f"        value = compute({number.format(n=n)})   \n" for n in range(30_000)))
    start = time.process_time()
    with pytest.raises(ToolError, match="most similar"):
        await edit(context, "a", "value = compute(1)\nvalue = compute(values)\n", "")
    assert time.process_time() - start < 10


async def test_a_text_that_is_very_often_in_the_file_is_an_error_with_lines(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("x\n" * 200_000)
    with pytest.raises(ToolError, match=r"at least 100000 times in a, at lines 1, 2, 3, .*, 100, \.\.\.; nothing was changed"):
        await edit(context, "a", "x", "y")
    with pytest.raises(ToolError, match=r"too often; nothing was changed"):
        await edit(context, "a", "x", "y", replaceAll=True)
    assert (workspace / "a").read_text() == "x\n" * 200_000


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
async def test_a_long_text_that_overlaps_with_itself_is_sought_in_time(context: ToolContext, workspace: Path, ending: str) -> None:
    (workspace / "a").write_bytes(("a" + ending).encode() * 500_000)
    start = time.process_time()
    with pytest.raises(ToolError, match=r"at least \d+ times"):
        await edit(context, "a", "a\n" * 50_000, "b")
    assert time.process_time() - start < 10


@pytest.mark.parametrize("old", ["a \n" * 3_000 + "b", "a \n" * 3_000 + "a", "b \n" + "a \n" * 3_000, "\ta\n" * 3_000])
async def test_lines_that_repeat_are_sought_in_time(context: ToolContext, workspace: Path, old: str) -> None:
    (workspace / "a").write_text("a\n" * 200_000)
    start = time.process_time()
    with pytest.raises(ToolError, match="nothing was changed"):
        await edit(context, "a", old, "")
    assert time.process_time() - start < 10
