import json
import logging
import os
from pathlib import Path

import pytest

from tools import ToolContext, ToolError, ToolResult
from tools._skills import CATALOGUE_BYTES, FOLDERS, LONGEST_DESCRIPTION, MAX_FILE, MOST_FILES, MOST_SKILLS, catalogue, find
from tools.skill import TOOL


def write(workspace: Path, folder: str, name: str = "pdf", description: str = "Reads PDFs.", text: str = "Use pdftotext.") -> Path:
    """Makes a skill in this folder of the workspace, and gives its SKILL.md."""
    file = workspace / folder / "SKILL.md"
    file.parent.mkdir(parents=True)
    file.write_text(f"---\nname: {name}\ndescription: {description}\n---\n\n{text}\n")
    return file


async def skill(context: ToolContext, name: str) -> ToolResult:
    return await TOOL.run(TOOL.parse(json.dumps({"name": name})), context)


@pytest.mark.parametrize("folder", FOLDERS)
async def test_a_skill_is_given_with_its_folder_and_files(context: ToolContext, workspace: Path, folder: str) -> None:
    write(workspace, f"{folder}/pdf")
    (workspace / folder / "pdf" / "scripts").mkdir()
    for name in ("scripts/b.py", "scripts/a.py", "reference.md", "scripts/SKILL.md"):
        (workspace / folder / "pdf" / name).touch()
    result = await skill(context, "pdf")
    assert result.content == (
        f"Skill pdf, in the folder {folder}/pdf; paths in it are relative to that.\nIts other files:\n- reference.md\n"
        "- scripts/SKILL.md\n- scripts/a.py\n- scripts/b.py\n\nUse pdftotext."
    )
    assert result.details == {"skill": "pdf", "folder": f"{folder}/pdf"}


async def test_an_unknown_name_is_told_those_there_are(context: ToolContext, workspace: Path) -> None:
    with pytest.raises(ToolError, match=r"no skill 'pdf'; this workspace has none"):
        await skill(context, "pdf")
    write(workspace, ".agents/skills/pdf")
    write(workspace, ".claude/skills/doc", "doc")
    for name in ("../pdf", "PDF", "", ".", "pdf\0", "x" * 1000):
        with pytest.raises(ToolError, match=r"there are doc, pdf\.$"):
            await skill(context, name)


