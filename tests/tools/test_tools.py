import inspect
import json
from typing import Annotated

import msgspec
import pytest

from tools import Tool, ToolError, load
from tools._schema import schema_of

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


def test_upper_bounds_hold_and_are_not_sent() -> None:
    """llama.cpp refuses every request that has a tool with a text of up to 2,000 characters."""
    sent = json.dumps([tool.parameters for tool in TOOLS.values()])
    assert "maxLength" not in sent
    assert "maxItems" not in sent
    with pytest.raises(ToolError, match="length <= 2000"):
        TOOLS["question"].parse(json.dumps({"questions": [{"question": "x" * 2001}]}))


def test_an_argument_may_be_named_like_a_bound() -> None:
    class Arguments(msgspec.Struct):
        maxItems: Annotated[list[int], msgspec.Meta(max_length=3)]  # as it would be on the wire
        type: str

    assert set(schema_of(Arguments)["properties"]) == {"maxItems", "type"}


@pytest.mark.parametrize(
    ("tool", "arguments", "nulls"),
    [
        ("bash", '"command": "true"', '"timeout": null, "workdir": null, "background": null'),
        ("read", '"filePath": "a"', '"offset": null, "limit": null'),
        ("todowrite", '"todos": [{"content": "a", "status": "pending"}]', '"no_such": null'),
    ],
)
def test_null_stands_for_what_is_left_out(tool: str, arguments: str, nulls: str) -> None:
    assert TOOLS[tool].parse(f"{{{arguments}, {nulls}}}") == TOOLS[tool].parse(f"{{{arguments}}}")


def test_null_stands_for_what_is_left_out_deeper_too() -> None:
    todos = TOOLS["todowrite"].parse('{"todos": [{"content": "a", "status": "pending", "priority": null}]}').todos
    assert todos[0].priority == "medium"
    with pytest.raises(ToolError, match="missing required field `content`"):
        TOOLS["todowrite"].parse('{"todos": [{"content": null, "status": "pending"}]}')


def test_all_descriptions_together_are_short() -> None:
    sent = [{"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in TOOLS.values()]
    assert len(msgspec.json.encode(sent)) < MAX_SCHEMAS
