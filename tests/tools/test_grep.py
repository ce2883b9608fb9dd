import json
import os
import sys
from pathlib import Path

import pytest

from tools import MAX_BYTES, ToolContext, ToolError, ToolResult
from tools._files import HIDDEN
from tools.grep import TOOL


async def grep(context: ToolContext, pattern: str, **arguments: object) -> ToolResult:
    return await TOOL.run(TOOL.parse(json.dumps({"pattern": pattern, **arguments})), context)


async def test_matches_are_grouped_by_file_the_newest_first(context: ToolContext, workspace: Path) -> None:
    (workspace / "src").mkdir()
    (workspace / "old.py").write_text("hit 1\n\nhit 2\n")
    (workspace / "src" / "new.py").write_bytes(b"no\r\n  hit 3\r\n")
    os.utime(workspace / "old.py", (1_000_000, 1_000_000))
    result = await grep(context, r"hit \d$")
    assert result.content == "src/new.py:\n  2:   hit 3\n\nold.py:\n  1: hit 1\n  3: hit 2"
    assert result.details == {"count": 3, "truncated": False}


async def test_nothing_found_is_told(context: ToolContext) -> None:
    assert (await grep(context, "nothing")).content == "No match for nothing."


async def test_include_and_path_narrow_the_search(context: ToolContext, workspace: Path) -> None:
    for name in ("a.py", "src/b.ts", "src/deep/c.ts", "src/d.py"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("hit\n")
    assert (await grep(context, "hit", include="*.{py,md}", path="src")).content == "src/d.py:\n  1: hit"
    assert (await grep(context, "hit", include="src/*.ts")).content == "src/b.ts:\n  1: hit"
    assert (await grep(context, "hit", path=str(workspace / "src/deep/c.ts"))).content == "src/deep/c.ts:\n  1: hit"


async def test_ignored_files_are_left_out_and_hidden_ones_are_not(context: ToolContext, workspace: Path) -> None:
    for name in (".hidden", ".git/config", "node_modules/x/a.js", "b.log"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("hit\n")
    (workspace / ".gitignore").write_text("node_modules\n*.log\n")
    assert (await grep(context, "hit")).content == ".hidden:\n  1: hit"
    assert (await grep(context, "hit", include="*.log")).content == "No match for hit."
    assert (await grep(context, "hit", path="node_modules")).content == "node_modules/x/a.js:\n  1: hit"


async def test_what_is_half_written_is_left_out(context: ToolContext, workspace: Path) -> None:
    (workspace / "sub").mkdir()
    for name in (f"{HIDDEN}0123", f"sub/{HIDDEN}4567", "a.txt"):
        (workspace / name).write_text("hit\n")
    assert (await grep(context, "hit")).content == "a.txt:\n  1: hit"
    assert (await grep(context, "hit", path="sub")).content == "No match for hit."


async def test_spilled_output_can_be_searched(context: ToolContext) -> None:
    (context.spill_folder / "output.txt").write_text("miss\nhit\n")
    file = str(context.spill_folder / "output.txt")
    assert (await grep(context, "hit", path=file)).content == f"{file}:\n  2: hit"


@pytest.mark.parametrize("name", ["a:1:b.py", "a\n7:b.py", "-rf", " .py "])
async def test_strange_file_names_are_kept_apart_from_lines(context: ToolContext, workspace: Path, name: str) -> None:
    (workspace / name).write_text("x: 5:hit\n")
    assert (await grep(context, "hit")).content == f"{name}:\n  1: x: 5:hit"
    assert (await grep(context, "hit", path=name)).content == f"{name}:\n  1: x: 5:hit"


@pytest.mark.parametrize("pattern", ["--files", "-v", "->x"])
async def test_a_pattern_with_a_dash_is_not_an_option(context: ToolContext, workspace: Path, pattern: str) -> None:
    (workspace / "a").write_text("--files -v ->x\nother\n")
    assert (await grep(context, pattern)).content == "a:\n  1: --files -v ->x"


async def test_an_invalid_expression_is_an_error_with_its_reason(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("text\n")
    with pytest.raises(ToolError, match="unclosed group"):
        await grep(context, "f(")


async def test_at_most_100_matches_are_shown(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("hit\n" * 150)
    result = await grep(context, "hit")
    assert result.content.endswith("  100: hit\n\n(showing 100 of 150 matches, in the newest files; narrow the search to see others)")


async def test_a_file_with_very_many_matches_is_not_counted_to_its_end(context: ToolContext, workspace: Path) -> None:
    (workspace / "a").write_text("hit\n" * 5_000)
    assert "(showing 100 of 1000 or more matches" in (await grep(context, "hit")).content


async def test_long_lines_are_cut_and_the_result_fits(context: ToolContext, workspace: Path) -> None:
    (workspace / "min.js").write_text(("hit" + "x" * 5_000_000 + "\n") * 2)
    result = await grep(context, "hit")
    assert "omitted end of long line" in result.content
    assert len(result.content) < 5_000
    (workspace / "wide.txt").write_text(("hit" + "y" * 1_990 + "\n") * 100)
    result = await grep(context, "hit")
    assert len(result.content.encode()) <= MAX_BYTES
    assert "(showing 25 of 102 matches" in result.content


async def test_more_output_than_is_looked_at_is_told(context: ToolContext, workspace: Path) -> None:
    for n in range(3):
        (workspace / f"{n}.txt").write_text(("hit" + "y" * 1_900 + "\n") * 300)
    result = await grep(context, "hit")
    assert "(There was too much output to look at all of it.)" in result.content
    assert all((workspace / line.rstrip(":")).exists() for line in result.content.split("\n") if line.endswith(".txt:"))


async def test_binary_files_do_not_disturb_other_matches(context: ToolContext, workspace: Path) -> None:
    for name in ("a.bin", "b.bin", "c.bin"):
        (workspace / name).write_bytes(b"hit\n" + b"x" * 200_000 + b"\n\0hit\n")
    (workspace / "z.txt").write_text("hit\n")
    content = (await grep(context, "hit")).content
    assert "z.txt:\n  1: hit" in content
    assert "WARNING" not in content
    (workspace / "d.bin").write_bytes(b"\0hit\n")
    assert (await grep(context, "hit", path="d.bin")).content == "Only binary files match."


async def test_an_incomplete_search_says_so(context: ToolContext, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "a").write_text("hit\n")
    fake = tmp_path / "rg"
    fake.write_text(f'#!/bin/sh\n{Path(sys.executable).parent}/rg "$@"\nexit 2\n')  # as with a file that cannot be read
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert (await grep(context, "hit")).content == "a:\n  1: hit\n\n(Some files could not be read: there may be more.)"
    assert (await grep(context, "miss")).content == "No match for miss.\n(Some files could not be read: there may be more.)"
