import inspect

import msgspec
import pytest

from tools import Tool, load

TOOLS = load()

MAX_SCHEMAS = 6 * 1024
"""Bytes of all tools as they are sent with each request of a model."""


def test_every_file_is_a_tool() -> None:
    assert sorted(TOOLS) == ["bash", "edit", "glob", "grep", "list", "question", "read", "write"]
    assert {tool.name for tool in TOOLS.values() if tool.read_only} == {"read", "glob", "grep", "list", "question"}


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
