import asyncio
import difflib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tools import killed
from tests.tools.conftest import LocalContext
from tools import MASK, ToolContext, ToolError, ToolResult
from tools._files import MAX_WHOLE
from tools._text import NEWLINE
from tools._together import take_back_unfinished
from tools.apply_patch import TOOL


async def patch(context: ToolContext, *lines: str) -> ToolResult:
    return await apply(context, "\n".join(["*** Begin Patch", *lines, "*** End Patch"]))


async def apply(context: ToolContext, text: str) -> ToolResult:
    return await TOOL.run(TOOL.parse(json.dumps({"patchText": text})), context)


def contents(folder: Path) -> Mapping[str, bytes]:
    """The files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tree(folder: Path) -> Mapping[str, object]:
    """All that is in a folder, with modes: what must not have changed."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
        for path in folder.rglob("*")
    }


async def test_files_are_added_changed_moved_and_removed_together(context: ToolContext, workspace: Path) -> None:
    (workspace / "src").mkdir()
    (workspace / "src/a.py").write_text("def f():\n    pass\n")
    (workspace / "old.txt").write_text("old\n")
    (workspace / "b.py").write_text("one\n")
    result = await patch(
        context,
        *("*** Add File: deep/new.txt", "+first", "+", "+last"),
        *("*** Update File: src/a.py", "*** Move to: lib/c.py", "@@ def f():", "-    pass", "+    return 1"),
        *("*** Delete File: old.txt", "*** Update File: b.py", "-one", "+two"),
    )
    assert contents(workspace) == {
        "deep/new.txt": b"first\n\nlast\n",
        "lib/c.py": b"def f():\n    return 1\n",
        "b.py": b"two\n",
    }
    assert result.content == "Applied the patch:\nA deep/new.txt\nM lib/c.py (was src/a.py)\nD old.txt\nM b.py"
    assert result.details["paths"] == ["deep/new.txt", "src/a.py", "lib/c.py", "old.txt", "b.py"]
    assert result.details["diff"] == (
        "--- /dev/null\n+++ b/deep/new.txt\n@@ -0,0 +1,3 @@\n+first\n+\n+last\n"
        "--- a/src/a.py\n+++ b/lib/c.py\n@@ -1,2 +1,2 @@\n def f():\n-    pass\n+    return 1\n"
        "--- a/old.txt\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-old\n"
        "--- a/b.py\n+++ b/b.py\n@@ -1,1 +1,1 @@\n-one\n+two\n"
    )