def test_the_first_of_two_with_a_name_counts_and_the_other_is_logged(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(workspace, ".claude/skills/one", description="second")
    write(workspace, ".opencode/skill/two", description="first")
    assert [found.description for found in find(workspace).values()] == ["first"]
    assert "the skill .claude/skills/one/SKILL.md is left out: its name 'pdf' is that of" in caplog.text


def test_skills_in_folders_of_skills_are_found_and_those_in_a_skill_are_not(workspace: Path) -> None:
    write(workspace, ".claude/skills/group/sub/deep", "deep")
    write(workspace, ".claude/skills/one", "one")
    write(workspace, ".claude/skills/one/inner", "inner")
    write(workspace, ".claude/skills/a/b/c/d", "too-deep")
    write(workspace, "skills/other", "other")
    (workspace / ".claude/skills/SKILL.md").write_text("---\nname: root\ndescription: x\n---\n")
    assert sorted(find(workspace)) == ["deep", "one"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"Just a text.", "does not begin with"),
        (b"---\nname: x\n---\n", "has no description"),
        (b"---\ndescription: x\n---\n", "has no name"),
        (b"---\nname: [x]\ndescription: x\n---\n", "has no name"),
        (b"---\nname: ../x\ndescription: x\n---\n", "name '../x' is none"),
        (b"---\nname: a/b\ndescription: x\n---\n", "name 'a/b' is none"),
        (b"---\nname: a..b\ndescription: x\n---\n", "name 'a..b' is none"),
        (b'---\nname: "a\\u0007b"\ndescription: x\n---\n', "is none"),
        (b"---\nname: " + b"x" * 65 + b"\ndescription: x\n---\n", "is none"),
        (b"---\nname: x\ndescription: 'x\n---\n", "quotes have no end"),
        (b"---\nname: x\ndescription: caf\xe9\n---\n", "no text in UTF-8"),
        (b"---\nname: x\ndescription: x\n---\n" + b"x" * MAX_FILE, f"more than {MAX_FILE} bytes"),
    ],
)
def test_a_bad_skill_is_left_out_with_a_line_in_the_log(
    workspace: Path, caplog: pytest.LogCaptureFixture, content: bytes, why: str
) -> None:
    write(workspace, ".claude/skills/bad").write_bytes(content)
    write(workspace, ".claude/skills/good", "good")
    assert list(find(workspace)) == ["good"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("the skill .claude/skills/bad/SKILL.md is left out: ")
    assert why in record.getMessage()


@pytest.mark.parametrize("link", [".claude", ".claude/skills", ".claude/skills/pdf", ".claude/skills/pdf/SKILL.md"])
async def test_links_out_of_the_workspace_are_refused(
    context: ToolContext, workspace: Path, caplog: pytest.LogCaptureFixture, link: str
) -> None:
    outside = workspace.parent / "outside"
    write(outside, ".claude/skills/pdf")
    (workspace / link).parent.mkdir(parents=True, exist_ok=True)
    (workspace / link).symlink_to(outside / link)
    with pytest.raises(ToolError, match="has none"):
        await skill(context, "pdf")
    assert "leads out of the workspace" in caplog.text


async def test_links_within_the_workspace_are_followed_and_the_same_skill_counts_once(
    context: ToolContext, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(workspace, ".agents/skills/pdf")
    (workspace / ".claude").mkdir()
    (workspace / ".claude/skills").symlink_to("../.agents/skills")
    write(workspace, "docs", "doc", text="From the docs.").rename(workspace / "docs/doc.md")
    (workspace / ".agents/skills/doc").mkdir()
    (workspace / ".agents/skills/doc/SKILL.md").symlink_to("../../../docs/doc.md")
    assert sorted(find(workspace)) == ["doc", "pdf"]
    assert "in the folder .agents/skills/doc;" in (await skill(context, "doc")).content
    assert (await skill(context, "doc")).content.endswith("From the docs.")
    assert caplog.text == ""


def test_what_is_no_file_or_has_no_end_holds_nothing_up(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("pipe", "folder", "loop", "dangling"):
        (workspace / ".claude/skills" / name).mkdir(parents=True)
    os.mkfifo(workspace / ".claude/skills/pipe/SKILL.md")
    (workspace / ".claude/skills/folder/SKILL.md").mkdir()
    (workspace / ".claude/skills/loop/SKILL.md").symlink_to("SKILL.md")
    (workspace / ".claude/skills/dangling/SKILL.md").symlink_to("nowhere")
    (workspace / ".claude/skills/around").symlink_to("..")
    (workspace / ".claude/skills/itself").symlink_to("itself")
    write(workspace, ".claude/skills/good", "good")
    assert list(find(workspace)) == ["good"]
    assert "pipe/SKILL.md is left out: it is no regular file" in caplog.text


async def test_files_are_named_up_to_a_bound(context: ToolContext, workspace: Path) -> None:
    folder = write(workspace, ".claude/skills/pdf").parent
    for number in range(MOST_FILES + 5):
        (folder / f"{number:04}").touch()
    (folder / "out").symlink_to("/")
    content = (await skill(context, "pdf")).content
    assert content.count("\n- 0") == MOST_FILES
    assert "\n- … and more\n" in content
    assert content.endswith("Use pdftotext.")


# The catalogue


def test_the_catalogue_names_each_skill_on_a_line(workspace: Path) -> None:
    assert catalogue(find(workspace)) is None
    write(workspace, ".claude/skills/b", "b", '"over\\n\\tlines \\x1b[31m"')
    write(workspace, ".claude/skills/a", "a", "y" * (LONGEST_DESCRIPTION + 10))
    assert catalogue(find(workspace)) == (
        "Skills of this workspace; call `skill` with a name before you do what one is for:\n"
        f"- a: {'y' * (LONGEST_DESCRIPTION - 1)}…\n- b: over lines [31m"
    )


def test_the_catalogue_is_bounded_in_number_and_bytes(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(MOST_SKILLS + 2):
        write(workspace, f".claude/skills/s{number:03}", f"s{number:03}", "é" * 500)
    found = find(workspace)
    assert len(found) == MOST_SKILLS
    assert caplog.text.count(f"there are {MOST_SKILLS} before it") == 2
    told = catalogue(found)
    assert told is not None
    assert len(told.encode()) < CATALOGUE_BYTES + 200
    shown = told.count("\n- s")
    assert told.endswith(f"\n({MOST_SKILLS - shown} more are not shown.)")
