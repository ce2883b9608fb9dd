"""The `skill` tool: the instructions of a skill, and the files that come with it."""

import asyncio
from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolError, ToolResult
from tools._files import name_of, showable
from tools._skills import Skill, files_of, find, text_of


class Arguments(msgspec.Struct, frozen=True):
    name: Annotated[str, msgspec.Meta(description="As listed in the system prompt.")]


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    skills = await asyncio.to_thread(find, context.workspace)
    skill = skills.get(arguments.name)
    if skill is None:
        there = f"there are {', '.join(skills)}" if skills else "this workspace has none"
        raise ToolError(f"There is no skill {arguments.name[:80]!r}; {there}.")
    folder = name_of(skill.folder, context.workspace)
    try:
        content = await asyncio.to_thread(_shown, skill, folder)
    except (ValueError, OSError) as error:
        raise ToolError(f"The skill {skill.name} cannot be read: {error}.") from error
    return ToolResult(content, {"skill": skill.name, "folder": folder})


def _shown(skill: Skill, folder: str) -> str:
    files, is_more = files_of(skill)
    listed = [f"- {showable(name)}" for name in files] + (["- … and more"] if is_more else [])
    beside = ["Its other files:", *listed] if files else ["It has no other files."]
    return "\n".join([f"Skill {skill.name}, in the folder {folder}; paths in it are relative to that.", *beside, "", text_of(skill)])


TOOL = Tool(
    name="skill",
    description="Gives the instructions of one of this workspace's skills, and the files that come with it.",
    arguments=Arguments,
    run=run,
    read_only=True,
)