UPDATES = [
    pytest.param("a\nb\nc\n", ["@@", " a", "-b", "+B", " c"], "a\nB\nc\n", id="one hunk"),
    pytest.param("a\nb\nc\nd\n", ["@@", "-b", "+B", "@@", "-d", "+D"], "a\nB\nc\nD\n", id="several hunks"),
    pytest.param("a\nb\n", [" a", "-b", "+B"], "a\nB\n", id="the first hunk without @@"),
    pytest.param("x\nd:\nx\n", ["@@ d:", "-x", "+y"], "x\nd:\ny\n", id="the line after @@ is sought first"),
    pytest.param("x\nd:\nx\n", ["@@  d: ", "-x", "+y"], "x\nd:\ny\n", id="white space after @@"),
    pytest.param("f\nx\nC\nf\nx\n", ["@@ C", "@@ f", "-x", "+y"], "f\nx\nC\nf\ny\n", id="several lines after @@"),
    pytest.param("x\nd:\ny\n", ["@@ d:", "+z"], "x\nd:\nz\ny\n", id="only new lines go after the line of @@"),
    pytest.param("x\n", ["@@", "+y", "+z"], "x\ny\nz\n", id="only new lines go to the end"),
    pytest.param("", ["@@", "+y"], "y\n", id="an empty file"),
    pytest.param("x\ny\nx\n", ["@@", "-x", "+z", "*** End of File"], "x\ny\nz\n", id="end of file"),
    pytest.param("x\ny\nx\n\n\n", ["@@", "-x", "+z", "*** End of File", ""], "x\ny\nz\n\n\n", id="end of file but for empty lines"),
    pytest.param("a\n", ["@@", "-a", "+b", "*** End of File", "*** Add File: other"], "b\n", id="a file after the end of file"),
    pytest.param("x\nx\nx\n", ["@@", "-x", "+1", "@@", "-x", "+2"], "1\n2\nx\n", id="each hunk after the one before"),
    pytest.param("a\nb\n", ["@@", "-a", "-b", "+b", "+b", "+a"], "b\nb\na\n", id="lines in the order of the patch"),
    pytest.param("a\n\nb\n", ["@@", " a", "", "-b", "+c"], "a\n\nc\n", id="an empty line of the patch is an empty line"),
    pytest.param("a\nb\n", ["@@", "-a", "+c", "", "@@", "-b", "+d", ""], "c\nd\n", id="empty lines between hunks"),
    pytest.param("a\nb\n", ["", "@@", "-a", "+c"], "c\nb\n", id="an empty line before the hunks"),
    pytest.param("a\n", ["@@", "-a", "-", "+b", "+"], "b\n", id="the end of the last line as an empty one"),
    pytest.param("a", ["@@", "-a", "+b"], "b\n", id="no line ending at the end"),
    pytest.param("a\nb", ["@@", "-a", "+c"], "c\nb\n", id="a last line without an ending gets one"),
    pytest.param("a\nb", ["@@", " b", "+c"], "a\nb\nc\n", id="a line after one without an ending"),
    pytest.param("a\nb\n", ["@@", "-a", "-b"], "", id="nothing is left"),
    pytest.param("a\r\nb\r\n", ["@@", " a", "+x", " b"], "a\r\nx\r\nb\r\n", id="CRLF"),
    pytest.param("a\r\nb\nc\r\nd\n", ["@@", " a", " b", "-c", "+C", "+D", " d"], "a\r\nb\nC\r\nD\r\nd\n", id="mixed endings"),
    pytest.param("a\nb\r\nc\r\n", ["@@", "-b", "+B"], "a\nB\nc\r\n", id="new lines take the first ending"),
    pytest.param("s\r\ns\n", ["@@", "-s", " s"], "s\n", id="a line that stays keeps its ending, not its neighbour's"),
    pytest.param("a\rb\rc", ["@@", "-b", "+x"], "a\rx\rc\r", id="bare returns"),
    pytest.param("a\rb\nc\r\n", ["@@", "-b", "+x", " c"], "a\rx\rc\r\n", id="all three endings"),
    pytest.param("a\rb\n", ["@@", "-a\rb", "+x\ry"], "x\ry\r", id="bare returns in the patch"),
    pytest.param("a  \nb\t\n", ["@@", " a", "-b", "+c"], "a  \nc\n", id="trailing space in the file"),
    pytest.param("a\nb\n", ["@@", " a  ", "-b\t", "+c"], "a\nc\n", id="trailing space in the patch"),
    pytest.param("    a\n\tb\n", ["@@", " a", "-b", "+    c"], "    a\n    c\n", id="space at both ends"),
    pytest.param("“a”\n– b\u00a0c…\n", ["@@", ' "a"', "-- b c...", "+x"], "“a”\nx\n", id="typographic characters"),
    pytest.param(" a\na \na\n", ["@@", "-a", "+x"], " a\na \nx\n", id="the strictest way wins over the first place"),
    pytest.param("\ufeffa\nb\n", ["@@", "-a", "+x"], "\ufeffx\nb\n", id="byte order mark"),
    pytest.param("*** End Patch\nx\n", ["@@", " *** End Patch", "-x", "+*** Add File: a"], "*** End Patch\n*** Add File: a\n", id="marks"),
    pytest.param("@@ a\nb\n", ["@@ @@ a", "-b", "+c"], "@@ a\nc\n", id="a line that looks like the beginning of a hunk"),
    pytest.param("x\x0cy\u2028z\nw\n", ["@@", "-w", "+v"], "x\x0cy\u2028z\nv\n", id="what ends a line only elsewhere"),
]


