"""The `bash` tool: one command in the workspace, with its output as far as a model can use it."""

import asyncio
import os
import uuid
from pathlib import Path
from typing import Annotated, Any

import msgspec

from tools import CommandResult, Tool, ToolContext, ToolError, ToolResult
from tools._files import name_of
from tools._output import MAX_OUTPUT, shortened

DEFAULT_TIMEOUT_MS = 120_000
MAX_TIMEOUT_MS = 600_000


class Arguments(msgspec.Struct, frozen=True):
    command: Annotated[str, msgspec.Meta(description="Command or script for bash.")]
    timeout: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMEOUT_MS)] | None, msgspec.Meta(description="Milliseconds (default 120000).")
    ] = None
    workdir: Annotated[str | None, msgspec.Meta(description="Folder to run in (default: the workspace). Use it instead of cd.")] = None
    background: Annotated[
        bool, msgspec.Meta(description="Start it, for what goes on such as a server, and give its process id at once; no default timeout.")
    ] = False
    description: Annotated[str | None, msgspec.Meta(description="What the command is for, in a few words.")] = None


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    folder = context.resolve(arguments.workdir or ".")
    if not os.path.isdir(folder):
        raise ToolError(f"workdir {name_of(folder, context.workspace)} is not a folder.")
    if arguments.background:
        return await _start(arguments, folder, context)
    timeout_ms = arguments.timeout or DEFAULT_TIMEOUT_MS
    try:
        result = await context.run(arguments.command, cwd=folder, timeout=timeout_ms / 1000, limit=MAX_OUTPUT, live=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the command
        raise ToolError(f"The command could not be started: {error}") from error
    output, is_cut = shortened(result.output)
    file = result.output_file
    if is_cut and file is None:
        file = await asyncio.to_thread(_spill, context.spill_folder, result.output)
    is_truncated = result.truncated or is_cut
    details: dict[str, Any] = {
        "exitCode": result.exit_code,
        "signal": result.signal,
        "timedOut": result.timed_out,
        "truncated": is_truncated,
    }
    if file is not None:
        details["outputFile"] = str(file)
    notes = [_truncation(file)] if is_truncated else []
    notes += _ending(result, timeout_ms)
    content = "\n".join([output.removesuffix("\n") or "(no output)", *notes])
    return ToolResult(content, details, is_error=result.timed_out or result.exit_code is None)


async def _start(arguments: Arguments, folder: Path, context: ToolContext) -> ToolResult:
    timeout = arguments.timeout / 1000 if arguments.timeout is not None else None
    process_id = await context.background.start(arguments.command, cwd=folder, timeout=timeout)
    content = f"Started in the background: {process_id}. bash_output gives its output, bash_kill ends it."
    return ToolResult(content, {"processId": process_id, "background": True})


def _spill(folder: Path, output: str) -> Path | None:
    path = folder / f"bash-{uuid.uuid4().hex[:12]}.txt"
    try:
        path.write_text(output, encoding="utf-8", newline="")
    except OSError:  # a full disk: the command has run, its result is still worth giving
        return None
    return path


def _truncation(file: Path | None) -> str:
    whole = "and could not be kept whole" if file is None else f"the whole is in {file} (read or grep it)"
    return f"(The output was too long, its middle is left out; {whole}.)"


def _ending(result: CommandResult, timeout_ms: int) -> list[str]:
    if result.timed_out:
        return [f"(Timed out after {timeout_ms} ms: the command and its children were killed.)"]
    if result.signal is not None:
        return [f"(Killed by {result.signal}.)"]
    if result.exit_code is None:
        return ["(How the command ended is not known.)"]
    return [f"(Exit code {result.exit_code}.)"] if result.exit_code else []


TOOL = Tool(
    name="bash",
    description=(
        "Runs a bash command, without a terminal and without input, and gives its output and exit code. Each call is a new shell: "
        "variables and cd do not last. For files prefer read, edit, write, glob and grep. It is killed at its timeout (at most "
        "600000 ms), with all its children. Long output is cut in the middle and kept in a file. In the background it outlives the task."
    ),
    arguments=Arguments,
    run=run,
)
