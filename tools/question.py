"""The `question` tool: asks the user, and waits for the answer."""

from typing import Annotated

import msgspec

from tools import Tool, ToolContext, ToolResult


class Option(msgspec.Struct, frozen=True):
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    description: str = ""


class Question(msgspec.Struct, frozen=True):
    question: Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)]
    header: Annotated[str, msgspec.Meta(max_length=100, description="A few words.")] = ""
    options: Annotated[list[Option], msgspec.Meta(max_length=20)] = []
    multiple: Annotated[bool, msgspec.Meta(description="More than one may be chosen.")] = False


class Arguments(msgspec.Struct, frozen=True):
    questions: Annotated[list[Question], msgspec.Meta(min_length=1, max_length=10, description="All you have.")]


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    answers = await context.ask([msgspec.to_builtins(question) for question in arguments.questions])
    lines = [
        f"- {question.question}\n  {', '.join(chosen) or '(no answer)'}"
        for question, chosen in zip(arguments.questions, answers, strict=True)
    ]
    return ToolResult("The user answered:\n" + "\n".join(lines), {"answers": answers})


TOOL = Tool(
    name="question",
    description="Asks the user, and waits for the answer. Only for what you cannot find out and must not assume. Answers may be free text.",
    arguments=Arguments,
    run=run,
    read_only=True,
)