@pytest.mark.parametrize(("before", "hunks", "after"), UPDATES)
async def test_hunks_change_lines(context: ToolContext, workspace: Path, before: str, hunks: list[str], after: str) -> None:
    (workspace / "f").write_bytes(before.encode())
    await patch(context, "*** Update File: f", *hunks)
    assert (workspace / "f").read_bytes().decode() == after


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "must begin with", id="empty"),
        pytest.param("*** Update File: f", "must begin with", id="no beginning"),
        pytest.param("*** Begin Patch\n*** Delete File: f", "must end with", id="no end"),
        pytest.param("*** Begin Patch", "must end with", id="only a beginning"),
        pytest.param("*** Begin Patch\n*** Update File: f\n*** End Patch", r"Line 2 .* the update of f has no hunk", id="no hunk"),
        pytest.param("*** Begin Patch\n*** Update File: f\n@@\n*** End Patch", r"Line 3 .* has no lines", id="an empty hunk"),
        pytest.param("*** Begin Patch\n*** Update File:\n@@\n-a\n*** End Patch", r"Line 2 .* path is missing", id="no path"),
        pytest.param("*** Begin Patch\n*** Update File: f\n*** Move to: \n*** End Patch", r"Line 3 .* path is missing", id="no target"),
        pytest.param("*** Begin Patch\n*** Rename File: f\n*** End Patch", r"Line 2 .* begins with \*\*\* Add File:", id="unknown header"),
        pytest.param("*** Begin Patch\n*** Add File: g\nx\n*** End Patch", r"Line 3 .* begins with \+", id="an added line without +"),
        pytest.param("*** Begin Patch\n*** Delete File: f\n-a\n*** End Patch", r"Line 3 .* follows", id="lines of a removed file"),
        pytest.param("*** Begin Patch\n*** Update File: f\n@@\n-a\n!b\n*** End Patch", r"Line 5 .* a space, - or \+", id="an unknown mark"),
        pytest.param(
            "*** Begin Patch\n*** Update File: f\n@@\n-a\n*** End of File\n-b\n*** End Patch", r"Line 6 .* After", id="after the end"
        ),
        pytest.param(
            "*** Begin Patch\n*** Update File: f\n@@\n-a\n*** End Patch\n@@\n*** End Patch", r"Line 5 ", id="after the end of the patch"
        ),
        pytest.param("*** Begin Patch\n*** Update File: f\n@@\n-d\n+x\n*** End Patch", "does not fit", id="lines that are not there"),
        pytest.param("*** Begin Patch\n*** Update File: f\n@@ d\n-a\n+x\n*** End Patch", "the line after @@ is not in", id="no line of @@"),
        pytest.param("*** Begin Patch\n*** Update File: f\n@@ b\n-a\n+x\n*** End Patch", "does not fit", id="lines before that of @@"),
        pytest.param("*** Begin Patch\n*** Update File: f\n@@\n-b\n@@\n-a\n*** End Patch", "does not fit", id="hunks in another order"),
        pytest.param("*** Begin Patch\n*** Update File: f\n@@\n-a\n*** End of File\n*** End Patch", "at the end of", id="not at the end"),
        pytest.param("*** Begin Patch\n*** Update File: f\n@@\n-a\n-b\n-c\n-d\n*** End Patch", "does not fit", id="more than there is"),
        pytest.param("*** Begin Patch\n*** Update File: g\n@@\n-a\n*** End Patch", r"g does not exist", id="no such file"),
        pytest.param(
            "*** Begin Patch\n*** Delete File: ff\n*** End Patch", r"ff does not exist\. Did you mean.* f\?", id="nothing to remove"
        ),
        pytest.param("*** Begin Patch\n*** Delete File: folder\n*** End Patch", "is a folder", id="a folder to remove"),
        pytest.param("*** Begin Patch\n*** Add File: folder\n+a\n*** End Patch", "is a folder", id="a folder to replace"),
        pytest.param("*** Begin Patch\n*** Update File: f\n*** Move to: folder\n*** End Patch", "is a folder", id="a folder to move to"),
        pytest.param(
            "*** Begin Patch\n*** Add File: f/g\n+a\n*** End Patch", "Cannot patch f/g: .*Not a directory", id="a file as a folder"
        ),
        pytest.param("*** Begin Patch\n*** Add File: ../g\n+a\n*** End Patch", "outside", id="outside"),
        pytest.param("*** Begin Patch\n*** Update File: f\n*** Move to: /etc/g\n*** End Patch", "outside", id="moved outside"),
        pytest.param(f"*** Begin Patch\n*** Add File: g\n+{MASK}\n*** End Patch", "stands for a secret", id="a mask in an added file"),
        pytest.param(f"*** Begin Patch\n*** Update File: f\n@@\n-a\n+{MASK}\n*** End Patch", "stands for a secret", id="a mask in a hunk"),
        pytest.param("*** Begin Patch\n*** Update File: huge\n@@\n-a\n*** End Patch", "huge has 8192 KB", id="too large"),
    ],
)
async def test_what_cannot_be_applied_changes_nothing(context: ToolContext, workspace: Path, text: str, said: str) -> None:
    (workspace / "f").write_text("a\nb\nc\n")
    (workspace / "folder").mkdir()
    with (workspace / "huge").open("wb") as file:
        file.truncate(MAX_WHOLE + 1)
    before = tree(workspace)
    with pytest.raises(ToolError, match=said):
        await apply(context, text)
    assert tree(workspace) == before
    with pytest.raises(ToolError):
        await apply(context, text.replace("Patch\n", "Patch\n*** Add File: before/this\n+x\n*** Update File: f\n@@\n b\n+x\n", 1))
    assert tree(workspace) == before


