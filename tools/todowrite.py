"""The `todowrite` tool: the list of what is to be done, kept by the model and shown to whoever follows."""

from collections import Counter
from typing import Annotated, Literal

import msgspec

from tools import Tool, ToolContext, ToolResult

MAX_TODOS = 200
LONGEST_TODO = 1_000
"""Entries of a list, and characters of one: a list of 200 KB is no list, and each is an event."""

STATUSES = ("in_progress", "pending", "completed", "cancelled")


class Todo(msgspec.Struct, frozen=True):
    content: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_TODO, description="What is to be done.")]
    status: Literal["pending", "in_progress", "completed", "cancelled"]
    priority: Literal["high", "medium", "low"] = "medium"


class Arguments(msgspec.Struct, frozen=True):
    todos: Annotated[list[Todo], msgspec.Meta(max_length=MAX_TODOS, description="The whole list; it replaces the one before.")]


async def run(arguments: Arguments, _: ToolContext) -> ToolResult:
    counts: Counter[str] = Counter(todo.status for todo in arguments.todos)
    told = ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in STATUSES if counts[status])
    number = f"{len(arguments.todos)} {'todo' if len(arguments.todos) == 1 else 'todos'}"
    content = f"{number}: {told}." if told else "The list is empty."
    return ToolResult(content, {"todos": msgspec.to_builtins(arguments.todos)})


TOOL = Tool(
    name="todowrite",
    description=(
        "Keeps your list of todos, for work of three steps or more. Write it when you begin, and again as soon as something is done "
        "or comes up; one is in progress at a time."
    ),
    arguments=Arguments,
    run=run,
    read_only=True,  # the list is what the log has of the result: made again after a crash, it is the same
)
