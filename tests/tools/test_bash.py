import asyncio
import json
import os
from pathlib import Path

import pytest

from tools import MAX_BYTES, MAX_LINES, ToolContext, ToolError, ToolResult
from tools.bash import TOOL


async def bash(context: ToolContext, command: str, **arguments: object) -> ToolResult:
    return await TOOL.run(TOOL.parse(json.dumps({"command": command, **arguments})), context)


async def test_output_of_both_streams_is_given(context: ToolContext) -> None:
    result = await bash(context, "echo out; echo err >&2", description="Say two things")
    assert result == ToolResult("out\nerr", {"exitCode": 0, "signal": None, "timedOut": False, "truncated": False})


async def test_no_output_is_called_so(context: ToolContext) -> None:
    assert (await bash(context, "true")).content == "(no output)"
    assert (await bash(context, "false")).content == "(no output)\n(Exit code 1.)"


async def test_a_failing_command_is_an_ordinary_result(context: ToolContext) -> None:
    result = await bash(context, "echo no; exit 3")
    assert result.content == "no\n(Exit code 3.)"
    assert result.details["exitCode"] == 3
    assert not result.is_error


async def test_a_signal_is_an_error(context: ToolContext) -> None:
    result = await bash(context, "kill -TERM $$")
    assert result.content == "(no output)\n(Killed by SIGTERM.)"
    assert result.details["signal"] == "SIGTERM"
    assert result.is_error


async def test_a_timeout_is_an_error_that_keeps_the_output(context: ToolContext) -> None:
    result = await bash(context, "echo begun; sleep 60", timeout=500)
    assert result.content == "begun\n(Timed out after 500 ms: the command and its children were killed.)"
    assert result.details["timedOut"]
    assert result.is_error


@pytest.mark.parametrize("timeout", [0, 600_001])
async def test_timeouts_out_of_range_are_refused(context: ToolContext, timeout: int) -> None:
    with pytest.raises(ToolError, match=r"timeout"):
        await bash(context, "true", timeout=timeout)


async def test_the_command_runs_in_its_folder(context: ToolContext, workspace: Path) -> None:
    (workspace / "sub").mkdir()
    assert (await bash(context, "pwd")).content == str(workspace)
    assert (await bash(context, "pwd", workdir="sub")).content == str(workspace / "sub")


async def test_folders_outside_or_missing_are_refused(context: ToolContext) -> None:
    with pytest.raises(ToolError, match="outside"):
        await bash(context, "pwd", workdir="..")
    with pytest.raises(ToolError, match="workdir missing is not a folder"):
        await bash(context, "pwd", workdir="missing")


async def test_a_command_that_cannot_start_is_an_error(context: ToolContext) -> None:
    with pytest.raises(ToolError, match="could not be started"):
        await bash(context, "echo \0")


@pytest.mark.parametrize("command", ["seq 100000", "seq 3000"])
async def test_long_output_keeps_head_and_tail_and_the_whole_in_a_file(context: ToolContext, command: str) -> None:
    result = await bash(context, command + "; exit 1")
    lines = result.content.split("\n")
    assert lines[0] == "1"
    assert lines[-3] == command.split()[1]
    assert (
        lines[-2] == f"(The output was too long, its middle is left out; the whole is in {result.details['outputFile']} (read or grep it).)"
    )
    assert lines[-1] == "(Exit code 1.)"
    assert len(lines) <= MAX_LINES
    assert len(result.content.encode()) <= MAX_BYTES
    assert result.details["truncated"]
    assert Path(result.details["outputFile"]).read_text().count("\n") == int(command.split()[1])


async def test_2000_lines_or_less_are_whole(context: ToolContext) -> None:
    result = await bash(context, "seq 1990")
    assert not result.details["truncated"]
    assert result.content.endswith("1990")


async def test_output_that_is_not_text_is_shown_as_far_as_it_can_be(context: ToolContext) -> None:
    assert (await bash(context, r"printf 'caf\xe9'")).content == "caf\ufffd"


async def test_cancelling_stops_the_command(context: ToolContext, workspace: Path) -> None:
    os.mkfifo(workspace / "pipe")
    call = asyncio.create_task(bash(context, "echo $$ > pipe; sleep 60"))
    pid = int(await asyncio.to_thread((workspace / "pipe").read_text))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not Path(f"/proc/{pid}").exists()