async def test_a_patch_of_nothing_is_refused(context: ToolContext) -> None:
    with pytest.raises(ToolError, match="changes no file"):
        await patch(context)


async def test_a_hunk_that_does_not_fit_shows_the_nearest_lines(context: ToolContext, workspace: Path) -> None:
    (workspace / "f").write_text("import os\n\ndef compute(first, second):\n    return first\n")
    with pytest.raises(ToolError) as error:
        await patch(context, "*** Update File: f", "@@", "-def compute(a, second):", "-    return a", "+x")
    assert str(error.value) == (
        "f: the hunk at line 3 of the patch does not fit: its lines are not in the file, or not after the "
        "hunk before it; nothing was changed. The most similar lines are:\n3: def compute(first, second):\n4:     return first"
    )


@pytest.mark.parametrize(
    "text",
    [
        "<<EOF\n{}\nEOF",
        "<<'EOF'\n{}\nEOF\n",
        '<<"EOF"\n{}\nEOF',
        "apply_patch <<'PATCH'\n{}\nPATCH",
        "applypatch << 'PATCH'\n{}\nPATCH\n",
        "cat <<'EOF'\n{}\nEOF",
        "cat <<EOF | apply_patch\n{}\nEOF",
        "cd . && apply_patch <<'EOF'\n{}\nEOF\n",
        "\n\n  {}  \n\n",
        " {} ",
        "<<'EOF'\r\n{}\r\nEOF\r\n",
    ],
)
async def test_wrappers_around_a_patch_are_taken_off(context: ToolContext, workspace: Path, text: str) -> None:
    (workspace / "f").write_text("a\n")
    await apply(context, text.format("*** Begin Patch\n*** Update File: f\n@@\n-a\n+EOF\n*** End Patch"))
    assert (workspace / "f").read_text() == "EOF\n"


@pytest.mark.parametrize("text", ["<<EOF\n{}x", "cat <<EOF{}x", "cd {} && x"])
async def test_a_wrapper_without_an_end_is_refused_in_time(context: ToolContext, text: str) -> None:
    start = time.process_time()
    with pytest.raises(ToolError, match="must begin with"):
        await apply(context, text.format("\n" * 100_000))
    assert time.process_time() - start < 5  # some milliseconds; a minute where the end is looked for after each line


