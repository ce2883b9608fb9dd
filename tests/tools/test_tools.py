import inspect

import msgspec
import pytest

from tools import Tool, load

TOOLS = load()

MAX_SCHEMAS = 12 * 1024
"""Bytes of all tools as they are sent with each request of a model."""


def test_every_file_is_a_tool() -> None:
    writing = {"apply_patch", "bash", "bash_kill", "edit", "task", "write"}
    reading = {"bash_output", "glob", "grep", "list", "question", "read", "skill", "todowrite", "webfetch"}
    assert set(TOOLS) == writing | reading
    assert {tool.name for tool in TOOLS.values() if tool.read_only} == reading


@pytest.mark.parametrize("tool", TOOLS.values(), ids=list(TOOLS))
def test_every_argument_is_described(tool: Tool) -> None:
    assert tool.description
    assert tool.parameters["type"] == "object"
    assert all(argument["description"] for argument in tool.parameters["properties"].values())
    assert "$ref" not in msgspec.json.encode(tool.parameters).decode()
    assert inspect.iscoroutinefunction(tool.run)


def test_all_descriptions_together_are_short() -> None:
    sent = [{"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in TOOLS.values()]
    assert len(msgspec.json.encode(sent)) < MAX_SCHEMAS
