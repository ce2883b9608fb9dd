import json
from typing import Any

import pytest

from tools import ToolContext, ToolError, ToolResult
from tools.todowrite import LONGEST_TODO, MAX_TODOS, TOOL


async def write(context: ToolContext, *todos: dict[str, Any]) -> ToolResult:
    return await TOOL.run(TOOL.parse(json.dumps({"todos": todos})), context)


def todo(status: str = "pending", **more: Any) -> dict[str, Any]:
    return {"content": "Do it", "status": status, "priority": "high", **more}


async def test_the_list_is_told_shortly_and_goes_whole_into_the_log(context: ToolContext) -> None:
    todos = [todo("completed"), todo("in_progress", priority="low"), todo(), todo(), todo("cancelled")]
    result = await write(context, *todos)
    assert result == ToolResult("5 todos: 1 in progress, 2 pending, 1 completed, 1 cancelled.", {"todos": todos})
    assert (await write(context, todo("completed"))).content == "1 todo: 1 completed."
    assert await write(context) == ToolResult("The list is empty.", {"todos": []})


async def test_a_priority_may_be_left_out_and_other_fields_are_passed_over(context: ToolContext) -> None:
    result = await write(context, {"content": "x", "status": "pending", "id": "1"})
    assert result.details == {"todos": [{"content": "x", "status": "pending", "priority": "medium"}]}


@pytest.mark.parametrize(
    "todos",
    [
        [todo("done")],
        [todo(priority="urgent")],
        [todo(content="")],
        [todo(content="x" * (LONGEST_TODO + 1))],
        [todo(content=None)],
        [{"content": "x"}],
        ["x"],
        [todo()] * (MAX_TODOS + 1),
        "x",
        None,
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_list_of_todos_is_refused(todos: Any) -> None:
    with pytest.raises(ToolError, match="Invalid arguments for todowrite"):
        TOOL.parse(json.dumps({"todos": todos}))