@pytest.mark.parametrize("folder", ["sub", "sub/", "'sub'", '"sub"'])
async def test_paths_are_relative_to_the_folder_of_the_wrapper(context: ToolContext, workspace: Path, folder: str) -> None:
    (workspace / "sub").mkdir()
    (workspace / "sub/f").write_text("a\n")
    text = f"*** Begin Patch\n*** Update File: f\n*** Move to: g\n*** Add File: {workspace}/h\n+h\n*** End Patch"
    await apply(context, f"cd {folder} && apply_patch <<'EOF'\n{text}\nEOF")
    assert sorted(tree(workspace)) == ["h", "sub", "sub/g"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
async def test_the_patchs_own_line_endings_do_not_matter(context: ToolContext, workspace: Path, ending: str) -> None:
    (workspace / "f").write_bytes(b"a\nb\r\n")
    lines = ["*** Begin Patch", "*** Update File: f", "@@", " a", "-b", "+c", "*** Add File: g", "+x", "+y", "*** End Patch", ""]
    await apply(context, ending.join(lines))
    assert (workspace / "f").read_bytes() == b"a\nc\n"
    assert (workspace / "g").read_bytes() == b"x\ny\n"


async def test_padded_headers_are_headers(context: ToolContext, workspace: Path) -> None:
    (workspace / "f").write_text("a\n")
    await apply(context, " *** Begin Patch \n  *** Add File:  g \n+x\n \t*** Update File: f  \n@@\n-a\n+b\n *** End Patch ")
    assert ((workspace / "g").read_text(), (workspace / "f").read_text()) == ("x\n", "b\n")


async def test_an_added_file_replaces_one_that_is_there(context: ToolContext, workspace: Path) -> None:
    (workspace / "f").write_text("old\nlines\n")
    (workspace / "f").chmod(0o755)
    (workspace / "link").symlink_to("g")
    (workspace / "g").write_bytes(b"\xef\xbb\xbfold\r\n")
    await patch(context, "*** Add File: f", "+new", "*** Add File: link", "+new", "*** Add File: empty")
    assert (workspace / "f").read_bytes() == b"new\n"
    assert (workspace / "f").stat().st_mode & 0o777 == 0o755
    assert (workspace / "link").is_symlink()
    assert (workspace / "g").read_bytes() == b"\xef\xbb\xbfnew\r\n"
    assert (workspace / "empty").read_bytes() == b""


@pytest.mark.parametrize("hunks", [[], ["@@", "-a", "+b"]])
async def test_a_moved_file_replaces_one_that_is_there(context: ToolContext, workspace: Path, hunks: list[str]) -> None:
    (workspace / "f").write_text("a\n")
    (workspace / "f").chmod(0o755)
    (workspace / "g").write_text("old\n")
    await patch(context, "*** Update File: f", "*** Move to: g", *hunks)
    assert tree(workspace) == {"g": (stat.S_IFREG | 0o755, b"b\n" if hunks else b"a\n")}


async def test_a_file_moved_as_it_is_may_be_binary(context: ToolContext, workspace: Path) -> None:
    (workspace / "f").write_bytes(b"\0\r\xff no end")
    await patch(context, "*** Update File: f", "*** Move to: f", "*** Update File: f", "*** Move to: g")
    assert (workspace / "g").read_bytes() == b"\0\r\xff no end"


async def test_changes_of_one_file_follow_each_other(context: ToolContext, workspace: Path) -> None:
    for name in "abc":
        (workspace / name).write_text(f"{name}\n")
    await patch(
        context,
        *("*** Update File: a", "@@", "-a", "+1", "*** Update File: a", "@@", "-1", "+2"),
        *("*** Delete File: b", "*** Add File: b", "+new", "*** Update File: b", "@@", " new", "+more"),
        *("*** Update File: c", "*** Move to: d", "*** Add File: c", "+c2", "*** Update File: d", "@@", "+d"),
        *("*** Add File: gone", "+x", "*** Delete File: gone"),
    )
    assert contents(workspace) == {
        "a": b"2\n",
        "b": b"new\nmore\n",
        "c": b"c2\n",
        "d": b"c\nd\n",
    }


@pytest.mark.parametrize("gone", [["*** Delete File: f"], ["*** Update File: f", "*** Move to: g"]])
@pytest.mark.parametrize("then", [["*** Delete File: f"], ["*** Update File: f", "@@", "-a", "+b"]])
async def test_a_file_that_the_patch_itself_took_away_is_told_so(
    context: ToolContext, workspace: Path, gone: list[str], then: list[str]
) -> None:
    (workspace / "f").write_text("a\n")
    with pytest.raises(ToolError, match=r"f is removed or moved earlier in the patch; nothing was changed"):
        await patch(context, *gone, *then)
    assert contents(workspace) == {"f": b"a\n"}


async def test_two_files_can_take_each_others_place(context: ToolContext, workspace: Path) -> None:
    for name in "ab":
        (workspace / name).write_text(f"{name}\n")
    moves = [("a", "t"), ("b", "a"), ("t", "b")]
    await patch(context, *(line for old, new in moves for line in (f"*** Update File: {old}", f"*** Move to: {new}")))
    assert [(workspace / name).read_text() for name in "ab"] == ["b\n", "a\n"]
    assert sorted(tree(workspace)) == ["a", "b"]


async def test_symlinks_are_written_through_but_removed_and_moved_themselves(context: ToolContext, workspace: Path) -> None:
    (workspace / "f").write_text("a\n")
    for name in ("changed", "gone", "moved"):
        (workspace / name).symlink_to("f")
    (workspace / "dangling").symlink_to("nothing")
    result = await patch(
        context,
        *("*** Update File: changed", "@@", "-a", "+b", "*** Delete File: gone", "*** Delete File: dangling"),
        *("*** Update File: moved", "*** Move to: copy", "@@", "-b", "+c"),
    )
    assert result.content == "Applied the patch:\nM f\nD gone\nD dangling\nM copy (was moved)"
    assert (workspace / "changed").is_symlink()
    assert (workspace / "f").read_text() == "b\n"
    assert (workspace / "copy").read_text() == "c\n"
    assert sorted(tree(workspace)) == ["changed", "copy", "f"]


@pytest.mark.parametrize(
    ("lines", "after"),
    [
        pytest.param(["*** Delete File: link", "*** Add File: link", "+new"], {"link": b"new\n", "f": b"f\n", "o": b"o\n"}, id="added"),
        pytest.param(
            ["*** Update File: link", "*** Move to: g", "*** Add File: link", "+new"],
            {"link": b"new\n", "g": b"f\n", "f": b"f\n", "o": b"o\n"},
            id="added after a move",
        ),
        pytest.param(
            ["*** Delete File: link", "*** Update File: o", "*** Move to: link", "@@", "-o", "+new"],
            {"link": b"new\n", "f": b"f\n"},
            id="moved there",
        ),
        pytest.param(["*** Delete File: link", "*** Delete File: link"], None, id="removed again"),
        pytest.param(["*** Delete File: link", "*** Update File: link", "@@", "-f", "+x"], None, id="updated"),
    ],
)
async def test_a_symlink_that_is_removed_no_longer_leads_to_its_target(
    context: ToolContext, workspace: Path, lines: list[str], after: Mapping[str, bytes] | None
) -> None:
    for name in "fo":
        (workspace / name).write_text(f"{name}\n")
    (workspace / "link").symlink_to("f")
    before = tree(workspace)
    if after is None:
        with pytest.raises(ToolError, match="link is removed or moved earlier in the patch"):
            await patch(context, *lines)
        assert tree(workspace) == before
    else:
        await patch(context, *lines)
        assert contents(workspace) == after
        assert not (workspace / "link").is_symlink()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"caf\xe9\nx\n", b"caf\xe9\n\xe9\n"),
        ("\ufeffa\r\nx\r\n".encode("utf-16-le"), "\ufeffa\r\né\r\n".encode("utf-16-le")),
        ("“".encode() + b"\xff\nx\n", "“".encode() + b"\xff\n\xc3\xa9\n"),
    ],
)
async def test_encodings_are_kept(context: ToolContext, workspace: Path, before: bytes, after: bytes) -> None:
    (workspace / "f").write_bytes(before)
    await patch(context, "*** Update File: f", "@@", "-x", "+é")
    assert (workspace / "f").read_bytes() == after


async def test_patches_at_the_same_time_are_all_kept_and_never_wait_for_each_other(context: ToolContext, workspace: Path) -> None:
    names = [f"{n}.txt" for n in range(12)]
    for name in names:
        (workspace / name).write_text("".join(f"<{n}>\n" for n in range(30)))

    def change(n: int) -> list[str]:
        order = names if n % 2 else names[::-1]
        return [line for name in order for line in (f"*** Update File: {name}", f"-<{n}>", f"+[{n}]")]

    await asyncio.gather(*(patch(context, *change(n)) for n in range(30)))
    assert {(workspace / name).read_text() for name in names} == {"".join(f"[{n}]\n" for n in range(30))}


@pytest.mark.parametrize("ends", [[], ["*** End of File"]])
@pytest.mark.parametrize("hunk", [["-a"] * 1_000 + ["-b"], ["-b"] + ["-a"] * 1_000, ["-a"] * 100 + [""] * 1_000 + ["-a"]])
async def test_a_hunk_of_lines_that_repeat_is_sought_in_time(
    context: ToolContext, workspace: Path, hunk: list[str], ends: list[str]
) -> None:
    (workspace / "f").write_text("a\n" * 200_000)
    start = time.process_time()
    with pytest.raises(ToolError, match="does not fit"):
        await patch(context, "*** Update File: f", "@@", *hunk, *ends)
    assert time.process_time() - start < 10


LINE = st.sampled_from(["a", "b", "", "  a", "\tb", "“q”", "*** End Patch", "@@ x", "-a", "+a", " ", "é", "a \u00a0"])
TEXT = st.lists(LINE, max_size=12)
ENDING = st.sampled_from(["\n", "\r\n", "\r"])


def as_patch(old: list[str], new: list[str], context_lines: int) -> list[str]:
    """The hunks of the difference of two lists of lines."""
    hunks = []
    for group in difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(context_lines):
        hunks.append("@@")
        for kind, a, b, c, d in group:
            if kind == "equal":
                hunks += [f" {line}" for line in old[a:b]]
            else:
                hunks += [f"-{line}" for line in old[a:b]] + [f"+{line}" for line in new[c:d]]
        if group[-1][2] == len(old):
            hunks.append("*** End of File")
    return hunks


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(old=TEXT, new=TEXT, ending=ENDING, is_ended=st.booleans())
async def test_the_difference_of_any_two_texts_makes_one_of_the_other(
    context: ToolContext, workspace: Path, old: list[str], new: list[str], ending: str, is_ended: bool
) -> None:
    text = "".join(line + ending for line in old)
    (workspace / "f").write_bytes((text if is_ended else text[: -len(ending)]).encode())
    kept = old if is_ended or not old or old[-1] else old[:-1]  # an empty line without an ending is none
    if not NEWLINE.search((workspace / "f").read_bytes().decode()):
        ending = "\n"
    hunks = as_patch(kept, new, 100)
    if hunks:
        await patch(context, "*** Update File: f", *hunks)
        assert (workspace / "f").read_bytes().decode() == "".join(line + ending for line in new)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(old=st.lists(st.integers(0, 10_000), unique=True, min_size=1, max_size=30), data=st.data())
async def test_small_hunks_find_their_places_among_lines_that_differ(
    context: ToolContext, workspace: Path, old: list[int], data: st.DataObject
) -> None:
    lines = [f"line {number}" for number in old]
    edits = data.draw(st.lists(st.tuples(st.integers(0, len(lines) - 1), st.sampled_from("+-=")), max_size=6))
    new = list(lines)
    for at, kind in edits:
        at = min(at, len(new) - 1)
        if at < 0 or kind == "+":
            new.insert(max(at, 0), "line x")
        elif kind == "-":
            del new[at]
        else:
            new[at] += "!"
    (workspace / "f").write_text("".join(f"{line}\n" for line in lines))
    hunks = as_patch(lines, new, 1)
    if hunks:
        await patch(context, "*** Update File: f", *hunks)
    assert (workspace / "f").read_text() == "".join(f"{line}\n" for line in new)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    files=st.dictionaries(st.sampled_from("abc"), st.binary(max_size=20)),
    lines=st.lists(
        st.sampled_from(
            [
                *("*** Add File: a", "*** Delete File: b", "*** Update File: a", "*** Update File: c", "*** Move to: d/e"),
                *("*** Add File: b/x", "@@", "@@ a", "+x", "-a", " a", "", "*** End of File", "\r", "garbage"),
            ]
        ),
        max_size=10,
    ),
)
async def test_whatever_a_patch_is_it_is_applied_or_leaves_every_byte_as_it_was(
    context: ToolContext, workspace: Path, files: dict[str, bytes], lines: list[str]
) -> None:
    os.system(f"find {workspace} -mindepth 1 -delete")
    for name, data in files.items():
        (workspace / name).write_bytes(data)
    before = tree(workspace)
    try:
        await patch(context, *lines, "*** Update File: missing", "@@", "-x")
    except ToolError:
        assert tree(workspace) == before
    else:
        raise AssertionError("the last file is not there")


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/usr/bin/chattr"), reason="nothing is refused to root without chattr")
async def test_when_a_file_cannot_be_written_those_before_are_put_back(context: ToolContext, workspace: Path) -> None:
    (workspace / "fixed").mkdir()
    for name in ("a", "b", "fixed/c"):
        (workspace / name).write_text("old\n")
    (workspace / "a").chmod(0o711)
    inode = (workspace / "a").stat().st_ino
    before = tree(workspace)
    freeze = f"chattr +i {workspace}/fixed/c" if os.geteuid() == 0 else f"chmod 555 {workspace}/fixed"
    if os.system(f"{freeze} 2>/dev/null"):
        pytest.skip("the file system cannot protect a file")
    try:
        for last in (["*** Update File: fixed/c", "@@", "-old", "+new"], ["*** Delete File: fixed/c"], ["*** Add File: fixed/c", "+x"]):
            with pytest.raises(ToolError, match="cannot be applied; nothing was changed"):
                await patch(
                    context,
                    *("*** Update File: a", "@@", "-old", "+new", "*** Add File: deep/er/new", "+x", "*** Delete File: b"),
                    *("*** Add File: new", "+x", *last),
                )
            assert tree(workspace) == before
            assert (workspace / "a").stat().st_ino == inode
    finally:
        os.system(f"chattr -i {workspace}/fixed/c 2>/dev/null; chmod 755 {workspace}/fixed")


async def test_a_full_disk_changes_nothing(small_disk: Path, context: ToolContext) -> None:
    there = LocalContext(small_disk, context.spill_folder, {})
    (small_disk / "a").write_text("old\n")
    (small_disk / "b").write_text("old\n")
    before = tree(small_disk)
    added = [f"+{'x' * 1000}"] * 5_000
    with pytest.raises(ToolError, match=r"nothing was changed: .*No space left"):
        await patch(there, "*** Update File: a", "@@", "-old", "+new", "*** Delete File: b", "*** Add File: deep/c", *added)
    assert tree(small_disk) == before


def test_a_kill_at_any_step_leaves_all_of_a_change_or_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.tools.killed", "several", tmp_path], check=True, capture_output=True, text=True)
    last = int(done.stdout)
    killed.prepare(tmp_path / "before")
    before, after = tree(tmp_path / "before"), tree(tmp_path / f"{last}/workspace")
    assert {name: (tmp_path / f"{last}/workspace" / name).read_text() for name in ("a", "d/b", "made/deep/c", "same")} == {
        "a": "new a\n",
        "d/b": "new b\n",
        "made/deep/c": "new c\n",
        "same": "old same\n",
    }
    left, torn = [], 0
    for number in range(1, last):
        workspace = tmp_path / f"{number}/workspace"
        torn += (workspace / "a").read_text() == "new a\n" and (workspace / "d/b").read_text() == "old d/b\n"
        take_back_unfinished(tmp_path / f"{number}/patches")
        left.append(tree(workspace))
        assert not list((tmp_path / f"{number}/patches").iterdir())
    made = left.index(after)
    assert torn > 2
    assert all(each == before for each in left[:made])
    assert all(each == after for each in left[made:])


def test_a_kill_at_any_step_leaves_one_file_as_it_was_or_as_it_is_to_be(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.tools.killed", "one", tmp_path], check=True, capture_output=True, text=True)
    killed.prepare(tmp_path / "before")
    before, after = tree(tmp_path / "before"), tree(tmp_path / f"{int(done.stdout)}/workspace")
    half_written = 0
    for number in range(1, int(done.stdout)):
        workspace = tmp_path / f"{number}/workspace"
        half_written += tree(workspace) not in (before, after)
        take_back_unfinished(tmp_path / f"{number}/patches")
        assert tree(workspace) in (before, after)
        assert not list((tmp_path / f"{number}/patches").iterdir())
    assert half_written


def test_what_was_changed_since_a_kill_is_left_alone(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.tools.killed", "several", tmp_path], check=True, capture_output=True, text=True)
    for number in range(1, int(done.stdout)):
        workspace = tmp_path / f"{number}/workspace"
        for name in ("a", "gone", "link", "made/deep/c", "d/b"):
            (workspace / name).unlink(missing_ok=True)
            (workspace / name).parent.mkdir(parents=True, exist_ok=True)
            (workspace / name).write_text("somebody's")
        take_back_unfinished(tmp_path / f"{number}/patches")
        assert contents(workspace) == {**dict.fromkeys(("a", "gone", "link", "made/deep/c", "d/b"), b"somebody's"), "same": b"old same\n"}


def test_a_note_that_cannot_be_read_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, data in (("1.note", b"\x00"), ("2.done", b""), ("3.draft", b"half")):
        (tmp_path / name).write_bytes(data)
    take_back_unfinished(tmp_path)
    assert caplog.text.count("could not be taken back") == 2
    assert sorted(os.listdir(tmp_path)) == ["1.note", "2.done"]
